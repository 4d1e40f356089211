"""support/readers/objects.py: boxes of classes as VOC, DOTA and COCO have them, and DIOR-RSVG."""
import re
import shutil

import pytest

from data_folders import (
    DESCRIPTION,
    FIXTURES,
    MAKERS,
    XML,
    layouts_of,
    make_coco,
    make_dota,
    make_rsvg,
    make_voc,
    read,
    real,
    replace_once,
    row_error,
    touch,
    without_source,
    write,
    xml_object,
)
from support.readers import FORMATS

# ---- objects -------------------------------------------------------------------------------------

def test_an_object_is_detected_identified_and_referred_to_where_it_is_alone(tmp_path):
    make_voc(tmp_path)
    left, right, harbor = (10.0, 45.0, 20.0, 55.0), (30.0, 40.0, 50.0, 60.0), (5.0, 6.0, 70.0, 80.0)
    rows = read("voc", tmp_path)
    assert [(row["task"], row["turns"][0], row["boxes"]) for row in rows[:6]] == [
        ("detection", ("small vehicle", "<p>small vehicle</p> <bbox><delim><bbox>"), (left, right)),
        ("detection", ("harbor", "<p>harbor</p> <bbox>"), (harbor,)),
        ("identify", ("<bbox>", "small vehicle"), (right,)),
        ("identify", ("<bbox>", "harbor"), (harbor,)),
        ("identify", ("<bbox>", "small vehicle"), (left,)),
        ("refer", ("the harbor", "<bbox>"), (harbor,))]


def test_the_same_objects_in_three_layouts_are_the_same_samples(tmp_path):
    found = []
    for name in ("voc", "dota", "coco"):
        MAKERS[name](tmp_path / name)
        found.append(without_source(read(name, tmp_path / name)))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 6 + 3


@pytest.mark.parametrize("name, file, old, new", [
    ("voc", "Annotations/P1.xml", "<xmin>5</xmin>", ""),
    ("dota", "labelTxt/P1.txt", " harbor 0", ""),
    ("coco", "instances_train2017.json", "[5, 6, 65, 74]", "[5, 6, 0, 0]")])
def test_a_picture_with_a_wrong_object_has_no_samples_and_the_others_have_theirs(
        tmp_path, name, file, old, new):
    """Its detections would lack a box."""
    MAKERS[name](tmp_path)
    replace_once(tmp_path / file, old, new)
    errors = []
    rows = list(FORMATS[name].read(tmp_path, "train", errors))
    assert [row["images"] for row in rows] == [["images/P2.png"]] * 3 and len(errors) == 1
    assert row_error(name, tmp_path) == errors[0]


# ---- VOC -----------------------------------------------------------------------------------------

@real(FIXTURES)
def test_the_real_hrrsd_is_read():
    rows = read("voc", FIXTURES / "HRRSD_voc")
    assert rows[0]["images"] == ["JPEGImages/00001.jpg"]            # where it should be
    assert [row["task"] for row in rows[:3]] == ["detection", "identify", "refer"]
    assert rows[2]["turns"] == (("the airplane", "<bbox>"),)
    assert rows[2]["boxes"] == ((453.0, 556.0, 552.0, 692.0),)
    several = next(row for row in rows if row["task"] == "detection" and len(row["boxes"]) > 1)
    assert [box[0] for box in several["boxes"]] == sorted(box[0] for box in several["boxes"])


@pytest.mark.parametrize("folder", ["ImageSets/Main", "."])
@pytest.mark.parametrize("name", ["P2", "P2.png"])
def test_a_voc_list_names_the_pictures_of_a_split(tmp_path, folder, name):
    make_voc(tmp_path)
    assert {row["images"][0] for row in read("voc", tmp_path)} == {"images/P1.png", "images/P2.png"}
    write(tmp_path / folder / "train.txt", f"{name}\n")
    assert {row["images"][0] for row in read("voc", tmp_path)} == {"images/P2.png"}
    assert "val.txt" in row_error("voc", tmp_path, "val")         # never all pictures instead
    write(tmp_path / folder / "val.txt", "P1\nP9\n")
    assert re.search(r"val\.txt:2: P9", row_error("voc", tmp_path, "val"))


@pytest.mark.parametrize("folder", [".", "Annotations", "Annotations/Horizontal Bounding Boxes"])
def test_voc_files_are_found_where_hrrsd_and_dior_have_them(tmp_path, folder):
    make_voc(tmp_path, folder)
    shutil.move(tmp_path / "images", tmp_path / "JPEGImages-trainval")
    assert layouts_of(tmp_path) == ["voc"]
    assert read("voc", tmp_path)[0]["images"] == ["JPEGImages-trainval/P1.png"]


# ---- DOTA ----------------------------------------------------------------------------------------

def test_dota_may_have_a_folder_a_split_and_other_pictures_than_png(tmp_path):
    make_dota(tmp_path / "train")
    (tmp_path / "train/images/P1.png").rename(tmp_path / "train/images/P1.jpg")
    assert layouts_of(tmp_path) == ["dota"]
    assert read("dota", tmp_path)[0]["images"] == ["train/images/P1.jpg"]
    assert "labelTxt" in row_error("dota", tmp_path, "val")
    (tmp_path / "train/images/P2.png").unlink()
    assert read("dota", tmp_path)[-1]["images"] == ["train/images/P2.png"]    # where it should be


def test_a_dota_box_is_the_upright_one_around_the_polygon(tmp_path):
    write(tmp_path / "labelTxt/P.txt", "50 0 100.5 50 50 100 -3 50 ship 1\n1 1 2 1 2 2 1 2 plane\n")
    rows = read("dota", tmp_path)
    assert rows[0]["boxes"] == ((-3.0, 0.0, 100.5, 100.0),) and rows[1]["turns"][0][0] == "plane"


# ---- COCO ----------------------------------------------------------------------------------------

def test_a_coco_file_is_that_of_its_split_or_of_every_split(tmp_path):
    make_coco(tmp_path, "instances_val.json")
    assert "0 files for split 'train'" in row_error("coco", tmp_path)     # val is never trained on
    make_coco(tmp_path, "annotations/train.json")
    train, val = read("coco", tmp_path), read("coco", tmp_path, "val")
    assert without_source(train) == without_source(val)
    make_coco(tmp_path / "one", "boxes.json")
    assert read("coco", tmp_path / "one", "test") == read("coco", tmp_path / "one")
    shutil.move(tmp_path / "one/images", tmp_path / "one/train")
    assert read("coco", tmp_path / "one")[0]["images"] == ["train/P1.png"]


# ---- DIOR-RSVG -----------------------------------------------------------------------------------

@pytest.mark.parametrize("folder", ["images", "JPEGImages"])
def test_rsvg_numbers_count_objects_in_sorted_order_in_either_picture_folder(tmp_path, folder):
    """A picture may be in train and in val, with different objects."""
    make_rsvg(tmp_path, folder)
    train, val = read("dior_rsvg", tmp_path), read("dior_rsvg", tmp_path, "val")
    assert [row["turns"][0][0] for row in train] == ["00002 0", "00010 1"]
    assert train[0]["boxes"] == ((0.0, 2.0, 30.0, 20.0),)
    assert val[0]["images"] == train[0]["images"] == [f"{folder}/00002.jpg"]
    assert val[0]["turns"][0][0] == "00002 1"


def test_the_numbers_of_dior_rsvg_do_not_depend_on_the_order_files_are_made_in(tmp_path):
    numbers = {"00001": [0, 1], "00002": [2], "00010": [3, 4, 5], "00011": [6]}
    for name in ("00010", "00002", "00011", "00001"):
        objects = "".join(xml_object("ship", (i, 2, 30, 20), DESCRIPTION.format(f" object {i} "))
                          for i in numbers[name])
        write(tmp_path / "Annotations" / f"{name}.xml", XML.format(f"{name}.jpg", objects))
        touch(tmp_path / "JPEGImages", f"{name}.jpg")
    write(tmp_path / "train.txt", "0\n4\n6\n")
    write(tmp_path / "val.txt", "5\n2\n")
    train, val = read("dior_rsvg", tmp_path), read("dior_rsvg", tmp_path, "val")
    assert [row["turns"][0][0] for row in train] == ["object 0", "object 4", "object 6"]
    assert [row["turns"][0][0] for row in val] == ["object 2", "object 5"]
    assert train[1]["boxes"] == ((4.0, 2.0, 30.0, 20.0),)
    assert train[1]["images"] == ["JPEGImages/00010.jpg"]


def test_object_numbers_that_cannot_be_are_refused(tmp_path):
    make_rsvg(tmp_path)
    write(tmp_path / "train.txt", "0\n4\n")
    error = row_error("dior_rsvg", tmp_path)
    assert "object 4" in error and "have 4" in error
    write(tmp_path / "train.txt", "0\nx\n")
    assert "train.txt:2: x" in row_error("dior_rsvg", tmp_path)


@real(FIXTURES)
def test_the_real_lists_of_dior_rsvg_share_38320_objects_out(tmp_path):
    for name in ("train", "val", "test"):
        shutil.copy(FIXTURES / "DIOR_RSVG" / f"{name}.txt", tmp_path)
    for file in range(40):
        objects = "".join(xml_object("ship", (0, 0, 1, 1), DESCRIPTION.format(i))
                          for i in range(958 * file, 958 * (file + 1)))
        write(tmp_path / "Annotations" / f"{file:05}.xml", XML.format("a.jpg", objects))
    numbers = {split: {int(row["turns"][0][0]) for row in read("dior_rsvg", tmp_path, split)}
               for split in ("train", "val", "test")}
    assert {split: len(own) for split, own in numbers.items()} == {
        "train": 26_991, "val": 3_829, "test": 7_500}
    assert set.union(*numbers.values()) == set(range(38_320))
