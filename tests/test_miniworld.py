"""The miniature world is the same every time, and its words and boxes are true."""
import json
import random
import re

import numpy as np
import pytest

from data import parse_boxes
from examples.miniworld import (
    BLOCK,
    CLASSES,
    METERS,
    Canvas,
    Landscape,
    make_scene,
    noun,
    render,
    render_scene,
    write_scene,
    write_world,
)
from support.common import ABSENT

WORDS = "no one two three four five six seven eight".split()
SCENES = [(kind, number) for kind in CLASSES for number in range(8)]


def truth(kind, number, size=200):
    return make_scene(kind, size, "a test", number)[1]


def files(folder):
    return {path.relative_to(folder): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_world_is_the_same_every_time_whoever_draws_it(tmp_path):
    one = write_world(tmp_path / "one", train=11, val=2, test=3, clips=10, size=64, workers=1)
    two = write_world(tmp_path / "two", train=11, val=2, test=3, clips=10, size=64, workers=2)
    assert files(one) == files(two)
    other = write_world(tmp_path / "other", train=11, val=2, test=3, clips=10, size=64, seed=1)
    assert files(other) != files(one)


def test_splits_share_no_picture(tmp_path):
    pictures = {name: content for name, content in files(
        write_world(tmp_path / "world", train=30, val=30, test=30, clips=0, size=64)).items()
        if name.suffix == ".jpg"}
    assert len(pictures) == 90 == len(set(pictures.values()))


def test_a_world_that_stands_is_not_written_over_and_a_failed_one_leaves_nothing(tmp_path):
    (tmp_path / "world").mkdir()
    with pytest.raises(FileExistsError):
        write_world(tmp_path / "world", 1, 1, 1, 0)
    with pytest.raises(ValueError):
        write_world(tmp_path / "new", 1, 1, 1, 0, size=-5, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize(("kind", "number"), SCENES)
def test_boxes_lie_inside_and_apart(kind, number):
    boxes = np.array([thing["box"] for thing in truth(kind, number)["objects"]]).reshape(-1, 4)
    assert (boxes >= 0).all() and (boxes <= 200).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 5).all()
    for i, a in enumerate(boxes):
        for b in boxes[i + 1:]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


@pytest.mark.parametrize(("kind", "number"), SCENES)
def test_counts_and_comparisons_are_true(kind, number):
    scene = truth(kind, number)
    count = {}
    for thing in scene["objects"]:
        count[thing["name"]] = count.get(thing["name"], 0) + 1

    def how_many(plural):
        return next((n for name, n in count.items() if plural == name + "s"), 0)

    for row in scene["vqa"]:
        if match := re.fullmatch(r"how many (.+) are there \?", row["question"]):
            assert row["answer"] == str(how_many(match[1]))
        elif match := re.fullmatch(r"are there more (.+) than (.+) \?", row["question"]):
            assert (row["answer"] == "yes") == (how_many(match[1]) > how_many(match[2]))


@pytest.mark.parametrize(("kind", "number"), SCENES)
def test_expressions_point_at_one_object_and_extremes_are_extreme(kind, number):
    scene = truth(kind, number)
    boxes = {tuple(thing["box"]): thing["name"] for thing in scene["objects"]}
    for row in filter(lambda row: row["bbox"], scene["refer"]):
        x1, y1, x2, y2 = row["bbox"]
        name = boxes[tuple(row["bbox"])]
        rivals = [box for box, other in boxes.items() if other == name]
        if "leftmost" in row["expression"]:
            assert x1 + x2 == min(a + b for a, _, b, _ in rivals)
        elif "at the bottom" in row["expression"]:
            assert y1 + y2 == max(a + b for _, a, _, b in rivals)
        elif row["expression"] == f"the {name}":
            assert len(rivals) == 1


@pytest.mark.parametrize(("kind", "number"), SCENES)
def test_detections_are_complete_and_go_from_left_to_right(kind, number):
    scene = truth(kind, number)
    names = {thing["name"] for thing in scene["objects"]}
    for row in scene["detection"]:
        assert row["bboxes"] == sorted(row["bboxes"], key=lambda box: box[0])
        for name in names:
            if row["phrase"] in (name, name + "s"):
                assert len(row["bboxes"]) == sum(
                    thing["name"] == name for thing in scene["objects"])


def test_a_box_is_where_the_object_is_drawn():
    """Take the object away: the picture changes inside its box and its shadow, not elsewhere."""
    scene, told, grain = make_scene("desert", 200, "a test", 3)
    if not scene.things:
        pytest.skip("an empty desert")
    full = np.asarray(render(scene, grain, 200), dtype=int)
    (x1, y1, x2, y2), *others = [thing["box"] for thing in told["objects"]]
    scene.things.pop(0)
    changed = np.abs(full - np.asarray(render(scene, grain, 200), dtype=int)).max(axis=2) > 24
    ys, xs = np.nonzero(changed)
    assert changed[y1:y2, x1:x2].mean() > 0.3
    assert abs(xs.min() - x1) <= 4 and abs(ys.min() - y1) <= 4


def test_conversations_mix_tasks_and_their_boxes_are_read_back():
    rng, tasks, lengths = random.Random(0), set(), set()
    for kind, number in rng.sample(SCENES, 40):
        talk = truth(kind, number)["conversation"]
        assert [turn["from"] for turn in talk] == ["human", "gpt"] * (len(talk) // 2)
        for question, answer in zip(talk[::2], talk[1::2], strict=True):
            task = re.search(r"\[(\w+)\]", question["value"])
            tasks.add(task[1] if task else "")
            if task and task[1] == "refer" and answer["value"] != ABSENT:
                assert len(parse_boxes(answer["value"], 200, 200)) == 1
            if task and task[1] == "identify":
                box = question["value"][question["value"].index("{"):]
                assert box not in [turn["value"] for turn in talk[1::2]]
        lengths.add(len(talk) // 2)
    assert {"caption", "refer", "vqa", "identify", "detection", ""} <= tasks
    assert {2, 7} <= lengths and max(lengths) <= 8


@pytest.mark.parametrize(("kind", "number"), SCENES)
def test_what_is_said_to_be_absent_is_absent(kind, number):
    scene = truth(kind, number)
    seen = {words for thing in scene["objects"] for color in (thing["color"], None)
            for words in (f"the {noun(thing['name'], color)}", noun(thing["name"], color, True))}
    said = [row["expression"] for row in scene["refer"] if not row["bbox"]]
    said += [row["phrase"] for row in scene["detection"] if not row["bboxes"]]
    talk = [turn["value"] for turn in scene["conversation"]]
    said += [re.search(r"where is (.+) \?|\[detection\] (.+)", question).expand(r"\1\2")
             for question, answer in zip(talk[::2], talk[1::2], strict=True) if answer == ABSENT]
    assert not seen & set(said) and len(said) <= 3


# ---- a whole scene -------------------------------------------------------------------------------

def test_a_scene_is_one_piece_whose_things_lie_inside_and_apart():
    picture, things = render_scene(BLOCK + 100, seed=3)
    assert picture.size == (BLOCK + 100, BLOCK + 100) and len(things) == 5
    boxes = [thing["box"] for thing in things]
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        assert 0 < x1 < x2 < BLOCK + 100 and 0 < y1 < y2 < BLOCK + 100
        assert all(x1 > b[2] or b[0] > x2 or y1 > b[3] or b[1] > y2 for b in boxes[:i])
    again, alike = render_scene(BLOCK + 100, seed=3)
    assert picture.tobytes() == again.tobytes() and things == alike
    assert render_scene(BLOCK + 100, seed=4)[1] != things
    # A block is drawn as its neighbor would go on: no seam, but for the grain of each.
    canvas = Canvas(Landscape(random.Random("scene/3/612"), 2.4, 2.4), 3)
    one, two = (np.asarray(canvas.block(0, y, 256), dtype=float) for y in (0, 128))
    same, other = (np.abs(part - two[:128]).mean() for part in (one[128:], one[:128]))
    assert same < 5 < 10 < other


def test_a_scene_lies_in_a_utm_zone(tmp_path):
    root = write_scene(tmp_path / "a", 300)
    truth = json.loads((root / "scene.json").read_text())
    assert truth["size"] == [300, 300] and truth["transform"][0] == METERS and truth["objects"]
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(root / "scene.tif") as dataset:
        assert dataset.crs == truth["crs"] == "EPSG:32633"
        assert list(dataset.transform)[:6] == truth["transform"]
        assert dataset.shape == (300, 300)
