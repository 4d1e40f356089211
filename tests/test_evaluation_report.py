"""The papers' figures are the papers', and ours stand below them."""
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import support.evaluation.report as report
from facts import FACTS, facts_tables
from support.evaluation.benchmarks import BENCHMARKS
from support.evaluation.report import (
    TaskResult,
    draw_row,
    draw_sheet,
    format_report,
    markdown_cell,
    markdown_table,
    published_table,
    rows_with_ours,
    worst_and_random,
)
from support.images.read import Picture
from support.metrics.figures import Figure

TABLES = json.loads((Path(report.__file__).parent / "papers.json").read_text())


# ---- the papers' figures -------------------------------------------------------------------------

def test_all_papers_rows_are_printed_without_a_model_and_where_there_are_none_it_is_said():
    text = report.format_papers()
    heads = [f"## {name} {split}" for name, one in BENCHMARKS.items() for split in one.splits]
    sections = text.split("## ")[1:]
    *benchmarks, rs_gpt4v, retested = sections
    assert [f"## {section.splitlines()[0]}" for section in benchmarks] == heads
    assert rs_gpt4v.splitlines()[0].startswith("RS-GPT4V") and report.NO_ROWS in rs_gpt4v
    assert "| SkyEyeGPT | 28.28 | 36.72 | 36.72 | 12.33 |" in retested and "FBA" in retested
    of = {section.splitlines()[0]: section for section in benchmarks}
    assert "| SkyEyeGPT | 90.71 |" in of["ucm test"] and "arXiv 2401.09712" in of["ucm test"]
    for head, section in of.items():
        name, split = head.split()
        assert (report.NO_ROWS in section) == (published_table(name, split) is None)
    assert sum(report.NO_ROWS in section for section in benchmarks) == 9


SUMS = {        # rows, figures, their sum
    "ucm test": (9, 63, 5115.11), "sydney test": (9, 63, 4504.76), "rsicd test": (9, 63, 3394.0),
    "capera test": (7, 49, 2452.1), "rsvg val": (10, 9, 431.35), "rsvg test": (10, 9, 427.43),
    "dior-rsvg test": (10, 9, 659.5), "rsvqa-lr test": (9, 36, 2785.15),
    "rsvqa-hr test": (9, 27, 2116.63), "rsvqa-hr test2": (9, 27, 2062.43),
    "re-test of the released weights": (1, 4, 114.05),
}


def test_the_papers_figures_are_as_they_were_copied():
    found = {}
    for name, table in TABLES.items():
        values = [v for row in table["rows"].values() for v in row if v is not None]
        found[name] = len(table["rows"]), len(values), round(sum(values), 2)
    assert found == SUMS


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_a_figure_for_every_column_of_every_row(name):
    table = TABLES[name]
    assert {len(row) for row in table["rows"].values()} == {len(table["columns"])}
    assert not table["tasks"] or len(table["figures"]) == len(table["columns"])
    assert table["source"]


@pytest.mark.skipif(not FACTS.exists(), reason="needs the documents beside the repository")
def test_every_figure_of_the_papers_is_that_of_the_fact_sheet():
    captions = facts_tables("### 8.2", "### 8.3")
    (boxes,), (questions,) = facts_tables("### 8.3", "### 8.4"), facts_tables("### 8.4", "### 8.5")
    places = [(name, table, 1, 8) for name, table in zip(
        ("ucm test", "sydney test", "rsicd test", "capera test"), captions, strict=True)]
    places += [("rsvg val", boxes, 1, 2), ("rsvg test", boxes, 2, 3),
               ("dior-rsvg test", boxes, 3, 4), ("rsvqa-lr test", questions, 1, 5),
               ("rsvqa-hr test", questions, 5, 8), ("rsvqa-hr test2", questions, 8, 11)]
    for name, (_, *rows), start, end in places:
        wanted = {"SkyEyeGPT " + row[0] if row[0] in ("single", "one-stage") else row[0]:
                  [None if x == "–" else float(x) for x in row[start:end]] for row in rows}
        assert TABLES[name]["rows"] == wanted
    assert {name for name, *_ in places} == TABLES.keys() - {"re-test of the released weights"}


def test_the_papers_average_of_questions_is_the_mean_of_its_columns():
    for name in ("rsvqa-lr test", "rsvqa-hr test", "rsvqa-hr test2"):
        for *types, average in TABLES[name]["rows"].values():
            assert average == pytest.approx(np.mean(types), abs=0.046)      # Shikra's is 0.045 off


def test_a_benchmark_has_its_table_under_the_name_of_its_split():
    assert published_table("rsvqa-hr", "test2").rows["SkyEyeGPT"] == [83.50, 80.28, 81.89]
    assert published_table("rsvqa-hr", "test_phili") == published_table("rsvqa-hr", "test2")
    assert published_table("rsvqa-hr").rows["SkyEyeGPT"] == [84.95, 85.63, 85.29]
    assert published_table("rsicd", "val") is None and published_table("") is None


# ---- ours below them -----------------------------------------------------------------------------

def test_our_row_stands_below_the_papers_in_their_columns():
    figures = {f"bleu{n}": Figure(1 / n, 0.9 / n, 1.1 / n) for n in (4, 3, 2, 1)}
    figures |= {"meteor": Figure(None, note="needs Java"), "rouge_l": Figure(0.61234),
                "cider": Figure(2.3675, 2.2, 2.5)}
    result = TaskResult("ucm", "test", "caption", 210, figures)
    text = format_report("mine", [result], "commit 1a2b")
    lines = text.splitlines()
    assert lines[0] == "## ucm test caption, 210 rows"
    assert "| model | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | METEOR | ROUGE-L | CIDEr |" in lines
    place = lines.index("| SkyEyeGPT | 90.71 | 85.69 | 81.56 | 78.41 | 46.24 | 79.49 | 236.75 |")
    assert lines[place + 1] == ("| **mine** | 100.00 (90.0-110.0) | 50.00 (45.0-55.0) | "
                                "33.33 (30.0-36.7) | 25.00 (22.5-27.5) | – | 61.23 | "
                                "236.75 (220.0-250.0) |")
    assert "- meteor: needs Java" in lines and "arXiv 2401.09712, Table 3" in text
    assert "| bleu1 |" not in text and lines[-1] == "commit 1a2b"


def test_a_model_without_any_figure_in_the_papers_table_is_left_out():
    results = [TaskResult("dior-rsvg", "test", "refer", 5, {"Pr@0.5 upstream": Figure(0.5)})]
    text = format_report("mine", results, "")
    assert "| MGVLF | 76.78 |" in text and "GeoVG |" not in text and "| **mine** | 50.00 |" in text


def test_the_average_of_questions_is_over_the_types_that_the_papers_count():
    table = published_table("rsvqa-lr")
    figures = {"comp": Figure(0.9), "count": Figure(0.1), "presence": Figure(0.8),
               "rural_urban": Figure(0.4), "mean of types": Figure(0.55, 0.5, 0.6)}
    *others, average = rows_with_ours("mine", figures, table)[-1]
    assert others == ["**mine**", figures["presence"], figures["comp"], figures["rural_urban"]]
    assert average == pytest.approx(0.7)
    figures["mean of types"] = Figure(2.1 / 3, 0.6, 0.8)        # over these three: with an interval
    assert rows_with_ours("mine", figures, table)[-1][-1] is figures["mean of types"]
    del figures["comp"]
    assert rows_with_ours("mine", figures, table)[-1][-1] is None


def test_what_the_papers_do_not_have_is_a_table_of_its_own():
    figures = {"accuracy": Figure(0.125, 0.1, 0.15, 8), "unparseable": Figure(3.0, 1, 5, 8, True)}
    # RSICD's questions: no paper scores them
    result = TaskResult("rsicd", "test", "vqa", 1008, figures, remarks=["", "few"])
    text = format_report("mine", [result], "")
    assert "arXiv" not in text and "## rsicd test vqa, 1,008 rows" in text and "\n\n- few" in text
    assert "| accuracy | 12.50 (10.0-15.0) | 8 |\n| unparseable | 3 | 8 |" in text


def test_details_follow_their_benchmark_and_the_provenance_ends_the_report():
    results = [TaskResult("", "test", task, 4, {"accuracy": Figure(1.0)},
                          {"classes": {f"a {task}": asdict(Figure(0.5, n=4))}})
               for task in ("scene", "identify")]
    text = format_report("mine", results, "commit 1a2b")
    parts = ("## test scene", "| accuracy |", "| a scene | 4 | 50.00 |", "## test identify",
             "| a identify | 4 | 50.00 |", "95 % intervals", "commit 1a2b")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_metrics_json_has_the_figures_and_where_they_came_from(tmp_path):
    figures = {"accuracy": Figure(0.5, 0.4, 0.6, 8)}
    result = TaskResult("", "test", "scene", 8, figures, remarks=["few"])
    text = report.write_report(tmp_path / "out", [result], {"model": "weights/mine", "seed": 1})
    assert text == (tmp_path / "out/table.md").read_text() and "**mine**" in text
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == {
        "provenance": {"model": "weights/mine", "seed": 1},
        "results": [{"benchmark": "", "split": "test", "task": "scene", "rows": 8,
                     "figures": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 8,
                                              "count": False, "note": ""}},
                     "details": {}, "remarks": ["few"]}]}


def test_a_cell_is_a_fraction_in_hundredths_a_count_as_it_is_or_a_dash():
    cells = (0.5, 1, None, 12345, np.int64(2), np.float32(0.25), "a\nb | c")
    assert [markdown_cell(cell) for cell in cells] == [
        "50.00", "1", "–", "12,345", "2", "25.00", r"a b \| c"]
    assert markdown_cell(Figure(None, count=True)) == "–"
    assert markdown_cell(Figure(0.0, 0.0, 0.0)) == "0.00 (0.0-0.0)"
    assert markdown_table([["a", "b"], [1, 2]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_a_figure_is_shown_in_hundredths_with_its_interval_and_a_missing_one_as_a_dash():
    assert markdown_cell(Figure(0.125, 0.1, 0.2)) == "12.50 (10.0-20.0)"
    assert markdown_cell(Figure(0.125)) == "12.50" and markdown_cell(Figure(None)) == "–"
    assert markdown_cell(Figure(3, 1, 6.2, count=True)) == "3"


# ---- the sheet of answers ------------------------------------------------------------------------

def row(number, image, answer="{<10><10><30><30>}", boxes=((10, 20, 31, 62),), **more):
    return {"row": number, "image": [image], "size": (100, 200), "question": "where ?",
            "answer": answer, "boxes": boxes, "references": ["<bbox>"]} | more


def test_the_worst_come_first_and_no_picture_comes_twice():
    rows = [row(i, f"{i // 2}.png") for i in range(20)]
    errors = [(7 * i) % 20 for i in range(20)]
    worst, others = worst_and_random(rows, errors, 4)
    best_left = sorted((max(errors[i:i + 2]) for i in range(0, 20, 2)), reverse=True)
    assert [errors[i] for i in worst] == best_left[:4]
    assert len({i // 2 for i in worst + others}) == 8
    assert worst_and_random(rows, errors, 4) == (worst, others)
    assert len(worst_and_random(rows, errors, 50)[0]) == 10


def test_among_equal_errors_the_seed_decides_and_not_the_order_of_the_file():
    rows = [row(i, f"{i}.png") for i in range(50)]
    worst = [worst_and_random(rows, [1.0] * 50, 5, seed)[0] for seed in (1, 2)]
    assert worst[0] != worst[1] and worst[0] != list(range(5))


def colors(image):
    return {color for _, color in image.convert("RGB").getcolors(1 << 20)}


GREEN, RED = (0x34, 0xc7, 0x59), (0xff, 0x3b, 0x30)


def test_true_boxes_are_green_answered_ones_red_and_equal_ones_are_both_visible():
    blank = Image.new("RGB", (100, 200), "gray")
    box = ((10.5, 21, 30.5, 61),)
    assert colors(draw_row(row(0, "a", boxes=box), blank)[0]) >= {GREEN, RED}
    assert RED not in colors(draw_row(row(0, "a", "no idea"), blank)[0])
    assert GREEN not in colors(draw_row(row(0, "a", boxes=()), blank)[0])


def test_the_box_of_a_tiny_thing_at_the_edge_of_a_large_picture_is_visible():
    large = Image.new("RGB", (1000, 2000), "gray")          # read at half its size
    small = row(0, "a", "", boxes=((1998, 3, 2000, 5),), size=(2000, 4000))
    green = (np.array(draw_row(small, large)[0]) == GREEN).all(axis=2)
    across, down = green.sum(axis=0), green.sum(axis=1)
    assert (across > 0).sum() >= 8 and (down > 0).sum() >= 8           # large enough
    assert (across[-4:] >= 8).any() and (down[:4] >= 8).any()          # with the sides at the edge


def test_the_text_of_a_picture_is_question_answer_and_the_truth_with_its_boxes():
    text = draw_row(row(7, "a"), Image.new("RGB", (100, 200)))[1]
    assert text == "row 7: where ?\n> {<10><10><30><30>}\ntrue: {<10><10><31><31>}"


def test_the_sheet_opens_the_pictures_of_the_rows_it_shows_and_no_others(monkeypatch):
    opened = []

    def load_images(paths, bands, frames, min_side):
        opened.extend(paths)
        assert (bands, frames, min_side) == ((4, 3, 2), 1, 512)
        return [Picture(Image.new("RGB", (100, 200), "gray"), (100, 200), "")]

    monkeypatch.setattr(report, "load_images", load_images)
    rows = [row(i, f"{i}.png") for i in range(9)]
    page = draw_sheet(rows, list(range(9)), (4, 3, 2), 3)
    assert opened[:3] == ["8.png", "7.png", "6.png"] and len(set(opened)) == 6
    assert colors(page) >= {GREEN, RED}
    assert draw_sheet(rows[:1], [0], (4, 3, 2), 3).height < page.height
