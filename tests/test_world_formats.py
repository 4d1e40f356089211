"""A miniature world, written in the layouts the public benchmarks have, reads back the same."""
import json
import shutil
from pathlib import Path

import pytest

from examples.miniworld import write_world
from support.readers import FORMATS, read_data
from support.readers.questions import CLASS_QUESTION


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    write_world(folder, train=16, val=1, test=1, clips=10, size=64, workers=1)
    return read_data(folder)


def of(world, task):
    found = [sample for sample in world if sample.task == task]
    assert found
    return found


def same(found, wanted):
    """The same pictures by name, turns and boxes."""
    def told(samples):
        return sorted((tuple(Path(p).stem for p in s.images), s.turns,
                       tuple(tuple(map(float, box)) for box in s.boxes)) for s in samples)
    return told(found) == told(wanted)


def copied(samples, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        for path in map(Path, sample.images):
            shutil.copy(path, folder / path.name)


def name(sample):
    return Path(sample.images[0]).name


def by_picture(samples):
    groups = {}
    for sample in samples:
        groups.setdefault(name(sample), []).append(sample)
    return groups


def write_rsicd(samples, place):
    copied(samples, place / "images")
    rows = [{"filename": picture, "split": "train",
             "sentences": [{"raw": s.turns[0][1]} for s in own]}
            for picture, own in by_picture(samples).items()]
    (place / "dataset_mini.json").write_text(json.dumps({"images": rows}))


def write_nwpu(samples, place):
    rows = []
    for picture, own in by_picture(samples).items():
        texts = {"raw" if i == 0 else f"raw_{i}": s.turns[0][1] for i, s in enumerate(own)}
        rows.append({"filename": picture, "split": "train"} | texts)
    copied(samples, place / "farm")
    (place / "dataset_nwpu.json").write_text(json.dumps({"farm": rows}))


def write_lists(samples, place):
    copied(samples, place / "images")
    (place / "train_filename.txt").write_text("".join(f"{name(s)}\n" for s in samples))
    (place / "train_caps.txt").write_text("".join(f"{s.turns[0][1]}\n" for s in samples))


def write_rsvqa(samples, place):
    """Pictures by number: a copy of the samples whose pictures are called so."""
    numbers = {picture: i for i, picture in enumerate(by_picture(samples))}
    (place / "Images_LR").mkdir(parents=True)
    for sample in samples:
        shutil.copy(sample.images[0], place / "Images_LR" / f"{numbers[name(sample)]}.tif")
    tables = {"images": [{"id": i, "active": True, "questions_ids": [
        q for q, s in enumerate(samples) if numbers[name(s)] == i]} for i in numbers.values()],
        "questions": [{"id": q, "img_id": numbers[name(s)], "type": s.kind, "active": True,
                       "question": s.turns[0][0], "answers_ids": [q]}
                      for q, s in enumerate(samples)],
        "answers": [{"id": q, "question_id": q, "answer": s.turns[0][1], "active": True}
                    for q, s in enumerate(samples)]}
    for key, rows in tables.items():
        (place / f"LR_split_train_{key}.json").write_text(json.dumps({key: rows}))
    return numbers


def write_rsivqa(samples, place):
    copied(samples, place / "images")
    (place / "mini_train.txt").write_text("".join(
        f"{name(s)}:{s.turns[0][0].removesuffix(' ?')}?{s.turns[0][1]}\n" for s in samples))


def write_rsvg(samples, place):
    copied(samples, place / "JPEGImages")
    (place / "Annotations").mkdir()
    count = 0
    for picture, own in by_picture(samples).items():
        objects = ""
        for sample in own:
            sides = zip(("xmin", "ymin", "xmax", "ymax"), sample.boxes[0], strict=True)
            box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
            objects += (f"<object><bndbox>{box}</bndbox>"
                        f"<description>{sample.turns[0][0]}</description></object>")
            count += 1
        (place / "Annotations" / f"{Path(picture).stem}.xml").write_text(
            f"<annotation><filename>{picture}</filename>{objects}</annotation>")
    (place / "train.txt").write_text("\n".join(map(str, range(count))))


def write_llava(samples, place):
    copied(samples, place)
    rows = [{"image": [Path(path).name for path in s.images],
             "conversations": [{"from": who, "value": text} for turn in s.turns
                               for who, text in zip(("human", "gpt"), turn, strict=True)]}
            for s in samples]
    (place / "talk.json").write_text(json.dumps(rows))


def write_swift(samples, place):
    copied(samples, place)
    rows = [{"images": [name(s)], "objects": {"ref": [], "bbox": [list(box) for box in s.boxes]},
             "messages": [{"role": who, "content": text} for turn in s.turns
                          for who, text in zip(("user", "assistant"), turn, strict=True)]}
            for s in samples]
    (place / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("task, write, form, file", [
    ("caption", write_rsicd, "rsicd", ""), ("caption", write_lists, "caption_lists", ""),
    ("vqa", write_rsivqa, "rsivqa", ""), ("refer", write_rsvg, "dior_rsvg", ""),
    ("conversation", write_llava, "llava", "talk.json"),
    ("refer", write_swift, "llava", "talk.jsonl"), ("identify", write_swift, "llava", "talk.jsonl"),
    ("detection", write_swift, "llava", "talk.jsonl")])
def test_what_is_written_in_a_format_reads_back(world, tmp_path, task, write, form, file):
    place = tmp_path / "set"
    place.mkdir()
    write(of(world, task), place)
    place = place / file
    assert [key for key, module in FORMATS.items() if module.matches(place)] == [form]
    assert same(read_data(place), of(world, task))
    assert same(read_data(place, form=form), of(world, task))


def test_nwpu_captions_reads_back_with_five_sentences_a_picture(world, tmp_path):
    five = [s for own in by_picture(of(world, "caption")).values() for s in (own * 5)[:5]]
    write_nwpu(five, tmp_path)
    assert same(read_data(tmp_path), five)


def test_rsvqa_reads_back_with_its_kinds(world, tmp_path):
    samples = of(world, "vqa")
    numbers = write_rsvqa(samples, tmp_path)
    found = [(Path(s.images[0]).stem, s.turns, s.kind) for s in read_data(tmp_path)]
    assert sorted(found) == sorted((str(numbers[name(s)]), s.turns, s.kind) for s in samples)


def test_a_folder_a_class_reads_back_with_the_papers_question(world, tmp_path):
    samples = of(world, "scene")
    for sample in samples:
        copied([sample], tmp_path / sample.turns[0][1].replace(" ", "_"))
    classes = sorted({s.turns[0][1] for s in samples})
    found = read_data(tmp_path)
    assert {s.turns[0][0] for s in found} == {CLASS_QUESTION.format(", ".join(classes))}
    assert (sorted((name(s), s.turns[0][1]) for s in found)
            == sorted((name(s), s.turns[0][1]) for s in samples))


def test_clips_read_back_as_capera_has_them(world, tmp_path):
    clips = {}
    for sample in of(world, "video"):
        clips.setdefault(sample.images, []).append(sample.turns[0][1])
    rows = []
    for number, (frames, texts) in enumerate(clips.items()):
        folder = tmp_path / "Videos" / f"Clip_{number:03}"
        folder.mkdir(parents=True)
        for i, frame in enumerate(frames):
            shutil.copy(frame, folder / f"{i}.png")
        rows.append({"video_id": f"Clip_{number:03}.mp4", "annotation": {"English_caption": texts}})
    (tmp_path / "CapERA_DATASET_train.json").write_text(json.dumps({"ERA_caption": rows}))
    found = {}
    for sample in read_data(tmp_path):
        found.setdefault(Path(sample.images[0]).name, []).append(sample.turns[0][1])
    assert list(found.values()) == list(clips.values())


def test_no_other_reader_takes_the_miniature_world_for_its_own(world):
    folder = next(path for path in Path(world[0].images[0]).parents if (path / "vqa").is_dir())
    assert [key for key, module in FORMATS.items() if module.matches(folder)] == ["skyeye"]
