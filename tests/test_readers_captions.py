"""support/readers/captions.py: RSICD and its kin, NWPU-Captions, caption lists, CapERA."""
import json
import shutil

import pytest

import tiny
from data_folders import (
    FIXTURES,
    layouts_of,
    make_capera,
    make_caption_lists,
    make_nwpu,
    make_rsicd,
    read,
    real,
    row_error,
    sentences,
    touch,
    write,
)

# ---- RSICD ---------------------------------------------------------------------------------------

@real(FIXTURES)
@pytest.mark.parametrize("name,count,folder", [
    ("RSICD", 11, "RSICD_images"), ("UCM_captions", 9, "imgs"), ("Sydney_captions", 3, "imgs")])
def test_the_real_captions_are_five_a_picture_in_its_own_folder(name, count, folder):
    rows = read("rsicd", FIXTURES / name)
    assert len(rows) == 5 * count and {row["task"] for row in rows} == {"caption"}
    for row in rows:
        assert row["images"][0].startswith(folder + "/")
        assert (FIXTURES / name / row["images"][0]).is_file()
    assert read("rsicd", FIXTURES / name, "test") == []


def test_five_identical_sentences_stay_five_rows(tmp_path):
    make_rsicd(tmp_path)
    rows = read("rsicd", tmp_path)
    assert [row["turns"] for row in rows if row["task"] == "caption"] == [(("", "a port ."),)] * 5
    assert len({row["source"] for row in rows}) == len(rows)


@real(tiny.DATA / "captions_text.json")
def test_the_real_rsicd_repeats_itself_and_no_repetition_is_lost(tmp_path):
    captions = json.loads((tiny.DATA / "captions_text.json").read_text())["rsicd"]["train"]
    write(tmp_path / "dataset_rsicd.json", {"images": [
        sentences(name, "train", *texts) for name, texts in captions.items()]})
    touch(tmp_path / "RSICD_images", "airport_1.jpg")
    rows = read("rsicd", tmp_path)
    assert len(rows) == 43_670                                      # 8,734 pictures
    assert sum(len(set(texts)) == 1 for texts in captions.values()) > 3000
    assert [row["turns"][0][1] for row in rows] == sum(captions.values(), [])


def test_the_split_is_the_jsons_and_no_list_of_names_beside_it(tmp_path):
    """A published class file of RSICD has val and test swapped."""
    make_rsicd(tmp_path)
    before = [read("rsicd", tmp_path, split) for split in ("train", "val", "test")]
    for split, name in (("val", "0.jpg"), ("test", "1.jpg"), ("train", "")):
        write(tmp_path / f"{split}.txt", name)
        write(tmp_path / "txtclasses_rsicd" / f"{split}.txt", name)
    assert [read("rsicd", tmp_path, split) for split in ("train", "val", "test")] == before
    assert [len(rows) for rows in before] == [5 + 1, 1, 0]


def test_rsitmd_is_read_as_rsicd(tmp_path):
    write(tmp_path / "dataset_RSITMD.json", {"dataset": "RSITMD", "images": [
        sentences("boat_0.tif", "test", "Two large ships.")]})
    touch(tmp_path, "images/boat_0.tif", "docs/readme.txt")         # docs is no picture folder
    assert layouts_of(tmp_path) == ["rsicd"]
    (row,) = read("rsicd", tmp_path, "test")
    assert row["images"] == ["images/boat_0.tif"] and row["turns"] == (("", "Two large ships."),)


# ---- NWPU-Captions, caption lists ----------------------------------------------------------------

def test_nwpu_captions_has_five_sentences_a_picture_of_its_class_folder(tmp_path):
    make_nwpu(tmp_path)
    rows = read("nwpu_captions", tmp_path)
    assert [row["images"][0] for row in rows] == (["airplane/airplane_001.jpg"] * 5
                                                  + ["storage_tank/storage_tank_001.jpg"] * 5)
    assert [row["turns"][0][1] for row in rows] == ["a plane ."] * 9 + ["one tank ."]
    assert len(read("nwpu_captions", tmp_path, "test")) == 5
    shutil.rmtree(tmp_path / "airplane")
    touch(tmp_path, "NWPU-RESISC45/airplane/airplane_001.jpg")
    first = read("nwpu_captions", tmp_path)[0]
    assert first["images"] == ["NWPU-RESISC45/airplane/airplane_001.jpg"]


def test_a_caption_list_names_a_picture_once_or_once_a_caption(tmp_path):
    make_caption_lists(tmp_path)
    train, test = (read("caption_lists", tmp_path, split) for split in ("train", "test"))
    assert [row["images"] for row in train] == [["images/0.tif"]] * 5 + [["images/1.tif"]] * 5
    assert [row["turns"] for row in train] == [row["turns"] for row in test]
    assert [row["images"] for row in train] == [row["images"] for row in test]
    write(tmp_path / "train_filename.txt", "0.tif\n1.tif\n2.tif\n")
    assert "10 captions for the 3 pictures" in row_error("caption_lists", tmp_path)


# ---- CapERA --------------------------------------------------------------------------------------

@real(FIXTURES)
def test_the_real_capera_has_five_captions_for_each_of_1391_test_clips():
    rows = read("capera", FIXTURES / "CapERA", "test")
    assert len(rows) == 5 * 1391 and len({row["images"][0] for row in rows}) == 1391
    assert {row["task"] for row in rows} == {"video"}
    assert rows[4]["images"] == ["Videos/Baseball_001.mp4"]         # where it should be
    assert rows[4]["turns"][0][1].endswith("lots in the evening")


def test_a_clip_is_a_folder_a_gif_an_mp4_or_a_single_frame(tmp_path):
    make_capera(tmp_path)
    rows = read("capera", tmp_path)
    assert [row["images"] for row in rows[::5]] == [
        ["Videos/train/Fire/Fire_001.mp4"], ["Videos/Fire_002.gif"],
        ["SingleFrames/Train/PoliceChase/PoliceChase_001.jpg"], ["frames/Party_001"],
        ["Videos/Party_002.mp4"]]
    assert [row["turns"][0][1] for row in rows[:5]] == [f"train {k}" for k in range(5)]
    touch(tmp_path, "SingleFrames/Fire/Fire_001.png")       # frames before mp4 before one frame
    assert read("capera", tmp_path)[0]["images"] == ["Videos/train/Fire/Fire_001.mp4"]
    touch(tmp_path, "Videos/Fire_001/000.jpg")
    assert read("capera", tmp_path)[0]["images"] == ["Videos/Fire_001"]


def test_a_clip_of_train_is_never_taken_for_the_test_clip_of_the_same_name(tmp_path):
    make_capera(tmp_path)
    assert read("capera", tmp_path, "test")[0]["images"] == ["Videos/Fire_001.mp4"]   # is missing
    touch(tmp_path, "Videos/Test/Fire/Fire_001.mp4")
    assert read("capera", tmp_path, "test")[0]["images"] == ["Videos/Test/Fire/Fire_001.mp4"]
