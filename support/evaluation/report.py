"""support/evaluation/report.py"""
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from data import encode_box, parse_boxes
from support.common import Box
from support.evaluation.benchmarks import table_name
from support.images.draw import contact_sheet, draw_boxes
from support.metrics.figures import Figure

# ---- classes -------------------------------------------------------------------------------------

NOTHING = "(nothing)"                   # an empty answer


def details_markdown(found: dict) -> str:
    """Of what `details` gives; "" of {}."""
    lines = []
    if parts := found.get("classes") or found.get("sizes"):
        lines += [f"| {'truth' if 'classes' in found else 'object'} | n | right (x 100) |",
                  "|---|---|---|"]
        lines += [f"| {markdown_cell(name) or NOTHING} | {part['n']} | {markdown_cell(Figure(**part))} |"
                  for name, part in parts.items()]
    if found.get("confusions"):
        lines += ["", "| truth | answered instead | rows |", "|---|---|---|"]
        lines += [f"| {' | '.join(markdown_cell(part) or NOTHING for part in row.values())} |"
                  for row in found["confusions"]]
    return "\n".join(lines)


# ---- papers --------------------------------------------------------------------------------------
# The tables of the papers, as papers.json beside this file holds them.

MEAN_OF = "mean of "


class PaperTable(NamedTuple):
    tasks: list[str]                        # of ours that it scores
    source: str                             # paper, number of the table, how it was read
    columns: list[str]                      # the paper's names
    figures: list[str]                      # ours, in the same order: see find_figure
    rows: dict[str, list[float | None]]     # model: what is printed; None for a dash
    notes: list[str]


def published_table(benchmark: str, split: str = "test") -> PaperTable | None:
    """ucm, sydney, rsicd, capera, rsvg (val too), dior-rsvg, rsvqa-lr, rsvqa-hr (test2 too)."""
    tables = json.loads(Path(__file__).with_name("papers.json").read_text(encoding="utf-8"))
    found = tables.get(table_name(benchmark, split))
    return PaperTable(**found) if found else None


def rows_with_ours(model: str, figures: dict, paper: PaperTable) -> list[list]:
    """The rows of a table: its head, the paper's, those of dashes alone left out, and ours."""
    printed = [[name, *(None if v is None else f"{v:.2f}" for v in values)]
               for name, values in paper.rows.items() if any(v is not None for v in values)]
    return [["model", *paper.columns], *printed,
            [f"**{model}**", *(find_figure(figures, name) for name in paper.figures)]]


def find_figure(figures: dict, name: str):
    """The figure of that name. `mean of a, b`: our mean of types where it is over just these, so
    with its interval, or else their plain mean."""
    if not name.startswith(MEAN_OF):
        return figures.get(name)
    wanted = name.removeprefix(MEAN_OF).split(", ")
    values = [figures[kind].value for kind in wanted if kind in figures]
    if len(values) < len(wanted) or None in values:
        return None
    mean, ours = sum(values) / len(values), figures.get("mean of types")
    return ours if ours and ours.value and math.isclose(ours.value, mean) else mean


# ---- markdown ------------------------------------------------------------------------------------
# Cells and tables of Markdown.
#
# A cell is a text, a whole number, a fraction, None for what could not be had, or a figure: value,
# low and high (the ends of its 95 % interval, or None), count, as formats/scoring/figures.py has it.

DASH = "–"


def markdown_table(rows: Sequence[Sequence]) -> str:
    """A table; the first row is its head."""
    lines = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def markdown_cell(content) -> str:
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
        return markdown_cell(content.value if content.value is None else round(content.value))
    ends = "" if content.low is None else f" ({100 * content.low:.1f}-{100 * content.high:.1f})"
    return markdown_cell(content.value) + ends


# ---- report --------------------------------------------------------------------------------------
# Scores as Markdown: below the papers' rows in the papers' columns, then what else there is.

REPORT_LEGEND = "Fractions are times 100, in parentheses their 95 % intervals."


class ReportPart(NamedTuple):
    """One task of one benchmark."""
    benchmark: str                          # as papers.published takes it; "": none of those
    split: str
    task: str
    rows: int
    figures: dict[str, object]              # as figures.figures gives them
    details: str = ""                       # Markdown, as classes.markdown gives it
    remarks: Sequence[str] = ()             # such as counts.compare's


def format_report(model: str, parts: Sequence[ReportPart], origin: str) -> str:
    """model: the name of its folder. origin: provenance.line's."""
    return "\n\n".join([*(format_section(model, part) for part in parts), REPORT_LEGEND, origin]) + "\n"


def format_section(model: str, part: ReportPart) -> str:
    paper = published_table(part.benchmark, part.split)
    if paper and part.task not in paper.tasks:
        paper = None
    title = " ".join(filter(None, (part.benchmark, part.split, part.task)))
    blocks = [f"## {title}, {part.rows:,} rows"]
    if paper:
        blocks.append(markdown_table(rows_with_ours(model, part.figures, paper)))
    rest = [[name, figure, figure.n] for name, figure in part.figures.items()
            if paper is None or name not in paper.figures]
    if rest:
        blocks.append(markdown_table([["", f"**{model}**", "rows"], *rest]))
    return "\n\n".join([*blocks, *format_notes(part, paper), *([part.details] if part.details else [])])


def format_notes(part: ReportPart, paper: PaperTable | None) -> list[str]:
    """What is to be known of ours and of the papers' figures -> no block, or one."""
    lines = [*filter(None, part.remarks)]
    lines += [f"{name}: {figure.note}" for name, figure in part.figures.items() if figure.note]
    if paper:
        lines += [f"the papers' rows: {paper.source}", *paper.notes]
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


# ---- picking -------------------------------------------------------------------------------------
# Which rows of an evaluation to look at.

def worst_and_random(rows: Sequence[dict], badness: Sequence[float], count: int, seed: int = 42
                     ) -> tuple[list[int], list[int]]:
    """-> numbers of rows, at most `count` of each, the worst first; no picture comes twice.

    Of rows equally bad the lot decides.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(rows)), len(rows))
    pictures: set[tuple] = set()
    worst = one_each(rows, sorted(order, key=lambda i: -badness[i]), count, pictures)
    return worst, one_each(rows, order, count, pictures)


def one_each(rows: Sequence[dict], order: Iterable[int], count: int, pictures: set[tuple]
             ) -> list[int]:
    """The first `count` in that order whose pictures are not in `pictures`, and puts them there."""
    chosen: list[int] = []
    for i in order:
        if len(chosen) < count and tuple(rows[i]["image"]) not in pictures:
            pictures.add(tuple(rows[i]["image"]))
            chosen.append(i)
    return chosen


# ---- sheet ---------------------------------------------------------------------------------------
# Rows of an evaluation on one sheet: the worst, and as many random ones.

TRUE_COLOR, ANSWER_COLOR = "#34c759", "#ff3b30"


SHEET_LEGEND = "Boxes: green true, red answered; small ones are drawn larger than they are."


CELL_WIDTH, CELL_EDGE, SHEET_COLUMNS = 400, 6, 4            # of a cell, around its picture; cells in a row


MIN_BOX_SIDE = 14                                  # pixels of the sheet that a box measures at least


def draw_sheet(rows: Sequence[dict], badness: Sequence[float], open_picture: Callable,
               count: int = 12, seed: int = 42) -> Image.Image:
    """rows: as in predictions.jsonl. open_picture(row) -> its first picture, RGB, of any size."""
    legend = SHEET_LEGEND if any(row["boxes"] for row in rows) else ""
    strips, chosen = [], worst_and_random(rows, badness, count, seed)
    for name, numbers in zip(("worst", "random"), chosen, strict=True):
        cells = [draw_row(rows[i], open_picture(rows[i])) for i in numbers]
        title = f"{len(cells)} of {len(rows):,} rows, {name}. {legend}"
        strips += [heading(title), contact_sheet(cells, CELL_WIDTH, SHEET_COLUMNS)] if cells else []
    page = Image.new("RGB", (CELL_WIDTH * SHEET_COLUMNS, sum(strip.height for strip in strips)), "white")
    for number, strip in enumerate(strips):
        page.paste(strip, (0, sum(above.height for above in strips[:number])))
    return page


def heading(text: str) -> Image.Image:
    image = Image.new("RGB", (CELL_WIDTH * SHEET_COLUMNS, 34), "#dddddd")
    ImageDraw.Draw(image).text((CELL_EDGE, 7), text, fill="black", font=ImageFont.load_default(16))
    return image


def draw_row(row: dict, picture: Image.Image) -> tuple[Image.Image, str]:
    """-> the picture in the size it is shown in, with its boxes, and what stands below it."""
    scale = (CELL_WIDTH - 2 * CELL_EDGE) / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
    said = parse_boxes(row["answer"], *row["size"], row.get("corner", False), row.get("pad", False))
    scale, true = max(picture.size) / max(row["size"]), ", ".join(row["references"])
    for box in row["boxes"]:
        true = true.replace("<bbox>", encode_box(box, *row["size"], row.get("pad", False)), 1)
    boxes = [*(visible_box(box, scale, 3, picture.size) for box in row["boxes"]),
             *(visible_box(box, scale, 0, picture.size) for _, box in said)]
    colors = [TRUE_COLOR] * len(row["boxes"]) + [ANSWER_COLOR] * len(said)
    drawn = draw_boxes(picture, [("", box) for box in boxes], colors) if boxes else picture
    return drawn, f"row {row['row']}: {row['question']}\n> {row['answer']}\ntrue: {true}"


def visible_box(box: Box, scale: float, margin: float, size: tuple[int, int]) -> Box:
    """In pixels of the sheet, so large that it can be seen; equal boxes lie one in the other."""
    sides = []
    for low, high, side in zip(box[:2], box[2:], size, strict=True):
        middle, half = (low + high) / 2 * scale, max(abs(high - low) * scale, MIN_BOX_SIDE) / 2 + margin
        sides.append((max(1, middle - half), min(side - 2, middle + half)))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]
