"""The benchmark: dense attention and NSA side by side, part by part."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from nsa_kernels.bench import dense
from nsa_kernels.bench.counts import Ceilings, Counts, Work
from nsa_kernels.bench.result import Measurement, Row, describe
from nsa_kernels.bench.settings import Settings, length_name
from nsa_kernels.bench.sparse import Attention, DecodeCaches
from nsa_kernels.bench.stages import Stages
from nsa_kernels.bench.timing import Clock, Run, Timing
from nsa_kernels.types import BackendUnavailableError

OUTPACED = 1.5
"""An SDPA backend this much slower than the fastest in a first run is not timed further."""
L2_TIMES = 2.5
"""The input sets of decode together read this many times the L2 cache."""
MAX_SETS, MAX_SETS_BYTES = 64, 24 * 2**30

Report = Callable[[Measurement], None]


def require_gpu() -> None:
    """Says why the benchmark cannot run here, before anything is done.

    Raises:
        BackendUnavailableError: No CUDA device, or no Triton.
    """
    reason = None
    if importlib.util.find_spec("triton") is None:
        reason = "the triton package is not installed (pip install 'nsa-eval[gpu]')"
    elif not torch.cuda.is_available():
        reason = "torch sees no CUDA device"
    if reason:
        raise BackendUnavailableError(
            f"the kernel benchmark needs a CUDA GPU with Triton: {reason}. "
            f"On a CPU, benchmarks/attention_cpu.py compares the torch backend with dense attention."
        )


def measure(
    settings: Settings,
    *,
    device: torch.device | None = None,
    ceilings: Ceilings | None = None,
    command: list[str] | None = None,
    report: Report | None = None,
) -> Measurement:
    """Runs the benchmark.

    Args:
        settings: What to measure.
        device: Default: the current CUDA device. A CPU serves tests of this code; its times mean nothing.
        ceilings: What the machine reaches; None = measure it.
        command: Command line, for the record.
        report: Called whenever something new has been measured.

    Returns:
        All rows; what could not be measured is in its notes.

    Raises:
        BackendUnavailableError: No CUDA device or no Triton, and no other device was asked for.
    """
    if device is None:
        require_gpu()
        device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(settings.seed)
    return _Bench(settings, device, command or [], report).run(ceilings)


class _Bench:
    def __init__(
        self, settings: Settings, device: torch.device, command: list[str], report: Report | None
    ) -> None:
        self.settings = settings
        self.device = device
        self.clock = Clock(device)
        self.result = Measurement(settings, describe(device, command))
        self._report = report or (lambda _: None)

    def run(self, ceilings: Ceilings | None) -> Measurement:
        s = self.settings
        self.result.ceilings = ceilings or self.clock.ceilings(s.torch_dtype)
        self._report(self.result)
        for length in s.lengths if {"fwd", "bwd"} & {*s.parts} else ():
            with self._guarded(f"prefill {length_name(length)}"):
                self._prefill(length)
        for length in s.decode_lengths if "decode" in s.parts else ():
            for batch in s.decode_batches:
                with self._guarded(f"decode {length_name(length)} batch {batch}"):
                    self._decode(length, batch)
        for length in s.lengths if "stages" in s.parts else ():
            with self._guarded(f"stages {length_name(length)}"):
                self._stages(length)
        self.result.complete = True
        self._report(self.result)
        return self.result

    # ---- prefill and training

    def _prefill(self, length: int) -> None:
        s, counts = self.settings, Counts(length, self.settings)
        batch = s.batch(length)
        x = Attention(length, s, self.device)
        q, k, v = (dense.heads_first(t) for t in (x.q, x.k, x.v))
        dense_dout = dense.heads_first(x.dout)
        sides: dict[str, _Side] = {
            f"dense {name}": _Side(dense.prefill(q, k, v, backend), [q, k, v], dense_dout)
            for name, backend in dense.sdpa_backends(self.device).items()
        }
        sides[f"nsa {s.backend}"] = _Side(x.forward, x.leaves(), x.dout)
        work = {"dense": counts.dense, "nsa": counts.nsa}
        if "fwd" in s.parts:
            runs: dict[str, list[Run]] = {name: [side.infer] for name, side in sides.items()}
            for name, timings in self._turns(f"fwd {length_name(length)}", runs).items():
                contender, variant = name.split(" ", 1)
                peak = self.clock.peak_bytes(sides[name].infer)
                done = work[contender]("fwd") * batch
                self._add("fwd", length, contender, variant, timings[0], done, batch, peak)
        if "bwd" in s.parts:
            for side in sides.values():
                side.require_grad()
            trained: dict[str, list[Run]] = {
                name: [side.forward, side.backward] for name, side in sides.items()
            }
            for name, timings in self._turns(f"bwd {length_name(length)}", trained).items():
                contender, variant = name.split(" ", 1)
                peak = self.clock.peak_bytes(sides[name].train)
                for part, timing in (("bwd", timings[1]), ("fwd+bwd", timings[2])):
                    kept = peak if part == "fwd+bwd" else None
                    done = work[contender](part) * batch
                    self._add(part, length, contender, variant, timing, done, batch, kept)

    def _turns(self, where: str, runs: Mapping[str, list[Run]]) -> dict[str, list[Timing]]:
        """Times all that run at all; of the dense backends, those near the fastest of them."""
        first: dict[str, float] = {}
        for name, phases in runs.items():
            with self._guarded(f"{where} {name}"):
                self.clock.once(phases)  # compiles
                first[name] = self.clock.once(phases)
        fastest = min((ms for name, ms in first.items() if name.startswith("dense")), default=0.0)
        kept = {}
        for name, ms in first.items():
            if name.startswith("dense") and ms > OUTPACED * fastest:
                self.result.notes.append(f"{where} {name}: {ms:.3f} ms in a first run, not timed further")
            else:
                kept[name] = runs[name]
        s = self.settings
        return self.clock.take_turns(kept, repeats=s.repeats, seconds=s.seconds) if kept else {}

    # ---- decode

    def _decode(self, length: int, batch: int) -> None:
        counts = Counts(length, self.settings)
        sets = self._input_sets(length, batch, counts.nsa_decode(batch).bytes)
        dense_sets: list[list[Tensor]] = [
            [dense.heads_first(t) for t in (x.q.unsqueeze(1), x.k, x.v)] for x in sets
        ]
        calls: dict[str, tuple[SDPBackend | None, list[Run]]] = {}
        for name, sdpa in dense.sdpa_backends(self.device).items():
            calls[f"dense {name}"] = (sdpa, [dense.decode(q, k, v) for q, k, v in dense_sets])
            packed: list[Run] = [dense.decode_packed(q, k, v) for q, k, v in dense_sets]
            calls[f"dense {name} packed"] = (sdpa, packed)
        calls[f"nsa {self.settings.backend}"] = (None, [x.decode for x in sets])
        work = {"dense": counts.dense_decode(batch), "nsa": counts.nsa_decode(batch)}
        for mode in ("eager", "graph"):
            for name, (backend, each) in calls.items():
                where = f"decode {mode} {length_name(length)} batch {batch} {name}"
                with self._guarded(where), torch.no_grad(), dense.only(backend):
                    timing = self.clock.per_call(each, graph=mode == "graph", repeats=self.settings.repeats)
                    contender, variant = name.split(" ", 1)
                    self._add(f"decode {mode}", length, contender, variant, timing, work[contender], batch)
        self._note_packed(length, batch)

    def _input_sets(self, length: int, batch: int, read_bytes: float) -> list[DecodeCaches]:
        """So many sets that the least that a call reads of each, over all of them, outgrows the L2 cache."""
        l2 = self.result.environment.get("l2_bytes", 0)
        s = self.settings
        # The caches themselves, and a copy of them in the layout of dense attention.
        set_bytes = 2 * batch * length * s.kv_heads * (s.head_dim + s.value_dim) * s.torch_dtype.itemsize
        wanted = int(L2_TIMES * l2 / read_bytes) + 1
        count = max(2, min(wanted, MAX_SETS, MAX_SETS_BYTES // set_bytes))
        if count < wanted:
            self.result.notes.append(
                f"decode {length_name(length)} batch {batch}: {count} input sets, whose bytes may stay in L2"
            )
        return [DecodeCaches(length, batch, s, self.device) for _ in range(count)]

    def _note_packed(self, length: int, batch: int) -> None:
        for part in ("decode graph", "decode eager"):
            rows = self.result.find(part, length, "dense", batch)
            best = self.result.best(part, length, "dense", batch)
            if rows and best and rows[0] is not best and rows[0].time and best.time:
                self.result.notes.append(
                    f"{part} {length_name(length)} batch {batch}: dense {rows[0].variant} (the heads of a "
                    f"group as queries of one head) takes {1000 * rows[0].time.median:.1f} us, "
                    f"{best.variant} {1000 * best.time.median:.1f} us; ratios are to the latter"
                )

    # ---- stages

    def _stages(self, length: int) -> None:
        counts, s = Counts(length, self.settings), self.settings
        batch = s.batch(length)
        stages = Stages(Attention(length, s, self.device))
        work = {"fwd": counts.fwd_stages(), "bwd": counts.bwd_stages()}
        if stages.masked:
            work = {"fwd": counts.masked_fwd_stages(), "bwd": counts.masked_bwd_stages() | work["bwd"]}
        try:
            for part, name, run in stages:
                timing = self.clock.take_turns({name: [run]}, repeats=s.repeats, seconds=s.seconds)[name][0]
                done = work[part][name] * batch
                self._add(f"stage {part}", length, name, "triton", timing, done, batch)
        finally:
            self._note(*(f"{length_name(length)}: {note}" for note in stages.notes))

    # ---- what they share

    def _add(
        self,
        part: str,
        length: int,
        contender: str,
        variant: str,
        timing: Timing,
        work: Work,
        batch: int = 1,
        peak: int | None = None,
    ) -> None:
        self.result.rows.append(
            Row(
                part=part,
                length=length,
                batch=batch,
                contender=contender,
                variant=variant,
                time=timing,
                work=work,
                floor_ms=self.result.ceilings.floor_ms(work),
                peak_bytes=peak,
            )
        )
        self._report(self.result)

    def _note(self, *notes: str) -> None:
        self.result.notes.extend(notes)
        self._report(self.result)

    @contextmanager
    def _guarded(self, where: str) -> Iterator[None]:
        """What cannot run here is a note; the rest goes on."""
        try:
            yield
        except Exception as error:  # Triton's own errors have no common base but this
            line = (str(error).splitlines() or [""])[0][:300]
            self._note(f"{where}: not measured: {type(error).__name__}: {line}")
        finally:
            gc.collect()
            if self.clock.cuda:
                torch.cuda.empty_cache()


class _Side:
    """One contender of the prefill: inference, and the two phases of a training step."""

    def __init__(self, attend: dense.Attend, leaves: list[Tensor], dout: Tensor) -> None:
        self._attend, self._leaves, self._dout = attend, leaves, dout
        self._out: Tensor | None = None

    def require_grad(self) -> None:
        for leaf in self._leaves:
            leaf.requires_grad_()

    def infer(self) -> Tensor:
        with torch.no_grad():
            return self._attend()

    def forward(self) -> None:
        self._out = self._attend()

    def backward(self) -> tuple[Any, ...]:
        out, self._out = self._out, None
        assert out is not None
        return torch.autograd.grad(out, self._leaves, self._dout)

    def train(self) -> tuple[Any, ...]:
        self.forward()
        return self.backward()
