"""`python data.py --check` and `--show`: one of each bad input, each named."""
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import tiny
from support.images.read import read_header, read_headers
from support.readers import read_data, read_split
from support.readers.common import DataError
from support.tools.check_data import check_sample

GOOD = "good picture ü.png"


def row(image, question="what is it ?", answer="a ship", **more):
    said = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": said} | more


BAD_ROWS = {
    "an empty answer": row(GOOD, answer=" "),
    "an odd number of turns": row(GOOD) | {"conversations": row(GOOD)["conversations"][:1]},
    "no conversation": {"image": GOOD},
    "two humans in a row": {"image": GOOD, "conversations": [{"from": "human", "value": "a"}] * 2},
    "a picture outside": row("../secret.png"),
    "an absolute picture": row("/etc/passwd.png"),
    "a mark without a box": row(GOOD, answer="<bbox>"),
    "a number for a text": row(GOOD, answer="x") | {"conversations": [
        {"from": "human", "value": 3}, {"from": "gpt", "value": "a"}]},
    "no picture's name": row([GOOD, 7]),
}
BAD_PICTURES = {
    "missing.png": (None, "no such picture"),
    "empty.png": (b"", "the file is empty"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "words.jpg": (b"hello, this is no picture", "not a picture"),
    "cut.jpg": ("cut", "cut off"),
    "cut.png": ("cut", "cut off"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder with one of each: a LLaVA file, and pictures of every sad kind."""
    folder = tmp_path_factory.mktemp("bad")
    tiny.picture(folder / GOOD, 64, 48)
    tiny.picture(folder / "strip.png", 400, 20)
    for name, (content, _) in BAD_PICTURES.items():
        if content == "cut":
            tiny.picture(folder / name, 200, 200)
            content = (folder / name).read_bytes()[:-2000]
        if content is not None:
            (folder / name).write_bytes(content)
    rows = [row(GOOD), row(GOOD), row("strip.png"), *BAD_ROWS.values(),
            *(row(name) for name in BAD_PICTURES), row(GOOD, answer="a ship " * 2000)]
    (folder / "mine.json").write_text(json.dumps(rows))
    return folder


def run(*flags):
    return subprocess.run([sys.executable, "data.py", *map(str, flags)], capture_output=True,
                          text=True, cwd=tiny.ROOT)


def test_each_bad_input_is_named(bad, tmp_path):
    done = run("--check", bad / "mine.json", "--json", tmp_path / "report.json")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    rows = "\n".join(report["examples"]["row"])
    for number, name in enumerate(BAD_ROWS, start=4):
        assert f"mine.json:{number}:" in rows, name
    assert "../secret.png" in rows and "/etc/passwd.png" in rows
    pictures = report["examples"]["picture"]
    for name, (_, reason) in BAD_PICTURES.items():
        assert [told for told in pictures if name in told and reason in told], name
    assert report["found"]["picture"] == len(BAD_PICTURES)
    assert report["found"]["row"] == len(BAD_ROWS)
    assert report["found"]["too long"] == 1 and report["found"]["said twice"] == 1
    assert "strip.png" in report["examples"]["long strip"][0]
    assert report["faults"] == len(BAD_ROWS) + len(BAD_PICTURES) + 1
    assert f"{report['faults']} faults" in done.stdout and "FAULT: picture, 7" in done.stdout


def test_a_good_folder_has_exit_code_0_and_a_wrong_command_2(bad, tmp_path):
    (tmp_path / "fine.json").write_text(json.dumps([row(GOOD)]))
    tiny.picture(tmp_path / GOOD)
    done = run("--check", tmp_path / "fine.json")
    assert done.returncode == 0 and "0 faults" in done.stdout
    done = run("--check", tmp_path / "nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr


def test_a_sheet_shows_samples_with_their_boxes(bad, tmp_path):
    folder = tmp_path / "sky"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(folder / "images" / "a.png")
    (folder / "vqa").mkdir()
    (folder / "vg").mkdir()
    (folder / "vg" / "rsvg.json").write_text(json.dumps(
        [{"image": "a.png", "expression": "the ship", "bbox": [20, 20, 120, 80]}]))
    done = run("--show", folder, "-n", 5, "--out", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    page = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    red = (abs(page - (255, 59, 48)).sum(axis=2) < 30).nonzero()
    scale = (320 - 12) / 200
    for found, wanted in zip((red[1].min(), red[1].max(), red[0].min(), red[0].max()),
                             (20, 120, 20, 80), strict=True):
        assert abs(found - 6 - wanted * scale) < 2.5 * scale


# ---- parts ---------------------------------------------------------------------------------------

class Made:
    def __init__(self, **fields):
        self.__dict__ |= {"task": "vqa", "turns": (("a", "b"),), "boxes": ()} | fields


@pytest.mark.parametrize("box, kind, why", [
    ((1, 2, 30, 40), None, ""), ((30, 2, 1, 40), "box put right", "wrong order"),
    ((-5, 2, 30, 40), "box put right", "over the edge"), ((1, 2, 30, 49), "box put right", "edge"),
    ((1, 2, 1, 40), "box", "no area"), ((100, 2, 120, 40), "box", "outside"),
    ((1, 2, float("nan"), 40), "box", "not a number")])
def test_a_box_is_fine_or_can_be_put_right_or_is_a_fault(box, kind, why):
    found = list(check_sample(Made(boxes=(box,)), [(64, 48)]))
    assert [k for k, _ in found] == ([kind] if kind else []) and all(why in t for _, t in found)


def test_a_class_outside_the_list_in_the_question_is_a_fault():
    question = "Classify the image within one of the given classes: bridge, park. Answer it."
    assert not list(check_sample(Made(task="scene", turns=((question, "park"),)), []))
    (kind, told), = check_sample(Made(task="scene", turns=((question, "parking"),)), [])
    assert kind == "class" and "parking" in told


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_header_tells_the_sides_as_they_are_shown(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (80, 40)).save(tmp_path / "a.jpg", exif=exif)
    wanted = (40, 80) if orientation > 4 else (80, 40)
    assert read_header(str(tmp_path / "a.jpg")) == (*wanted, "")


def test_many_headers_are_read_by_several_processes_and_say_the_same(tmp_path):
    tiny.picture(tmp_path / "a.png")
    paths = [str(tmp_path / "a.png")] + [str(tmp_path / f"{i}.png") for i in range(600)]
    found = read_headers(paths)
    assert found[paths[0]] == (37, 23, "") and "no such picture" in found[paths[-1]][2]
    assert list(found) == paths


def test_pictures_that_train_and_test_share_are_told(tmp_path):
    for split in ("train", "test"):
        for folder in ("caption", "vqa"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "caption" / f"c_{split}.json").write_text(json.dumps(
            [{"image": "both.png", "caption": split}, {"image": f"{split}.png", "caption": "a"}]))
    for name in ("both", "train", "test"):
        tiny.picture(tmp_path / "images" / f"{name}.png")
    done = run("--check", tmp_path)
    assert "picture in two splits, 1" in done.stdout and "both.png: train and test" in done.stdout
    assert done.returncode == 0


# ---- before a training ---------------------------------------------------------------------------

def test_what_is_wrong_stops_before_the_first_step_or_is_left_out_and_counted(bad):
    with pytest.raises(DataError, match="mine.json:4: .* rows more"):
        read_data(bad / "mine.json")
    skipped = []
    samples = read_data(bad / "mine.json", skipped=skipped)
    assert len(skipped) == len(BAD_ROWS) + len(BAD_PICTURES) and len(samples) == 4
    assert {path for sample in samples for path in sample.images} == {
        str(bad / GOOD), str(bad / "strip.png")}
    single, talks, wrong = read_split(bad / "mine.json", "train")
    assert len(single) == 0 and len(talks) == 4 + len(BAD_PICTURES) and len(wrong) == len(BAD_ROWS)


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_stops_a_training_before_its_first_step(bad, tmp_path, name):
    (tmp_path / "a.json").write_text(json.dumps([row(name)]))
    if (bad / name).exists():
        (tmp_path / name).write_bytes((bad / name).read_bytes())
    done = subprocess.run([sys.executable, "train.py", "--model", "weights/nano", "--max_steps",
                           "1", "--data", tmp_path / "a.json", "--output_dir", tmp_path / "out"],
                          capture_output=True, text=True, cwd=tiny.ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("train.py: ") and name in done.stderr


def test_a_missing_picture_is_named_before_the_first_step(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([row("gone.png"), row("gone too.png")]))
    with pytest.raises(DataError, match="gone.png: no such picture .*a.json names it, and 1 more"):
        read_data(tmp_path / "a.json")
