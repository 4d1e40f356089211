"""A part of the rows is spread over classes, truth without a box is named, names are portable."""
from collections import Counter

import pytest

from support.common import UserError
from support.evaluation.rows import (
    draw_rows,
    find_pictures,
    names_base,
    portable_row,
    scorable_samples,
)
from support.readers.common import Sample


def scene(label):
    return Sample((f"{label}.png",), (("which ?", label),), "scene", label)


def vqa(kind):
    return Sample(("a.png",), (("is it ?", "yes"),), "vqa", "", kind=kind)


def located(truth, boxes=(), task="refer", question="a ship"):
    return Sample(("a.png",), ((question, truth),), task, f"file:{truth}", boxes=boxes)


@pytest.mark.parametrize("make", [scene, vqa])
def test_a_part_has_every_class_its_share_and_the_same_rows_again(make):
    samples = [make(label) for label in "a" * 60 + "b" * 30 + "c" * 9 + "d"]
    names = [(sample.turns[0][1], sample.kind) for sample in samples]
    drawn = draw_rows(samples, range(100), 20, 42)
    assert drawn == sorted(set(drawn)) == draw_rows(samples, range(100), 20, 42)
    assert drawn != draw_rows(samples, range(100), 20, 43)
    assert sorted(Counter(names[i] for i in drawn).values()) == [1, 2, 6, 11]
    assert len({names[i] for i in draw_rows(samples, range(100), 4, 1)}) == 4


@pytest.mark.parametrize("task", ["refer", "detection", "grounding"])
def test_truth_without_a_box_is_named_at_the_start_or_left_out(task):
    box = (1, 2, 3, 4)
    samples = [located("{<1><2><3><4>}", task=task), located("<bbox>", (box,), task),
               located("{<100><200><300><400>}", task=task), located("not visible", task=task),
               located("none", (box,), task, "beside <bbox>"), vqa("")]
    with pytest.raises(UserError) as error:
        scorable_samples(samples, False)
    text = str(error.value)
    assert text.startswith("file:{<100>") and "2 rows more: file:not visible, file:none" in text
    assert "--skip_bad" in text and scorable_samples(samples, True) == ([0, 1, 5], 3)
    with pytest.raises(UserError, match="no row is left"):
        scorable_samples(samples[2:4], True)


def test_what_is_given_away_names_files_from_the_datas_folder(tmp_path):
    one, other = str(tmp_path / "x/data"), str(tmp_path / "y/data")
    row = {"image": [f"{one}/a.png"], "source": f"{one}/list.json:3"}
    assert portable_row(row, names_base([one])) == {"image": ["data/a.png"],
                                                   "source": "data/list.json:3"}
    assert portable_row(row, names_base([one, other]))["image"] == ["x/data/a.png"]
    relative = {"image": ["data/a.png"]}
    assert portable_row(relative, names_base(["data"])) == relative
    (tmp_path / "x/data").mkdir(parents=True)
    (tmp_path / "x/data/a.png").touch()
    assert find_pictures(["data/a.png", "b.png"], (tmp_path, tmp_path / "x")) == [
        f"{one}/a.png", "b.png"]
