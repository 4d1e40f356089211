"""The tables of the papers, as papers.json beside this file holds them."""
import json
import math
from pathlib import Path
from typing import NamedTuple

MEAN = "mean of "
SPLITS = {"test_phili": "test2"}        # RSVQA-HR: Philadelphia, the papers' test set 2


class Table(NamedTuple):
    tasks: list[str]                        # of ours that it scores
    source: str                             # paper, number of the table, how it was read
    columns: list[str]                      # the paper's names
    figures: list[str]                      # ours, in the same order: see find_figure
    rows: dict[str, list[float | None]]     # model: what is printed; None for a dash
    notes: list[str]


def published(benchmark: str, split: str = "test") -> Table | None:
    """ucm, sydney, rsicd, capera, rsvg (val too), dior-rsvg, rsvqa-lr, rsvqa-hr (test2 too)."""
    tables = json.loads(Path(__file__).with_name("papers.json").read_text(encoding="utf-8"))
    found = tables.get(name_of(benchmark, split))
    return Table(**found) if found else None


def name_of(benchmark: str, split: str) -> str:
    return f"{benchmark} {SPLITS.get(split, split)}"


def beside(model: str, figures: dict, paper: Table) -> list[list]:
    """The rows of a table: its head, the paper's, those of dashes alone left out, and ours."""
    printed = [[name, *(None if v is None else f"{v:.2f}" for v in values)]
               for name, values in paper.rows.items() if any(v is not None for v in values)]
    return [["model", *paper.columns], *printed,
            [f"**{model}**", *(find_figure(figures, name) for name in paper.figures)]]


def find_figure(figures: dict, name: str):
    """The figure of that name. `mean of a, b`: our mean of types where it is over just these, so
    with its interval, or else their plain mean."""
    if not name.startswith(MEAN):
        return figures.get(name)
    wanted = name.removeprefix(MEAN).split(", ")
    values = [figures[kind].value for kind in wanted if kind in figures]
    if len(values) < len(wanted) or None in values:
        return None
    mean, ours = sum(values) / len(values), figures.get("mean of types")
    return ours if ours and ours.value and math.isclose(ours.value, mean) else mean
