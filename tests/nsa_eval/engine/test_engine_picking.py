"""A row that nobody looks at must not change how others are sampled."""

import torch

from nsa_eval.engine import Engine
from nsa_eval.engine._lines import Endings, Line, ReplyRequest
from nsa_eval.engine._picking import pick
from nsa_eval.engine._prompts import Origin
from nsa_eval.engine._sampling import GenerationSettings, Sampling


def test_an_idle_row_without_finite_logits_changes_no_draw(tokenizer, toys):
    reader = Engine(toys.make_model("llama"), tokenizer)._answerer.loaded.reader()
    settings = GenerationSettings(budget=4, until=(), sampling=Sampling(temperature=2.0))
    logits = torch.randn(2, 384, generator=torch.Generator().manual_seed(0))

    def drawn(rows):
        line = Line.of(ReplyRequest.of(0, [1, 2], settings, 7, Origin("toy", 0), "a"))
        return pick(rows, [line, None], Endings(reader, tokenizer)).tokens[0].item()

    broken = logits.clone()
    broken[1] = torch.nan
    assert drawn(broken) == drawn(logits) != logits[0].argmax().item()
