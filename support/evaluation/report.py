"""The report of an evaluation: metrics.json, table.md below the papers' rows, a sheet of answers.

papers.json beside this file holds the tables of the papers, a key a split ("rsvqa-hr test2").
"""
import json
import math
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data import encode_box, load_images
from support.common import ABSENT, Box, UserError, read_json, without_surrogates, write_atomic
from support.evaluation.benchmarks import BENCHMARKS, published_key
from support.evaluation.runs import provenance_line
from support.images.draw import MARGIN, contact_sheet, draw_boxes
from support.metrics.boxes import predicted_boxes
from support.metrics.conversations import MIN_SENTENCE
from support.metrics.figures import Figure


@dataclass(frozen=True)
class TaskResult:
    """The scores of one task of one benchmark; asdict of it is an entry of metrics.json."""
    benchmark: str                          # "": none
    split: str
    task: str
    rows: int
    figures: dict[str, Figure]              # of metrics.figures.task_figures
    details: dict = field(default_factory=dict)         # of metrics.figures.task_details
    remarks: list[str] = field(default_factory=list)


def check_output(folder: Path) -> None:
    """Before a run: UserError where its report could not be written, or would write over a file
    that is none of eval.py's."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{existing}: a file, not a folder; --output_dir names the folder to write")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing}: cannot be written; --output_dir names another folder")
    metrics, table = folder / "metrics.json", folder / "table.md"
    own = metrics.is_file() and is_report(metrics)
    for file in (metrics, table):
        if file.exists() and not own:
            raise UserError(f"{file}: not written by eval.py; --output_dir names another folder")


def is_report(file: Path) -> bool:
    try:
        found = read_json(file)
    except UserError:
        return False
    return isinstance(found, dict) and {"provenance", "results"} <= found.keys()


def write_report(folder: Path | None, results: Sequence[TaskResult], record: dict) -> str:
    """Write metrics.json and table.md, unless the folder is None -> the table.

    record: where the answers came from. OSError: they cannot be written.
    """
    model = Path(record["model"]).resolve().name
    text = format_report(model, results, provenance_line(record))
    if folder is None:
        return text
    metrics = {"provenance": record, "results": [asdict(result) for result in results]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("metrics.json", json.dumps(metrics, indent=2) + "\n"),
                          ("table.md", text)):
        write_atomic(folder / name, partial(Path.write_text, data=content, encoding="utf-8"))
    return text


# ---- table.md ------------------------------------------------------------------------------------

LEGEND = "Fractions are times 100, in parentheses their 95 % intervals."
EMPTY = "(nothing)"                         # an empty answer
NO_ROWS = "no published row is known"


def format_report(model: str, results: Sequence[TaskResult], source: str) -> str:
    """model: the name of its folder. source: where the answers came from, in a line."""
    sections = [format_section(model, result) for result in results]
    text = "\n\n".join([*sections, LEGEND, source]) + "\n"
    return without_surrogates(text)


def format_section(model: str, result: TaskResult) -> str:
    """Our row below the papers' rows in the papers' columns, then all other figures."""
    paper = published_table(result.benchmark, result.split)
    if paper and result.task not in paper.tasks:
        paper = None
    title = " ".join(filter(None, (result.benchmark, result.split, result.task)))
    blocks = [f"## {title}, {result.rows:,} rows"]
    if paper:
        blocks.append(markdown_table(rows_with_ours(model, result.figures, paper)))
    others = [[name, figure, figure.n] for name, figure in result.figures.items()
              if paper is None or name not in paper.figures]
    if result.task == "conversation":
        blocks.append(markdown_table(conversation_table(model, result.figures)))
    elif others:
        blocks.append(markdown_table([["", f"**{model}**", "rows"], *others]))
    blocks += [format_notes(result, paper), format_details(result.details)]
    return "\n\n".join(filter(None, blocks))


SHOWN_OF_TURNS = ("exact match", "bleu1", "bleu4", "rouge_l", "cider", "Pr@0.5", "mean IoU",
                  "F1@0.5", "false boxes", "unparseable")
CONVERSATION_NOTE = (
    "every turn is asked after the true turns before it; exact match: truths without a box, "
    f"without case and outer periods; BLEU to CIDEr: truths of {MIN_SENTENCE} words or more; "
    f"Pr@0.5 and mean IoU: truths of one box, F1@0.5: of any; false boxes: truths {ABSENT!r}")


def conversation_table(model: str, figures: dict[str, Figure]) -> list[list]:
    """Figures of metrics.conversations -> a row for each kind of turn, the total last. A cell that
    rests on fewer rows than the kind has says on how many: `78.41 (77.9-78.9), n 9`."""
    kinds: dict[str, dict[str, Figure]] = {}
    for name, figure in figures.items():
        kind, _, measure = name.rpartition(": ")
        if kind:
            kinds.setdefault(kind, {})[measure] = figure
    measures = dict.fromkeys(name for own in kinds.values() for name in own)
    shown = [name for wanted in SHOWN_OF_TURNS for name in measures
             if name.partition(" upstream")[0] == wanted]
    table: list[list] = [[f"**{model}**", "rows", *shown]]
    for kind, own in kinds.items():
        forms = ("exact match", *(name for name in shown if name.startswith("F1")))
        rows = sum(own[name].n for name in forms if name in own)
        table.append([kind, rows, *(turns_cell(own.get(name), rows) for name in shown)])
    return table


def turns_cell(figure: Figure | None, rows: int) -> str:
    if figure is None:
        return ""
    return figure_cell(figure) + (f", n {figure.n:,}" if figure.n != rows else "")


RETESTED = "re-test of the released weights"        # a key of papers.json that is no benchmark's


def format_papers() -> str:
    """All published rows that are known, benchmark by benchmark; of RS-GPT4V, whose paper has other
    models on these data sets, there are none."""
    keys = [(f"{name} {split}", published_table(name, split))
            for name, benchmark in BENCHMARKS.items() for split in benchmark.splits]
    keys += [("RS-GPT4V, all of its subsets", None), (RETESTED, read_papers()[RETESTED])]
    return "\n\n".join(format_paper(title, paper) for title, paper in keys) + "\n"


def format_paper(title: str, paper: "PaperTable | None") -> str:
    blocks = [f"## {title}", NO_ROWS] if paper is None else [
        f"## {title}", markdown_table(published_rows(paper)),
        "\n".join(f"- {line}" for line in (paper.source, *paper.notes))]
    return "\n\n".join(blocks)


def format_notes(result: TaskResult, paper: "PaperTable | None") -> str:
    """A list of what a reader must know of our figures and of the papers'; "" where nothing."""
    lines = [*filter(None, result.remarks)]
    lines += [f"{name}: {figure.note}" for name, figure in result.figures.items() if figure.note]
    if paper:
        lines += [f"the papers' rows: {paper.source}", *paper.notes]
    elif result.benchmark:
        lines.append(NO_ROWS)
    return "\n".join(f"- {line}" for line in lines)


def format_details(details: dict) -> str:
    """The tables of metrics.figures.task_details; "" of {}."""
    tables = []
    for key, head in (("classes", "truth"), ("sizes", "object")):
        if details.get(key):
            rows = [[name.strip() or EMPTY, str(figure["n"]), Figure(**figure)]
                    for name, figure in details[key].items()]
            tables.append(markdown_table([[head, "n", "right (x 100)"], *rows]))
    if details.get("confusions"):
        rows = [[entry["truth"].strip() or EMPTY, entry["answer"].strip() or EMPTY, entry["count"]]
                for entry in details["confusions"]]
        tables.append(markdown_table([["truth", "answered instead", "rows"], *rows]))
    return "\n\n".join(tables)


# ---- the papers' tables --------------------------------------------------------------------------

MEAN_OF = "mean of "


@dataclass(frozen=True)
class PaperTable:
    tasks: list[str]                        # of ours that it scores
    source: str                             # paper, number of the table, how it was copied
    columns: list[str]                      # the paper's names
    figures: list[str]                      # ours, in the same order: see find_figure
    rows: dict[str, list[float | None]]     # model: its printed figures; None for a dash
    notes: list[str]


def read_papers() -> dict[str, PaperTable]:
    """Of ucm, sydney, rsicd, capera, rsvg (val too), dior-rsvg, rsvqa-lr, rsvqa-hr (test2 too), and
    what others measured with the released weights."""
    file = Path(__file__).with_name("papers.json")
    return {name: PaperTable(**table)
            for name, table in json.loads(file.read_text(encoding="utf-8")).items()}


def published_table(benchmark: str, split: str = "test") -> PaperTable | None:
    return read_papers().get(published_key(benchmark, split))


def rows_with_ours(model: str, figures: dict[str, Figure], paper: PaperTable) -> list[list]:
    """The rows of a table: the papers' and ours."""
    ours = [find_figure(figures, name) for name in paper.figures]
    return [*published_rows(paper), [f"**{model}**", *ours]]


def published_rows(paper: PaperTable) -> list[list]:
    """The head, and the rows without those that have no figure."""
    printed = [[name, *(None if value is None else f"{value:.2f}" for value in values)]
               for name, values in paper.rows.items() if any(v is not None for v in values)]
    return [["model", *paper.columns], *printed]


def find_figure(figures: dict[str, Figure], name: str) -> Figure | float | None:
    """The figure of that name.

    `mean of a, b` is our mean of types where it is over just these types, so that it has an
    interval; otherwise the plain mean of their figures.
    """
    if not name.startswith(MEAN_OF):
        return figures.get(name)
    types = name.removeprefix(MEAN_OF).split(", ")
    values = [figures[kind].value for kind in types if kind in figures]
    if len(values) < len(types) or None in values:
        return None
    mean, ours = sum(values) / len(values), figures.get("mean of types")
    return ours if ours and ours.value and math.isclose(ours.value, mean) else mean


# ---- Markdown ------------------------------------------------------------------------------------

DASH = "–"

Cell = str | int | float | Figure | None    # None: could not be computed


def markdown_table(rows: Sequence[Sequence[Cell]]) -> str:
    """A table; the first row is its head."""
    head, *body = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def markdown_cell(content: Cell) -> str:
    """Fractions times 100: 78.41, of a Figure 78.41 (77.9-78.9); whole numbers as they are."""
    if content is None:
        return DASH
    if isinstance(content, str):
        return " ".join(content.split()).replace("|", r"\|")
    if isinstance(content, Integral):
        return f"{content:,}"
    if isinstance(content, Real):
        return f"{100 * content:.2f}"
    return figure_cell(content)


def figure_cell(figure: Figure) -> str:
    if figure.value is None:
        return DASH
    if figure.count:
        return markdown_cell(round(figure.value))
    if figure.low is None:
        return markdown_cell(figure.value)
    return f"{markdown_cell(figure.value)} ({100 * figure.low:.1f}-{100 * figure.high:.1f})"


# ---- the sheet of answers ------------------------------------------------------------------------

TRUE_COLOR, ANSWER_COLOR = "#34c759", "#ff3b30"
SHEET_LEGEND = "Boxes: the true ones green, the answer's red; small ones are drawn larger."
CELL_WIDTH, COLUMNS = 400, 4                # pixels; cells in a row
HEADING_HEIGHT = 34                         # pixels
MIN_BOX_SIDE = 14                           # pixels of the sheet: smaller boxes are drawn larger
TRUE_BOX_MARGIN = 3                         # pixels: an equal box of the answer lies inside


def draw_sheet(rows: Sequence[dict], errors: Sequence[float], bands: Sequence[int] = (),
               count: int = 12, seed: int = 42) -> Image.Image:
    """The rows with the largest errors, and as many random ones, with their pictures.

    rows: as in predictions.jsonl. errors: of metrics.figures.error_score. bands: as load_images
    takes them.
    """
    legend = SHEET_LEGEND if any(row["boxes"] for row in rows) else ""
    strips = []
    for name, chosen in zip(("worst", "random"), worst_and_random(rows, errors, count, seed),
                            strict=True):
        cells = [draw_row(rows[i], first_picture(rows[i], bands)) for i in chosen]
        if cells:
            strips.append(draw_heading(f"{len(cells)} of {len(rows):,} rows, {name}. {legend}"))
            strips.append(contact_sheet(cells, CELL_WIDTH, COLUMNS))
    height, y = sum(strip.height for strip in strips), 0
    page = Image.new("RGB", (CELL_WIDTH * COLUMNS, height), "white")
    for strip in strips:
        page.paste(strip, (0, y))
        y += strip.height
    return page


def first_picture(row: dict, bands: Sequence[int]) -> Image.Image:
    """Reduced while it is read, as the sheet shows it small."""
    return load_images(row["image"][:1], bands, frames=1, min_side=512)[0].image


def draw_heading(text: str) -> Image.Image:
    image = Image.new("RGB", (CELL_WIDTH * COLUMNS, HEADING_HEIGHT), "#dddddd")
    ImageDraw.Draw(image).text((MARGIN, 7), text, fill="black", font=ImageFont.load_default(16))
    return image


def draw_row(row: dict, picture: Image.Image) -> tuple[Image.Image, str]:
    """-> a cell of the sheet: the picture at the cell's size with its boxes, and the text below."""
    scale = (CELL_WIDTH - 2 * MARGIN) / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
    scale = max(picture.size) / max(row["size"])        # from the row's pixels to the cell's
    boxes = [visible_box(box, scale, TRUE_BOX_MARGIN, picture.size) for box in row["boxes"]]
    colors = [TRUE_COLOR] * len(boxes)
    for _, box in predicted_boxes(row):
        boxes.append(visible_box(box, scale, 0, picture.size))
        colors.append(ANSWER_COLOR)
    if boxes:
        picture = draw_boxes(picture, [("", box) for box in boxes], colors)
    truth = ", ".join(row["references"])
    for box in row["boxes"]:
        text = encode_box(box, *row["size"], row.get("pad", False))
        truth = truth.replace("<bbox>", text, 1)
    text = f"row {row['row']}: {row['question']}\n> {row['answer']}\ntrue: {truth}"
    return picture, without_surrogates(text)


def visible_box(box: Box, scale: float, margin: float, size: tuple[int, int]) -> Box:
    """In pixels of the cell, at least MIN_BOX_SIDE large, with a margin, inside the picture."""
    x1, y1, x2, y2 = box
    left, right = visible_side(x1, x2, scale, margin, size[0])
    top, bottom = visible_side(y1, y2, scale, margin, size[1])
    return left, top, right, bottom


def visible_side(low: float, high: float, scale: float, margin: float, limit: int
                 ) -> tuple[float, float]:
    middle = (low + high) / 2 * scale
    half = max(abs(high - low) * scale, MIN_BOX_SIDE) / 2 + margin
    return max(1, middle - half), min(limit - 2, middle + half)


def worst_and_random(rows: Sequence[dict], errors: Sequence[float], count: int, seed: int = 42
                     ) -> tuple[list[int], list[int]]:
    """-> numbers of rows, at most `count` of each, the worst first; no picture appears twice.

    Rows of equal error are in random order.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(rows)), len(rows))
    pictures: set[tuple] = set()
    worst = first_of_each_picture(rows, sorted(order, key=lambda i: -errors[i]), count, pictures)
    return worst, first_of_each_picture(rows, order, count, pictures)


def first_of_each_picture(rows: Sequence[dict], order: Iterable[int], count: int,
                          pictures: set[tuple]) -> list[int]:
    """The first `count` rows in that order whose pictures are new; adds those to `pictures`."""
    chosen: list[int] = []
    for i in order:
        picture = tuple(rows[i]["image"])
        if len(chosen) < count and picture not in pictures:
            pictures.add(picture)
            chosen.append(i)
    return chosen
