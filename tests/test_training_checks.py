"""support/training/checks: what is found in the rows before the first step; also --bands."""
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import eval as evaluation
import tiny
import train
from data import TEMPLATES
from pictures import save_tiff
from support.images.clips import check_pixels
from support.images.read import read_header, read_picture
from support.readers import read_data
from support.readers.common import DataError, Sample, SampleTable
from support.tools import check_data
from support.training import checks
from support.training.checks import (
    TokenCounter,
    describe_text_boxes,
    drop_long_rows,
    note_text_boxes,
)

refusal = tiny.refusal


def counter(max_tokens, **more):
    return TokenCounter(tiny.tokenizer(), "skyeye", tiny.N, max_tokens, **more)


def talk(question, answer="yes", **more):
    return vars(Sample((), ((question, answer),), "conversation", "here")) | more


# ---- lengths -------------------------------------------------------------------------------------

def row_of(sample, **more):
    return tiny.rows([sample], **more)[0, 0]["ids"]


@pytest.mark.parametrize("task, turns", [
    ("conversation", (("is there a road ?", "yes"), ("a ship ?", "no"))),
    ("vqa", (("what ?", "it"),)),
    ("detection", (("ships", "<p>ships</p> <bbox><delim><bbox>"),)),
    ("caption", (("", "a river"),)),
    ("identify", (("<bbox>", "ship"),)), ("refer", (("the ship", "<bbox>"),))])
def test_the_tokens_of_text_are_those_of_the_row_in_the_longest_template(tmp_path, task, turns):
    path = tiny.picture(tmp_path / "a.png")
    boxes = ((3, 2, 30, 20),) * sum(text.count("<bbox>") for turn in turns for text in turn)
    sample = Sample((path,), turns, task, "here", boxes)
    text, whole = counter(1024).count(sample)
    longest = 0
    for seed in range(40 if len(TEMPLATES[task]) > 1 else 1):
        ids = row_of(sample, seed=seed)
        longest = max(longest, len(ids))
        assert (ids == -1).sum() == tiny.N == whole - text
    assert longest == whole


def test_no_row_that_is_too_long_is_passed_over_before_counting():
    rng = np.random.default_rng(0)
    words = ["ship", "é", "\u6e2f", "{<1><2><3><4>}", "a", "<bbox>", "\U0001f6a2"]
    rows = []
    for number in range(200):
        turns = tuple((" ".join(rng.choice(words, rng.integers(1, 30))), rng.choice(["a", "港"]))
                      for _ in range(rng.integers(1, 9)))
        boxes = ((0, 0, 1, 1),) * sum(question.count("<bbox>") for question, _ in turns)
        rows.append(vars(Sample((), turns, "conversation", f"row {number}", boxes)))
    samples = SampleTable(rows)
    for style in ("skyeye", "minigpt_v2", "vicuna_v1"):
        for limit in (50, 150, 400):
            count = replace(counter(limit), style=style)
            may_be = set(count.candidates(samples).tolist())
            too_long = {i for i, sample in enumerate(samples) if count.fault(sample)[1]}
            assert too_long <= may_be
            assert limit > 50 or too_long


def test_the_picture_does_not_count_but_has_to_fit_the_context(tmp_path):
    turns = (("is there a road ?", "yes"),)
    sample = Sample((tiny.picture(tmp_path / "a.png"),), turns, "vqa", "me")
    text, whole = counter(1024).count(sample)
    assert counter(text).fault(sample) == (text, "")
    fault = f"{text} tokens of text, over --max_tokens {text - 1}"
    assert counter(text - 1).fault(sample) == (text, fault)
    assert counter(text, max_positions=whole).fault(sample) == (text, "")
    context = f"{whole} tokens with its pictures, and the model's context has {whole - 1}"
    assert counter(text, max_positions=whole - 1).fault(sample)[1] == context
    assert len(row_of(replace(sample, task="conversation"), max_tokens=text)) <= whole
    rows = tiny.rows([sample], max_tokens=text, max_positions=len(row_of(sample)) - 1)
    assert "the model's context has" in refusal(DataError, rows.__getitem__, (0, 0))


def long_table():
    rows = [talk("say " + "a road " * n, source=f"f.json:{i}")
            for i, n in enumerate((1, 50, 2, 90, 60))]
    return SampleTable(rows)


def test_long_rows_are_named_with_their_number_and_the_longest(capsys):
    line = refusal(DataError, drop_long_rows, long_table(), counter(60), None)
    longest, _ = counter(60).count(long_table()[3])
    assert line.startswith("f.json:1: ") and "(3 such rows; " in line
    assert f"the longest, f.json:3, has {longest:,})" in line and "--skip_bad leaves" in line
    skipped = ["earlier"]
    kept = drop_long_rows(long_table(), counter(60), skipped)
    assert [sample.source for sample in kept] == ["f.json:0", "f.json:2"]
    assert [line.split(": ")[0] for line in skipped] == ["earlier", "f.json:1", "f.json:3",
                                                         "f.json:4"]
    printed = capsys.readouterr().err
    assert printed.startswith("left out 3: f.json:1: ") and printed.count("\n") == 1
    assert "no row is left" in refusal(DataError, drop_long_rows, long_table(), counter(3), [])
    sound = long_table()
    assert drop_long_rows(sound, counter(1024), None) is sound


def test_only_so_much_text_is_encoded_and_the_longest_rows_come_first(monkeypatch, capsys):
    monkeypatch.setattr(checks, "MEASURED_CHARACTERS", 500)
    kept = drop_long_rows(long_table(), counter(60), [])
    assert [sample.source for sample in kept] == ["f.json:0", "f.json:1", "f.json:2", "f.json:4"]
    assert "rows were not measured; data.py --check measures all" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.model_folder(tmp_path_factory.mktemp("model")))


def start(folder, place, out, **more):
    config = train.TrainConfig(model=folder, data=(str(place),), tune="projector", max_steps=1,
                               batch_size=1, device="cpu", output_dir=str(out), stage=2, **more)
    assert train.train(config) == 0


def test_a_training_names_long_rows_before_its_first_step_or_leaves_them_out(folder, tmp_path,
                                                                            capsys):
    place = tiny.conversations(tmp_path, count=3)
    rows = json.loads(place.read_text())
    rows[1]["conversations"][1]["value"] = "a road " * 40
    place.write_text(json.dumps(rows))
    line = refusal(DataError, lambda: start(folder, place, tmp_path / "a", max_tokens=60))
    assert line.startswith(f"{place}:2: ") and not (tmp_path / "a/log.jsonl").exists()
    start(folder, place, tmp_path / "b", max_tokens=60, skip_bad=True)
    assert f"left out 1: {place}:2: " in capsys.readouterr().err
    assert check_data.main(["--check", str(place), "--max_tokens", "60"]) == 1
    assert "FAULT: too long, 1" in capsys.readouterr().out


# ---- boxes in texts ------------------------------------------------------------------------------

BAD_BOXES = {"{<120><300><450><1000>}": "thousandths", "{<0.1><0.2><0.3><0.4>}": "fractions",
             "{<-3><2><30><40>}": "other numbers", "{<1><2><3><101>}": "thousandths"}


@pytest.mark.parametrize("box", BAD_BOXES)
def test_a_training_notes_boxes_in_texts_that_are_none(box):
    rows = [talk("where is it ?", "{<1><2><3><100>} and { <4> <5> <6> <7> | <30> }"),
            talk(f"what is in {box}", "a ship", source="mine.json:2"), talk("é", f"é {box} {box}")]
    note = note_text_boxes(SampleTable(rows))
    assert note.startswith(f"mine.json:2: {describe_text_boxes(box)} (and 2 more)")
    assert BAD_BOXES[box] in note
    assert note_text_boxes(SampleTable(rows[:1])) == ""


def test_the_note_is_printed_once_at_the_start(folder, tmp_path, capsys):
    place = tiny.conversations(tmp_path, count=3)
    place.write_text(place.read_text().replace("a green ship", "{<120><300><450><999>}"))
    start(folder, place, tmp_path / "out")
    printed = capsys.readouterr().err
    assert printed.count("thousandths") == 1 and f"note: {place}:3: " in printed


# ---- bands ---------------------------------------------------------------------------------------

def write_bands(path, count):
    """A picture of so many bands, a TIFF of 8 where no other format has them."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, count), dtype=np.uint8)
    if count > 4:
        pytest.importorskip("rasterio")
        save_tiff(path, pixels)
    else:
        Image.fromarray(pixels if count > 1 else pixels[..., 0]).save(path)
    return str(path)


CASES = [("a.tif", 8, (), "8 bands"), ("a.tif", 8, (9, 2, 1), "asks for band 9; it has 8"),
         ("a.tif", 8, (5, 3), "one number or three"), ("a.png", 3, (4, 3, 2), "band 4; it has 3"),
         ("a.tif", 3, (4, 3, 2), "band 4; it has 3"), ("a.jpg", 1, (3, 2, 1), "band 3; it has 1"),
         ("a.tif", 8, (8, 3, 2), ""), ("a.png", 4, (4, 3, 2), ""), ("a.jpg", 3, (2,), ""),
         ("a.png", 3, (), "")]


@pytest.mark.parametrize("name, count, bands, reason", CASES)
def test_a_header_says_what_reading_would_say_of_the_bands(tmp_path, name, count, bands, reason):
    path = write_bands(tmp_path / name, count)
    fault = read_header(path, bands).fault
    assert reason in fault and bool(reason) == bool(fault)
    assert check_pixels([path], bands)[path] == fault
    if not fault:
        read_picture(path, bands)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "CMYK", "I;16", "F", "RGBA"])
def test_bands_of_other_modes_are_judged_by_the_header_as_by_reading(tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8))
    name = "a.tif" if mode in ("CMYK", "F") else "a.png"
    image.convert("I" if mode == "I;16" else mode).convert(mode).save(tmp_path / name)
    for bands in ((1,), (3, 2, 1), (4, 3, 2)):
        path = str(tmp_path / name)
        assert read_header(path, bands).fault == check_pixels([path], bands)[path]


def test_bands_are_known_to_train_eval_and_check_at_the_start(tmp_path, capsys, monkeypatch):
    place = tmp_path / "set"
    for number, label in enumerate(("Pond", "Port")):
        (place / label).mkdir(parents=True)
        write_bands(place / label / f"{number}.tif", 8)
    assert "--bands 4,3,2" in refusal(DataError, read_data, place)
    assert len(read_data(place, bands=(8, 3, 2))) == 2
    job = evaluation.Job("", "test", (str(place),), tmp_path / "out")
    assert "8 bands" in refusal(DataError, evaluation.read_questions, job)
    assert len(evaluation.read_questions(job, bands=(8, 3, 2))) == 2
    asked = []
    monkeypatch.setattr(train, "read_data", lambda *_, **more: asked.append(more) or sys.exit(7))
    config = train.TrainConfig(data=(str(place),), bands=(8, 3, 2))
    with pytest.raises(SystemExit):
        train.build_dataset(config, tiny.skyeye(), tiny.tokenizer(), ())
    assert asked[0]["bands"] == (8, 3, 2)
    assert check_data.main(["--check", str(place), "--deep"]) == 1
    assert check_data.main(["--check", str(place)]) == 0
    assert "8 bands" in capsys.readouterr().out
    assert check_data.main(["--check", str(place), "--deep", "--bands", "8,3,2"]) == 0
    assert "8 bands" not in capsys.readouterr().out
    assert check_data.main(["--check", str(place), "--bands", "9,3,2"]) == 1


def test_a_clip_that_is_a_folder_of_frames_is_shown_in_these_bands(tmp_path):
    (tmp_path / "clip").mkdir()
    path = write_bands(tmp_path / "clip/0.tif", 8)
    [shown] = evaluation.load_images([tmp_path / "clip"], (8, 3, 2))
    assert shown.image.tobytes() == read_picture(path, (8, 3, 2)).image.tobytes()
