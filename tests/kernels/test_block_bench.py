"""The benchmark of lists: its contenders compute the same; a whole run with a wall clock on a CPU."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from nsa_kernels.ahead import rehearsal
from nsa_kernels.bench.block_measure import measure_blocks
from nsa_kernels.bench.block_rehearsal import rehearse
from nsa_kernels.bench.block_result import TABLES, BlockMeasurement, BlockRow, BlockSettings
from nsa_kernels.bench.mask_cases import Inputs, by_flex, by_lists, contenders, flex_mask, masks
from nsa_kernels.bench.method_cases import InfLLM, prefill_cases
from nsa_kernels.bench.timing import Timing
from nsa_kernels.bench.tune_cases import CANDIDATES

CPU = torch.device("cpu")
SMALL = BlockSettings(
    lengths=(128,), mask_lengths=(96,), heads=4, kv_heads=2, head_dim=16, dtype="float32",
    densities=(0.5, 1.0), block=16, window=24, batches=(2,), case_seconds=0.0, repeats=1,
)  # fmt: skip


def sequence(length, settings=SMALL, seed=0):
    pick = torch.Generator().manual_seed(seed)

    def drawn(heads):
        return torch.randn(1, length, heads, settings.head_dim, generator=pick)

    return drawn(settings.heads), drawn(settings.kv_heads), drawn(settings.kv_heads)


def softmax(q, k, v, keep):
    scores = torch.einsum("bnhd,bshd->bhns", q, k.repeat_interleave(2, 2)) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~keep, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhns,bshd->bnhd", weights, v.repeat_interleave(2, 2))


@pytest.mark.parametrize("length", [96, 90])
def test_every_kernel_has_the_mask_that_it_is_named_for(length, monkeypatch):
    monkeypatch.setattr("nsa_kernels.bench.mask_cases.DOCUMENT", 20)
    x = Inputs(*sequence(length), SMALL)
    at = torch.arange(length)
    seen = []
    for mask in masks(length, SMALL, CPU):
        if mask.blocks is None:
            keep = (at >= mask.low[:, None]) & (at < mask.high[:, None])
        else:
            keep = mask.blocks.repeat_interleave(16, 0)[:length].repeat_interleave(16, 1)[:, :length]
        assert mask.pairs == int(keep.sum())
        expected = softmax(x.q, x.k, x.v, keep)
        torch.testing.assert_close(by_lists(mask, x)(), expected, rtol=1e-4, atol=1e-5)
        kept = torch.nn.functional.pad(keep, (0, -length % 16, 0, -length % 16))
        kept = kept.unflatten(1, (-1, 16)).unflatten(0, (-1, 16)).any(3).any(1)
        assert torch.equal(flex_mask(mask, 16, length).to_dense()[0, 0].bool(), kept)
        torch.testing.assert_close(by_flex(mask, x)().transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
        if "sdpa math" in contenders(mask, x, flex=False):
            out = contenders(mask, x, flex=False)["sdpa math"]()()
            torch.testing.assert_close(out.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
        seen.append(mask.name.split()[0])
    assert seen == ["full", "causal", "document", "sliding", "block-sparse", "block-sparse"]


def test_sliding_masks_and_documents_differ_from_causal_ones(monkeypatch):
    monkeypatch.setattr("nsa_kernels.bench.mask_cases.DOCUMENT", 20)
    pairs = {mask.name.split()[0]: mask.pairs for mask in masks(96, SMALL, CPU)}
    assert pairs["sliding"] == 24 * 25 // 2 + 72 * 24
    assert pairs["document"] < pairs["causal"] < pairs["full"] == pairs["block-sparse"]


def test_infllm_s_parts_are_a_window_and_what_was_retrieved(monkeypatch):
    sizes = {"_LOCAL": 128, "_EXEC": 128, "_BLOCK": 64, "_TOP": 2, "_INIT": 64}
    for name, size in sizes.items():
        monkeypatch.setattr(f"nsa_kernels.bench.method_cases.{name}", size)
    q, k, v = sequence(640)
    case = InfLLM(q, k, v)
    case.choose()
    at = torch.arange(640)
    window = (at[:, None] - at < 128) & (at <= at[:, None])
    far = case.far.seen(640)[0, 0].repeat_interleave(64, 0)
    assert not bool((far & window).any())
    blocks = far[:, ::64].sum(-1)
    assert blocks[:128].max() == 0
    assert blocks[-1] == 3  # the first one, and two that were retrieved
    torch.testing.assert_close(case.attend(), softmax(q, k, v, window | far), rtol=1e-4, atol=1e-5)
    assert case.pairs() == 4 * int((window | far).sum())


def test_a_run_on_a_cpu_fills_every_table(monkeypatch):
    monkeypatch.setattr("nsa_kernels.bench.mask_cases.DOCUMENT", 20)
    monkeypatch.setattr("nsa_kernels.bench.block_measure._BUDGETS", (64,))
    seen = []
    result = measure_blocks(SMALL, device=CPU, command=["bench"], report=lambda x: seen.append(len(x.rows)))
    assert result.notes == []
    assert seen[-1] == len(result.rows)
    assert {row.table for row in result.rows} == {"prefill", "decode", "masks"}
    named = {row.what.split()[0] for row in result.rows}
    assert {"dense", "block-sparse", "vertical-slash", "moba", "infllm", "quest", "h2o"} <= named
    quest = next(row for row in result.rows if row.what == "quest 64")
    assert quest.density == 64 / 128
    assert quest.choice is not None
    full = next(row for row in result.rows if (row.table, row.what, row.by) == ("masks", "full", "lists"))
    assert full.flops == 4 * 96 * 96 * 4 * 16
    simulated = [row for row in result.rows if row.by == "reference"]
    assert simulated
    assert all(row.time is None for row in simulated)
    text = result.text()
    assert text.count("quality only") == len(simulated)
    data = json.loads(result.dumps())
    assert data["settings"]["window"] == 24
    assert len(data["rows"]) == len(result.rows)


def test_kernels_are_known_before_they_are_launched(monkeypatch):
    """Every call goes through on tensors without memory, as on a GPU that need not be there."""
    import nsa_kernels.triton

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(multi_processor_count=132)
    )
    monkeypatch.setattr(nsa_kernels.triton, "unavailable", lambda: None)
    small = BlockSettings(
        lengths=(4096,), mask_lengths=(4096,), tables=TABLES, densities=(0.5,), batches=(2,)
    )
    # A device that no other test asks for: what is found out about one is remembered.
    with torch.no_grad(), rehearsal(torch.device("cuda", 7)) as launches:
        rehearse(small, budgets=(64,), page=16)
    names = {launch.kernel.fn.__name__ for launch in launches}
    assert names >= {
        *("block_prefill_kernel", "runs_kernel", "columns_kernel", "append_kernel", "page_scores_kernel"),
        *("best_pages_kernel", "page_partial_kernel", "merge_splits_kernel", "_window_forward_kernel"),
    }
    configured = [x.options for x in launches if x.kernel.fn.__name__ == "block_prefill_kernel"]
    for tile, config in CANDIDATES:
        wanted = {"BQ": tile, **{name: config[name] for name in ("BN", "TMA", "num_warps", "num_stages")}}
        assert any(wanted.items() <= options.items() for options in configured), (tile, config)


def test_what_would_begin_too_late_is_left_out_and_said():
    late = BlockSettings(lengths=(256,), mask_lengths=(96,), tables=("prefill", "masks"), seconds=-1.0)
    result = measure_blocks(late, device=CPU)
    assert [row for row in result.rows if row.time] == []
    assert all("left out" in note for note in result.notes)
    assert len(result.notes) == 2


def test_what_fails_is_a_note_and_the_rest_goes_on(monkeypatch):
    def broken(*given, **more):
        raise RuntimeError("no such kernel\nwith a second line")

    monkeypatch.setattr("nsa_kernels.bench.method_cases.moba", broken)
    result = measure_blocks(
        BlockSettings(**{**{n: getattr(SMALL, n) for n in BlockSettings.__slots__}, "tables": ("prefill",)}),
        device=CPU,
    )
    assert [note.split(": ", 1)[1] for note in result.notes] == [
        "not measured: RuntimeError: no such kernel"
    ] * 3
    assert any(row.what.startswith("infllm") for row in result.rows)


def test_ratios_are_to_the_fastest_dense_attention_of_the_same_situation():
    def row(what, by, ms, **more):
        return BlockRow(table="prefill", length=1024, what=what, by=by, time=Timing(ms, ms, ms, 3), **more)

    rows = [
        row("dense", "a", 9.0),
        row("dense", "b", 8.0),
        row("it", "lists", 1.0, total=Timing(2.0, 2, 2, 3)),
    ]
    environment = {"device": "d", "torch": "t", "triton": "r", "cuda": "c"}
    result = BlockMeasurement(BlockSettings(), environment, rows)
    assert result.dense(rows[2]) is rows[1]
    assert "4.00" in result.text()


@pytest.mark.parametrize(
    "wrong", [{"tables": ("bwd",)}, {"kv_heads": 5}, {"densities": (0.0,)}, {"block": 100}, {"dtype": "int8"}]
)
def test_what_cannot_be_measured_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BlockSettings(**wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_without_a_gpu_the_command_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "nsa_kernels.bench.blocks", "--tables", "masks"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr


def test_methods_with_everything_chosen_are_dense(monkeypatch):
    q, k, v = sequence(256)
    dense = softmax(q, k, v, torch.ones(256, 256, dtype=torch.bool).tril())
    for case in prefill_cases(q, k, v, SMALL):  # 256 tokens: all blocks, columns, chunks and the window
        if case.name.endswith("0.5 of all") or case.name.startswith("vertical-slash 30"):
            continue
        case.choose()
        torch.testing.assert_close(case.attend(), dense, rtol=1e-4, atol=1e-5)
