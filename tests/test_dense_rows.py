"""Questions about every thing of a picture: true of the list of things that they are made from."""
import random

import tiny
from examples import dense_rows as rows
from examples.miniworld import write_rows
from support.readers import read_data

CARS = [{"class": "car", "color": "red", "box": [40, 10, 50, 20]},
        {"class": "car", "color": "blue", "box": [30, 10, 39, 20]},
        {"class": "car", "color": "blue", "box": [2, 10, 12, 20]},
        {"class": "car", "color": None, "box": [20, 10, 29, 20]},
        {"class": "bridge", "color": None, "box": [0, 30, 60, 40]}]


def test_only_what_one_thing_is_called_is_referred_to():
    found = {row["expression"]: row["bbox"] for row in rows.refer_rows(CARS)}
    assert found == {"the red car": [40, 10, 50, 20], "the bridge": [0, 30, 60, 40]}


def test_a_class_and_a_color_are_detected_with_all_their_things_from_left_to_right():
    found = {row["phrase"]: row["bboxes"] for row in rows.detection_rows(CARS)}
    assert found == {"red car": [[40, 10, 50, 20]], "bridge": [[0, 30, 60, 40]],
                     "blue cars": [[2, 10, 12, 20], [30, 10, 39, 20]],
                     "cars": [[2, 10, 12, 20], [20, 10, 29, 20], [30, 10, 39, 20],
                              [40, 10, 50, 20]]}


def test_every_count_and_color_that_is_answered_holds():
    asked = set()
    for seed in range(40):
        for row in rows.vqa_rows(CARS, random.Random(seed)):
            asked.add((row["question"], row["answer"]))
    assert {one for one in asked if "how many" in one[0]} == {
        ("how many cars are there ?", "4"), ("how many bridges are there ?", "1")}
    assert {one for one in asked if "is there" in one[0]} == {
        ("is there a red car ?", "yes"), ("is there a blue car ?", "yes"),
        ("is there a white car ?", "no"), ("is there a green car ?", "no"),
        ("is there a yellow car ?", "no")}


def test_what_is_written_is_read_with_the_boxes_of_the_world(tmp_path):
    world, out = tmp_path / "world", tmp_path / "out"
    for name in ("a", "b"):
        tiny.picture(world / "images" / "train" / f"{name}.png", 60, 50)
    write_rows(world / "objects_train.json", [{"image": "train/a.png", "objects": CARS},
                                              {"image": "train/b.png", "objects": []}])
    counts = rows.write_dense(out, world, seed=1)
    samples = read_data(out)
    assert len(samples) == sum(counts.values())
    assert {sample.images[0] for sample in samples} == {str(out / "images" / "train" / "a.png")}
    identified = {sample.boxes[0]: sample.turns[0][1] for sample in samples
                  if sample.task == "identify"}
    assert identified == {(40, 10, 50, 20): "red car", (30, 10, 39, 20): "blue car",
                          (2, 10, 12, 20): "blue car", (20, 10, 29, 20): "car"}
    assert (out / "images" / "train" / "a.png").samefile(world / "images" / "train" / "a.png")


def test_a_folder_without_objects_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dense_rows.py", str(tmp_path / "out"), str(tmp_path)])
    assert rows.main() == 2
    assert "objects_train.json" in capsys.readouterr().err
