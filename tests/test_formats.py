"""The layouts data sets are published in: which one a folder is, what it holds, what is refused."""
import json
import re
import shutil

import pytest

import tiny
from data import TEMPLATES
from support.readers import FORMATS
from support.readers.captions import NWPU_SENTENCES, read_capera
from support.readers.common import Sample, class_name
from support.readers.conversations import (
    SKYEYE_FILES,
    describe_skyeye_fields,
    read_llava,
    read_skyeye,
)
from support.readers.objects import read_dior_rsvg
from support.readers.questions import (
    QUESTION_TYPES,
    question_type,
    read_floodnet,
    read_question_lines,
)

MODULES = tuple(FORMATS.values())
(llava, skyeye, rsicd, nwpu_captions, caption_lists, capera, rsvqa, rsivqa, floodnet, coco,
 dior_rsvg, voc, dota, class_folder) = MODULES
FIXTURES = tiny.DATA / "fixtures"


def real(path):
    return pytest.mark.skipif(not path.exists(), reason=f"needs {path}")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def touch(folder, *names):
    """Empty files: no format opens a picture."""
    for name in names:
        write(folder / name, "")


def read(module, place, split="train"):
    """The rows of a sound split, each a Sample with pictures inside the folder."""
    rows = list(module.read(place, split))
    for row in rows:
        assert not isinstance(row, Exception), row
        sample = Sample(**row | {"images": tuple(row["images"])})
        assert sample.task in TEMPLATES and sample.source.startswith(str(place))
        assert all(isinstance(text, str) for turn in sample.turns for text in turn)
        assert not any(name.startswith("/") or ".." in name for name in sample.images)
    return rows


def told(rows):
    """Rows without their places in the files."""
    return [{name: value for name, value in row.items() if name != "source"} for row in rows]


def faults(module, place, split="train"):
    """What is said of each row that is wrong, one line each with the place."""
    found = []
    try:
        for row in module.read(place, split):
            if isinstance(row, ValueError):
                found.append(str(row))
            else:
                Sample(**row | {"images": tuple(row["images"])})
    except ValueError as error:
        found.append(str(error))
    assert all("\n" not in line and str(place) in line for line in found)
    return found


def fault(module, place, split="train"):
    (line,) = faults(module, place, split)
    return line


# ---- one folder of each --------------------------------------------------------------------------

def sentences(name, split, *texts):
    return {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}


def make_rsicd(place):
    write(place / "dataset_rsicd.json", {"images": [
        sentences("0.jpg", "train", *["a port ."] * 5), sentences("1.jpg", "val", "a pond .")]})
    write(place / "rsicd_vqa.txt", "0.jpg:what is the theme of this picture?port\n")
    touch(place / "RSICD_images", "0.jpg", "1.jpg")


def make_nwpu(place):
    texts = {name: "a plane ." for name in NWPU_SENTENCES}
    write(place / "dataset_nwpu.json", {
        "airplane": [texts | {"filename": "airplane_001.jpg", "imgid": 0, "split": "train"},
                     texts | {"filename": "airplane_002.jpg", "imgid": 1, "split": "test"}],
        "storage_tank": [texts | {"filename": "storage_tank_001.jpg", "split": "train",
                                  "raw_4": "one tank ."}]})
    touch(place, "airplane/airplane_001.jpg", "airplane/airplane_002.jpg",
          "storage_tank/storage_tank_001.jpg")


def make_lists(place):
    texts = [f"picture {i} says {k}" for i in range(2) for k in range(5)]
    for split, each in (("train", 1), ("test", 5)):
        write(place / f"{split}_filename.txt", "".join(f"{i}.tif\n" * each for i in range(2)))
        write(place / f"{split}_caps.txt", "\n".join(texts) + "\n")
    touch(place / "images", "0.tif", "1.tif")


def make_capera(place):
    for split in ("train", "test"):
        texts = [f"{split} {k}" for k in range(5)]
        write(place / f"CapERA_DATASET_{split}.json", {"ERA_caption": [
            {"video_id": f"{name}.mp4", "annotation": {"English_caption": texts}}
            for name in ("Fire_001", "Fire_002", "PoliceChase_001", "Party_001", "Party_002")]})
    touch(place, "Videos/train/Fire/Fire_001.mp4", "Videos/Fire_002.gif", "frames/Party_001/0.jpg",
          "SingleFrames/Train/PoliceChase/PoliceChase_001.jpg", "Videos/Party_002.mp4")


def make_rsvqa(place, name="LR", splits=("train",), folder="Images_LR"):
    off = {"active": False}
    images = [{"id": 0, "active": True}, {"id": 1, **off}, {"id": 7, "active": True}]
    asked = [(0, 0, "presence", "Is a road present?", True),
             (1, 7, "count", "How many roads?", True), (2, 1, "comp", "More roads?", True),
             (3, 0, "comp", "Inactive?", False), (4, 7, "area", "Its answer is inactive?", True)]
    questions = [{"id": i, "img_id": of, "type": kind, "question": text, "answers_ids": [i],
                  "active": active} for i, of, kind, text, active in asked] + [{"id": 5, **off}]
    answers = [{"id": i, "question_id": i, "answer": text, "active": i != 4}
               for i, text in enumerate(("yes", "12", "no", "no", "0m2"))] + [{"id": 5, **off}]
    for split in splits:
        for what, rows in (("images", images), ("questions", questions), ("answers", answers)):
            write(place / f"{name}_split_{split}_{what}.json", {what: rows})
    touch(place / folder, "0.tif", "7.tif")


def make_rsivqa(place):
    write(place / "ucm_res.txt", "1.tif:What is the theme of this picture?farmland\n\n"
                                 "1.tif:How many trees in the picture?one\n")
    write(place / "dota_train_vqa.txt", "P0000:how many planes are there in this picture?21\n")
    write(place / "dota_val_vqa.txt", "P0003:does this picture contain plane?yes\n")
    touch(place, "UCM/imgs/1.tif", "DOTA/P0000.png", "DOTA/P0003.jpg")


THINGS = {      # the same pictures, written as VOC, DOTA and COCO below
    "P1": [("small-vehicle", (30, 40, 50, 60)), ("harbor", (5, 6, 70, 80)),
           ("small-vehicle", (10, 45, 20, 55))],
    "P2": [("plane", (1, 2, 3, 4))],
}
XML = "<annotation><filename>{}</filename>{}</annotation>"
OBJECT = ("<object><name>{}</name>{}<bndbox><ymax>{}</ymax><xmin>{}</xmin><ymin>{}</ymin>"
          "<xmax>{}</xmax></bndbox></object>")      # children are found by name, not by place
DESCRIPTION = "<description>{}</description>"


def xml_object(name, box, more=""):
    return OBJECT.format(name, more, box[3], box[0], box[1], box[2])


def make_voc(place, folder="Annotations"):
    for name, things in THINGS.items():
        objects = "".join(xml_object(*thing) for thing in things)
        write(place / folder / f"{name}.xml", XML.format(f"{name}.png", objects))
        touch(place / "images", f"{name}.png")


def make_dota(place):
    for name, things in THINGS.items():
        rows = [f"{x2} {y1} {x2} {y2} {x1} {y2} {x1} {y1} {label} 0"
                for label, (x1, y1, x2, y2) in things]
        rows = ["imagesource:GoogleEarth", "gsd:0.146", *rows]
        write(place / "labelTxt" / f"{name}.txt", "\n".join(rows))
        touch(place / "images", f"{name}.png")


def make_coco(place, name="instances_train2017.json"):
    labels = sorted({label for things in THINGS.values() for label, _ in things})
    boxes = [{"image_id": i, "category_id": labels.index(label), "iscrowd": 0,
              "bbox": [x1, y1, x2 - x1, y2 - y1]} for i, things in enumerate(THINGS.values())
             for label, (x1, y1, x2, y2) in things]
    write(place / name, {
        "info": {}, "images": [{"id": i, "file_name": f"{p}.png"} for i, p in enumerate(THINGS)],
        "annotations": boxes, "categories": [{"id": i, "name": n} for i, n in enumerate(labels)]})
    touch(place / "images", "P1.png", "P2.png")


def make_rsvg(place, folder="images"):
    for name in ("00010", "00002"):         # two pictures, two objects each
        objects = "".join(xml_object("ship", (i, 2, 30, 20), DESCRIPTION.format(f"{name} {i}\n"))
                          for i in range(2))
        write(place / "Annotations" / f"{name}.xml", XML.format(f"{name}.jpg", objects))
        touch(place / folder, f"{name}.jpg")
    write(place / "train.txt", "0\n3\n")
    write(place / "val.txt", "1\n")


def make_classes(place):
    touch(place, "DenseResidential/1.jpg", "Pond/1.jpg", "Pond/2.jpg")


def make_floodnet(place):
    for split in ("Training ", "Valid ", "Test_"):
        write(place / f"Questions/{split}Question.json", {
            str(i): {"Image_ID": "10168.JPG", "Question": f"{split} {i}?", "Ground_Truth": answer,
                     "Question_Type": kind}
            for i, (answer, kind) in enumerate([("flooded", "Condition_Recognition"),
                                                (4, "Simple_Counting")])})
    touch(place, *(f"Images/{split}_Image/10168.JPG" for split in ("Train", "Valid", "Test")))


def test_floodnets_questions_go_with_the_pictures_of_their_split(tmp_path):
    make_floodnet(tmp_path)
    rows = read(floodnet, tmp_path, "test")
    assert {row["images"][0] for row in rows} == {"Images/Test_Image/10168.JPG"}
    assert [(row["turns"][0][1], row["kind"]) for row in rows] == [
        ("flooded", "Condition_Recognition"), ("4", "Simple_Counting")]
    write(tmp_path / "Questions/Test_Question.json", {"7": {"Image_ID": "1.JPG", "Question": "a?",
                                                            "Question_Type": "Yes_No"}})
    [error] = read_floodnet(tmp_path, "test")
    assert "Test_Question.json:7: no 'Ground_Truth'" in str(error)


TALK = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "A ship."}]


def make_skyeye(place):
    write(place / "caption/caption_RSICD_train.json", [{"image_id": "0.jpg", "text": "a port ."}])
    write(place / "vqa/UCMvqa.json", [{"image": "1.tif", "question": "what?", "answer": 1}])
    touch(place, "RSICD_images/0.jpg", "UCMerced/1.tif")


MAKERS = {rsicd: make_rsicd, nwpu_captions: make_nwpu, caption_lists: make_lists,
          capera: make_capera, rsvqa: make_rsvqa, rsivqa: make_rsivqa, voc: make_voc,
          dota: make_dota, coco: make_coco, dior_rsvg: make_rsvg, class_folder: make_classes,
          skyeye: make_skyeye, floodnet: make_floodnet}


def name_of(module):
    return next(name for name, reader in FORMATS.items() if reader is module)


@pytest.mark.parametrize("module", MAKERS, ids=name_of)
def test_exactly_one_format_knows_a_folder(module, tmp_path):
    MAKERS[module](tmp_path)
    assert [m for m in MODULES if m.matches(tmp_path)] == [module]


@pytest.mark.parametrize("module", MAKERS, ids=name_of)
def test_every_folder_is_read(module, tmp_path):
    MAKERS[module](tmp_path)
    rows = read(module, tmp_path)
    assert rows and all((tmp_path / name).exists() for row in rows for name in row["images"])


KNOWN = {"UCM_captions": rsicd, "Sydney_captions": rsicd, "RSICD": rsicd, "RSIVQA": rsivqa,
         "RSVQA_LR": rsvqa, "HRRSD_voc": voc, "CapERA": capera, "DIOR_RSVG": None, "llama": None,
         "falcon": None, "nlg_eval": None, "../rsicd": rsicd, "../simd_rsvg": dior_rsvg,
         "../rsscn7": class_folder, "../rsicd/textrs_vqa_val.json": llava}


@real(FIXTURES)
@pytest.mark.parametrize("name", KNOWN)
def test_exactly_one_format_knows_a_real_folder(name):
    found = [module for module in MODULES if module.matches(FIXTURES / name)]
    assert found == ([KNOWN[name]] if KNOWN[name] else [])


def test_no_format_knows_an_empty_folder_or_loose_pictures(tmp_path):
    assert not any(module.matches(tmp_path) for module in MODULES)
    touch(tmp_path, "1.jpg", "images/2.jpg", "notes.txt", "README.md")
    assert not any(module.matches(tmp_path) for module in MODULES)


# ---- captions ------------------------------------------------------------------------------------

@real(FIXTURES)
@pytest.mark.parametrize("name,count,folder", [
    ("RSICD", 11, "RSICD_images"), ("UCM_captions", 9, "imgs"), ("Sydney_captions", 3, "imgs")])
def test_the_real_captions_are_five_a_picture_in_its_own_folder(name, count, folder):
    rows = read(rsicd, FIXTURES / name)
    assert len(rows) == 5 * count and {row["task"] for row in rows} == {"caption"}
    for row in rows:
        assert row["images"][0].startswith(folder + "/")
        assert (FIXTURES / name / row["images"][0]).is_file()
    assert read(rsicd, FIXTURES / name, "test") == []


def test_five_identical_sentences_stay_five_rows(tmp_path):
    make_rsicd(tmp_path)
    rows = read(rsicd, tmp_path)
    assert [row["turns"] for row in rows if row["task"] == "caption"] == [(("", "a port ."),)] * 5
    assert len({row["source"] for row in rows}) == len(rows)


@real(tiny.DATA / "captions_text.json")
def test_the_real_rsicd_repeats_itself_and_no_repetition_is_lost(tmp_path):
    texts = json.loads((tiny.DATA / "captions_text.json").read_text())["rsicd"]["train"]
    write(tmp_path / "dataset_rsicd.json", {"images": [
        sentences(name, "train", *said) for name, said in texts.items()]})
    touch(tmp_path / "RSICD_images", "airport_1.jpg")
    rows = read(rsicd, tmp_path)
    assert len(rows) == 43_670                                      # 8,734 pictures
    assert sum(len(set(said)) == 1 for said in texts.values()) > 3000
    assert [row["turns"][0][1] for row in rows] == sum(texts.values(), [])


def test_the_split_is_the_jsons_and_no_list_of_names_beside_it(tmp_path):
    """A published class file of RSICD has val and test swapped."""
    make_rsicd(tmp_path)
    before = [read(rsicd, tmp_path, split) for split in ("train", "val", "test")]
    for split, name in (("val", "0.jpg"), ("test", "1.jpg"), ("train", "")):
        write(tmp_path / f"{split}.txt", name)
        write(tmp_path / "txtclasses_rsicd" / f"{split}.txt", name)
    assert [read(rsicd, tmp_path, split) for split in ("train", "val", "test")] == before
    assert [len(rows) for rows in before] == [5 + 1, 1, 0]


def test_rsitmd_is_read_as_rsicd(tmp_path):
    write(tmp_path / "dataset_RSITMD.json", {"dataset": "RSITMD", "images": [
        sentences("boat_0.tif", "test", "Two large ships.")]})
    touch(tmp_path, "images/boat_0.tif", "docs/readme.txt")         # docs is no picture folder
    assert [m for m in MODULES if m.matches(tmp_path)] == [rsicd]
    (row,) = read(rsicd, tmp_path, "test")
    assert row["images"] == ["images/boat_0.tif"] and row["turns"] == (("", "Two large ships."),)


def test_nwpu_captions_has_five_sentences_a_picture_of_its_class_folder(tmp_path):
    make_nwpu(tmp_path)
    rows = read(nwpu_captions, tmp_path)
    assert [row["images"][0] for row in rows] == (["airplane/airplane_001.jpg"] * 5
                                                  + ["storage_tank/storage_tank_001.jpg"] * 5)
    assert [row["turns"][0][1] for row in rows] == ["a plane ."] * 9 + ["one tank ."]
    assert len(read(nwpu_captions, tmp_path, "test")) == 5
    shutil.rmtree(tmp_path / "airplane")
    touch(tmp_path, "NWPU-RESISC45/airplane/airplane_001.jpg")
    assert read(nwpu_captions, tmp_path)[0]["images"] == ["NWPU-RESISC45/airplane/airplane_001.jpg"]


def test_a_retrieval_list_names_a_picture_once_or_once_a_caption(tmp_path):
    make_lists(tmp_path)
    train, test = (read(caption_lists, tmp_path, split) for split in ("train", "test"))
    assert [row["images"] for row in train] == [["images/0.tif"]] * 5 + [["images/1.tif"]] * 5
    assert [row["turns"] for row in train] == [row["turns"] for row in test]
    assert [row["images"] for row in train] == [row["images"] for row in test]
    write(tmp_path / "train_filename.txt", "0.tif\n1.tif\n2.tif\n")
    assert "10 captions for the 3 pictures" in fault(caption_lists, tmp_path)


@real(FIXTURES)
def test_the_real_capera_has_five_captions_for_each_of_1391_test_clips():
    rows = read(capera, FIXTURES / "CapERA", "test")
    assert len(rows) == 5 * 1391 and len({row["images"][0] for row in rows}) == 1391
    assert {row["task"] for row in rows} == {"video"}
    assert rows[4]["images"] == ["Videos/Baseball_001.mp4"]         # where it should be
    assert rows[4]["turns"][0][1].endswith("lots in the evening")


def test_a_clip_is_a_folder_a_gif_an_mp4_or_a_single_frame(tmp_path):
    make_capera(tmp_path)
    rows = read(capera, tmp_path)
    assert [row["images"] for row in rows[::5]] == [
        ["Videos/train/Fire/Fire_001.mp4"], ["Videos/Fire_002.gif"],
        ["SingleFrames/Train/PoliceChase/PoliceChase_001.jpg"], ["frames/Party_001"],
        ["Videos/Party_002.mp4"]]
    assert [row["turns"][0][1] for row in rows[:5]] == [f"train {k}" for k in range(5)]
    touch(tmp_path, "SingleFrames/Fire/Fire_001.png")       # frames before mp4 before one frame
    assert read(capera, tmp_path)[0]["images"] == ["Videos/train/Fire/Fire_001.mp4"]
    touch(tmp_path, "Videos/Fire_001/000.jpg")
    assert read(capera, tmp_path)[0]["images"] == ["Videos/Fire_001"]


def test_a_clip_of_train_is_never_taken_for_the_test_clip_of_the_same_name(tmp_path):
    make_capera(tmp_path)
    assert read(capera, tmp_path, "test")[0]["images"] == ["Videos/Fire_001.mp4"]   # is missing
    touch(tmp_path, "Videos/Test/Fire/Fire_001.mp4")
    assert read(capera, tmp_path, "test")[0]["images"] == ["Videos/Test/Fire/Fire_001.mp4"]


# ---- questions -----------------------------------------------------------------------------------

@pytest.mark.parametrize("name,splits,folder", [
    ("LR", ("train", "val", "test"), "Images_LR"),
    ("USGS", ("train", "val", "test", "test_phili"), "Data"), ("USGS", ("train",), "Images_HR")])
def test_rsvqa_has_what_is_active_and_nothing_else(tmp_path, name, splits, folder):
    make_rsvqa(tmp_path, name, splits, folder)
    for split in splits:
        rows = read(rsvqa, tmp_path, split)
        assert [(row["turns"], row["kind"]) for row in rows] == [
            ((("Is a road present?", "yes"),), "presence"), ((("How many roads?", "12"),), "count")]
        assert [row["images"] for row in rows] == [[f"{folder}/0.tif"], [f"{folder}/7.tif"]]
    if "test_phili" in splits:
        assert read(rsvqa, tmp_path, "test2") == read(rsvqa, tmp_path, "test_phili")


@real(FIXTURES)
def test_the_real_heads_of_rsvqa_are_read(tmp_path):
    """The pictures of its train, the answers of its test, questions written here."""
    images = json.loads((FIXTURES / "RSVQA_LR/LR_split_train_images.head.json").read_text())
    answers = json.loads((FIXTURES / "RSVQA_LR/LR_split_test_answers.head.json").read_text())
    questions = [{"id": a["id"], "img_id": images["images"][i % 5]["id"], "type": "comp",
                  "question": f"question {i}?", "answers_ids": [a["id"]], "active": True}
                 for i, a in enumerate(answers["answers"])]
    for what, rows in (("images", images), ("questions", {"questions": questions}),
                       ("answers", answers)):
        write(tmp_path / f"LR_split_train_{what}.json", rows)
    (tmp_path / "Images_LR").symlink_to(FIXTURES / "RSVQA_LR/Images_LR")
    rows = read(rsvqa, tmp_path)
    assert len(rows) == 20 and rows[2]["turns"] == (("question 2?", "403"),)
    assert all((tmp_path / row["images"][0]).is_file() for row in rows)
    assert rows[3]["images"] == ["Images_LR/52.tif"]


def test_a_picture_of_rsivqa_is_found_by_its_stem_in_its_own_set(tmp_path):
    make_rsivqa(tmp_path)
    rows = read(rsivqa, tmp_path)
    assert {row["images"][0]: row["turns"][0] for row in rows} == {
        "DOTA/P0000.png": ("how many planes are there in this picture ?", "21"),
        "UCM/imgs/1.tif": ("How many trees in the picture ?", "one")}
    (row,) = read(rsivqa, tmp_path, "val")
    assert row["images"] == ["DOTA/P0003.jpg"] and row["kind"] == "presence"
    (tmp_path / "UCM").rename(tmp_path / "other")
    assert "ucm_res.txt" in faults(rsivqa, tmp_path)[-1]        # 1.tif is in several sets


@real(FIXTURES)
def test_the_real_lines_of_rsivqa_are_read():
    rows = read(rsivqa, FIXTURES / "RSIVQA")
    assert len(rows) == 80
    assert [row["turns"][0] for row in rows[40:45]] == [
        ("What is the theme of this picture ?", "farmland"),
        ("Does this picture contain an airplane ?", "no"),
        ("Does this picture contain trees ?", "yes"), ("How many trees in the picture ?", "one"),
        ("What is the location of the trees in this picture ?", "top left corner")]
    assert [row["kind"] for row in rows[40:45]] == ["theme", "presence", "presence", "count",
                                                    "location"]


@real(tiny.DATA / "vqa_text.json")
def test_every_real_question_of_rsivqa_is_a_line_and_has_a_kind(tmp_path):
    for name, rows in json.loads((tiny.DATA / "vqa_text.json").read_text())["rsivqa"].items():
        rows = rows[:3000]
        file = write(tmp_path / f"{name}.txt", "".join(f"{p}:{q}{a}\n" for p, q, a in rows))
        for (picture, row), (name, question, answer) in zip(read_question_lines(file), rows, strict=True):
            assert (picture, row["turns"][0][1]) == (name, answer.strip())
            assert row["turns"][0][0] == question.strip().removesuffix("?").strip() + " ?"
            assert row["kind"] in QUESTION_TYPES


def test_a_line_parts_at_its_first_colon_and_last_question_mark(tmp_path):
    text = "a.tif:at 10:30? is it day?yes: it is\nb:of what color is it?red\n"
    (one, row), (two, _) = read_question_lines(write(tmp_path / "q.txt", text))
    assert (one, two) == ("a.tif", "b")
    assert row["turns"] == (("at 10:30? is it day ?", "yes: it is"),)
    assert question_type("of what color is it") == "color" and question_type("why") == ""


# ---- objects -------------------------------------------------------------------------------------

def test_an_object_is_detected_identified_and_referred_to_where_it_is_alone(tmp_path):
    make_voc(tmp_path)
    left, right, harbor = (10.0, 45.0, 20.0, 55.0), (30.0, 40.0, 50.0, 60.0), (5.0, 6.0, 70.0, 80.0)
    assert [(row["task"], row["turns"][0], row["boxes"]) for row in read(voc, tmp_path)[:6]] == [
        ("detection", ("small vehicle", "<p>small vehicle</p> <bbox><delim><bbox>"), (left, right)),
        ("detection", ("harbor", "<p>harbor</p> <bbox>"), (harbor,)),
        ("identify", ("<bbox>", "small vehicle"), (right,)),
        ("identify", ("<bbox>", "harbor"), (harbor,)),
        ("identify", ("<bbox>", "small vehicle"), (left,)),
        ("refer", ("the harbor", "<bbox>"), (harbor,))]


def test_the_same_objects_in_three_formats_are_the_same_samples(tmp_path):
    read_back = []
    for module in (voc, dota, coco):
        MAKERS[module](tmp_path / name_of(module))
        read_back.append(told(read(module, tmp_path / name_of(module))))
    assert read_back[0] == read_back[1] == read_back[2]
    assert len(read_back[0]) == 6 + 3


@real(FIXTURES)
def test_the_real_hrrsd_is_read():
    rows = read(voc, FIXTURES / "HRRSD_voc")
    assert rows[0]["images"] == ["JPEGImages/00001.jpg"]            # where it should be
    assert [row["task"] for row in rows[:3]] == ["detection", "identify", "refer"]
    assert rows[2]["turns"] == (("the airplane", "<bbox>"),)
    assert rows[2]["boxes"] == ((453.0, 556.0, 552.0, 692.0),)
    many = next(row for row in rows if row["task"] == "detection" and len(row["boxes"]) > 1)
    assert [box[0] for box in many["boxes"]] == sorted(box[0] for box in many["boxes"])


@pytest.mark.parametrize("folder", ["ImageSets/Main", "."])
@pytest.mark.parametrize("name", ["P2", "P2.png"])
def test_a_voc_list_names_the_pictures_of_a_split(tmp_path, folder, name):
    make_voc(tmp_path)
    assert {row["images"][0] for row in read(voc, tmp_path)} == {"images/P1.png", "images/P2.png"}
    write(tmp_path / folder / "train.txt", f"{name}\n")
    assert {row["images"][0] for row in read(voc, tmp_path)} == {"images/P2.png"}
    assert "val.txt" in fault(voc, tmp_path, "val")         # never all pictures instead
    write(tmp_path / folder / "val.txt", "P1\nP9\n")
    assert re.search(r"val\.txt:2: P9", fault(voc, tmp_path, "val"))


@pytest.mark.parametrize("folder", [".", "Annotations", "Annotations/Horizontal Bounding Boxes"])
def test_voc_files_are_found_where_hrrsd_and_dior_have_them(tmp_path, folder):
    make_voc(tmp_path, folder)
    shutil.move(tmp_path / "images", tmp_path / "JPEGImages-trainval")
    assert [m for m in MODULES if m.matches(tmp_path)] == [voc]
    assert read(voc, tmp_path)[0]["images"] == ["JPEGImages-trainval/P1.png"]


def test_dota_may_have_a_folder_a_split_and_other_pictures_than_png(tmp_path):
    make_dota(tmp_path / "train")
    (tmp_path / "train/images/P1.png").rename(tmp_path / "train/images/P1.jpg")
    assert [m for m in MODULES if m.matches(tmp_path)] == [dota]
    assert read(dota, tmp_path)[0]["images"] == ["train/images/P1.jpg"]
    assert "labelTxt" in fault(dota, tmp_path, "val")
    (tmp_path / "train/images/P2.png").unlink()
    assert read(dota, tmp_path)[-1]["images"] == ["train/images/P2.png"]    # where it should be


def test_a_dota_box_is_the_upright_one_around_the_polygon(tmp_path):
    write(tmp_path / "labelTxt/P.txt", "50 0 100.5 50 50 100 -3 50 ship 1\n1 1 2 1 2 2 1 2 plane\n")
    rows = read(dota, tmp_path)
    assert rows[0]["boxes"] == ((-3.0, 0.0, 100.5, 100.0),) and rows[1]["turns"][0][0] == "plane"


def test_a_coco_file_is_that_of_its_split_or_of_every_split(tmp_path):
    make_coco(tmp_path, "instances_val.json")
    assert "0 files for split 'train'" in fault(coco, tmp_path)     # val is never trained on
    make_coco(tmp_path, "annotations/train.json")
    assert told(read(coco, tmp_path)) == told(read(coco, tmp_path, "val"))
    make_coco(tmp_path / "one", "boxes.json")
    assert read(coco, tmp_path / "one", "test") == read(coco, tmp_path / "one")
    shutil.move(tmp_path / "one/images", tmp_path / "one/train")
    assert read(coco, tmp_path / "one")[0]["images"] == ["train/P1.png"]


@pytest.mark.parametrize("folder", ["images", "JPEGImages"])
def test_rsvg_numbers_count_objects_in_sorted_order_in_either_picture_folder(tmp_path, folder):
    """A picture may be in train and in val, with different objects."""
    make_rsvg(tmp_path, folder)
    train, val = read(dior_rsvg, tmp_path), read(dior_rsvg, tmp_path, "val")
    assert [row["turns"][0][0] for row in train] == ["00002 0", "00010 1"]
    assert train[0]["boxes"] == ((0.0, 2.0, 30.0, 20.0),)
    assert val[0]["images"] == train[0]["images"] == [f"{folder}/00002.jpg"]
    assert val[0]["turns"][0][0] == "00002 1"


def test_object_numbers_that_cannot_be_are_refused(tmp_path):
    make_rsvg(tmp_path)
    write(tmp_path / "train.txt", "0\n4\n")
    assert "object 4" in fault(dior_rsvg, tmp_path) and "have 4" in fault(dior_rsvg, tmp_path)
    write(tmp_path / "train.txt", "0\nx\n")
    assert "train.txt:2: x" in fault(dior_rsvg, tmp_path)


@real(FIXTURES)
def test_the_real_lists_of_dior_rsvg_share_38320_objects_out(tmp_path):
    for name in ("train", "val", "test"):
        shutil.copy(FIXTURES / "DIOR_RSVG" / f"{name}.txt", tmp_path)
    for file in range(40):
        objects = "".join(xml_object("ship", (0, 0, 1, 1), f"<description>{i}</description>")
                          for i in range(958 * file, 958 * (file + 1)))
        write(tmp_path / "Annotations" / f"{file:05}.xml", XML.format("a.jpg", objects))
    said = {split: {int(row["turns"][0][0]) for row in read_dior_rsvg(tmp_path, split)}
            for split in ("train", "val", "test")}
    assert {split: len(of) for split, of in said.items()} == {
        "train": 26_991, "val": 3_829, "test": 7_500}
    assert set.union(*said.values()) == set(range(38_320))


# ---- classes -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name,words", [
    ("DenseResidential", "dense residential"), ("denseresidential", "dense residential"),
    ("dense_residential", "dense residential"), ("mobilehomepark", "mobile home park"),
    ("ground_track_field", "ground track field"), ("groundtrackfield", "ground track field"),
    ("StorageTanks", "storage tanks"), ("storagetanks", "storage tanks"), ("BareLand", "bare land"),
    ("aGrass", "grass"), ("dRiverLake", "river lake"), ("small-vehicle", "small vehicle"),
    ("Expressway-Service-area", "expressway service area"), ("T junction", "t junction"),
    ("Pond", "pond"), ("tenniscourt", "tennis court"), ("baseballdiamond", "baseball diamond")])
def test_class_names_become_the_papers_words(name, words):
    assert class_name(name) == words


def test_a_missing_list_of_a_split_is_never_all_pictures(tmp_path):
    make_classes(tmp_path)
    assert len(read(class_folder, tmp_path, "val")) == 3            # no lists at all
    write(tmp_path / "train.txt", "Pond/1.jpg\nLake/1.jpg\n")
    assert "val.txt" in fault(class_folder, tmp_path, "val")
    assert "train.txt:2: Lake/1.jpg" in fault(class_folder, tmp_path)


# ---- conversations -------------------------------------------------------------------------------

def talk(*texts, roles=("human", "gpt"), **more):
    turns = [{"from": roles[i % len(roles)], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns, **more}


def messages(*texts, roles=("user", "assistant"), **more):
    turns = [{"role": roles[i % len(roles)], "content": text} for i, text in enumerate(texts)]
    return {"messages": turns, **more}


def test_swift_rows_are_read_with_their_objects(tmp_path):
    place = write(tmp_path / "swift.jsonl", json.dumps(messages(
        "<image>where is <ref-object>?", "at <bbox>", "and <bbox>?", "<ref-object> of <ref-object>",
        images=["a.png"], objects={"ref": ["the ship", "a roof", "a house"], "bbox": [
            [1, 2, 3.5, 4], [5, 6, 7, 8]]})))
    (row,) = read(llava, place)
    assert row["turns"] == (("where is the ship?", "at <bbox>"),
                            ("and <bbox>?", "a roof of a house"))
    assert row["boxes"] == ((1, 2, 3.5, 4), (5, 6, 7, 8)) and row["images"] == ["a.png"]


@pytest.mark.parametrize("row,images", [
    (talk("hello", "hi"), []), (messages("hello", "hi", images=[]), []),
    (talk("<image>\nwhat?", "a ship", image="a.png"), ["a.png"]),
    (talk("what?", "a ship", image=["a.png", "b.png"]), ["a.png", "b.png"]),
    (talk("what?", "a ship", images=["a.png", "b.png"]), ["a.png", "b.png"]),
    (messages("<image><image>what?", "two ships", images=["a.png", "b.png"]), ["a.png", "b.png"]),
    ({"conversations": [{"value": "what?"}, {"value": "a ship"}], "image": "a.png"}, ["a.png"]),
    (talk("", "hello", "hi", roles=("system", "human", "gpt")), []),
])
def test_pictures_may_be_none_one_or_a_list(tmp_path, row, images):
    (found,) = read(llava, write(tmp_path / "talk.json", [row]))
    assert found["images"] == images and len(found["turns"]) == 1


def test_boxes_that_are_text_stay_text(tmp_path):
    turn = ("what is in {<9><51><50><82>} ?", "{<1><2><3><4>|<90>}")       # GeoChat's has an angle
    (row,) = read(llava, write(tmp_path / "talk.json", [talk(*turn)]))
    assert row["turns"] == (turn,) and row["boxes"] == ()


BAD_TALKS = {
    "1 turns": talk("hello"), "3 turns": talk("a", "b", "c"), "empty": talk("hello", " "),
    "question is empty": talk("<image>", "a ship", image="a.png"),
    "turn 2 is by 'human'": talk("a", "b", roles=("human",)),
    "turn 1 is by 'gpt'": talk("a", "b", roles=("gpt", "human")),
    "turn 1 is by 'system'": messages("be kind", "a", "b", roles=("system", "user", "assistant")),
    "turn 2 is by 'tool'": messages("a", "b", roles=("user", "tool")),
    "2 <image> marks for 1": talk("<image><image> what?", "a ship", image="a.png"),
    "1 <image> marks for 0": talk("<image> what?", "a ship"),
    '"conversations" must be a list': {"conversations": "hello"},
    '"messages" must be a list': {"messages": [{"role": "user"}]},
    '"conversations" must': {"image": "a.png"},
    "the pictures must be": talk("a", "b", image={"path": "a.png"}),
    "the pictures": messages("a", "b", images=["a.png", 3]),
    "1 <bbox> marks for 0": talk("a", "at <bbox>"),
    "0 <bbox> marks for 1": messages("a", "b", objects={"bbox": [[1, 2, 3, 4]]}),
    "2 <ref-object> marks for 1": messages("<ref-object>", "<ref-object>", objects={"ref": ["x"]}),
    "four numbers": messages("a", "<bbox>", objects={"bbox": [[1, 2]]}),
    "must be four": messages("a", "<bbox>", objects={"bbox": [["1", 2, 3, 4]]}),
    "bbox_type 'norm1'": messages("a", "<bbox>", objects={"bbox": [[0, 0, 1, 1]],
                                                          "bbox_type": "norm1"}),
    "image_id": messages("a", "<bbox>", objects={"bbox": [[0, 0, 1, 1]], "image_id": [1]}),
}


@pytest.mark.parametrize("what", BAD_TALKS)
def test_a_conversation_that_is_wrong_is_named_and_the_next_one_is_read(tmp_path, what):
    place = write(tmp_path / "talk.json", [talk("a", "b"), BAD_TALKS[what], talk("c", "d")])
    line = fault(llava, place)
    assert line.startswith(f"{place}:2: ") and what in line
    assert sum(isinstance(row, dict) for row in read_llava(place, "train")) == 2


@real(tiny.DATA / "rsicd")
def test_the_real_conversations_are_read():
    rows = read(llava, tiny.DATA / "rsicd/textrs_vqa_val.json")
    assert len(rows) == 190 and {row["task"] for row in rows} == {"conversation"}
    assert all((tiny.DATA / "rsicd" / row["images"][0]).is_file() for row in rows)


# ---- SkyEye-968k ---------------------------------------------------------------------------------

RELEASED = {        # facts 6.2, and the picture roots that are told there
    "caption": "ERA_train NWPU_train RSICD_train RSITMD_train Sydney_train UCM_train",
    "multitask_conversation": "DIOR_Conversa DOTA_Conversa Sydney_Conversa UCM_Conversa",
    "phrasegrounding": "diorpg_train", "vg": "rsvg DIORvg_train",
    "vqa": "DOTAvqa_train EARVqa RSVQAHR_train RSVQALR_train SydneyVqa UCMvqa"}
PLACES = {"ERA": "SingleFrames", "EAR": "SingleFrames", "NWPU": "NWPU-RESISC45/harbor",
          "RSICD": "RSICD_images", "RSITMD": "rsitmd/images", "Sydney": "Sydney/images",
          "UCM": "UCMerced/harbor", "DIOR": "DIOR/JPEGImages-trainval", "DOTA": "DOTA/images",
          "diorpg": "DIOR/JPEGImages-trainval", "rsvg": "RSVG/images",
          "RSVQAHR": "RSVQA_HR/Data", "RSVQALR": "RSVQA_LR/Images_LR"}
ROWS = {"caption": {"text": "a port ."}, "vqa": {"question": "how many ?", "answer": 4},
        "vg": {"expression": "the ship", "bbox": [1, 2, 3, 4]},
        "phrasegrounding": {"phrase": "ships", "bboxes": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        "multitask_conversation": {"conversations": TALK}}


def make_release(place):
    """A row a file, and each picture under the same name in its set's own folder alone."""
    for folder, names in RELEASED.items():
        for name in names.split():
            stem = f"caption_{name}" if folder == "caption" else name
            write(place / folder / f"{stem}.json", [{"image": "harbor_01.jpg", **ROWS[folder]}])
    touch(place, *(f"{root}/harbor_01.jpg" for root in PLACES.values()))


def test_all_released_files_are_known_with_task_and_pictures(tmp_path):
    make_release(tmp_path)
    rows = {row["source"].split("/")[-1].split(".")[0]: row for row in read(skyeye, tmp_path)}
    assert len(rows) == 19 == len(SKYEYE_FILES)
    for stem, row in rows.items():
        key = max((name for name in PLACES if stem.removeprefix("caption_").startswith(name)),
                  key=len)
        assert row["images"] == [f"{PLACES[key]}/harbor_01.jpg"]
    tasks = {stem: row["task"] for stem, row in rows.items()}
    assert tasks["caption_ERA_train"] == "video" and tasks["caption_RSICD_train"] == "caption"
    assert tasks["EARVqa"] == tasks["RSVQAHR_train"] == "vqa" and tasks["rsvg"] == "refer"
    assert tasks["diorpg_train"] == "detection" and tasks["UCM_Conversa"] == "conversation"
    assert rows["UCMvqa"]["turns"] == (("how many ?", "4"),)
    touch(tmp_path, "images/harbor_01.jpg")
    assert {row["images"][0] for row in read(skyeye, tmp_path)} == {"images/harbor_01.jpg"}


def test_a_picture_of_the_release_may_be_a_number_or_have_no_suffix(tmp_path):
    write(tmp_path / "vqa/RSVQALR_train.json", [{"img_id": 12, **ROWS["vqa"]}])
    write(tmp_path / "vqa/DOTAvqa_train.json", [{"image": "P0001", **ROWS["vqa"]}])
    touch(tmp_path, "RSVQA_LR/Images_LR/12.tif", "DOTA/images/P0001.png")
    assert [row["images"] for row in read(skyeye, tmp_path)] == [
        ["DOTA/images/P0001.png"], ["RSVQA_LR/Images_LR/12.tif"]]


def test_what_each_file_calls_its_fields_is_told(tmp_path):
    make_release(tmp_path)
    write(tmp_path / "caption/caption_RSICD_train.json", [{"image_id": "0.jpg", "text": "a port"}])
    write(tmp_path / "vqa/UCMvqa.json", [{"image": "0.jpg", "odd": 1}])
    told = list(describe_skyeye_fields(tmp_path))
    assert len(told) == 19
    assert "caption/caption_RSICD_train.json: image <- image_id, caption <- text" in told
    assert "vg/rsvg.json: image <- image, expression <- expression, box <- bbox" in told
    assert ("multitask_conversation/UCM_Conversa.json: conversations <- conversations") in told
    assert "vqa/UCMvqa.json: no field for the question; it has image, odd" in told


def test_a_released_box_may_be_text(tmp_path):
    box = "{<1><2><3><4>}"
    write(tmp_path / "vg/rsvg.json", [{"image": "a.jpg", "question": "a ship", "answer": box}])
    (row,) = read(skyeye, tmp_path)
    assert row["turns"] == (("a ship", box),) and row["boxes"] == ()


BAD_RELEASED = {
    "no field for the caption": ("caption", {"image": "a.jpg", "odd": 1}),
    "no field for the image": ("caption", {"caption": "a port"}),
    "must be a text, not ['a', 'b']": ("caption", {"image": "a.jpg", "caption": ["a", "b"]}),
    "must be a text, not ''": ("vqa", {"image": "a.jpg", "question": "what ?", "answer": ""}),
    "no picture": ("caption", {"image": [], "caption": "a port"}),
    "must be four numbers": ("vg", {"image": "a.jpg", "expression": "x", "bbox": [1, 2, 3]}),
    "2 boxes where one": ("vg", {"image": "a.jpg", "expression": "x", "bbox": [[1, 2, 3, 4]] * 2}),
    "four numbers, not 'left'": ("phrasegrounding", {"image": "a", "phrase": "x", "bbox": "left"}),
    "no field for the conversations": ("multitask_conversation", {"image": "a.jpg"}),
    "conversations; it has image, task": ("vg", {"image": "a.jpg", "task": "sing"}),
    "1 turns": ("multitask_conversation", {"conversations": TALK[:1], "image": "a.jpg"}),
}


@pytest.mark.parametrize("what", BAD_RELEASED)
def test_a_released_row_that_is_wrong_is_named_and_the_others_are_read(tmp_path, what):
    make_skyeye(tmp_path)
    folder, row = BAD_RELEASED[what]
    place = write(tmp_path / folder / "more.json", [{"image": "a.jpg", **ROWS[folder]}, row])
    line = fault(skyeye, tmp_path)
    assert line.startswith(f"{place}:2: ") and what in line
    assert sum(isinstance(row, dict) for row in read_skyeye(tmp_path, "train")) == 3


# ---- rows that are wrong -------------------------------------------------------------------------

def changed(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


BAD_ROWS = [        # format, file, what stands in it, what instead, what is said
    (rsicd, "dataset_rsicd.json", '"raw": "a port ."', '"raw": ""', ":1: 'raw' must be a text"),
    (rsicd, "dataset_rsicd.json", '"filename": "0.jpg", ', "", ":1: no 'filename'"),
    (rsicd, "dataset_rsicd.json", ', "split": "train"', "", ":1: no 'split'"),
    (rsicd, "rsicd_vqa.txt", "?", "", ":1: not picture:question?answer"),
    (rsicd, "dataset_rsicd.json", "]}]}", "", "not valid JSON"),
    (nwpu_captions, "dataset_nwpu.json", '"raw_3": "a plane ."', '"raw_3": 7', ":1: 'raw_3' must"),
    (nwpu_captions, "dataset_nwpu.json", '"raw_2": "a plane ."', '"x": ""', ":1: no 'raw_2'"),
    (caption_lists, "train_caps.txt", "picture 0 says 1", " ", ":2: an empty caption"),
    (capera, "CapERA_DATASET_train.json", '"train 3"', '""', ":1: 'caption' must be a text"),
    (capera, "CapERA_DATASET_train.json", '"video_id"', '"id"', ":1: no 'video_id'"),
    (capera, "CapERA_DATASET_train.json", '"English_caption"', '"x"', ":1: no 'English_caption'"),
    (capera, "CapERA_DATASET_train.json", '"ERA_caption"', '"x"', "train.json: no 'ERA_caption'"),
    (rsvqa, "LR_split_train_questions.json", '"img_id": 0', '"img_id": 3', ":0: no image has id 3"),
    (rsvqa, "LR_split_train_questions.json", '[0]', '[9]', ":0: no answer has id 9"),
    (rsvqa, "LR_split_train_questions.json", '[0]', '[]', ":0: a question without answers"),
    (rsvqa, "LR_split_train_questions.json", '"type": "presence", ', "", ":0: no 'type'"),
    (rsvqa, "LR_split_train_answers.json", '"yes"', 'null', ":0: 'answer' must be a text"),
    (rsvqa, "LR_split_train_answers.json", '"answers"', '"x"', "answers.json: no 'answers'"),
    (rsivqa, "ucm_res.txt", "trees in the picture?", "trees", "ucm_res.txt:3: not picture"),
    (rsivqa, "ucm_res.txt", "?one", "?", "ucm_res.txt:3: not picture:question?answer"),
    (voc, "Annotations/P1.xml", "<name>harbor</name>", "", "P1.xml: object 2: no <name>"),
    (voc, "Annotations/P1.xml", "<xmin>5</xmin>", "", "object 2: no <bndbox/xmin>"),
    (voc, "Annotations/P1.xml", "<xmin>5</xmin>", "<xmin>x</xmin>", "2: could not"),
    (voc, "Annotations/P1.xml", "<xmin>5</xmin>", "<xmin>70</xmin>", "2: no box: x 70 to 70"),
    (voc, "Annotations/P1.xml", "<xmin>5</xmin>", "<xmin>nan</xmin>", "object 2: no box: x nan"),
    (voc, "Annotations/P1.xml", "</annotation>", "", "P1.xml: no element found"),
    (voc, "Annotations/P1.xml", "<filename>P1.png</filename>", "", "P1.xml: no <filename>"),
    (dior_rsvg, "Annotations/00002.xml", "<description>00002 0\n</description>", "",
     "00002.xml:0: no <description>"),
    (dior_rsvg, "Annotations/00002.xml", "<xmin>0</xmin>", "", "00002.xml:0: no <bndbox/xmin>"),
    (dota, "labelTxt/P1.txt", " harbor 0", "", "P1.txt: line 4: not 8 numbers"),
    (dota, "labelTxt/P1.txt", "70 6 70 80", "70 6 70 x", "P1.txt: line 4: could not convert"),
    (dota, "labelTxt/P1.txt", "70 6 70 80 5 80 5 6", "5 6 5 6 5 6 5 6", "4: no box: x 5 to 5"),
    (coco, "instances_train2017.json", '"image_id": 0', '"image_id": 5', ":1: no image has id 5"),
    (coco, "instances_train2017.json", '"category_id": 2', '"category_id": 5', "no category has"),
    (coco, "instances_train2017.json", "[30, 40, 20, 20]", "[30, 40, -20, 20]", ":1: no box: x 30"),
    (coco, "instances_train2017.json", "[30, 40, 20, 20]", "[30, 40]", ":1: not enough values"),
    (coco, "instances_train2017.json", '"file_name": "P1.png"', '"x": 1', "no 'file_name'"),
]


@pytest.mark.parametrize("module,name,old,new,what", BAD_ROWS,
                         ids=[f"{name_of(row[0])}-{i}" for i, row in enumerate(BAD_ROWS)])
def test_a_row_that_is_wrong_is_named_in_one_line(tmp_path, module, name, old, new, what):
    MAKERS[module](tmp_path)
    changed(tmp_path / name, old, new)
    line = faults(module, tmp_path)[0]
    assert what in line and name.split("/")[-1].split("_")[0] in line


@pytest.mark.parametrize("module", [voc, dota, coco], ids=name_of)
def test_a_picture_with_a_wrong_object_has_no_samples_and_the_others_have_theirs(tmp_path, module):
    """Its detections would lack a box."""
    MAKERS[module](tmp_path)
    file, old, new = {
        voc: ("Annotations/P1.xml", "<xmin>5</xmin>", ""),
        dota: ("labelTxt/P1.txt", " harbor 0", ""),
        coco: ("instances_train2017.json", "[5, 6, 65, 74]", "[5, 6, 0, 0]")}[module]
    changed(tmp_path / file, old, new)
    rows = [row for row in module.read(tmp_path, "train") if isinstance(row, dict)]
    assert [row["images"] for row in rows] == [["images/P2.png"]] * 3
    fault(module, tmp_path)


@pytest.mark.parametrize("module", [rsvqa, capera, coco, caption_lists], ids=name_of)
def test_a_split_without_a_file_is_refused_by_name(tmp_path, module):
    MAKERS[module](tmp_path)
    with pytest.raises((ValueError, OSError), match="val"):
        list(module.read(tmp_path, "val"))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png"])
def test_a_picture_outside_the_folder_stays_named_so_and_is_not_looked_for(tmp_path, name):
    """data.py refuses such names: no format may make them look as if they were inside."""
    make_coco(tmp_path / "coco")
    changed(tmp_path / "coco/instances_train2017.json", "P1.png", name)
    make_skyeye(tmp_path / "skyeye")
    changed(tmp_path / "skyeye/caption/caption_RSICD_train.json", "0.jpg", name)
    for module in (coco, skyeye):
        row = next(iter(module.read(tmp_path / name_of(module), "train")))
        assert row["images"] == [name]
    make_capera(tmp_path)
    changed(tmp_path / "CapERA_DATASET_train.json", "Fire_001.mp4", name)
    assert next(iter(read_capera(tmp_path, "train")))["images"] == [name]
