"""Scores as Markdown: below the papers' rows in the papers' columns, then what else there is."""
from collections.abc import Sequence
from typing import NamedTuple

from formats.scoring.markdown import markdown
from formats.scoring.papers import Table, beside, published

LEGEND = "Fractions are times 100, in parentheses their 95 % intervals."


class Part(NamedTuple):
    """One task of one benchmark."""
    benchmark: str                          # as papers.published takes it; "": none of those
    split: str
    task: str
    rows: int
    figures: dict[str, object]              # as figures.figures gives them
    details: str = ""                       # Markdown, as classes.markdown gives it
    remarks: Sequence[str] = ()             # such as counts.compare's


def report(model: str, parts: Sequence[Part], origin: str) -> str:
    """model: the name of its folder. origin: provenance.line's."""
    return "\n\n".join([*(section(model, part) for part in parts), LEGEND, origin]) + "\n"


def section(model: str, part: Part) -> str:
    paper = published(part.benchmark, part.split)
    if paper and part.task not in paper.tasks:
        paper = None
    title = " ".join(filter(None, (part.benchmark, part.split, part.task)))
    blocks = [f"## {title}, {part.rows:,} rows"]
    if paper:
        blocks.append(markdown(beside(model, part.figures, paper)))
    rest = [[name, figure, figure.n] for name, figure in part.figures.items()
            if paper is None or name not in paper.figures]
    if rest:
        blocks.append(markdown([["", f"**{model}**", "rows"], *rest]))
    return "\n\n".join([*blocks, *notes(part, paper), *([part.details] if part.details else [])])


def notes(part: Part, paper: Table | None) -> list[str]:
    """What is to be known of ours and of the papers' figures -> no block, or one."""
    lines = [*filter(None, part.remarks)]
    lines += [f"{name}: {figure.note}" for name, figure in part.figures.items() if figure.note]
    if paper:
        lines += [f"the papers' rows: {paper.source}", *paper.notes]
    return ["\n".join(f"- {line}" for line in lines)] if lines else []
