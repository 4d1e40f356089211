"""Cells and tables of Markdown.

A cell is a text, a whole number, a fraction, None for what could not be had, or a figure: value,
low and high (the ends of its 95 % interval, or None), count, as formats/scoring/figures.py has it.
"""
from collections.abc import Sequence
from numbers import Integral, Real

DASH = "–"


def markdown(rows: Sequence[Sequence]) -> str:
    """A table; the first row is its head."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def cell(content) -> str:
    """Fractions times 100: 78.41, of a figure 78.41 (77.9-78.9); counts as they are."""
    if content is None:
        return DASH
    if isinstance(content, str):
        return " ".join(content.split()).replace("|", r"\|")
    if isinstance(content, Integral):
        return f"{content:,}"
    if isinstance(content, Real):
        return f"{100 * content:.2f}"
    if content.count or content.value is None:
        return cell(content.value if content.value is None else round(content.value))
    ends = "" if content.low is None else f" ({100 * content.low:.1f}-{100 * content.high:.1f})"
    return cell(content.value) + ends
