"""support/readers/metadata: Hugging Face's tables of pictures; and data in one file."""
import csv
import io
import json
import shutil

import pytest

import tiny
from data_folders import (
    CONVERSATION,
    layouts_of,
    make_coco,
    make_metadata,
    make_voc,
    metadata_rows,
    read,
    row_error,
    row_errors,
    touch,
    without_source,
    write,
)
from support.common import UserError
from support.readers import check_image_folder, find_format, read_data
from support.readers.common import DataError, MissingSplit
from support.readers.metadata import read_metadata


def as_jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(*rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, dict.fromkeys(key for row in rows for key in row))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def test_captions_questions_and_objects_are_read(tmp_path):
    make_metadata(tmp_path / "hf")
    caption, question, *objects = without_source(read("metadata", tmp_path / "hf"))
    assert caption == {"images": ["0.png"], "task": "caption", "turns": (("", "a port ."),)}
    assert question == {"images": ["0.png"], "task": "vqa", "turns": (("is it wet?", "yes"),)}
    make_voc(tmp_path / "voc")
    wanted = [row | {"images": [row["images"][0].removeprefix("images/")]}
              for row in without_source(read("voc", tmp_path / "voc"))]
    assert objects == wanted


@pytest.mark.parametrize("row, turns", [
    ({"caption": "a port ."}, [("", "a port .")]),
    ({"captions": ["a port .", "ships ."]}, [("", "a port ."), ("", "ships .")]),
    ({"text": ["a port .", "ships ."], "label": 3}, [("", "a port ."), ("", "ships .")]),
    ({"question": "how many?", "answer": 2, "answers": None}, [("how many?", "2")]),
    ({"questions": ["a?", "b?"], "answers": ["c", 1.5]}, [("a?", "c"), ("b?", "1.5")]),
    ({"text": "a .", "question": "what?", "answer": "it"}, [("", "a ."), ("what?", "it")]),
    ({"conversations": CONVERSATION}, [("what is it?", "A ship.")]),
    ({"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "it"}]},
     [("what?", "it")]),
    ({"objects": {"bbox": [], "categories": []}}, [])])
def test_the_names_that_such_tables_use_are_understood(tmp_path, row, turns):
    write(tmp_path / "metadata.jsonl", as_jsonl({"file_name": "a.png"} | row))
    assert [turn for found in read("metadata", tmp_path) for turn in found["turns"]] == turns


def test_a_csv_gives_the_rows_that_jsonl_gives(tmp_path):
    rows = [{"file_name": "a.png", "text": 'a "port", wet', "question": "what\nis it?",
             "answer": "7"}, {"file_name": "b.png", "text": "two\u2028lines"}]
    write(tmp_path / "csv/metadata.csv", "\ufeff" + as_csv(*rows))
    write(tmp_path / "jsonl/metadata.jsonl", as_jsonl(*rows))
    found = [without_source(read("metadata", tmp_path / kind)) for kind in ("csv", "jsonl")]
    assert found[0] == found[1] and len(found[0]) == 3
    assert layouts_of(tmp_path / "csv") == ["metadata"]
    for split in ("train", "test"):
        tiny.picture(tmp_path / "splits" / split / "a.png")
        write(tmp_path / "splits" / split / "metadata.csv", as_csv(*rows))
    assert layouts_of(tmp_path / "splits") == ["metadata"]


@pytest.mark.parametrize("folder", ["{}", "data/{}"])
def test_a_split_has_a_folder_or_its_pictures_have(tmp_path, folder):
    for split in ("train", "validation"):
        make_metadata(tmp_path / "folders", folder.format(split))
    own = folder.format("validation")
    assert read("metadata", tmp_path / "folders", "val")[0]["images"] == [f"{own}/0.png"]
    assert "split 'test'" in row_error("metadata", tmp_path / "folders", "test")
    write(tmp_path / "one/metadata.jsonl", as_jsonl(
        {"file_name": "train/a.png", "text": "a"}, {"file_name": "test/a.png", "text": "b"},
        {"file_name": "c.png", "text": "c"}))
    assert [row["turns"][0][1] for row in read("metadata", tmp_path / "one", "test")] == ["b", "c"]


def test_numbers_of_categories_are_named_by_the_lines_of_classes_txt(tmp_path):
    objects = {"bbox": [[1, 2, 3, 4]], "category": [1]}
    write(tmp_path / "metadata.jsonl", as_jsonl({"file_name": "a.png", "objects": objects}))
    assert "category 1 is a number: write the names" in row_error("metadata", tmp_path)
    write(tmp_path / "classes.txt", "ship\nStorageTank\n")
    assert read("metadata", tmp_path)[0]["turns"][0][0] == "storage tank"
    write(tmp_path / "classes.txt", "ship\n")
    assert "category 1 has no line in classes.txt" in row_error("metadata", tmp_path)


WRONG = [
    ({"text": "x"}, "no 'file_name'"), ({"file_name": 3, "text": "x"}, "'file_name' must be"),
    ({"file_name": "a.png"}, "nothing to learn"), ({"file_name": "a.png", "text": ""}, "'text'"),
    ({"file_name": "a.png", "text": "x", "mask_file_name": "b.png"}, "'mask_file_name' is not"),
    ({"file_name": "a.png", "question": "x"}, "1 'question' for 0 'answer'"),
    ({"file_name": "a.png", "text": {"raw": "x"}}, "'text' must be a text"),
    ({"file_name": "a.png", "objects": [1]}, '"objects" must be'),
    ({"file_name": "a.png", "objects": {"bbox": [[1, 2, 3]], "categories": ["x"]}}, "four numbers"),
    ({"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]]}}, "as many categories"),
    ({"file_name": "a.png", "objects": {"bbox": [[1, 2, -3, 4]], "categories": ["x"]}}, "no box"),
    ({"file_name": "a.png", "objects": {"bbox": [[1, 2, None, 4]], "categories": ["x"]}}, "number"),
    ({"file_name": "a\0.png", "text": "x"}, "no picture's name"),
    ({"file_name": "a" * 300, "text": "x"}, "300 letters")]


@pytest.mark.parametrize("row, reason", WRONG, ids=[reason for _, reason in WRONG])
def test_a_row_that_is_wrong_is_named_and_left_out(tmp_path, row, reason):
    tiny.picture(tmp_path / "a.png")
    sound = {"file_name": "a.png", "text": "a port ."}
    write(tmp_path / "metadata.jsonl", as_jsonl(sound, row))
    error = row_error("metadata", tmp_path)
    assert "metadata.jsonl:2: " in error and reason in error
    skipped = []
    assert len(read_data(tmp_path, skipped=skipped)) == 1 and skipped == [error]


@pytest.mark.parametrize("text, reason", [
    ("file_name,text\na.png\n", ":2: 1 cells for 2 columns"), ("file_name,text\n\"a", "not a CSV"),
    ("file_name,text\na\0.png,x\n", "NUL"), ("file_name,file_name\na,b\n", "the same name"),
    ("file_name,text\na.png," + "x" * 200_000, "field larger than"),
    ("file_name,objects\na.png,\"{'bbox': []}\"\n", '"objects" must be')])
def test_a_csv_that_is_wrong_is_refused_in_a_line(tmp_path, text, reason):
    write(tmp_path / "metadata.csv", text)
    assert reason in row_error("metadata", tmp_path)


def test_two_tables_of_one_folder_are_refused(tmp_path):
    make_metadata(tmp_path)
    write(tmp_path / "metadata.csv", "file_name,text\n0.png,x\n")
    assert "only one can be read" in row_error("metadata", tmp_path)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_a_picture_outside_the_folder_is_refused(tmp_path, name):
    write(tmp_path / "set/train/metadata.jsonl", as_jsonl({"file_name": name, "text": "x"}))
    with pytest.raises(DataError, match="may only name pictures inside"):
        read_data(tmp_path / "set")


# ---- data in one file, pictures elsewhere --------------------------------------------------------

def write_file(kind, place):
    """Data in one file, about P1.png and P2.png -> the file and its layout."""
    if kind == "coco":
        make_coco(place, "boxes.json")
        shutil.rmtree(place / "images")
        return place / "boxes.json", "coco"
    if kind == "metadata":
        rows = [row | {"file_name": "P1.png"} for row in metadata_rows()]
        return write(place / "metadata.jsonl", as_jsonl(*rows)), "metadata"
    if kind == "csv":
        return write(place / "metadata.csv", "file_name,text\nP1.png,a ship\n"), "metadata"
    if kind == "swift":
        row = {"images": ["P1.png"], "messages": [{"role": "user", "content": "<image>what is it?"},
                                                  {"role": "assistant", "content": "a ship"}]}
        return write(place / "talks.jsonl", as_jsonl(row)), "llava"
    row = {"image": "P1.png", "conversations": CONVERSATION}
    if kind == "jsonl":
        return write(place / "talks.jsonl", as_jsonl(row)), "llava"
    return write(place / "talks.json", [row]), "llava"


@pytest.mark.parametrize("kind", ["llava", "jsonl", "swift", "coco", "metadata", "csv"])
def test_the_pictures_of_a_file_may_be_in_an_image_folder(tmp_path, kind):
    file, layout = write_file(kind, tmp_path / "texts")
    for name in ("P1.png", "P2.png"):
        tiny.picture(tmp_path / "pictures" / name, 200, 100)
    assert find_format(file) is find_format(file, layout)
    with pytest.raises(DataError, match="no such picture"):
        read_data(file)
    found = read_data(file, image_folder=str(tmp_path / "pictures"))
    assert {s.images[0] for s in found} <= {str(tmp_path / "pictures" / f"P{i}.png")
                                            for i in (1, 2)}
    for picture in tmp_path.glob("pictures/*"):
        shutil.copy(picture, file.parent)
    assert [s.turns for s in read_data(file)] == [s.turns for s in found]


@pytest.mark.parametrize("kind", ["llava", "coco", "metadata"])
@pytest.mark.parametrize("name", ["../secret.png", "link.png", "/etc/secret.png"])
def test_pictures_must_lie_in_the_image_folder(tmp_path, kind, name):
    tiny.picture(tmp_path / "secret.png")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/link.png").symlink_to(tmp_path / "secret.png")
    file, _ = write_file(kind, tmp_path / "texts")
    file.write_text(file.read_text().replace("P1.png", name))
    with pytest.raises(DataError, match="pictures inside|leads out of"):
        read_data(file, image_folder=str(tmp_path / "pictures"))


def test_an_image_folder_that_is_missing_or_not_needed_is_refused(tmp_path):
    touch(tmp_path, "a.json")
    check_image_folder("", ["anything"])
    check_image_folder(str(tmp_path), [str(tmp_path), str(tmp_path / "a.json")])
    with pytest.raises(UserError, match="--image_folder .*: no such folder"):
        check_image_folder(str(tmp_path / "gone"), [str(tmp_path / "a.json")])
    with pytest.raises(UserError, match="is for data in one file"):
        check_image_folder(str(tmp_path), [str(tmp_path)])


def test_roboflows_coco_has_a_file_a_split_and_missing_splits_are_told_apart(tmp_path):
    for split in ("train", "valid"):
        make_coco(tmp_path / split, "_annotations.coco.json")
        for name in ("P1.png", "P2.png"):
            shutil.move(tmp_path / split / "images" / name, tmp_path / split / name)
        (tmp_path / split / "images").rmdir()
    assert layouts_of(tmp_path) == ["coco"]             # not classes named train and valid
    assert read("coco", tmp_path, "val")[0]["images"] == ["valid/P1.png"]
    assert row_errors("coco", tmp_path) == []
    with pytest.raises(MissingSplit):
        list(read_metadata(tmp_path, "train", []))
