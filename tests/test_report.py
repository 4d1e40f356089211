"""The papers' figures are the papers', ours stand under them, and what was measured is told."""
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import support.evaluation.report as report
import support.evaluation.runs as hashes
import tiny
from support.evaluation.benchmarks import PUBLISHED_COUNTS, compare_counts, count_rows
from support.evaluation.report import (
    ReportPart,
    draw_row,
    draw_sheet,
    format_report,
    markdown_cell,
    markdown_table,
    published_table,
    rows_with_ours,
    worst_and_random,
)
from support.evaluation.runs import (
    hash_texts,
    hash_weights,
    provenance,
    provenance_line,
    sample_texts,
)

FACTS = tiny.ROOT.parent / "shared" / "docs" / "facts.md"
TABLES = json.loads((Path(report.__file__).parent / "papers.json").read_text())


@dataclass
class Figure:
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 11
    count: bool = False
    note: str = ""


# ---- the papers' figures -------------------------------------------------------------------------

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


def facts_tables(start, end):
    """The Markdown tables between two headings -> [[row, ..], ..], the head first."""
    text = FACTS.read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text[text.index(start):text.index(end)], re.M)
    return [[[part.strip(" *") for part in line.strip().strip("|").split("|")]
             for line in block.splitlines() if not line.startswith("|-")] for block in blocks]


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


# ---- ours under them -----------------------------------------------------------------------------

def test_our_row_stands_under_the_papers_in_their_columns():
    figures = {f"bleu{n}": Figure(1 / n, 0.9 / n, 1.1 / n) for n in (4, 3, 2, 1)}
    figures |= {"meteor": Figure(None, note="needs Java"), "rouge_l": Figure(0.61234),
                "cider": Figure(2.3675, 2.2, 2.5)}
    text = format_report("mine", [ReportPart("ucm", "test", "caption", 210, figures)], "commit 1a2b")
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
    parts = [ReportPart("dior-rsvg", "test", "refer", 5, {"Pr@0.5 upstream": Figure(0.5)})]
    text = format_report("mine", parts, "")
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
    text = format_report("mine", [ReportPart("rsicd", "test", "vqa", 1008, figures, remarks=["", "few"])], "")
    assert "arXiv" not in text and "## rsicd test vqa, 1,008 rows" in text and "\n\n- few" in text
    assert "| accuracy | 12.50 (10.0-15.0) | 8 |\n| unparseable | 3 | 8 |" in text


def test_details_follow_their_benchmark_and_the_provenance_ends_the_report():
    parts = [ReportPart("", "test", task, 4, {"accuracy": Figure(1.0)}, f"| {task} details |")
             for task in ("scene", "identify")]
    text = format_report("mine", parts, "commit 1a2b")
    words = ("## test scene", "| accuracy |", "| scene details |", "## test identify",
             "| identify details |", "95 % intervals", "commit 1a2b")
    places = [text.index(word) for word in words]
    assert places == sorted(places)


def test_a_cell_is_a_fraction_in_hundredths_a_count_as_it_is_or_a_dash():
    assert [markdown_cell(x) for x in (0.5, 1, None, 12345, np.int64(2), np.float32(0.25), "a\nb | c")] == [
        "50.00", "1", "–", "12,345", "2", "25.00", r"a b \| c"]
    assert markdown_cell(Figure(None, count=True)) == "–" and markdown_cell(Figure(0.0, 0.0, 0.0)) == "0.00 (0.0-0.0)"
    assert markdown_table([["a", "b"], [1, 2]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


# ---- how much there is, and what it was measured with --------------------------------------------

def test_a_split_that_is_not_what_was_published_is_told_and_one_that_is_is_not():
    rows = [{"task": "vqa", "image": [f"{i % 100}.tif"], "references": ["yes"]}
            for i in range(9990)]
    found = count_rows(rows)
    assert found == {"pictures": 100, "questions": 9990}
    assert compare_counts("rsvqa-lr", "test", found) == (
        "rsvqa-lr test: 10,004 questions published, 9,990 found")
    assert compare_counts("rsvqa-lr", "test", found | {"questions": 10004}) == ""
    more = compare_counts("rsvqa-lr", "test", {"pictures": 101, "questions": 10005})
    assert more == ("rsvqa-lr test: 100 pictures published, 101 found; "
                    "10,004 questions published, 10,005 found")
    assert compare_counts("mine", "test", found) == ""
    assert "105,647" in compare_counts("rsvqa-hr", "test_phili", found)


def test_captions_clips_and_expressions_are_counted_as_such():
    rows = [{"task": "video", "image": ["a.mp4"], "references": list("abc")},
            {"task": "video", "image": ["b.mp4"], "references": list("ab")}]
    assert count_rows(rows) == {"clips": 2, "captions": 5}
    rows = [{"task": "refer", "image": ["a.jpg"], "references": ["x"]}] * 3
    assert count_rows(rows) == {"pictures": 1, "expressions": 3}


TEXTS = tiny.DATA / "captions_text.json"


@pytest.mark.skipif(not TEXTS.exists(), reason="needs the data beside the repository")
def test_the_published_counts_are_those_of_the_files():
    seen = 0
    for name, splits in json.loads(TEXTS.read_text()).items():
        for split, pictures in splits.items():
            wanted = PUBLISHED_COUNTS.get(f"{name} {split}")
            if wanted:
                assert list(wanted.values()) == [len(pictures), sum(map(len, pictures.values()))]
                seen += 1
    assert seen == 12


@pytest.mark.skipif(not FACTS.exists(), reason="needs the documents beside the repository")
def test_the_published_counts_are_those_of_the_fact_sheet():
    (table,) = facts_tables("### 6.3", "## 7.")
    told = {name.lower(): [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d", text)]
            for name, text, *_ in table}
    spelled = {"ucm": "ucm-captions", "sydney": "sydney-captions", "nwpu": "nwpu-captions"}
    counted_here = {1050, 290, 5470, 5465, 6955, 4291, 452, 58}    # not all splits are told there
    for name, units in PUBLISHED_COUNTS.items():
        benchmark = name.split()[0]
        assert set(units.values()) <= {*told[spelled.get(benchmark, benchmark)], *counted_here}


def test_weights_are_hashed_as_sha256sum_does_and_large_ones_of_a_base_are_told_by_size(
        tmp_path, monkeypatch):
    base, model = tmp_path / "base", tmp_path / "model"
    base.mkdir()
    model.mkdir()
    (base / "llama.safetensors").write_bytes(b"x" * 5000)
    (base / "notes.txt").write_text("not weights")
    (model / "adapter.safetensors").write_bytes(b"y" * 5000)
    (model / "config.json").write_text(json.dumps({"base": "../base"}))
    found = hash_weights(model)
    own = hashlib.sha256(b"y" * 5000).hexdigest()[:16]
    inner = str(model / "../base/llama.safetensors")
    assert found.keys() == {"adapter.safetensors", "config.json", inner}
    assert found["adapter.safetensors"] == own
    assert found[inner] == hashlib.sha256(b"x" * 5000).hexdigest()[:16]
    monkeypatch.setattr(hashes, "LARGE_FILE", 4000)
    assert hash_weights(model) == found | {inner: "5,000 bytes"}


def test_the_hash_of_the_data_sees_every_text_their_order_and_where_each_ends():
    texts = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", ""], ["ab", "d"]]
    assert len({hash_texts(text) for text in texts}) == len(texts)
    assert hash_texts(iter(texts[0])) == hash_texts(texts[0])


def test_the_hash_of_the_data_stays_when_their_folder_moves():
    def sample(**more):
        return SimpleNamespace(**{"images": ("/here/a.png",), "turns": (("where ?", "<bbox>"),),
                                  "kind": "", "boxes": ((1, 2, 3, 4),), "references": ()} | more)
    samples = [sample(), sample(images=("/there/a.png",)), sample(images=("/here/b.png",)),
               sample(boxes=((1, 2, 3, 5),)), sample(references=("x",)), sample(kind="area"),
               sample(turns=(("where ?", "<bbox>."),))]
    found = [hash_texts(sample_texts([one])) for one in samples]
    assert found[0] == found[1] and len(set(found)) == len(found) - 1


def test_the_provenance_is_one_line_that_names_everything(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    record = provenance(tmp_path, ["a"], commit="1a2b3c4", split="test", rows=210,
                                   dtype="bf16", device="a card", seed=0, note="",
                                   decoding={"greedy": "up to 60 tokens"})
    text = provenance_line(json.loads(json.dumps(record)))
    assert text.startswith("commit 1a2b3c4; split test; rows 210; dtype bf16; device a card; "
                           "seed 0; decoding greedy up to 60 tokens; weights model.safetensors ")
    assert "note" not in text and "; torch " in text and "; python " in text and "\n" not in text


# ---- the sheet -----------------------------------------------------------------------------------

def row(number, image, answer="{<10><10><30><30>}", boxes=((10, 20, 31, 62),), **more):
    return {"row": number, "image": [image], "size": (100, 200), "question": "where ?",
            "answer": answer, "boxes": boxes, "references": ["<bbox>"]} | more


def test_the_worst_come_first_and_no_picture_comes_twice():
    rows = [row(i, f"{i // 2}.png") for i in range(20)]
    badness = [(7 * i) % 20 for i in range(20)]
    worst, rest = worst_and_random(rows, badness, 4)
    best_left = sorted((max(badness[i:i + 2]) for i in range(0, 20, 2)), reverse=True)
    assert [badness[i] for i in worst] == best_left[:4]
    assert len({i // 2 for i in worst + rest}) == 8
    assert worst_and_random(rows, badness, 4) == (worst, rest)
    assert len(worst_and_random(rows, badness, 50)[0]) == 10


def test_of_rows_equally_bad_the_seed_decides_and_not_the_order_of_the_file():
    rows = [row(i, f"{i}.png") for i in range(50)]
    worst = [worst_and_random(rows, [1.0] * 50, 5, seed)[0] for seed in (1, 2)]
    assert worst[0] != worst[1] and worst[0] != list(range(5))


def colors(image):
    return {color for _, color in image.convert("RGB").getcolors(1 << 20)}


GREEN, RED = (0x34, 0xc7, 0x59), (0xff, 0x3b, 0x30)


def test_true_boxes_are_green_answered_ones_red_and_equal_ones_are_both_seen():
    blank = Image.new("RGB", (100, 200), "gray")
    box = ((10.5, 21, 30.5, 61),)
    assert colors(draw_row(row(0, "a", boxes=box), blank)[0]) >= {GREEN, RED}
    assert RED not in colors(draw_row(row(0, "a", "no idea"), blank)[0])
    assert GREEN not in colors(draw_row(row(0, "a", boxes=()), blank)[0])


def test_the_box_of_a_tiny_thing_at_the_edge_of_a_large_picture_is_seen():
    large = Image.new("RGB", (1000, 2000), "gray")          # read at half its size
    tiny_thing = row(0, "a", "", boxes=((1998, 3, 2000, 5),), size=(2000, 4000))
    green = (np.array(draw_row(tiny_thing, large)[0]) == GREEN).all(axis=2)
    across, down = green.sum(axis=0), green.sum(axis=1)
    assert (across > 0).sum() >= 8 and (down > 0).sum() >= 8           # large enough
    assert (across[-4:] >= 8).any() and (down[:4] >= 8).any()          # with the sides at the edge


def test_below_a_picture_stand_question_answer_and_the_truth_with_its_boxes():
    text = draw_row(row(7, "a"), Image.new("RGB", (100, 200)))[1]
    assert text == "row 7: where ?\n> {<10><10><30><30>}\ntrue: {<10><10><31><31>}"


def test_the_sheet_opens_the_pictures_of_the_rows_it_shows_and_no_others():
    opened = []

    def open_picture(one):
        opened.append(one["image"][0])
        return Image.new("RGB", (100, 200), "gray")
    rows = [row(i, f"{i}.png") for i in range(9)]
    page = draw_sheet(rows, list(range(9)), open_picture, 3)
    assert opened[:3] == ["8.png", "7.png", "6.png"] and len(set(opened)) == 6
    assert colors(page) >= {GREEN, RED}
    assert draw_sheet(rows[:1], [0], open_picture, 3).height < page.height
