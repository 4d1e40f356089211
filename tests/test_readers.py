"""support/readers: which layout a folder has, what read_data makes of it, what is refused."""
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

import tiny
from data import TEMPLATES, load_image
from data_folders import (
    CONVERSATION,
    FIXTURES,
    MAKERS,
    layouts_of,
    make_capera,
    make_coco,
    make_dota,
    make_metadata,
    make_skyeye,
    make_yolo,
    read,
    replace_once,
    row_errors,
    touch,
    write,
)
from examples.miniworld import write_world
from support.common import UserError
from support.readers import FORMATS, parse_ratios, read_data, read_split
from support.readers.common import DataError, MissingSplit
from support.readers.questions import class_question

refusal = partial(tiny.refusal, DataError)


# ---- layouts -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MAKERS)
def test_exactly_one_layout_matches_a_folder(name, tmp_path):
    MAKERS[name](tmp_path)
    assert layouts_of(tmp_path) == [name]


@pytest.mark.parametrize("name", MAKERS)
def test_every_folder_is_read(name, tmp_path):
    MAKERS[name](tmp_path)
    rows = read(name, tmp_path)
    assert rows and all((tmp_path / path).exists() for row in rows for path in row["images"])


def test_a_folder_of_data_sets_is_refused_with_the_names_of_those_that_can_be_read(tmp_path):
    MAKERS["rsicd"](tmp_path / "all" / "boats")
    MAKERS["dior_rsvg"](tmp_path / "all" / "planes")
    (tmp_path / "all" / "notes").mkdir()
    told = refusal(read_data, tmp_path / "all")
    assert told.endswith(f"in one that can be read: {tmp_path}/all/boats, {tmp_path}/all/planes")
    told = refusal(read_data, tmp_path / "all" / "notes")
    assert "in no layout" in told and "in one" not in told


# ---- splits --------------------------------------------------------------------------------------

def make_train_alone(name, place):
    """A folder of this layout without anything of val; its train is whole."""
    if name == "dota":
        make_dota(place / "train")
    elif name == "metadata":
        make_metadata(place, "train")
    elif name == "yolo":
        make_yolo(place, "images/train", "labels/train")
    elif name == "llava":
        write(place / "train.json", [{"image": "a.jpg", "conversations": CONVERSATION}])
    else:
        MAKERS[name](place)
        for file in [*place.glob("val*.txt"), *place.glob("Questions/Valid*")]:
            file.unlink()
    if name == "voc":
        write(place / "train.txt", "P1\nP2\n")
    elif name == "class_folder":
        write(place / "train.txt", "Pond/1.jpg\n")


WITH_FILES_OF_SPLITS = ("caption_lists", "capera", "class_folder", "coco", "dior_rsvg", "dota",
                        "floodnet", "llava", "metadata", "rsvqa", "voc", "yolo")


@pytest.mark.parametrize("name", WITH_FILES_OF_SPLITS)
def test_a_split_that_is_not_there_is_an_error_of_its_own_kind(name, tmp_path):
    make_train_alone(name, tmp_path)
    single, conversations, errors = read_split(tmp_path, "train")
    assert len(single) + len(conversations) and not errors
    with pytest.raises(MissingSplit) as caught:
        read_split(tmp_path, "val")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name, file", [("rsvqa", "LR_split_val_images.json"),
                                        ("caption_lists", "val_filename.txt")])
def test_half_of_a_split_is_not_a_split_that_is_not_there(name, file, tmp_path):
    """Its pictures would count as those of no split."""
    make_train_alone(name, tmp_path)
    write(tmp_path / file, '{"images": []}' if file.endswith("json") else "0.tif\n")
    with pytest.raises(DataError) as caught:
        read_split(tmp_path, "val")
    assert not isinstance(caught.value, MissingSplit)


# ---- real folders --------------------------------------------------------------------------------

REAL_FOLDERS = {
    "UCM_captions": "rsicd", "Sydney_captions": "rsicd", "RSICD": "rsicd", "RSIVQA": "rsivqa",
    "RSVQA_LR": "rsvqa", "HRRSD_voc": "voc", "CapERA": "capera", "DIOR_RSVG": None, "llama": None,
    "falcon": None, "nlg_eval": None, "../rsicd": "rsicd", "../simd_rsvg": "dior_rsvg",
    "../rsscn7": "class_folder", "../rsicd/textrs_vqa_val.json": "llava"}


@pytest.mark.skipif(not FIXTURES.exists(), reason=f"needs {FIXTURES}")
@pytest.mark.parametrize("folder", REAL_FOLDERS)
def test_exactly_one_layout_matches_a_real_folder(folder):
    name = REAL_FOLDERS[folder]
    assert layouts_of(FIXTURES / folder) == ([name] if name else [])


def test_no_layout_matches_an_empty_folder_or_loose_pictures(tmp_path):
    assert layouts_of(tmp_path) == []
    touch(tmp_path, "1.jpg", "images/2.jpg", "notes.txt", "README.md")
    assert layouts_of(tmp_path) == []


def test_a_layout_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="--format imagenet: unknown; there are metadata, coco"):
        read_data(tmp_path, format_name="imagenet")


# ---- rows that are wrong -------------------------------------------------------------------------

WRONG_ROWS = [      # layout, file, what is in it, what replaces it, the error
    ("rsicd", "dataset_rsicd.json", '"raw": "a port ."', '"raw": ""', ":1: 'raw' must be a text"),
    ("rsicd", "dataset_rsicd.json", '"filename": "0.jpg", ', "", ":1: no 'filename'"),
    ("rsicd", "dataset_rsicd.json", ', "split": "train"', "", ":1: no 'split'"),
    ("rsicd", "rsicd_vqa.txt", "?", "", ":1: not picture:question?answer"),
    ("rsicd", "dataset_rsicd.json", "]}]}", "", "not valid JSON"),
    ("nwpu_captions", "dataset_nwpu.json", '"raw_3": "a plane ."', '"raw_3": 7',
     ":1: 'raw_3' must"),
    ("nwpu_captions", "dataset_nwpu.json", '"raw_2": "a plane ."', '"x": ""', ":1: no 'raw_2'"),
    ("caption_lists", "train_caps.txt", "picture 0 caption 1", " ", ":2: an empty caption"),
    ("capera", "CapERA_DATASET_train.json", '"train 3"', '""', ":1: 'caption' must be a text"),
    ("capera", "CapERA_DATASET_train.json", '"video_id"', '"id"', ":1: no 'video_id'"),
    ("capera", "CapERA_DATASET_train.json", '"English_caption"', '"x"', ":1: no 'English_caption'"),
    ("capera", "CapERA_DATASET_train.json", '"ERA_caption"', '"x"', "train.json: no 'ERA_caption'"),
    ("rsvqa", "LR_split_train_questions.json", '"img_id": 0', '"img_id": 3',
     ":0: no image has id 3"),
    ("rsvqa", "LR_split_train_questions.json", '[0]', '[9]', ":0: no answer has id 9"),
    ("rsvqa", "LR_split_train_questions.json", '[0]', '[]', ":0: a question without answers"),
    ("rsvqa", "LR_split_train_questions.json", '"type": "presence", ', "", ":0: no 'type'"),
    ("rsvqa", "LR_split_train_answers.json", '"yes"', 'null', ":0: 'answer' must be a text"),
    ("rsvqa", "LR_split_train_answers.json", '"answers"', '"x"', "answers.json: no 'answers'"),
    ("rsivqa", "ucm_res.txt", "trees in the picture?", "trees", "ucm_res.txt:3: not picture"),
    ("rsivqa", "ucm_res.txt", "?one", "?", "ucm_res.txt:3: not picture:question?answer"),
    ("voc", "Annotations/P1.xml", "<name>harbor</name>", "", "P1.xml: object 2: no <name>"),
    ("voc", "Annotations/P1.xml", "<xmin>5</xmin>", "", "object 2: no <bndbox/xmin>"),
    ("voc", "Annotations/P1.xml", "<xmin>5</xmin>", "<xmin>x</xmin>", "2: could not"),
    ("voc", "Annotations/P1.xml", "<xmin>5</xmin>", "<xmin>70</xmin>", "2: no box: x 70 to 70"),
    ("voc", "Annotations/P1.xml", "<xmin>5</xmin>", "<xmin>nan</xmin>", "2: could not read"),
    ("voc", "Annotations/P1.xml", "</annotation>", "", "P1.xml: no element found"),
    ("voc", "Annotations/P1.xml", "<filename>P1.png</filename>", "", "P1.xml: no <filename>"),
    ("dior_rsvg", "Annotations/00002.xml", "<description>00002 0\n</description>", "",
     "00002.xml:0: no <description>"),
    ("dior_rsvg", "Annotations/00002.xml", "<xmin>0</xmin>", "", "00002.xml:0: no <bndbox/xmin>"),
    ("dota", "labelTxt/P1.txt", " harbor 0", "", "P1.txt: line 4: not 8 numbers"),
    ("dota", "labelTxt/P1.txt", "70 6 70 80", "70 6 70 x", "P1.txt: line 4: could not read"),
    ("dota", "labelTxt/P1.txt", "70 6 70 80 5 80 5 6", "5 6 5 6 5 6 5 6", "4: no box: x 5 to 5"),
    ("coco", "instances_train2017.json", '"image_id": 0', '"image_id": 5', ":1: no image has id 5"),
    ("coco", "instances_train2017.json", '"category_id": 2', '"category_id": 5', "no category has"),
    ("coco", "instances_train2017.json", "[30, 40, 20, 20]", "[30, 40, -20, 20]",
     ":1: no box: a width of -20"),
    ("coco", "instances_train2017.json", "[30, 40, 20, 20]", "[30, 40]",
     ":1: a bbox must be four numbers"),
    ("coco", "instances_train2017.json", '"file_name": "P1.png"', '"x": 1', "no 'file_name'"),
]


@pytest.mark.parametrize("name,file,old,new,reason", WRONG_ROWS,
                         ids=[f"{row[0]}-{i}" for i, row in enumerate(WRONG_ROWS)])
def test_a_row_that_is_wrong_is_named_in_one_line(tmp_path, name, file, old, new, reason):
    MAKERS[name](tmp_path)
    replace_once(tmp_path / file, old, new)
    line = row_errors(name, tmp_path)[0]
    assert reason in line and file.split("/")[-1].split("_")[0] in line
    assert line in refusal(read_data, tmp_path)             # a training stops there


@pytest.mark.parametrize("picture", ["../secret.png", "/etc/secret.png"])
def test_a_picture_outside_the_folder_keeps_its_name_and_is_not_searched_for(tmp_path, picture):
    """read_data refuses such names: no reader may make them look as if they were inside."""
    make_coco(tmp_path / "coco")
    replace_once(tmp_path / "coco/instances_train2017.json", "P1.png", picture)
    make_skyeye(tmp_path / "skyeye")
    replace_once(tmp_path / "skyeye/caption/caption_RSICD_train.json", "0.jpg", picture)
    make_capera(tmp_path / "capera")
    replace_once(tmp_path / "capera/CapERA_DATASET_train.json", "Fire_001.mp4", picture)
    for name in ("coco", "skyeye", "capera"):
        row = next(iter(FORMATS[name].read(tmp_path / name, "train", [])))
        assert row["images"] == [picture]
        assert picture in refusal(read_data, tmp_path / name)


CONVERSATIONS = [
    {"id": 1, "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "A ship."},
        {"from": "human", "value": "where ?"}, {"from": "gpt", "value": "{<1><2><3><4>}"}]},
    {"image": ["a.png", "b.png"], "conversations": [
        {"from": "human", "value": "compare"}, {"from": "gpt", "value": "same"}]},
    {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}]


@pytest.mark.parametrize("picture", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_a_picture_outside_the_folder_is_refused(tmp_path, picture):
    file = tmp_path / "conversations.json"
    for image in (picture, ["a.png", picture]):
        file.write_text(json.dumps([CONVERSATIONS[0] | {"image": image}]))
        assert picture in refusal(read_data, file)


def test_data_that_cannot_be_read_is_named(tmp_path):
    assert str(tmp_path / "gone") in refusal(read_data, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(read_data, tmp_path / "empty")
    for name, text in (("a.json", "[{"), ("b.jsonl", '{"x": 1}\n{'), ("c.json", '{"x": 1}'),
                       ("d.json", "[]"), ("e.json", '[{"conversations": [{"value": "x"}]}]')):
        (tmp_path / name).write_text(text)
        assert str(tmp_path / name) in refusal(read_data, tmp_path / name)


def test_a_row_without_a_field_is_named_with_what_it_has(tmp_path):
    (tmp_path / "vqa").mkdir()
    (tmp_path / "caption").mkdir()
    (tmp_path / "vqa" / "v.json").write_text('[{"image": "a.png", "question": "x", "odd": 1}]')
    message = refusal(read_data, tmp_path)
    assert re.search(r"v\.json:1: .*answer.*odd", message)


# ---- samples of small folders --------------------------------------------------------------------

@pytest.fixture
def rsicd(tmp_path):
    rows = [{"filename": f"{i}.jpg", "split": split,
             "sentences": [{"raw": f"picture {i} caption {k} ."} for k in range(5)]}
            for i, split in enumerate(("train", "val", "train"))]
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps({"images": rows}))
    (tmp_path / "scene_classes.json").write_text('{"0.jpg": "BareLand", "1.jpg": "Park"}')
    (tmp_path / "rsicd_vqa.txt").write_text("0.jpg:what is the theme of it?park\n"
                                            "1.jpg:is there a road?yes\n")
    for i in range(3):
        tiny.picture(tmp_path / "RSICD_images" / f"{i}.jpg", seed=i)
    return tmp_path


def test_an_rsicd_folder_is_read_with_its_classes_and_questions(rsicd):
    samples = read_data(rsicd)
    captions = [s for s in samples if s.task == "caption"]
    assert [s.turns[0][1] for s in captions] == [f"picture {i} caption {k} ." for i in (0, 2)
                                                 for k in range(5)]
    assert captions[-1].images == (str(rsicd / "RSICD_images" / "2.jpg"),)
    (scene,) = [s for s in samples if s.task == "scene"]
    assert scene.turns[0][1] == "bare land" and "bare land, park" in scene.turns[0][0]
    (theme,) = [s for s in samples if s.task == "vqa"]
    assert theme.turns == (("what is the theme of it ?", "park"),) and theme.kind == "theme"


def test_the_val_split_of_an_rsicd_folder_has_references(rsicd):
    captions = [s for s in read_data(rsicd, "val") if s.task == "caption"]
    assert [s.references for s in captions] == [tuple(f"picture 1 caption {k} ." for k in range(5))]


def test_a_folder_of_class_folders_is_read(tmp_path):
    for name in ("DenseResidential", "aGrass", "storage_tanks"):
        for i in range(2):
            tiny.picture(tmp_path / name / f"{i}.jpg")
    samples = read_data(tmp_path)
    assert sorted(s.turns[0][1] for s in samples) == ["dense residential"] * 2 + ["grass"] * 2 + [
        "storage tanks"] * 2
    question = samples[0].turns[0][0]
    assert "dense residential, grass, storage tanks" in question
    (tmp_path / "val.txt").write_text("aGrass/1.jpg\n")
    (only,) = read_data(tmp_path, "val")
    assert only.images == (str(tmp_path / "aGrass" / "1.jpg"),) and only.turns[0][1] == "grass"


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_llava_conversations_are_read(tmp_path, suffix):
    file = tmp_path / f"conversations.{suffix}"
    file.write_text(json.dumps(CONVERSATIONS) if suffix == "json" else
                    "\n".join(map(json.dumps, CONVERSATIONS)) + "\n\n")
    for name in ("a.png", "b.png"):
        tiny.picture(tmp_path / name)
    one, two, none = read_data(file)
    assert one.turns == (("what is it ?", "A ship."), ("where ?", "{<1><2><3><4>}"))
    assert one.images == (str(tmp_path / "a.png"),) and one.task == "conversation"
    assert two.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png")) and none.images == ()


# ---- the miniature world -------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    return write_world(folder, train=16, val=4, test=2, clips=10, size=64, workers=1)


@pytest.fixture(scope="module")
def world(folder):
    return read_data(folder)


def test_a_miniature_world_has_every_task_and_its_pictures_load(world):
    assert {s.task for s in world} == set(TEMPLATES) - {"grounding"}
    for s in world:
        assert all(load_image(path).size == (64, 64) for path in s.images)
        texts = " ".join(text for turn in s.turns for text in turn)
        assert texts.count("<bbox>") == len(s.boxes)
    assert {len(s.images) for s in world if s.task == "video"} == {4}
    assert len({s.images for s in world if s.task == "scene"}) == 16


def test_no_other_layout_matches_the_miniature_world(folder):
    assert layouts_of(Path(folder)) == ["skyeye"]


def test_stage_1_leaves_conversations_out_and_stage_2_takes_them_alone(folder):
    both, first, second = (read_data(folder, "train", stage) for stage in (0, 1, 2))
    assert "conversation" not in {s.task for s in first}
    assert {s.task for s in second} == {"conversation"}
    assert len(first) + len(second) == len(both)


def test_tasks_can_be_chosen(folder, world):
    chosen = read_data(folder, tasks=("refer", "scene"))
    assert {s.task for s in chosen} == {"refer", "scene"}
    assert len(chosen) == sum(s.task in ("refer", "scene") for s in world)


def test_every_row_of_a_miniature_world_becomes_tensors(world):
    rows = tiny.rows(world, questions_per_row=4, augment=True)
    for i in range(0, len(rows), 7):
        row = rows[0, i]
        assert (row["ids"] == -1).sum() == tiny.N * len(row["images"])
        text = tiny.tokenizer().decode(row["ids"].clamp(min=0).tolist())
        assert "<bbox>" not in text and "{}" not in text


def test_outside_train_the_captions_of_a_picture_are_references_of_one_sample(folder, world):
    captions = [s for s in read_data(folder, "val") if s.task == "caption"]
    stored = json.loads((Path(folder) / "caption" / "caption_Mini_val.json").read_text())
    assert len(captions) == 4
    for s in captions:
        own = [row["caption"] for row in stored if s.images[0].endswith(row["image"])]
        assert list(s.references) == own and len(own) > 1
    assert not any(s.references for s in world)


# ---- the miniature world, written in other layouts, reads back the same --------------------------

def of_task(world, task):
    found = [sample for sample in world if sample.task == task]
    assert found
    return found


def comparable(samples):
    """Pictures by name, turns and boxes."""
    return sorted((tuple(Path(p).stem for p in s.images), s.turns,
                   tuple(tuple(map(float, box)) for box in s.boxes)) for s in samples)


def copy_pictures(samples, place):
    place.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        for path in map(Path, sample.images):
            shutil.copy(path, place / path.name)


def picture_name(sample):
    return Path(sample.images[0]).name


def by_picture(samples):
    groups = {}
    for sample in samples:
        groups.setdefault(picture_name(sample), []).append(sample)
    return groups


def write_rsicd(samples, place):
    copy_pictures(samples, place / "images")
    rows = [{"filename": picture, "split": "train",
             "sentences": [{"raw": s.turns[0][1]} for s in own]}
            for picture, own in by_picture(samples).items()]
    (place / "dataset_mini.json").write_text(json.dumps({"images": rows}))


def write_nwpu(samples, place):
    rows = []
    for picture, own in by_picture(samples).items():
        texts = {"raw" if i == 0 else f"raw_{i}": s.turns[0][1] for i, s in enumerate(own)}
        rows.append({"filename": picture, "split": "train"} | texts)
    copy_pictures(samples, place / "farm")
    (place / "dataset_nwpu.json").write_text(json.dumps({"farm": rows}))


def write_caption_lists(samples, place):
    copy_pictures(samples, place / "images")
    (place / "train_filename.txt").write_text("".join(f"{picture_name(s)}\n" for s in samples))
    (place / "train_caps.txt").write_text("".join(f"{s.turns[0][1]}\n" for s in samples))


def write_rsvqa(samples, place):
    """-> the number that each picture's copy is named by."""
    numbers = {picture: i for i, picture in enumerate(by_picture(samples))}
    (place / "Images_LR").mkdir(parents=True)
    for sample in samples:
        number = numbers[picture_name(sample)]
        shutil.copy(sample.images[0], place / "Images_LR" / f"{number}.tif")
    tables = {
        "images": [{"id": i, "active": True, "questions_ids": [
            q for q, s in enumerate(samples) if numbers[picture_name(s)] == i]}
            for i in numbers.values()],
        "questions": [{"id": q, "img_id": numbers[picture_name(s)], "type": s.kind, "active": True,
                       "question": s.turns[0][0], "answers_ids": [q]}
                      for q, s in enumerate(samples)],
        "answers": [{"id": q, "question_id": q, "answer": s.turns[0][1], "active": True}
                    for q, s in enumerate(samples)]}
    for key, rows in tables.items():
        (place / f"LR_split_train_{key}.json").write_text(json.dumps({key: rows}))
    return numbers


def write_rsivqa(samples, place):
    copy_pictures(samples, place / "images")
    (place / "mini_train.txt").write_text("".join(
        f"{picture_name(s)}:{s.turns[0][0].removesuffix(' ?')}?{s.turns[0][1]}\n" for s in samples))


def write_rsvg(samples, place):
    copy_pictures(samples, place / "JPEGImages")
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
    copy_pictures(samples, place)
    rows = [{"image": [Path(path).name for path in s.images],
             "conversations": [{"from": role, "value": text} for turn in s.turns
                               for role, text in zip(("human", "gpt"), turn, strict=True)]}
            for s in samples]
    (place / "conversations.json").write_text(json.dumps(rows))


def write_swift(samples, place):
    copy_pictures(samples, place)
    rows = [{"images": [picture_name(s)],
             "objects": {"ref": [], "bbox": [list(box) for box in s.boxes]},
             "messages": [{"role": role, "content": text} for turn in s.turns
                          for role, text in zip(("user", "assistant"), turn, strict=True)]}
            for s in samples]
    (place / "conversations.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("task, write, layout, file", [
    ("caption", write_rsicd, "rsicd", ""), ("caption", write_caption_lists, "caption_lists", ""),
    ("vqa", write_rsivqa, "rsivqa", ""), ("refer", write_rsvg, "dior_rsvg", ""),
    ("conversation", write_llava, "llava", "conversations.json"),
    ("refer", write_swift, "llava", "conversations.jsonl"),
    ("identify", write_swift, "llava", "conversations.jsonl"),
    ("detection", write_swift, "llava", "conversations.jsonl")])
def test_what_is_written_in_a_layout_reads_back(world, tmp_path, task, write, layout, file):
    place = tmp_path / "set"
    place.mkdir()
    samples = [s for s in of_task(world, task) if s.boxes or layout != "dior_rsvg"]
    write(samples, place)
    place = place / file
    assert layouts_of(place) == [layout]
    wanted = comparable(samples)
    assert comparable(read_data(place)) == wanted
    assert comparable(read_data(place, format_name=layout)) == wanted


def test_nwpu_captions_reads_back_with_five_sentences_a_picture(world, tmp_path):
    five = [s for own in by_picture(of_task(world, "caption")).values() for s in (own * 5)[:5]]
    write_nwpu(five, tmp_path)
    assert comparable(read_data(tmp_path)) == comparable(five)


def test_rsvqa_reads_back_with_its_question_types(world, tmp_path):
    samples = of_task(world, "vqa")
    numbers = write_rsvqa(samples, tmp_path)
    found = [(Path(s.images[0]).stem, s.turns, s.kind) for s in read_data(tmp_path)]
    assert sorted(found) == sorted((str(numbers[picture_name(s)]), s.turns, s.kind)
                                   for s in samples)


def test_class_folders_read_back_with_the_papers_question(world, tmp_path):
    samples = of_task(world, "scene")
    for sample in samples:
        copy_pictures([sample], tmp_path / sample.turns[0][1].replace(" ", "_"))
    found = read_data(tmp_path)
    assert {s.turns[0][0] for s in found} == {class_question({s.turns[0][1] for s in samples})}
    assert (sorted((picture_name(s), s.turns[0][1]) for s in found)
            == sorted((picture_name(s), s.turns[0][1]) for s in samples))


def test_clips_read_back_as_capera_has_them(world, tmp_path):
    clips = {}
    for sample in of_task(world, "video"):
        clips.setdefault(sample.images, []).append(sample.turns[0][1])
    rows = []
    for number, (frames, texts) in enumerate(clips.items()):
        clip = tmp_path / "Videos" / f"Clip_{number:03}"
        clip.mkdir(parents=True)
        for i, frame in enumerate(frames):
            shutil.copy(frame, clip / f"{i}.png")
        rows.append({"video_id": f"Clip_{number:03}.mp4", "annotation": {"English_caption": texts}})
    (tmp_path / "CapERA_DATASET_train.json").write_text(json.dumps({"ERA_caption": rows}))
    found = {}
    for sample in read_data(tmp_path):
        found.setdefault(Path(sample.images[0]).name, []).append(sample.turns[0][1])
    assert list(found.values()) == list(clips.values())


# ---- names as other systems write them -----------------------------------------------------------

NAME_FILES = {          # of each layout: the files that name pictures
    "rsicd": ["dataset_rsicd.json", "rsicd_vqa.txt"], "nwpu_captions": ["dataset_nwpu.json"],
    "caption_lists": ["train_filename.txt"], "capera": ["CapERA_DATASET_train.json"],
    "rsivqa": ["ucm_res.txt", "dota_train_vqa.txt"], "coco": ["instances_train2017.json"],
    "voc": ["Annotations/P1.xml"], "dior_rsvg": ["Annotations/00002.xml"],
    "skyeye": ["caption/caption_RSICD_train.json", "vqa/UCMvqa.json"],
    "floodnet": ["Questions/Training Question.json"]}
NAME = re.compile(r"[\w.-]+\.(?:jpg|tif|png|JPG|mp4)|P0000")


def path_of(place, name):
    """Where the picture or clip of this name is."""
    stems = (path for path in sorted(place.rglob("*")) if path.stem == Path(name).stem
             and path.suffix not in (".json", ".xml", ".txt"))
    return next(stems, place / name).relative_to(place)


SPELLINGS = {
    "absolute": lambda place, name: str(place / path_of(place, name)),
    "with its folder": lambda place, name: path_of(place, name).as_posix(),
    "with backslashes": lambda place, name: str(path_of(place, name)).replace("/", "\\"),
    "with ./": lambda place, name: f"./{name}",
    "in capitals": lambda place, name: str(Path(name).with_suffix(Path(name).suffix.swapcase())),
    "without suffix": lambda place, name: Path(name).stem}


def split_content(place):
    """(real paths of the pictures, turns) of each row of the train split; no row is wrong."""
    single, conversations, errors = read_split(place, "train")
    single.join(conversations)
    assert errors == []
    return [([str(Path(path).resolve()) for path in sample.images], sample.turns)
            for sample in single]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", NAME_FILES)
def test_a_picture_may_be_named_as_other_systems_write_it(tmp_path, name, spelling):
    MAKERS[name](tmp_path)
    for other in ("Valid", "Test"):                         # FloodNet's names are in each split
        shutil.rmtree(tmp_path / f"Images/{other}_Image", ignore_errors=True)
    wanted = split_content(tmp_path)
    for file in (tmp_path / file for file in NAME_FILES[name]):
        text = NAME.sub(lambda match: SPELLINGS[spelling](tmp_path, match[0]), file.read_text())
        if file.suffix == ".json":
            text = text.replace("\\", "\\\\")
        file.write_text(text)
    assert split_content(tmp_path) == wanted


@pytest.mark.parametrize("change", [str.upper, str.capitalize, str.swapcase])
@pytest.mark.parametrize("name", MAKERS)
def test_suffixes_on_disk_may_be_in_any_letters(tmp_path, name, change):
    MAKERS[name](tmp_path)
    count = len(split_content(tmp_path))
    for path in list(tmp_path.rglob("*.*")):
        path.rename(path.with_suffix(change(path.suffix)))
    found = split_content(tmp_path)
    assert len(found) == count
    assert all(Path(path).exists() for paths, _ in found for path in paths)


@pytest.mark.parametrize("line", ["P1", "P1.png", "P1.PNG", "images/P1.png", "images\\P1.png",
                                  "./images/P1.png", "ROOT/images/P1.png", "P1.xml", "P1.txt"])
@pytest.mark.parametrize("name", ["voc", "dota"])
def test_a_list_of_a_split_may_name_its_pictures_in_every_way(tmp_path, name, line):
    MAKERS[name](tmp_path)
    (tmp_path / "train.txt").write_text(line.replace("ROOT", str(tmp_path)) + "\n")
    assert {path for paths, _ in split_content(tmp_path) for path in paths} == {
        str(tmp_path / "images/P1.png")}


@pytest.mark.parametrize("line", ["Pond/1.jpg", "Pond\\1.jpg", "./Pond/1.jpg", "ROOT/Pond/1.jpg",
                                  "Pond/1", "Pond/1.JPG"])
def test_a_list_of_class_folders_may_name_its_pictures_in_every_way(tmp_path, line):
    MAKERS["class_folder"](tmp_path)
    (tmp_path / "train.txt").write_text(line.replace("ROOT", str(tmp_path)) + "\n")
    [(paths, (turn,))] = split_content(tmp_path)
    assert paths == [str(tmp_path / "Pond/1.jpg")] and turn[1] == "pond"


@pytest.mark.parametrize("name", MAKERS)
def test_what_systems_leave_in_every_folder_changes_nothing(tmp_path, name):
    MAKERS[name](tmp_path)
    wanted = split_content(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        for folder in ("__MACOSX", "@eaDir"):
            copy = tmp_path / folder / path.relative_to(tmp_path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(b"\0\5\x16\7")
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        touch(folder, ".DS_Store", "Thumbs.db")
    assert split_content(tmp_path) == wanted


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "class_folder"])
def test_a_text_in_utf_16_is_named_or_read_and_its_layout_known(tmp_path, name):
    MAKERS[name](tmp_path)
    wanted = split_content(tmp_path)
    for path in list(tmp_path.rglob("*")):
        if path.suffix in (".json", ".jsonl", ".txt", ".xml"):
            path.write_bytes(("\ufeff" + path.read_text()).encode("utf-16-le"))
    if name == "voc":
        assert split_content(tmp_path) == wanted
    else:
        line = refusal(read_data, tmp_path)
        assert "is not UTF-8" in line and "iconv -f UTF-16" in line


def test_of_files_for_one_picture_each_only_the_damaged_one_is_left_out(tmp_path):
    MAKERS["dota"](tmp_path)
    with (tmp_path / "labelTxt/P1.txt").open("ab") as file:
        file.write(b"\x92")
    errors = []
    rows = list(FORMATS["dota"].read(tmp_path, "train", errors))
    assert {row["images"][0] for row in rows} == {"images/P2.png"} and len(errors) == 1


@pytest.mark.parametrize("name, file, old, new", [
    ("voc", "Annotations/P1.xml", "<xmin>5</xmin>", "<xmin>75</xmin>"),
    ("dior_rsvg", "Annotations/00002.xml", "<xmin>0</xmin>", "<xmin>50</xmin>"),
    ("dota", "labelTxt/P1.txt", "70 6 70 80 5 80 5 6", "5 80 5 6 70 6 70 80")])
def test_corners_in_another_order_are_a_box_in_every_layout(tmp_path, name, file, old, new):
    MAKERS[name](tmp_path)
    count = len(split_content(tmp_path))
    replace_once(tmp_path / file, old, new)
    assert len(split_content(tmp_path)) == count


# ---- real data -----------------------------------------------------------------------------------

def real(name):
    return pytest.mark.skipif(not (tiny.DATA / name).is_dir(), reason=f"needs {tiny.DATA / name}")


@real("rsicd")
def test_rsicd_has_five_captions_for_each_of_7946_train_pictures_and_no_val_picture_among_them():
    train = [s for s in read_data(tiny.DATA / "rsicd") if s.task == "caption"]
    val = [s for s in read_data(tiny.DATA / "rsicd", "val") if s.task == "caption"]
    assert len(train) == 5 * 7946 and len({s.images for s in train}) == 7946
    assert len(val) == 1027 and all(len(s.references) == 5 for s in val)
    assert not {s.images for s in train} & {s.images for s in val}
    assert load_image(val[0].images[0]).size == (128, 128)


@real("simd_rsvg")
def test_simd_rsvg_has_969_and_283_expressions_with_boxes_inside_their_pictures():
    for split, count in (("train", 969), ("val", 283)):
        samples = read_data(tiny.DATA / "simd_rsvg", split)
        assert len(samples) == count
        for s in samples[::40]:
            width, height = load_image(s.images[0]).size
            (x1, y1, x2, y2), = s.boxes
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


@real("rsscn7")
def test_rsscn7_has_1960_and_280_pictures_of_seven_classes():
    for split, count in (("train", 1960), ("val", 280)):
        samples = read_data(tiny.DATA / "rsscn7", split)
        assert len(samples) == count
        assert {s.turns[0][1] for s in samples} == {"grass", "field", "industry", "river lake",
                                                    "forest", "resident", "parking"}


# ---- ratios --------------------------------------------------------------------------------------

PLACES = ("data/rsicd", "more/chats.json", "b/x.jsonl", "c/x", "v1.5/")


@pytest.mark.parametrize("flags, ratios", [
    ((), ()), (("1", "0", "2.5", ".5", "3e0"), (1, 0, 2.5, 0.5, 3)),
    (("chats=0.5",), (1, 0.5, 1, 1, 1)), (("v1.5=2", "rsicd=0"), (0, 1, 1, 1, 2)),
    (("more/chats.json=3",), (1, 3, 1, 1, 1)), (("c/x=3", "b/x.jsonl=2"), (1, 1, 2, 3, 1))])
def test_ratios_are_of_the_data_sets_that_are_named_or_of_all_in_order(flags, ratios):
    assert parse_ratios(flags, PLACES) == ratios
    capital = [place.replace(".jsonl", ".JSONL").replace(".json", ".JSON") for place in PLACES]
    flags = [flag.replace(".jsonl", ".JSONL").replace(".json", ".JSON") for flag in flags]
    assert parse_ratios(flags, capital) == ratios


@pytest.mark.parametrize("flags, reason", [
    (("1", "2"), "has 2 numbers for 5"), (("rsicd=1", "2"), "alone"),
    (("gone=1",), "gone: no such"), (("chats.json=1",), "chats.json: no such"),
    (("chats=1", "more/chats.json=2"), "the same"), (("rsicd=1", "rsicd=1"), "the same"),
    (("x=1",), "b/x.jsonl and c/x"), (("rsicd=-1",), "-1: not a number"),
    (("rsicd=many",), "many: not a number"), (("rsicd=",), "not a number"),
    (("1", "1", "1", "1", "nan"), "nan: not"), (("rsicd=inf",), "inf: not"),
    (("0",) * 5, "nothing")])
def test_a_ratio_that_fits_nothing_is_refused_in_one_line(flags, reason):
    with pytest.raises(UserError, match=reason) as error:
        parse_ratios(flags, PLACES)
    assert "\n" not in str(error.value) and str(error.value).startswith("--ratio")
