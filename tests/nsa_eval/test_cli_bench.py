"""`nsa-eval bench`: one message without a GPU, tables and a figure from a file."""

import subprocess
import sys

import pytest

from nsa_eval.cli import main
from nsa_kernels.bench import Measurement, Settings
from nsa_kernels.bench.counts import Ceilings, Work
from nsa_kernels.bench.result import Row
from nsa_kernels.bench.timing import Timing


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run a command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        return left.value.code or 0, output, errors

    return run


@pytest.fixture
def measurement():
    rows = [
        Row(
            part=part,
            length=length,
            batch=1,
            contender=contender,
            variant=variant,
            time=Timing(ms, ms, ms, 5),
            work=Work(1e12, 1e9),
            floor_ms=1.0,
        )
        for part in ("fwd", "bwd", "decode graph")
        for length in (8192, 65536)
        for contender, variant, ms in (("dense", "cudnn", length / 500), ("nsa", "triton", length / 2000))
    ]
    environment = {"device": "NVIDIA H200", "torch": "2.11", "triton": "3.6", "cuda": "13.0", "command": []}
    return Measurement(Settings(), environment, Ceilings(), rows, ["[bold]a note"], True)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
class TestWithoutGPU:
    def test_kernels_is_one_message_and_exit_code_2(self, cli, tmp_path):
        code, output, errors = cli("bench", "kernels", "-o", "kernels.json")
        assert (code, output) == (2, "")
        assert errors.startswith("error: the kernel benchmark needs a CUDA GPU with Triton: ")
        assert len(errors.splitlines()) == 1
        assert not list(tmp_path.iterdir())

    def test_no_model_library_is_imported_for_it(self):
        code = (
            "import sys\nfrom nsa_eval.cli import main\n"
            "import torch; torch.cuda.is_available = lambda: False\n"
            "try: main(['bench', 'kernels'])\n"
            "except SystemExit as left: print(left.code)\n"
            "heavy = [m for m in ('transformers', 'lm_eval', 'scipy', 'matplotlib') if m in sys.modules]\n"
            "print('heavy', heavy)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "2\nheavy []\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--lengths", "8q"), "expected lengths such as 8k,64k"),
            (("--parts", "fwd,all"), "parts must be out of fwd, bwd, decode, stages, got 'all'"),
            (("--stride", "7"), "stride must divide block"),
            (("--peak-tbs", "4"), "both ceilings have to be given"),
            (("--phi", "max"), "max"),
        ],
    )
    def test_a_wrong_option_is_named(self, cli, arguments, message):
        code, _, errors = cli("bench", "kernels", *arguments)
        assert code == 2
        assert message in errors


def test_the_defaults_are_those_of_the_settings(cli, monkeypatch, measurement):
    given = []

    def bench(settings, **_):
        given.append(settings)
        return measurement

    monkeypatch.setattr("nsa_eval.bench.bench_kernels", bench)
    assert cli("bench", "kernels")[0] == 0
    cli("bench", "kernels", "--head-dim", "192", "--separate-kv", "--phi", "mlp", "--window", "64")
    assert given[0] == Settings()
    changed = given[1]
    assert (changed.head_dim, changed.value_dim, changed.shared_kv, changed.phi) == (192, 192, False, "mlp")
    assert changed.geometry.window == 64


def test_a_measurement_is_printed_and_drawn(cli, monkeypatch, measurement, tmp_path):
    monkeypatch.setattr("nsa_eval.bench.bench_kernels", lambda settings, **_: measurement)
    code, output, _ = cli("bench", "kernels", "-o", "kernels.json")
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"kernels.png", "kernels.svg"}
    assert "figure: kernels.svg" in output


def test_show_prints_the_tables_of_a_file(cli, measurement, tmp_path):
    (tmp_path / "kernels.json").write_text(measurement.dumps())
    code, output, _ = cli("bench", "show", "kernels.json", "--figure", "figures/kernels")
    assert code == 0
    assert "Whole attention, batch 1" in output
    assert "note: [bold]a note" in output
    row = next(line for line in output.splitlines() if line.startswith("bwd") and "64k" in line)
    assert row.split()[-1] == "4.00"
    svg = (tmp_path / "figures" / "kernels.svg").read_text()
    assert all(
        text in svg for text in ("Forward", "Backward", "Decode, CUDA graph, batch 1", "4.00x", "NVIDIA H200")
    )


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"schema": "nsa-kernels-benchmark/1"}'])
def test_show_refuses_other_files(cli, tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    code, _, errors = cli("bench", "show", "other.json")
    assert code == 2
    assert "other.json: not a file of `nsa-eval bench kernels --output`" in errors


def test_stages_alone_have_no_figure(cli, measurement, tmp_path):
    measurement.rows = []
    (tmp_path / "kernels.json").write_text(measurement.dumps())
    code, _, errors = cli("bench", "show", "kernels.json", "--figure", "kernels")
    assert code == 2
    assert "measure the parts fwd, bwd or decode" in errors


@pytest.mark.parametrize("command", ["kernels", "show"])
def test_help_has_examples(cli, command):
    code, output, _ = cli("bench", command, "--help")
    assert code == 0
    assert f"nsa-eval bench {command}" in output.split("Examples:")[1]
