"""The next token of each row, chosen where the logits are; the host learns of it when it asks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nsa_eval.engine._lines import Endings, Line
from nsa_eval.engine._sampling import draw_together


class Picked:
    """One token for each of some rows, on its way to the host."""

    def __init__(self, lines: Sequence[Line | None], tokens: Tensor, best: Tensor) -> None:
        """Args: of each row its line (None: nobody's), its token, and its largest logit."""
        self.lines = lines
        self.tokens = tokens
        """[n] int64, on the device."""
        both = torch.stack([tokens.double(), best.double()])
        if both.is_cuda:
            self._host = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
            self._host.copy_(both, non_blocking=True)
            self._arrived: torch.cuda.Event | None = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host, self._arrived = both, None

    def wait(self) -> list[tuple[Line, int, float]]:
        """Each line with its token and the largest logit, once they are here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        tokens, best = self._host.tolist()
        return [
            (line, int(token), top)
            for line, token, top in zip(self.lines, tokens, best, strict=True)
            if line is not None
        ]


def pick(logits: Tensor, lines: Sequence[Line | None], endings: Endings) -> Picked:
    """Choose the next token of every line.

    Args:
        logits: [n, V]; not changed.
        lines: Whose each row is.
        endings: Which tokens would end a line before it may end.
    """
    forbidden = [
        (row, token)
        for row, line in enumerate(lines)
        if line is not None
        for token in endings.forbidden(line)
    ]
    if forbidden:
        logits = logits.clone()
        index = torch.tensor(forbidden, device=logits.device)
        logits[index[:, 0], index[:, 1]] = -torch.inf
    best, tokens = logits.max(-1)
    drawn = [row for row, line in enumerate(lines) if line is not None and line.sampler is not None]
    samplers = [line.sampler for line in lines if line is not None and line.sampler is not None]
    if drawn and logits.is_cuda:
        rows = torch.tensor(drawn, device=logits.device)
        tokens[rows] = draw_together(logits if len(drawn) == len(logits) else logits[rows], samplers)
    elif drawn:
        for row, sampler in zip(drawn, samplers, strict=True):
            if bool(best[row].isfinite()):
                tokens[row] = sampler.draw(logits[row])
    for line in lines:
        if line is not None:
            line.picked += 1
    return Picked(lines, tokens, best)
