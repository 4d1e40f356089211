"""One small folder in each layout that support/readers knows, and how its rows are read in tests.

Pictures are empty files: no reader but YOLO's, whose boxes are parts of the sides, opens one.
"""
import json

import pytest

import tiny
from data import TEMPLATES
from support.common import UserError
from support.readers import FORMATS
from support.readers.captions import NWPU_SENTENCES
from support.readers.common import Sample

FIXTURES = tiny.DATA / "fixtures"


def real(path):
    """Skip a test where the real data it needs are not there."""
    return pytest.mark.skipif(not path.exists(), reason=f"needs {path}")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def touch(folder, *names):
    for name in names:
        write(folder / name, "")


def replace_once(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def read(name, place, split="train"):
    """The rows of a split without errors, each a Sample with pictures inside the folder."""
    errors = []
    rows = list(FORMATS[name].read(place, split, errors))
    assert errors == []
    for row in rows:
        sample = Sample(**row | {"images": tuple(row["images"])})
        assert sample.task in TEMPLATES and sample.source.startswith(str(place))
        assert all(isinstance(text, str) for turn in sample.turns for text in turn)
        assert not any(path.startswith("/") or ".." in path for path in sample.images)
    return rows


def without_source(rows):
    return [{name: value for name, value in row.items() if name != "source"} for row in rows]


def row_errors(name, place, split="train"):
    """The errors of a split, one line each with the place; the other rows are Samples."""
    errors = []
    try:
        for row in FORMATS[name].read(place, split, errors):
            Sample(**row | {"images": tuple(row["images"])})
    except (ValueError, OSError, UserError) as error:
        errors.append(str(error))
    assert all("\n" not in line and str(place) in line for line in errors)
    return errors


def row_error(name, place, split="train"):
    [line] = row_errors(name, place, split)
    return line


def layouts_of(place):
    """The names of all layouts that a folder matches."""
    return [name for name, reader in FORMATS.items() if reader.matches(place)]


# ---- captions ------------------------------------------------------------------------------------

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


def make_caption_lists(place):
    texts = [f"picture {i} caption {k}" for i in range(2) for k in range(5)]
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


# ---- questions -----------------------------------------------------------------------------------

def make_rsvqa(place, name="LR", splits=("train",), folder="Images_LR"):
    off = {"active": False}
    images = [{"id": 0, "active": True}, {"id": 1, **off}, {"id": 7, "active": True}]
    asked = [(0, 0, "presence", "Is a road present?", True),
             (1, 7, "count", "How many roads?", True), (2, 1, "comp", "More roads?", True),
             (3, 0, "comp", "Inactive?", False), (4, 7, "area", "Its answer is inactive?", True)]
    questions = [{"id": i, "img_id": image, "type": kind, "question": text, "answers_ids": [i],
                  "active": active} for i, image, kind, text, active in asked] + [{"id": 5, **off}]
    answers = [{"id": i, "question_id": i, "answer": text, "active": i != 4}
               for i, text in enumerate(("yes", "12", "no", "no", "0m2"))] + [{"id": 5, **off}]
    for split in splits:
        for table, rows in (("images", images), ("questions", questions), ("answers", answers)):
            write(place / f"{name}_split_{split}_{table}.json", {table: rows})
    touch(place / folder, "0.tif", "7.tif")


def make_rsivqa(place):
    write(place / "ucm_res.txt", "1.tif:What is the theme of this picture?farmland\n\n"
                                 "1.tif:How many trees in the picture?one\n")
    write(place / "dota_train_vqa.txt", "P0000:how many planes are there in this picture?21\n")
    write(place / "dota_val_vqa.txt", "P0003:does this picture contain plane?yes\n")
    touch(place, "UCM/imgs/1.tif", "DOTA/P0000.png", "DOTA/P0003.jpg")


def make_floodnet(place):
    for split in ("Training ", "Valid ", "Test_"):
        write(place / f"Questions/{split}Question.json", {
            str(i): {"Image_ID": "10168.JPG", "Question": f"{split} {i}?", "Ground_Truth": answer,
                     "Question_Type": kind}
            for i, (answer, kind) in enumerate([("flooded", "Condition_Recognition"),
                                                (4, "Simple_Counting")])})
    touch(place, *(f"Images/{split}_Image/10168.JPG" for split in ("Train", "Valid", "Test")))


def make_class_folders(place):
    touch(place, "DenseResidential/1.jpg", "Pond/1.jpg", "Pond/2.jpg")


# ---- objects -------------------------------------------------------------------------------------

OBJECTS = {     # the same pictures, written as VOC, DOTA and COCO below
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
    for name, objects in OBJECTS.items():
        items = "".join(xml_object(*item) for item in objects)
        write(place / folder / f"{name}.xml", XML.format(f"{name}.png", items))
        touch(place / "images", f"{name}.png")


def make_dota(place):
    for name, objects in OBJECTS.items():
        lines = [f"{x2} {y1} {x2} {y2} {x1} {y2} {x1} {y1} {label} 0"
                 for label, (x1, y1, x2, y2) in objects]
        lines = ["imagesource:GoogleEarth", "gsd:0.146", *lines]
        write(place / "labelTxt" / f"{name}.txt", "\n".join(lines))
        touch(place / "images", f"{name}.png")


def make_coco(place, name="instances_train2017.json"):
    labels = sorted({label for objects in OBJECTS.values() for label, _ in objects})
    boxes = [{"image_id": i, "category_id": labels.index(label), "iscrowd": 0,
              "bbox": [x1, y1, x2 - x1, y2 - y1]} for i, objects in enumerate(OBJECTS.values())
             for label, (x1, y1, x2, y2) in objects]
    write(place / name, {
        "info": {}, "images": [{"id": i, "file_name": f"{p}.png"} for i, p in enumerate(OBJECTS)],
        "annotations": boxes, "categories": [{"id": i, "name": n} for i, n in enumerate(labels)]})
    touch(place / "images", "P1.png", "P2.png")


def make_yolo(place, images="images", labels="labels", size=(200, 100)):
    """The same as text, with the names of the classes in data.yaml."""
    names = sorted({label for objects in OBJECTS.values() for label, _ in objects})
    for name, objects in OBJECTS.items():
        lines = [f"{names.index(label)} {(x1 + x2) / 2 / size[0]} {(y1 + y2) / 2 / size[1]} "
                 f"{(x2 - x1) / size[0]} {(y2 - y1) / size[1]}"
                 for label, (x1, y1, x2, y2) in objects]
        write(place / labels / f"{name}.txt", "\n".join(lines) + "\n")
        tiny.picture(place / images / f"{name}.png", *size)
    write(place / "data.yaml", f"train: ../train/images\n\nnc: {len(names)}\nnames: {names}\n")


def make_rsvg(place, folder="images"):
    for name in ("00010", "00002"):         # two pictures, two objects each
        objects = "".join(xml_object("ship", (i, 2, 30, 20), DESCRIPTION.format(f"{name} {i}\n"))
                          for i in range(2))
        write(place / "Annotations" / f"{name}.xml", XML.format(f"{name}.jpg", objects))
        touch(place / folder, f"{name}.jpg")
    write(place / "train.txt", "0\n3\n")
    write(place / "val.txt", "1\n")


# ---- tables ----------------------------------------------------------------------------------

def metadata_rows():
    """A caption, a question, and the objects of above."""
    boxes = {f"{name}.png": {"bbox": [[x1, y1, x2 - x1, y2 - y1] for _, (x1, y1, x2, y2) in own],
                             "categories": [label for label, _ in own]}
             for name, own in OBJECTS.items()}
    return [{"file_name": "0.png", "text": "a port ."},
            {"file_name": "0.png", "question": "is it wet?", "answer": "yes"},
            *({"file_name": name, "objects": objects} for name, objects in boxes.items())]


def make_metadata(place, folder="."):
    rows = metadata_rows()
    write(place / folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    touch(place / folder, *(row["file_name"] for row in rows))


# ---- conversations -------------------------------------------------------------------------------

CONVERSATION = [{"from": "human", "value": "<image>\nwhat is it?"},
                {"from": "gpt", "value": "A ship."}]


def make_skyeye(place):
    write(place / "caption/caption_RSICD_train.json", [{"image_id": "0.jpg", "text": "a port ."}])
    write(place / "vqa/UCMvqa.json", [{"image": "1.tif", "question": "what?", "answer": 1}])
    touch(place, "RSICD_images/0.jpg", "UCMerced/1.tif")


MAKERS = {"rsicd": make_rsicd, "nwpu_captions": make_nwpu, "caption_lists": make_caption_lists,
          "capera": make_capera, "rsvqa": make_rsvqa, "rsivqa": make_rsivqa, "voc": make_voc,
          "dota": make_dota, "coco": make_coco, "dior_rsvg": make_rsvg,
          "class_folder": make_class_folders, "skyeye": make_skyeye, "floodnet": make_floodnet,
          "yolo": make_yolo, "metadata": make_metadata}
