"""The kernel benchmark: its arithmetic, its file, its tables, and a whole run with a wall clock on a CPU."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from nsa_kernels import BlockGeometry
from nsa_kernels.bench import (
    Ceilings,
    Measurement,
    Settings,
    heading,
    measure,
    parse_counts,
    parse_lengths,
    require_gpu,
    sheets,
    to_text,
)
from nsa_kernels.bench.counts import Counts, Work, count_pairs
from nsa_kernels.bench.result import Row
from nsa_kernels.bench.timing import Clock, Timing
from nsa_kernels.types import BackendUnavailableError

SMALL = Settings(
    lengths=(32,),
    decode_lengths=(32,),
    decode_batches=(2,),
    heads=4,
    kv_heads=2,
    head_dim=16,
    value_dim=16,
    geometry=BlockGeometry(block=8, stride=4, select_block=8, select_count=3, window=12),
    dtype="float32",
    backend="torch",
    repeats=3,
)
CPU = torch.device("cpu")


def _row(part: str, contender: str, variant: str, ms: float, **kwargs) -> Row:
    defaults = {"length": 65536, "batch": 1, "work": Work(3.9e12, 4.3e9), "floor_ms": 5.0}
    time = Timing(ms, 0.9 * ms, 1.1 * ms, 20)
    return Row(part=part, contender=contender, variant=variant, time=time, **{**defaults, **kwargs})


@pytest.fixture
def canned() -> Measurement:
    environment = {"device": "NVIDIA H200", "torch": "2.11", "triton": "3.6", "cuda": "13.0", "command": []}
    rows = [
        _row("fwd", "dense", "flash", 180.0, peak_bytes=2**30),
        _row("fwd", "dense", "cudnn", 120.0, peak_bytes=2**31),
        _row("fwd", "nsa", "triton", 30.0, peak_bytes=3 * 2**30),
        _row("decode graph", "dense", "cudnn", 0.040, batch=16),
        _row("decode graph", "dense", "flash packed", 0.030, batch=16),
        _row("decode graph", "nsa", "triton", 0.010, batch=16, floor_ms=0.0027),
        _row("stage fwd", "window + forced blocks", "triton", 4.0, floor_ms=2.0),
        _row("stage bwd", "gates", "triton", 2.0, work=Work(1e9, 8.6e9), floor_ms=2.0),
    ]
    return Measurement(Settings(), environment, Ceilings(), rows, ["a note"], True)


class TestArithmetic:
    def test_pairs_are_those_of_the_definition(self) -> None:
        g, length = SMALL.geometry, 37
        pairs = count_pairs(length, SMALL)
        compressed = sum(1 for t in range(length) for i in range(length) if i * g.stride + g.block <= t + 1)
        window = sum(1 for t in range(length) for s in range(length) if t - g.window < s <= t)
        selected = 0
        for t in range(length):
            own = t // g.select_block
            blocks = sorted(range(own + 1))[: g.select_count - 1] if own >= g.select_count else range(own)
            selected += len({s for j in {*blocks, own} for s in range(j * 8, j * 8 + 8) if s <= t})
        forced = 0
        for t in range(length):
            own = t // g.select_block
            blocks = {0, max(0, own - 1), own}
            forced += len({s for j in blocks for s in range(j * 8, j * 8 + 8) if s <= t})
        assert (pairs.dense, pairs.compressed, pairs.window) == (37 * 38 // 2, compressed, window)
        assert (pairs.selected, pairs.forced) == (selected, forced)

    def test_the_paper_s_sizes_at_64k(self) -> None:
        """Floors of one H200 at 780 TFLOP/s, worked out by hand: N * N/16 / 2 pairs * 64 heads * 512."""
        counts, ceilings = Counts(65536, Settings()), Ceilings()
        stages = counts.fwd_stages()
        assert ceilings.floor_ms(stages["compressed attention"]) == pytest.approx(5.63, rel=0.01)
        assert ceilings.floor_ms(stages["scores + top-n"]) == pytest.approx(2.82, rel=0.01)
        both = stages["selected attention"] + stages["window + forced blocks"]
        assert ceilings.arithmetic_ms(both) == pytest.approx(2.7 + 1.41, rel=0.02)
        assert counts.dense("fwd").flops == pytest.approx(2 * 65536**2 / 2 * 64 * 256, rel=1e-4)
        assert counts.dense("bwd").flops == 2.5 * counts.dense("fwd").flops
        assert counts.dense("fwd+bwd").flops == 3.5 * counts.dense("fwd").flops

    def test_decode_reads_each_key_once(self) -> None:
        counts = Counts(65536, Settings())
        assert counts.dense_decode(1).bytes == pytest.approx(65536 * 4 * 256 * 2, rel=1e-3)
        assert counts.nsa_decode(1).bytes == pytest.approx((4095 + 1024 + 512) * 4 * 256 * 2, rel=0.01)
        assert Ceilings().floor_ms(counts.nsa_decode(1)) == pytest.approx(2.7e-3, rel=0.02)
        assert counts.nsa_decode(16).bytes == 16 * counts.nsa_decode(1).bytes

    def test_nsa_is_the_sum_of_its_stages(self) -> None:
        counts = Counts(8192, Settings())
        for part, stages in (("fwd", counts.fwd_stages()), ("bwd", counts.bwd_stages())):
            assert counts.nsa(part).flops == sum(work.flops for work in stages.values())
            assert counts.nsa(part).bytes < sum(work.bytes for work in stages.values())

    @pytest.mark.parametrize(("phi", "factor"), [("linear", 2 * 128), ("mlp", 2 * 64 + 2 * 64 / 32)])
    def test_learned_compression_costs_products(self, phi: str, factor: float) -> None:
        mean = Counts(8192, Settings()).fwd_stages()["compression"].flops
        learned = Counts(8192, Settings(phi=phi, phi_hidden=64)).fwd_stages()["compression"].flops
        assert learned == pytest.approx(mean * factor)

    def test_the_larger_of_the_two_times_is_the_floor(self) -> None:
        ceilings = Ceilings(tflops=1.0, tbs=2.0)
        assert ceilings.floor_ms(Work(3e9, 2e9)) == 3.0
        assert ceilings.floor_ms(Work(3e8, 2e9)) == 1.0

    def test_half_given_ceilings_are_refused(self) -> None:
        assert Ceilings.given(None, None) is None
        assert Ceilings.given(700.0, 4.0) == Ceilings(700.0, 4.0)
        for pair in ((700.0, None), (None, 4.0), (700.0, 0.0)):
            with pytest.raises(ValueError, match="both ceilings"):
                Ceilings.given(*pair)


class TestSettings:
    def test_lengths_and_counts_are_read(self) -> None:
        assert parse_lengths("8k, 64K,100,8k") == (8192, 65536, 100)
        assert parse_counts("1,16") == (1, 16)
        with pytest.raises(ValueError, match=r"8k,64k or 100.*got '8q'"):
            parse_lengths("8q")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"parts": ("fwd", "forward")}, "parts must be out of fwd, bwd, decode, stages, got 'forward'"),
            ({"phi": "max"}, "phi must be out of mean, linear, mlp"),
            ({"kv_heads": 3}, "64 is no multiple of 3"),
            ({"lengths": (16,)}, "at least one block of 32, got 16"),
            ({"decode_batches": ()}, "decode_batches must be one or more"),
            ({"tokens": -1}, "tokens must be 0"),
            ({"repeats": 0}, "repeats must be at least 1"),
        ],
    )
    def test_what_cannot_be_measured_is_refused(self, change: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Settings(**change)


class TestResult:
    def test_the_ratio_is_to_the_fastest_backend_of_sdpa(self, canned: Measurement) -> None:
        assert canned.ratio("fwd", 65536) == 4.0
        assert canned.ratio("decode graph", 65536, 16) == 4.0  # the packed form is no call of SDPA as it is
        assert canned.ratio("bwd", 65536) is None

    def test_a_file_holds_everything(self, canned: Measurement) -> None:
        data = json.loads(canned.dumps())
        assert data["schema"] == "nsa-kernels-benchmark/1"
        assert data["ratios"][0] == {"part": "fwd", "length": 65536, "batch": 1, "dense_over_nsa": 4.0}
        assert data["rows"][2]["tflops"] == pytest.approx(130.0)
        assert data["settings"]["geometry"]["window"] == 512
        assert {"environment", "ceilings", "notes", "complete"} <= set(data)
        again = Measurement.from_json(data)
        assert again.dumps() == canned.dumps()
        assert again.settings == canned.settings

    def test_another_file_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected schema nsa-kernels-benchmark/1, got None"):
            Measurement.from_json({"rows": []})

    def test_tables(self, canned: Measurement) -> None:
        attention, memory, decode, stages = sheets(canned)
        assert attention.rows == (
            ("fwd", "64k", "cudnn", "120.0", "108.0-132.0", "32", "30.0", "27.0-33.0", "130", "5.00", "4.00"),
        )
        assert memory.rows == (("fwd", "64k", "2,048", "3,072"),)
        assert decode.rows[0] == (
            "graph", "16", "64k", "cudnn", "40.0", "36.0-44.0", "10.0", "9.00-11.0", "2.70", "4.00",
        )  # fmt: skip
        assert [row[1] for row in stages.rows] == ["window + forced blocks", "gates"]
        assert [row[-2:] for row in stages.rows] == [("arithmetic", "2.0"), ("bytes", "1.0")]
        text = to_text(stages).splitlines()
        assert text[0] == "NSA's stages, batch 1"
        assert len({len(line) for line in text[3:]}) == 1
        assert "NVIDIA H200" in heading(canned)
        assert "780 TFLOP/s, 4.30 TB/s (given)" in heading(canned)

    def test_a_side_that_is_missing_is_a_dash(self, canned: Measurement) -> None:
        canned.rows = [row for row in canned.rows if row.contender != "nsa"]
        assert sheets(canned)[0].rows[0][-5:] == ("-", "-", "-", "-", "-")


class TestRun:
    def test_every_part_is_measured_and_reported_as_it_comes(self) -> None:
        seen: list[int] = []
        settings = replace(SMALL, parts=("fwd", "bwd", "decode"), phi="mlp", phi_hidden=8, shared_kv=False)
        result = measure(
            settings, device=CPU, ceilings=Ceilings(), report=lambda found: seen.append(len(found.rows))
        )
        assert result.complete
        assert {part for part, _, _ in result.situations()} == {
            "fwd", "bwd", "fwd+bwd", "decode graph", "decode eager",
        }  # fmt: skip
        assert all(result.ratio(*situation) for situation in result.situations())
        assert seen == sorted(seen)
        assert not [note for note in result.notes if "not measured" in note]

    def test_batches_fill_so_many_tokens(self) -> None:
        settings = replace(SMALL, parts=("fwd", "bwd"), lengths=(32, 48), tokens=100)
        result = measure(settings, device=CPU, ceilings=Ceilings())
        assert {(length, batch) for _, length, batch in result.situations()} == {(32, 3), (48, 2)}
        one = Counts(32, settings).nsa("fwd")
        assert [row.work for row in result.find("fwd", 32, "nsa", 3)] == [Work(3 * one.flops, 3 * one.bytes)]
        assert [row[1] for row in sheets(result)[0].rows[:2]] == ["3 x 32", "2 x 48"]

    def test_what_fails_is_a_note_and_the_rest_is_measured(self) -> None:
        settings = replace(SMALL, parts=("fwd", "bwd"), backend="none")
        result = measure(settings, device=CPU, ceilings=Ceilings())
        assert [row.contender for row in result.rows] == ["dense"] * 3
        assert "fwd 32 nsa none: not measured: ValueError: unknown backend 'none'" in result.notes[0]

    def test_ceilings_are_measured_if_not_given(self) -> None:
        ceilings = Clock(CPU).ceilings(torch.float32)
        assert ceilings.measured
        assert ceilings.tflops > 0
        assert ceilings.tbs > 0

    def test_phases_and_their_sum(self) -> None:
        runs: list[str] = []
        phases = [lambda: runs.append("forward"), lambda: runs.append("backward")]
        timings = Clock(CPU).take_turns({"x": phases}, repeats=4, seconds=60.0)["x"]
        assert [timing.runs for timing in timings] == [4, 4, 4]
        assert runs == ["forward", "backward"] * 9  # two warm the contender up, and one begins each turn
        assert timings[2].high >= timings[0].high

    def test_spread_is_of_the_runs(self) -> None:
        assert Timing.of([3.0, 1.0, 2.0]) == Timing(2.0, 1.0, 3.0, 3)
        assert Timing.of([float(x) for x in range(101)]) == Timing(50.0, 10.0, 90.0, 101)


class TestWithoutGPU:
    def test_it_says_what_is_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(BackendUnavailableError, match="needs a CUDA GPU with Triton"):
            require_gpu()
        with pytest.raises(BackendUnavailableError, match="needs a CUDA GPU with Triton"):
            measure(SMALL)

    def test_the_module_imports_nothing_but_torch(self) -> None:
        code = (
            "import sys, nsa_kernels.bench.__main__\n"
            "print([m for m in ('pydantic', 'typer', 'lm_eval', 'rich', 'matplotlib', 'transformers') "
            "if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"
