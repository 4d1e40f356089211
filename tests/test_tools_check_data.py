"""`python data.py --check` and `--show`: one of each fault, each named."""
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import tiny
from support.images.read import PictureHeader
from support.readers import read_data, read_split
from support.readers.common import DataError, Sample
from support.readers.questions import class_question
from support.tools.check_data import check_sample, describe_text_boxes, parse_args

GOOD = "good picture ü.png"


def row(image, question="what is it ?", answer="a ship", **more):
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns} | more


WRONG_ROWS = {
    "an empty answer": row(GOOD, answer=" "),
    "an odd number of turns": row(GOOD) | {"conversations": row(GOOD)["conversations"][:1]},
    "no conversation": {"image": GOOD},
    "two humans in a row": {"image": GOOD, "conversations": [{"from": "human", "value": "a"}] * 2},
    "a picture outside": row("../secret.png"),
    "an absolute picture": row("/etc/passwd.png"),
    "a placeholder without a box": row(GOOD, answer="<bbox>"),
    "a number for a text": row(GOOD, answer="x") | {"conversations": [
        {"from": "human", "value": 3}, {"from": "gpt", "value": "a"}]},
    "no picture's name": row([GOOD, 7]),
}
BROKEN_PICTURES = {
    "missing.png": (None, "no such picture"),
    "empty.png": (b"", "the file is empty"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "words.jpg": (b"hello, this is no picture", "not a picture"),
    "cut.jpg": ("cut", "cut off"),
    "cut.png": ("cut", "cut off"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A folder with one of each: a LLaVA file, and pictures broken in every way."""
    folder = tmp_path_factory.mktemp("faulty")
    tiny.picture(folder / GOOD, 64, 48)
    tiny.picture(folder / "strip.png", 400, 20)
    for name, (content, _) in BROKEN_PICTURES.items():
        if content == "cut":
            tiny.picture(folder / name, 200, 200)
            content = (folder / name).read_bytes()[:-2000]
        if content is not None:
            (folder / name).write_bytes(content)
    rows = [row(GOOD), row(GOOD), row("strip.png"), *WRONG_ROWS.values(),
            *(row(name) for name in BROKEN_PICTURES), row(GOOD, answer="a ship " * 2000)]
    (folder / "mine.json").write_text(json.dumps(rows))
    return folder


def run(*flags):
    return subprocess.run([sys.executable, "data.py", *map(str, flags)], capture_output=True,
                          text=True, cwd=tiny.ROOT)


# ---- the command ---------------------------------------------------------------------------------

def test_each_fault_is_named(faulty, tmp_path):
    done = run("--check", faulty / "mine.json", "--json", tmp_path / "report.json")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    lines = "\n".join(report["examples"]["row"])
    for number, name in enumerate(WRONG_ROWS, start=4):
        assert f"mine.json:{number}:" in lines, name
    assert "../secret.png" in lines and "/etc/passwd.png" in lines
    pictures = report["examples"]["picture"]
    for name, (_, reason) in BROKEN_PICTURES.items():
        assert [line for line in pictures if name in line and reason in line], name
    assert report["found"]["picture"] == len(BROKEN_PICTURES)
    assert report["found"]["row"] == len(WRONG_ROWS)
    assert report["found"]["too long"] == 1 and report["found"]["duplicate sample"] == 1
    assert "strip.png" in report["examples"]["long strip"][0]
    assert report["faults"] == len(WRONG_ROWS) + len(BROKEN_PICTURES) + 1
    assert f"{report['faults']} faults" in done.stdout and "FAULT: picture, 7" in done.stdout


def test_the_exit_code_is_0_for_sound_data_and_2_for_a_wrong_command(tmp_path):
    (tmp_path / "fine.json").write_text(json.dumps([row(GOOD)]))
    tiny.picture(tmp_path / GOOD)
    done = run("--check", tmp_path / "fine.json")
    assert done.returncode == 0 and "0 faults" in done.stdout
    for flags, reason in ((("--check", tmp_path / "nowhere"), "nowhere"),
                          (("--deep",), "--check or with --show"),
                          (("--check", tmp_path, "--show", tmp_path), "--check or with --show")):
        done = run(*flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and reason in done.stderr


def test_the_flags_are_spelled_with_underscores_or_dashes_and_samples_has_a_short_one():
    args = parse_args(["--show", "x", "-n", "5", "--visual-tokens", "4", "--max_tokens", "9",
                       "--splits", "val", "test"])
    assert (args.samples, args.visual_tokens, args.max_tokens) == (5, 4, 9)
    assert args.splits == ("val", "test") and args.check == ""


def test_a_sheet_shows_samples_with_their_boxes(tmp_path):
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


def test_no_report_or_sheet_is_written_over_a_file_that_exists(tmp_path):
    data = tmp_path / "fine.json"
    data.write_text(json.dumps([row(GOOD)]))
    tiny.picture(tmp_path / GOOD)
    before = data.read_bytes(), (tmp_path / GOOD).read_bytes()
    for flags, reason in (
            (("--check", data, "--json", data), "--overwrite writes over it"),
            (("--show", data, "--out", tmp_path / GOOD), "--overwrite writes over it"),
            (("--show", data, "--out", tmp_path / "sheet"), "written as .png"),
            (("--show", data, "--out", tmp_path / "no" / "sheet.png"), "no such folder")):
        done = run(*flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and reason in done.stderr
    assert before == (data.read_bytes(), (tmp_path / GOOD).read_bytes())
    (tmp_path / "sheet.jpg").write_text("old")
    assert run("--show", data, "--out", tmp_path / "sheet.jpg", "--overwrite").returncode == 0
    assert Image.open(tmp_path / "sheet.jpg").format == "JPEG"


def test_pictures_that_train_and_test_share_are_named(tmp_path):
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


# ---- checks of a sample --------------------------------------------------------------------------

def sample(task="vqa", turns=(("a", "b"),), boxes=()):
    return Sample(("a.png",), turns, task, "here", boxes)


@pytest.mark.parametrize("box, kind, reason", [
    ((1, 2, 30, 40), None, ""), ((30, 2, 1, 40), "box corrected", "wrong order"),
    ((-5, 2, 30, 40), "box corrected", "over the edge"), ((1, 2, 30, 49), "box corrected", "edge"),
    ((1, 2, 1, 40), "box", "no area"), ((100, 2, 120, 40), "box", "outside"),
    ((1, 2, float("nan"), 40), "box", "not a number")])
def test_a_box_is_sound_or_corrected_or_a_fault(box, kind, reason):
    found = list(check_sample(sample(boxes=(box,)), [PictureHeader(64, 48, "")]))
    assert [k for k, _ in found] == ([kind] if kind else [])
    assert all(reason in line for _, line in found)


def test_a_class_outside_the_list_in_the_question_is_a_fault():
    for question in (class_question({"bridge", "park"}), "Classify the image within one of the "
                     "given classes: bridge, park. Answer it."):
        assert not list(check_sample(sample("scene", ((question, "park"),)), []))
        [(kind, reason)] = check_sample(sample("scene", ((question, "parking"),)), [])
        assert kind == "class" and "parking" in reason


def test_only_a_caption_needs_no_question():
    for task in ("caption", "video"):
        assert not list(check_sample(sample(task, (("", "b"),)), []))
    assert [kind for kind, _ in check_sample(sample(turns=((" ", "b"),)), [])] == ["empty question"]


# ---- before a training ---------------------------------------------------------------------------

def test_what_is_wrong_stops_before_the_first_step_or_is_skipped_and_counted(faulty):
    with pytest.raises(DataError, match="mine.json:4: .* rows more"):
        read_data(faulty / "mine.json")
    skipped = []
    samples = read_data(faulty / "mine.json", skipped=skipped)
    assert len(skipped) == len(WRONG_ROWS) + len(BROKEN_PICTURES) and len(samples) == 4
    assert {path for sample in samples for path in sample.images} == {
        str(faulty / GOOD), str(faulty / "strip.png")}
    single, conversations, errors = read_split(faulty / "mine.json", "train")
    assert len(single) == 0 and len(conversations) == 4 + len(BROKEN_PICTURES)
    assert len(errors) == len(WRONG_ROWS)


@pytest.mark.parametrize("name", BROKEN_PICTURES)
def test_a_broken_picture_stops_a_training_before_its_first_step(faulty, tmp_path, name):
    (tmp_path / "a.json").write_text(json.dumps([row(name)]))
    if (faulty / name).exists():
        (tmp_path / name).write_bytes((faulty / name).read_bytes())
    done = subprocess.run([sys.executable, "train.py", "--model", "weights/nano", "--max_steps",
                           "1", "--data", tmp_path / "a.json", "--output_dir", tmp_path / "out"],
                          capture_output=True, text=True, cwd=tiny.ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("train.py: ") and name in done.stderr


def test_a_missing_picture_is_named_before_the_first_step(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([row("gone.png"), row("gone too.png")]))
    with pytest.raises(DataError, match="gone.png: no such picture .*a.json names it, and 1 more"):
        read_data(tmp_path / "a.json")


def test_a_deep_check_also_finds_what_headers_do_not_show(tmp_path):
    """A picture whose pixels are damaged behind a sound header and before a sound end."""
    tiny.picture(tmp_path / GOOD, 64, 48)
    tiny.picture(tmp_path / "damaged.png", 200, 200)
    content = bytearray((tmp_path / "damaged.png").read_bytes())
    content[len(content) // 2:len(content) // 2 + 400] = bytes(400)
    (tmp_path / "damaged.png").write_bytes(content)
    (tmp_path / "rows.json").write_text(json.dumps([row(GOOD), row("damaged.png")]))
    codes = []
    for flags in ([], ["--deep"]):
        done = subprocess.run(
            [sys.executable, "data.py", "--check", str(tmp_path / "rows.json"), *flags],
            cwd=tiny.ROOT, capture_output=True, text=True)
        codes.append((done.returncode, "damaged.png" in done.stdout))
    assert codes == [(0, False), (1, True)]


@pytest.mark.parametrize("text, kind", [
    ("{<120><340><560><780>}", "thousandths"), ("{<0.1><0.2><0.3><0.4>}", "fractions"),
    ("{<1><2><3><4000>}", "other numbers"), ("{<1><2><3><4>}", ""), ("{<1><2><3><4>|<-90>}", ""),
    ("{ no box }", "")])
def test_a_box_in_other_numbers_than_hundredths_is_described(text, kind):
    assert kind in describe_text_boxes(text) and bool(describe_text_boxes(text)) == bool(kind)
