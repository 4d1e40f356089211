"""Every task has its figures with intervals, whatever the answers, and details below the table."""
import json
import math
import random

import numpy as np
import pytest

from prediction_rows import refer_row, row
from support.evaluation.report import format_details
from support.metrics.boxes import size_class
from support.metrics.figures import Figure, task_details, task_figures
from support.metrics.statistics import ScoringOptions

# ---- figures -------------------------------------------------------------------------------------

def test_every_figure_lies_in_its_interval():
    rng = random.Random(1)
    words = "a b c d e".split()
    captions = [row("caption", " ".join(rng.choices(words, k=4)), [" ".join(words[:4])],
                    image=str(i)) for i in range(30)]
    boxes = [refer_row((0, 0, 10, rng.randrange(100)), (0, 0, 10, 40), image=str(i))
             for i in range(30)]
    for task, rows in (("caption", captions), ("refer", boxes), ("detection", boxes)):
        for figure in task_figures(task, rows, ScoringOptions(java=False)).values():
            assert figure.low <= figure.value <= figure.high


def test_the_seed_decides_what_is_drawn():
    rows = [row("scene", "ab"[i % 3 == 0], ["a"], image=str(i)) for i in range(50)]
    first, again, other = (task_figures("scene", rows, ScoringOptions(seed=seed))
                           for seed in (1, 1, 2))
    assert first == again != other and first["accuracy"].value == other["accuracy"].value


def test_one_picture_has_no_interval_nor_has_a_type_of_one_picture_alone():
    rows = [row("vqa", answer, ["yes"], kind="presence") for answer in ("yes", "no")]
    assert task_figures("vqa", rows)["presence"] == Figure(0.5, n=2)
    rows += [row("vqa", "2", ["2"], kind="count", image=name) for name in "abc"]
    with np.errstate(invalid="raise"):
        found = task_figures("vqa", rows)
    assert found["presence"].low is None and found["count"].low is not None
    assert task_figures("vqa", rows, ScoringOptions(samples=0))["count"].low is None


def test_no_rows_have_no_figures():
    assert task_figures("vqa", []) == task_details("vqa", []) == {}


def test_no_answer_of_a_model_raises():
    rng = random.Random(0)
    pieces = ["{<1><2><3><4>}", "{<999><0><1><1>}", "{<5><5><5><5>|<-90>}", "<p>", "</p>", "\n",
              "|||", "\x00", "\ud800", "²", "٣", "between 1 and ", "7" * 5000, "m2", "a.", "'",
              "{<", "<delim>", "😀", "http://", "-", " "]
    texts = ["", *pieces, *("".join(rng.choices(pieces, k=9)) for _ in range(100))]
    for task in ("caption", "video", "vqa", "scene", "identify", "refer", "detection",
                 "grounding"):
        rows = [row(task, text, ["a ship <bbox>"], [(1, 2, 30, 40)], image=str(i % 7))
                for i, text in enumerate(texts)]
        options = ScoringOptions(count_ranges=True, samples=20, java=False)
        with np.errstate(invalid="raise", divide="raise"):
            found = task_figures(task, rows, options).values()
            json.dumps(task_details(task, rows, options), allow_nan=False)
        assert all(math.isfinite(figure.value) for figure in found)


# ---- details -------------------------------------------------------------------------------------

def test_classes_have_their_accuracy_and_confusions_the_wrong_answers():
    rows = [row("scene", *pair, image=str(i)) for i, pair in enumerate(
        [("Port.", ["port"]), ("beach", ["port"]), ("beach", ["port"]), ("", ["beach"])])]
    found = task_details("scene", rows)
    assert {name: (part["n"], part["value"]) for name, part in found["classes"].items()} == {
        "port": (3, pytest.approx(1 / 3)), "beach": (1, 0)}
    assert found["confusions"] == [{"truth": "port", "answer": "beach", "count": 2},
                                   {"truth": "beach", "answer": "", "count": 1}]
    assert json.loads(json.dumps(found)) == found
    text = format_details(found)
    assert "| port | 3 | 33.33 (" in text and "| beach | (nothing) | 1 |" in text


def test_a_questions_class_has_its_type_and_ranges_where_the_option_is_on():
    rows = [row("vqa", "12", ["15"], kind="count")]
    assert list(task_details("vqa", rows)["classes"]) == ["count: 15"]
    found = task_details("vqa", rows, ScoringOptions(count_ranges=True))
    assert found["classes"]["count: between 11 and 100"]["value"] == 1 and not found["confusions"]


def test_recall_is_by_the_objects_part_of_the_picture():
    sizes = [size_class((0, 0, side, side), 640, 640) for side in (31, 32, 95, 96, 640)]
    assert [size.split()[0] for size in sizes] == ["small", "medium", "medium", "large", "large"]
    rows = [refer_row((0, 0, 4, 4), (0, 0, 4, 4)), refer_row((50, 50, 60, 60), (0, 0, 4, 4)),
            refer_row((0, 0, 50, 50), (0, 0, 50, 50))]
    found = task_details("refer", rows)["sizes"]
    assert [(name.split()[0], part["n"], part["value"]) for name, part in found.items()] == [
        ("small", 2, 0.5), ("large", 1, 1)]
    several = [row("detection", "{<0><0><10><10>}", boxes=[(0, 0, 10, 20), (50, 0, 60, 20)])]
    assert task_details("detection", several)["sizes"]["medium (< 15 %)"]["value"] == 0.5
    assert "| large | 1 | 100.00 |" in format_details({"sizes": found})


def test_captions_have_no_classes():
    rows = [row("caption", "A ship.", ["a ship", "Ships!"])]
    assert task_details("caption", rows) == {} and format_details({}) == ""
