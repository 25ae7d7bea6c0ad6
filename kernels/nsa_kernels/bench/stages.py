"""The Triton stages one by one, each on the results of those before it.

A stage that this version doesn't have, or that fails, is skipped with a note;
the others are timed all the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nsa_kernels.bench.sparse import Attention
from nsa_kernels.types import Caches

WINDOW_AND_FORCED = "window + forced blocks"
MASKED = "masked attention"

Stage = tuple[str, str, Callable[[], object]]
"""fwd or bwd, name as in `counts`, what to time."""


class _Masked(NamedTuple):
    everything: bool
    """All blocks are chosen: compressed attention is in the launch, and nothing is ranked."""
    backward: bool
    """They have the backward as well."""


class _MissingError(Exception):
    """A stage before this one has no result."""


class _Results(dict[str, Any]):
    def __missing__(self, key: str) -> Any:  # noqa: ANN401
        raise _MissingError(key)


class Stages:
    """Calls of the stages for one sequence."""

    def __init__(self, attention: Attention) -> None:
        """Binds to the inputs; runs nothing."""
        self.inputs = attention
        self.notes: list[str] = []
        self._made = _Results()
        self.masked = self._masked()

    def __iter__(self) -> Iterator[Stage]:
        """The stages that can run, in the order of the computation."""
        for part, name, make in self._in_order():
            try:
                run = make()
                self._made[f"{part} {name}"] = run()
            except (ImportError, AttributeError) as error:
                self.notes.append(f"stage {part} {name}: not in this version ({error})")
            except _MissingError as error:
                self.notes.append(f"stage {part} {name}: skipped, it needs {error}")
            except Exception as error:  # Triton's own errors have no common base but this
                self.notes.append(
                    f"stage {part} {name}: failed: {type(error).__name__}: {_first_line(error)}"
                )
            else:
                yield part, name, run

    def _in_order(self) -> list[tuple[str, str, Callable[[], Callable[[], object]]]]:
        chosen: list[tuple[str, str, Callable[[], Callable[[], object]]]] = [
            ("fwd", "compressed attention", self._compressed),
            ("fwd", "scores + top-n", self._select),
        ]
        if self.masked is None:
            forward = [
                *chosen,
                ("fwd", WINDOW_AND_FORCED, self._window_and_forced),
                ("fwd", "selected attention", self._selected),
            ]
        else:
            forward = [*([] if self.masked.everything else chosen), ("fwd", MASKED, self._masked_forward)]
        if self.masked is None or not self.masked.backward:
            backward = [
                ("bwd", "gates", self._gates_backward),
                ("bwd", "compressed attention", self._compressed_backward),
                ("bwd", "selected attention", self._selected_backward),
                ("bwd", "window attention", self._window_backward),
            ]
        else:
            backward = [
                ("bwd", "queries, masked", self._masked_queries),
                ("bwd", "compressed keys, masked", self._masked_compressed),
                ("bwd", "keys, masked", self._masked_keys),
            ]
        return [
            ("fwd", "compression", self._compression),
            *forward,
            *backward,
            ("bwd", "compression", self._compression_backward),
        ]

    # ---- forward

    def _compression(self) -> Callable[[], object]:
        x = self.inputs

        def run() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                return x.phi_k(x.k), x.phi_v(x.v)

        return run

    def _compressed(self) -> Callable[[], object]:
        stage, (k, v) = _stage("prefill.compressed", "compressed_forward"), self._made["fwd compression"]
        return lambda: stage(self.inputs.q, k, v, self._grid())

    def _select(self) -> Callable[[], object]:
        stage, (k, _) = _stage("prefill.select", "select"), self._made["fwd compression"]
        _, lse = self._made["fwd compressed attention"][:2]
        return lambda: stage(self.inputs.q, k, lse, self._grid())

    def _window_and_forced(self) -> Callable[[], object]:
        stage, x = _stage("prefill.window_and_forced", "window_and_forced_forward"), self.inputs
        caches = Caches(x.k, x.v, x.k, x.v, x.k_win, x.v_win)  # the first two are not looked at
        return lambda: stage(x.q, caches, self._grid())

    def _selected(self, *, save: bool = False) -> Callable[[], Any]:
        """The other blocks, with the gates and the sum of the branches, which are fused into it."""
        stage, x = _stage("prefill.selected", "selected_forward"), self.inputs
        blocks, (o_forced, lse_forced) = (
            self._made["fwd scores + top-n"],
            self._made[f"fwd {WINDOW_AND_FORCED}"][1],
        )
        o_cmp, o_win = self._other_outputs()
        before = (x.q, x.k, x.v, blocks, x.gates, o_cmp, o_win, o_forced, lse_forced)
        return lambda: stage(*before, self._grid(), save=save)

    def _other_outputs(self) -> tuple[Tensor, Tensor]:
        if self.masked is not None:
            return self._kept().o_cmp, self._kept().o_win
        return self._made["fwd compressed attention"][0], self._made[f"fwd {WINDOW_AND_FORCED}"][0][0]

    def _selected_for_backward(self) -> tuple[Tensor, Tensor]:
        """The branch's own output and log-sum-exp, which only a training forward keeps."""
        if self.masked is not None:
            return self._kept().o_slc, self._kept().lse_slc
        if "selected for backward" not in self._made:
            self._made["selected for backward"] = self._selected(save=True)()[1:]
        own, lse = self._made["selected for backward"]
        return own, lse

    # ---- backward; dq is written by atomic additions and its content doesn't matter to the time

    def _gates_backward(self) -> Callable[[], object]:
        stage = _stage("backward.gates", "gate_backward")
        o_cmp, o_win = self._other_outputs()
        outs = (o_cmp, self._selected_for_backward()[0], o_win)
        return lambda: stage(self.inputs.dout, *outs, self._grid())

    def _compressed_backward(self) -> Callable[[], object]:
        stage, (k, v) = _stage("backward.compressed", "compressed_backward"), self._made["fwd compression"]
        return self._branch_backward(stage, self._made["fwd compressed attention"][1], k, v)

    def _window_backward(self) -> Callable[[], object]:
        stage = _stage("backward.window", "window_backward")
        lse = self._made[f"fwd {WINDOW_AND_FORCED}"][0][1] if self.masked is None else self._kept().lse_win
        return self._branch_backward(stage, lse, self.inputs.k_win, self.inputs.v_win)

    def _selected_backward(self) -> Callable[[], object]:
        stage = _stage("backward.selected", "selected_backward")
        blocks = self._made["fwd scores + top-n"]
        lse = self._selected_for_backward()[1]
        return self._branch_backward(stage, lse, self.inputs.k, self.inputs.v, blocks)

    def _branch_backward(
        self, stage: Callable[..., object], lse: Tensor, k: Tensor, v: Tensor, *blocks: Tensor
    ) -> Callable[[], object]:
        x, dgates, dq = self.inputs, self._made["bwd gates"], self._dq()
        return lambda: stage(x.q, k, v, x.dout, lse, x.gates, dgates, *blocks, dq, self._grid())

    def _compression_backward(self) -> Callable[[], object]:
        x = self.inputs
        tokens = [t.detach().requires_grad_() for t in (x.k, x.v)]
        phis = [phi.trainable() for phi in (x.phi_k, x.phi_v)]
        leaves = [*tokens, *phis[0].weights, *phis[1].weights]
        compressed = [phi(t) for phi, t in zip(phis, tokens, strict=True)]
        upstream = [torch.randn_like(y) for y in compressed]
        return lambda: torch.autograd.grad(compressed, leaves, upstream, retain_graph=True)

    # ---- the masked kernels

    def _masked(self) -> _Masked | None:
        """What of the call they take."""
        x, s = self.inputs, self.inputs.settings
        try:
            conditions = importlib.import_module("nsa_kernels.triton.masked.conditions")
        except ImportError:
            return None
        if not conditions.serves_forward(self._grid(), s.head_dim, s.value_dim, x.q.dtype):
            return None
        return _Masked(
            conditions.all_chosen(self._grid()), conditions.serves_backward(self._grid(), shared=s.shared_kv)
        )

    def _caches(self) -> Caches:
        x, (k_cmp, v_cmp) = self.inputs, self._made["fwd compression"]
        return Caches(k_cmp, v_cmp, x.k, x.v, x.k_win, x.v_win)

    def _masked_forward(self, *, save: bool = False) -> Callable[[], Any]:
        stage, x, caches = _stage("masked.forward", "masked_forward"), self.inputs, self._caches()
        before: tuple[Any, Any] = (None, None)
        if self.masked is not None and not self.masked.everything:
            before = self._made["fwd compressed attention"], self._made["fwd scores + top-n"]
        shared = x.settings.shared_kv
        return lambda: stage(x.q, caches, x.gates, *before, self._grid(), shared=shared, save=save)

    def _kept(self) -> Any:  # noqa: ANN401
        """What a training forward keeps."""
        if "kept" not in self._made:
            self._made["kept"] = self._masked_forward(save=True)()[1]
        return self._made["kept"]

    def _masked_queries(self) -> Callable[[], object]:
        stage, x, caches = _stage("masked.queries", "query_gradients"), self.inputs, self._caches()
        before = (x.q, caches, x.gates, x.dout, self._kept(), self._grid())
        return lambda: stage(*before, shared=x.settings.shared_kv)

    def _masked_compressed(self) -> Callable[[], object]:
        stage, x = _stage("masked.backward", "compressed_key_gradients"), self.inputs
        before = (x.q, self._caches(), x.dout, self._made["bwd queries, masked"], self._grid())
        return lambda: stage(*before)

    def _masked_keys(self) -> Callable[[], object]:
        stage, x = _stage("masked.backward", "token_key_gradients"), self.inputs
        rows = self._made["bwd queries, masked"]
        before = (x.q, self._caches(), x.dout, self._kept().members, rows, self._grid())
        return lambda: stage(*before, shared=x.settings.shared_kv)

    # ---- what they share

    def _grid(self) -> Any:  # noqa: ANN401
        if "grid" not in self._made:
            x, s = self.inputs, self.inputs.settings
            caches = Caches(x.k, x.v, x.k, x.v, x.k_win, x.v_win)  # only their sizes are looked at
            self._made["grid"] = _stage("function", "make_grid")(
                x.q, caches, geometry=s.geometry, start=0, lengths=None, scale=s.head_dim**-0.5
            )
        return self._made["grid"]

    def _dq(self) -> Tensor:
        if "dq" not in self._made:
            self._made["dq"] = torch.zeros_like(self.inputs.q, dtype=torch.float32)
        dq: Tensor = self._made["dq"]
        return dq


def _stage(module: str, function: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(f"nsa_kernels.triton.{module}"), function)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
