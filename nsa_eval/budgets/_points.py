"""One model on one task, or on its documents of one length: its score and what that took, on every axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nsa_eval.budgets._lines import Variant
from nsa_eval.budgets.cost_model import Shape, decode_reads, index_elements, index_flops, prefill_flops
from nsa_eval.material import Material, cost_figures
from nsa_eval.store import Cells, Cost
from nsa_reports import ShownScore

Source: TypeAlias = Literal["counted", "stated", "stated, at most"]
_WHOLE = 0.999
"""Share of the stated cells that were counted from which on nothing was shared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """Share of the cells of dense attention that are computed, and who says so."""

    value: float
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Figures of one model; None where there is no such figure."""

    label: str
    value: str
    """Of the swept parameter."""
    score: ShownScore
    prefill: Density | None
    decode: Density | None
    read: float | None
    """KV tokens that a decoded token attends to, a layer and head."""
    kept: float | None
    """KV tokens kept of the row that held most, a layer and head."""
    decode_ms: float | None
    """Of a token."""
    prefill_seconds: float | None
    """Of a response."""
    flops: float | None
    """Of reading a prompt, index included (the isoFLOPS axis)."""
    elements: float | None
    """That a decode step reads, index included (the isoCost axis)."""
    no_decode: bool = False
    """Nothing was decoded: a method of decode steps is the dense model here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What full attention at a density would cost."""

    density: float
    cost: float
    share: float
    """Of what it costs at density 1."""


def point_of(variant: Variant, value: str, score: ShownScore, cost: Cost | None, material: Material) -> Point:
    """Work out a model's figures."""
    model = material.models[variant.label]
    shape = Shape.of(material.fields(variant.label))
    cost = cost or Cost()
    figures = cost_figures(cost, model.conditions)
    timed = not variant.simulated
    return Point(
        label=variant.label,
        value=value,
        score=score,
        prefill=density_of(cost.prefill_stated, cost.prefill_counted),
        decode=density_of(cost.decode_stated, cost.decode_counted),
        read=_read(cost),
        kept=cost.kv_kept,
        decode_ms=figures.decode if timed else None,
        prefill_seconds=figures.prefill if timed else None,
        flops=_flops(shape, cost),
        elements=_elements(shape, cost),
        no_decode=cost.responses > 0 and not cost.decode_steps,
    )


def density_of(stated: Cells | None, counted: Cells | None) -> Density | None:
    """The density of what was read, counted where a run counted all of it.

    Where requests shared what they begin with, counts have it once, and what follows is sparser than a
    request by itself; then a declaration by which all heads read alike is exact, and is preferred to such a
    count.
    """
    if counted is not None and counted.density is not None:
        exact = stated is not None and stated.least == stated.read
        if not (exact and _shared(stated, counted)):
            return Density(value=counted.density, source="counted")
    if stated is None or stated.density is None:
        return None
    return Density(
        value=stated.density, source="stated" if stated.least == stated.read else "stated, at most"
    )


def levels_of(
    variant: Variant, cost: Cost | None, material: Material, densities: tuple[float, ...], axis: str
) -> tuple[Levels, ...]:
    """What a model of full attention would cost at densities; none where its shape isn't known.

    Args:
        variant: Of full attention.
        cost: What its answers took.
        material: The run.
        densities: From 1 down.
        axis: "flops" or "elements".
    """
    shape = Shape.of(material.fields(variant.label))
    if shape is None or cost is None:
        return ()
    of = _flops if axis == "flops" else _elements
    costs = [of(shape, _thinned(cost, density)) for density in densities]
    whole = of(shape, cost)
    return tuple(
        Levels(density=density, cost=one, share=one / whole)
        for density, one in zip(densities, costs, strict=True)
        if one is not None and whole
    )


def _shared(stated: Cells | None, counted: Cells) -> bool:
    """Whether counts have fewer cells than the texts by themselves."""
    return stated is not None and counted.dense < _WHOLE * stated.dense * counted.heads


def _read(cost: Cost) -> float | None:
    density = density_of(cost.decode_stated, cost.decode_counted)
    if density is None or cost.decode_stated is None or not cost.decode_steps:
        return cost.kv_read / cost.decode_steps if cost.decode_steps and cost.kv_read is not None else None
    return density.value * cost.decode_stated.dense / cost.decode_steps


def _flops(shape: Shape | None, cost: Cost) -> float | None:
    """FLOPs of an average prompt: the formula's L^2 is the mean of the lengths' squares."""
    density = density_of(cost.prefill_stated, cost.prefill_counted)
    stated = cost.prefill_stated
    if shape is None or density is None or stated is None or not cost.responses:
        return None
    cells = stated.dense / cost.responses
    tokens = _tokens(cost)
    squares = 2 * cells - tokens
    return prefill_flops(
        shape,
        tokens,
        density.value * squares / tokens**2,
        index=index_flops(shape, stated.index / cost.responses),
    )


def _tokens(cost: Cost) -> float:
    """Mean length of the texts that were read: a scored text's last token isn't."""
    scored = not cost.decode_steps and cost.kv_read is None
    read = cost.prompt_tokens + (cost.new_tokens - cost.responses if scored else 0)
    return max(1.0, read / cost.responses)


def _elements(shape: Shape | None, cost: Cost) -> float | None:
    density = density_of(cost.decode_stated, cost.decode_counted)
    stated, steps = cost.decode_stated, cost.decode_steps
    if shape is None or density is None or stated is None or not steps:
        return None
    return decode_reads(
        shape,
        stated.dense / steps,
        density.value * stated.part,
        index=index_elements(shape, stated.index / steps),
    )


def _thinned(cost: Cost, density: float) -> Cost:
    """The same texts at another density, without an index."""

    def thin(cells: Cells | None) -> Cells | None:
        if cells is None:
            return None
        read = round(cells.dense * density)
        return Cells(read=read, least=read, dense=cells.dense)

    changes: Mapping[str, Cells | None] = {
        "prefill_stated": thin(cost.prefill_stated),
        "decode_stated": thin(cost.decode_stated),
        "prefill_counted": None,
        "decode_counted": None,
    }
    return cost.model_copy(update=changes)
