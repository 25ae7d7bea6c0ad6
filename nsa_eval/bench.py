"""The kernel benchmark with its files: JSON as it runs, tables, and a figure at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nsa_eval._paths import user_path
from nsa_eval.errors import UserError
from nsa_eval.rundir import explain_os_error
from nsa_kernels.bench import Measurement, Settings, measure, require_gpu
from nsa_kernels.bench.counts import Ceilings
from nsa_kernels.bench.progress import Progress
from nsa_kernels.types import BackendUnavailableError

if TYPE_CHECKING:
    from nsa_reports.curves import Curve


def bench_kernels(
    settings: Settings | None = None,
    *,
    output: str | Path | None = None,
    ceilings: Ceilings | None = None,
    command: list[str] | None = None,
) -> Measurement:
    """Measures dense attention and NSA on this machine's GPU.

    Args:
        settings: What to measure; None = all of it at the paper's sizes.
        output: JSON file, written anew after each measurement, so that a stop loses nothing.
        ceilings: What the machine reaches at best; None = measure it.
        command: Command line, for the record.

    Returns:
        The measurement.

    Raises:
        UserError: No CUDA GPU or no Triton, or a file that can't be written.
    """
    try:
        require_gpu()
    except BackendUnavailableError as error:
        raise UserError(str(error)) from None
    target = None if output is None else user_path(output)
    try:
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        return measure(settings or Settings(), ceilings=ceilings, command=command, report=Progress(target))
    except OSError as error:
        raise explain_os_error(error, target or Path.cwd()) from None


def load_measurement(path: str | Path) -> Measurement:
    """Reads a benchmark's JSON file.

    Raises:
        UserError: It can't be read, or is something else.
    """
    source = user_path(path)
    try:
        return Measurement.from_json(json.loads(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{source}: can't be read ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{source}: not a file of `nsa-eval bench kernels --output` ({type(error).__name__}: {error})"
        ) from None


def draw(result: Measurement, stem: Path) -> tuple[Path, Path]:
    """Draws forward, backward and decode, dense and NSA, over the length.

    Args:
        result: A measurement, a part of one too.
        stem: Path of both files without their endings.

    Returns:
        The PNG and the SVG file.

    Raises:
        UserError: There is nothing to draw, or the files can't be written.
    """
    from nsa_reports.curves import CurvePanel, save_curves

    panels = [
        CurvePanel(title="Forward", x_label="Tokens", y_label="ms", curves=_curves(result, "fwd")),
        CurvePanel(title="Backward", x_label="Tokens", y_label="ms", curves=_curves(result, "bwd")),
    ]
    part = "decode graph"
    panels += [
        CurvePanel(
            title=f"Decode, CUDA graph, batch {batch}",
            x_label="Tokens in the cache",
            y_label="µs a step",
            curves=_curves(result, part, batch, factor=1000),
        )
        for batch in sorted({batch for found, _, batch in result.situations() if found == part})
    ]
    s, e = result.settings, result.environment
    caption = (
        f"{e['device']}, {s.dtype}, {s.heads} query and {s.kv_heads} KV heads of {s.head_dim}; "
        f"at NSA's points: dense / NSA"
    )
    try:
        return save_curves(panels, stem, caption=caption)
    except ValueError as error:
        raise UserError(f"{stem}: no figure: {error}; measure the parts fwd, bwd or decode") from None
    except OSError as error:
        raise explain_os_error(error, stem) from None


def _curves(result: Measurement, part: str, batch: int = 1, factor: float = 1.0) -> tuple[Curve, ...]:
    """A line for dense attention and one for NSA."""
    from nsa_reports.curves import Curve

    lengths = sorted(length for found, length, of in result.situations() if (found, of) == (part, batch))
    made = []
    for contender, name in (("dense", "dense (best of SDPA)"), ("nsa", "NSA")):
        rows = {length: result.best(part, length, contender, batch) for length in lengths}
        points = {length: row.time.median * factor for length, row in rows.items() if row and row.time}
        ratios = [result.ratio(part, length, batch) for length in points] if contender == "nsa" else []
        labels = [f"{ratio:.2f}x" if ratio else "" for ratio in ratios]
        made.append(Curve(name=name, points=tuple(points.items()), labels=tuple(labels)))
    return tuple(made)
