"""Building the documents of a BABILong task."""

from typing import Any

from nsa_tasks._errors import TaskParameterError
from nsa_tasks._random import Draw
from nsa_tasks._threads import each
from nsa_tasks._tokens import RequestTokens
from nsa_tasks.babilong.background import Background
from nsa_tasks.babilong.fill import SHORTEST, Filler
from nsa_tasks.babilong.parameters import PROMPT_ROOM, BabilongParams
from nsa_tasks.babilong.stories import Question, most_lines
from nsa_tasks.sampling import document_seed
from nsa_tasks.sizing import check_filled

_Job = tuple[int, int, Question, Filler]
"""Length, sample, and what they are made of."""


def documents(
    params: BabilongParams, questions: list[Question], background: Background, tokens: RequestTokens
) -> list[dict[str, Any]]:
    """Build every document, in the order length, sample; each with its context under `context`.

    A sample's draws depend on (seed, task, length, sample) alone, and which question it asks on (seed, task,
    length): a sample is the same in every run that holds it.

    Args:
        params: Resolved parameters.
        questions: All of the task's.
        background: Source of sentences.
        tokens: Counts the tokens of contexts.

    Raises:
        TaskParameterError: Fewer questions than samples fit a length.
    """
    jobs: list[_Job] = []
    for length in params.lengths:
        filler = Filler(tokens, length - PROMPT_ROOM)
        chosen = choose(params, questions, length, filler)
        jobs += [(length, sample, question, filler) for sample, question in enumerate(chosen)]

    def make(job: _Job) -> dict[str, Any]:
        length, sample, question, filler = job
        return document(params, length, sample, question, background, filler)

    return each(make, jobs) if tokens.for_threads else [make(job) for job in jobs]


def choose(params: BabilongParams, questions: list[Question], length: int, filler: Filler) -> list[Question]:
    """Draw a length's questions without repeats from those that fit it.

    Fit are questions of at most one line for 8 tokens, as officially, and never more facts than tokens; of
    equal questions one. Of those that fit, the official loader leaves out the last one; so does this.

    Raises:
        TaskParameterError: Fewer of them than samples.
    """
    most = most_lines(filler.budget)
    left = [q for q in questions if most is None or len(q.facts) + 1 <= most][:-1]
    draw = Draw(params.seed, params.task, length, "questions")
    found: dict[tuple[tuple[str, ...], str], Question] = {}
    while left and len(found) < params.samples:
        index = draw.below(len(left))
        left[index], left[-1] = left[-1], left[index]
        question = left.pop()
        if filler.fits(question.facts):
            found.setdefault((question.facts, question.text), question)
    if len(found) < params.samples:
        raise TaskParameterError(
            f"{params.task}: {params.samples} samples of length {length:,} are asked for, and "
            f"{len(found)} of the {len(questions):,} questions fit it: ask for fewer samples, or a greater "
            "length."
        )
    return list(found.values())


def document(
    params: BabilongParams,
    length: int,
    sample: int,
    question: Question,
    background: Background,
    filler: Filler,
) -> dict[str, Any]:
    """Build one sample.

    Args:
        params: Resolved parameters.
        length: The context's size by its name, in tokens.
        sample: Which of the length.
        question: What it asks, with its facts.
        background: Source of sentences.
        filler: Builds contexts of the length.

    Raises:
        TaskParameterError: The context can't be filled.
        TaskDataError: A background without sentences.
    """
    seed = document_seed(params.seed, params.task, length, sample)
    text = background.sentences(Draw(seed, "background"), filler.budget)
    filled = filler.fill(question.facts, text, Draw(seed, "slots"))
    name = f"{params.task}:L{length}:S{sample}"
    if filler.budget > 0:
        check_filled(name, tokens=filled.tokens, budget=filler.budget, piece=SHORTEST)
    return {
        "id": name,
        "context": filled.text,
        "qa": params.qa,
        "question": question.text,
        "target": question.target,
        "length": length,
        "sample": sample,
        "seed": seed,
        "line": question.line,
        "facts": len(question.facts),
        "sentences": filled.sentences,
        "context_tokens": filled.tokens,
        "support_depths": [filled.depths[place] for place in question.supports],
        "background": background.name,
    }
