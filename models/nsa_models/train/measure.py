"""How fast a recipe trains at each of its lengths, before hours are given to it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from nsa_models.train.facts import FactWriter
from nsa_models.train.learner import Learner
from nsa_models.train.loop import open_corpus
from nsa_models.train.parallel import Group, joined
from nsa_models.train.recipe import Recipe

# Steps before the clock starts: kernels are compiled and tuned in the first, memory is taken in the second.
_WARM = 3


def measure(
    recipe: Recipe, *, seconds: float, log: Callable[[str], None] = print
) -> dict[tuple[int, int], float]:
    """Time real steps of every length and n of the recipe on batches of its own; nothing is written.

    Args:
        recipe: The run.
        seconds: Time for all of them together, the warm-up not counted.
        log: Called with a line for each, in the leading process.

    Returns:
        Seconds a step by (length, n).
    """
    with joined() as group:
        corpus = open_corpus(recipe, group)
        facts, learner = FactWriter(corpus, recipe.facts, recipe.seed), Learner(recipe, corpus, group)
        own = learner.config.nsa_select_count
        steps: dict[tuple[int, int], float] = {}  # of the whole recipe, at the most
        for stage in recipe.stages:
            for index in range(len(stage.lengths)):
                case = (stage.lengths[index], stage.select_count or own)
                here = len(range(index, stage.max_steps, len(stage.lengths)))
                steps[case] = steps.get(case, 0) + here
        taken: dict[tuple[int, int], float] = {}
        for length, count in steps:
            began = time.perf_counter()
            rows = recipe.batch_tokens // length
            ids, answers = facts.batch(stage=0, step=0, rows=group.share(rows), length=length)
            built = time.perf_counter() - began
            learner.select(count)
            began = time.perf_counter()
            for _ in range(_WARM):
                learner.learn(ids, answers, rows=rows, lr=recipe.optim.lr)
            warm = time.perf_counter() - began
            taken[length, count] = _seconds_a_step(
                lambda: learner.learn(ids, answers, rows=rows, lr=recipe.optim.lr),  # noqa: B023 - called at once
                seconds / len(steps),
                group,
            )
            if group.leads:
                each = taken[length, count]
                log(
                    f"length {length} n {count}: {1000 * each:.1f} ms a step of {rows * length} tokens, "
                    f"{rows * length / each / 1e3:.0f}k tokens/s{_memory(group)}; warm-up {warm:.1f} s; "
                    f"a batch takes a worker {1000 * built:.0f} ms"
                )
        if group.leads:
            total = sum(steps[case] * taken[case] for case in steps)
            count = sum(stage.max_steps for stage in recipe.stages)
            log(
                f"{recipe.name}: at the most {count} steps, {count * recipe.batch_tokens / 1e6:.0f}M tokens, "
                f"{total:.0f} s of steps at these speeds"
            )
    return taken


def _seconds_a_step(step: Callable[[], object], budget: float, group: Group) -> float:
    """Mean over as many steps as the budget has room for; the same number in all processes."""
    done, began = 0, time.perf_counter()
    while True:
        step()  # ends with its losses on the host, so nothing is left running
        done += 1
        elapsed = time.perf_counter() - began
        if group.any(elapsed >= budget):
            return elapsed / done


def _memory(group: Group) -> str:
    if group.device.type != "cuda":
        return ""
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f", {peak:.1f} GiB"
