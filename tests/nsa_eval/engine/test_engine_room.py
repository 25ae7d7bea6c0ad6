"""What packed slots hold in memory against what `Limits.cache_tokens` allows."""

import pytest

from nsa_eval.engine import Engine
from nsa_eval.engine._batching import Limits
from nsa_models.families import packed


def longest_blocks(monkeypatch):
    """Notes, at each step, tokens of distinct blocks that rows in slots keep alive, and of the tails."""
    seen = []
    step = packed._Slots.step

    def looking(self):
        blocks = {span.block for chain in self._chains if chain for span in chain}
        tokens = sum(block.k[0].shape[0] for block in blocks)
        seen.append(
            (tokens + len(self._chains) * self.room, tokens, sum(c is not None for c in self._chains))
        )
        return step(self)

    monkeypatch.setattr(packed._Slots, "step", looking)
    return seen


@pytest.mark.parametrize("case", ["prefixes", "survivors", "tails"])
def test_no_more_is_kept_than_the_cache_holds(tokenizer, toys, monkeypatch, case):
    monkeypatch.setattr(packed, "DEVICES", ("cuda", "cpu"))
    text = toys.make_text
    if case == "prefixes":  # each context is shared by two prompts
        asked = [(f"{text(c, 200)} {text(50 + q, 3)}", 8) for c in range(8) for q in range(3)]
        limits = Limits(rows=24, tokens=4096, cache_tokens=600, shortest=0.0)
    elif case == "survivors":  # one long reply among short ones keeps the whole forward's block
        asked = [(text(n, 100), 60 if n % 6 == 0 else 2) for n in range(36)]
        limits = Limits(rows=6, tokens=4096, cache_tokens=1400, shortest=0.0)
    else:  # tails of all slots are there at once
        asked = [(text(n, 300), 100) for n in range(6)]
        limits = Limits(rows=6, tokens=4096, cache_tokens=700, shortest=0.0)
    monkeypatch.setattr(Limits, "of", classmethod(lambda cls, *_, **__: limits))
    seen = longest_blocks(monkeypatch)
    requests = [
        toys.request_of("generate_until", (p, {"until": [], "max_gen_toks": b}), doc_id=n)
        for n, (p, b) in enumerate(asked)
    ]
    Engine(toys.make_model("llama"), tokenizer).generate_until(requests)
    print(case, limits.cache_tokens, max(seen))
    assert max(seen)[0] <= 1.1 * limits.cache_tokens
