"""The table that architectures.py prints and writes."""

from __future__ import annotations

from typing import Any


def line_of(row: dict[str, Any]) -> str:
    """One row of the table, in Markdown."""
    difference = f"{row['difference']:.1e}" if "difference" in row else ""
    replies = f"{row['replies']} of {row['asked']}" if row.get("by_variant") else ""
    cached = {True: "yes", False: "no"}.get(row.get("cached"), "")  # type: ignore[call-overload]
    cells = (
        row["model_type"],
        row["class"],
        row["status"],
        row.get("family", ""),
        cached,
        difference if row.get("by_variant") else "",
        replies,
        row.get("generate", ""),
        row.get("note", ""),
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


_COLUMNS = (
    "model type",
    "class",
    "result",
    "family",
    "cached",
    "largest difference, nats",
    "replies equal",
    "generate()",
    "note",
)
HEAD = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|"


def counts_of(rows: list[dict[str, Any]]) -> dict[str, int]:
    """What the table comes to."""
    ran = [row for row in rows if row.get("by_variant")]
    return {
        "architectures": len(rows),
        "built": sum(row["status"] != "not built" for row in rows),
        "run": len(ran),
        "equal": sum(row["status"] == "equal" for row in rows),
        "different": sum(row["status"] == "differs" for row in rows),
        "run uncached": sum(row.get("cached") is False for row in ran),
        "refused": sum(row["status"] == "refused" for row in rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "not built": sum(row["status"] == "not built" for row in rows),
    }
