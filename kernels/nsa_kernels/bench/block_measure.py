"""The benchmark of lists: methods, masks and launch configurations, case by case."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nsa_kernels.ahead import compile_ahead
from nsa_kernels.bench import dense
from nsa_kernels.bench.block_rehearsal import rehearse
from nsa_kernels.bench.block_result import BlockMeasurement, BlockRow, BlockSettings
from nsa_kernels.bench.mask_cases import Attend, Inputs, Mask, contenders, masks
from nsa_kernels.bench.measure import require_gpu
from nsa_kernels.bench.method_cases import SIMULATED, Case, QuestSet, prefill_cases, quest_set
from nsa_kernels.bench.result import describe
from nsa_kernels.bench.settings import DTYPES, length_name
from nsa_kernels.bench.timing import Clock, Run, Timing
from nsa_kernels.bench.tune_cases import CANDIDATES, attend_with, tuned_lists

_FLEX_SECONDS = 20.0
"""Left at least when a case of FlexAttention begins, which may have to be compiled."""
_BUDGETS = (1024, 2560)
"""KV tokens of Quest."""
_PAGE = 16

Report = Callable[[BlockMeasurement], None]


def measure_blocks(
    settings: BlockSettings,
    *,
    device: torch.device | None = None,
    command: list[str] | None = None,
    report: Report | None = None,
) -> BlockMeasurement:
    """Runs the benchmark.

    Args:
        settings: What to measure.
        device: Default: the current CUDA device. A CPU serves tests of this code; its times mean nothing.
        command: Command line, for the record.
        report: Called after each case.

    Returns:
        All rows; what could not be measured is in its notes.

    Raises:
        BackendUnavailableError: No CUDA device or no Triton, and no other device was asked for.
    """
    if device is None:
        require_gpu()
        device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(settings.seed)
    with torch.no_grad():
        return _BlockBench(settings, device, command or [], report).run()


class _BlockBench:
    def __init__(
        self, settings: BlockSettings, device: torch.device, command: list[str], report: Report | None
    ) -> None:
        self.settings, self.device = settings, device
        self.clock = Clock(device)
        self.result = BlockMeasurement(settings, describe(device, command))
        self._report = report or (lambda _: None)
        self._end = time.monotonic() + settings.seconds

    def run(self) -> BlockMeasurement:
        s = self.settings
        parts = {"prefill": self._prefill, "decode": self._decode, "masks": self._masks, "tune": self._tune}
        if self.clock.cuda:
            self._try("compiling ahead", self._compile)
        for table in s.tables:
            # Long ones first: where time runs out, the cheap ones are left.
            for length in sorted(s.mask_lengths if table == "masks" else s.lengths, reverse=True):
                self._try(f"{table} {length_name(length)}", partial(parts[table], length))
        if "prefill" in s.tables:
            for name, why in SIMULATED.items():
                self.result.rows.append(
                    BlockRow(table="prefill", length=0, what=name, by="reference", note=why)
                )
        self._report(self.result)
        return self.result

    def _compile(self) -> None:
        with compile_ahead(self.device) as compiled:
            rehearse(self.settings, budgets=_BUDGETS, page=_PAGE)
        self._note(f"{compiled.kernels} kernels compiled ahead in {compiled.wall_seconds:.1f} s")

    # ---- methods

    def _prefill(self, length: int) -> None:
        q, k, v = self._sequence(length)
        first = [dense.heads_first(x) for x in (q, k, v)]
        pairs = length * (length + 1) // 2 * self.settings.heads
        where = f"prefill {length_name(length)}"
        for name, backend in dense.sdpa_backends(self.device).items():
            attend = dense.prefill(first[0], first[1], first[2], backend)
            add = partial(self._timed, "prefill", length, "dense", f"sdpa {name}", attend, pairs)
            self._try(f"{where} dense {name}", add)
        for case in prefill_cases(q, k, v, self.settings):
            self._try(f"{where} {case.name}", partial(self._chosen, length, case))

    def _chosen(self, length: int, case: Case) -> None:
        def both() -> Tensor:
            case.choose()
            return case.attend()

        choice, attention, total = self._turns([case.choose, case.attend])
        self._add(
            "prefill", length, case.name, case.by, attention, case.pairs(), run=both, choice=choice,
            total=total, note=case.note,
        )  # fmt: skip

    def _decode(self, length: int) -> None:
        for batch in self.settings.batches:
            where = f"decode {length_name(length)} rows {batch}"
            sets = [quest_set(length, batch, self.settings, self._draw, page=_PAGE) for _ in range(2)]
            self._try(f"{where} dense", partial(self._dense_decode, length, batch, sets))
            for budget in _BUDGETS:
                quests = [x.with_budget(budget) for x in sets]
                self._try(f"{where} quest {budget}", partial(self._quest, length, budget, quests))

    def _dense_decode(self, length: int, batch: int, sets: list[QuestSet]) -> None:
        given = [[dense.heads_first(t) for t in (x.q.unsqueeze(1), x.k, x.v)] for x in sets]
        pairs = batch * length * self.settings.heads
        for name, backend in dense.sdpa_backends(self.device).items():
            for form, make in (("", dense.decode), (" packed", dense.decode_packed)):

                def graph(make: Callable[..., Attend] = make, name: str = f"sdpa {name}{form}") -> None:
                    timing = self._graph([make(*x) for x in given])
                    self._add("decode", length, "dense", name, timing, pairs, batch=batch)

                with dense.only(backend):
                    self._try(f"decode {length_name(length)} rows {batch} dense {name}{form}", graph)

    def _quest(self, length: int, budget: int, sets: list[QuestSet]) -> None:
        choice = self._graph([x.choose for x in sets])
        for x in sets:
            x.choose()  # what a graph made belongs to it
        attention = self._graph([x.attend for x in sets])
        total = self._graph([x.both for x in sets])
        batch = sets[0].q.shape[0]
        pairs = batch * self.settings.heads * min(length, budget // _PAGE * _PAGE)
        self._add(
            "decode", length, f"quest {budget}", "pages", attention, pairs, batch=batch, choice=choice,
            total=total, run=sets[0].both,
        )  # fmt: skip

    # ---- masks

    def _masks(self, length: int) -> None:
        x = Inputs(*self._sequence(length), self.settings)
        for mask in masks(length, self.settings, self.device):
            flex = self._left() > _FLEX_SECONDS
            for name, make in contenders(mask, x, flex=flex).items():
                where = f"masks {length_name(length)} {mask.name} {name}"
                self._try(where, partial(self._masked, length, mask, name, make))
            if not flex:
                self._note(f"masks {length_name(length)} {mask.name} flex: left out, time was short")

    def _masked(self, length: int, mask: Mask, name: str, make: Callable[[], Attend]) -> None:
        # NSA has a mask of its own: it stands beside the causal ones without a rate.
        pairs = None if name == "nsa" else mask.pairs * self.settings.heads
        self._timed("masks", length, mask.name, name, make(), pairs)

    # ---- launch configurations

    def _tune(self, length: int) -> None:
        q, k, v = self._sequence(length)
        for tile, config in CANDIDATES:
            lists = tuned_lists(q, k, tile)
            name = " ".join(f"{key}={value}" for key, value in config.items())
            attend = partial(attend_with, q, k, v, lists, config)
            pairs = lists.pairs(length) * self.settings.heads // lists.counts.shape[1]
            add = partial(self._timed, "tune", length, f"tiles of {tile}", name, attend, pairs)
            self._try(f"tune {tile} {name}", add)

    # ---- what they share

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=DTYPES[self.settings.dtype])

    def _sequence(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        s = self.settings
        keys = (1, length, s.kv_heads, s.head_dim)
        return self._draw(1, length, s.heads, s.head_dim), self._draw(*keys), self._draw(*keys)

    def _turns(self, phases: list[Run]) -> list[Timing]:
        s = self.settings
        return self.clock.take_turns({"it": phases}, repeats=s.repeats, seconds=s.case_seconds)["it"]

    def _graph(self, calls: list[Run]) -> Timing:
        return self.clock.per_call(calls, graph=True, repeats=self.settings.repeats)

    def _timed(self, table: str, length: int, what: str, by: str, attend: Run, pairs: int | None) -> None:
        self._add(table, length, what, by, self._turns([attend])[0], pairs, run=attend)

    def _add(
        self,
        table: str,
        length: int,
        what: str,
        by: str,
        timing: Timing,
        pairs: int | None,
        *,
        run: Run | None = None,
        batch: int = 1,
        choice: Timing | None = None,
        total: Timing | None = None,
        note: str = "",
    ) -> None:
        """A row; `pairs` are query-key pairs over all heads and rows, `run` is what memory is measured of."""
        s = self.settings
        cells = length * s.heads * (batch if table == "decode" else length)
        self.result.rows.append(
            BlockRow(
                table=table,
                length=length,
                what=what,
                by=by,
                time=timing,
                choice=choice,
                total=total,
                flops=None if pairs is None else 4.0 * pairs * s.head_dim,
                density=None if pairs is None else pairs / cells,
                peak_bytes=None if run is None else self.clock.peak_bytes(run),
                batch=batch,
                note=note,
            )
        )
        self._report(self.result)

    def _note(self, text: str) -> None:
        self.result.notes.append(text)
        self._report(self.result)

    def _left(self) -> float:
        return self._end - time.monotonic()

    def _try(self, where: str, run: Callable[[], None]) -> None:
        """What can't run here, or no longer, is a note; the rest goes on."""
        if self._left() < 0:
            self._note(f"{where}: left out, {self.settings.seconds:g} s were over")
            return
        try:
            run()
        except Exception as error:  # Triton's own errors have no common base but this
            line = (str(error).splitlines() or [""])[0][:300]
            self._note(f"{where}: not measured: {type(error).__name__}: {line}")
        else:
            return
        gc.collect()  # the frames that failed hold tensors
        if self.clock.cuda:
            torch.cuda.empty_cache()
