"""support/readers/yolo: folders, lines, and the part of YAML that names classes."""
import json
import shutil

import pytest

from data_folders import (
    layouts_of,
    make_dota,
    make_voc,
    make_yolo,
    read,
    replace_once,
    row_error,
    row_errors,
    without_source,
    write,
)
from support.readers import read_data
from support.readers.common import DataError
from support.readers.yolo import read_yaml_classes
from support.tools.check_data import main


def rounded(rows):
    return [row | {"boxes": tuple(tuple(round(side, 6) for side in box) for box in row["boxes"])}
            for row in without_source(rows)]


def test_labels_give_the_rows_that_voc_gives(tmp_path):
    make_yolo(tmp_path / "yolo")
    make_voc(tmp_path / "voc")
    assert rounded(read("yolo", tmp_path / "yolo")) == rounded(read("voc", tmp_path / "voc"))


@pytest.mark.parametrize("folders", [("images/{}", "labels/{}"), ("{}/images", "{}/labels"),
                                     ("images/{}2017", "labels/{}2017")])
def test_a_split_has_a_folder_of_its_own_as_ultralytics_and_roboflow_write_it(tmp_path, folders):
    for split in ("train", "valid"):
        make_yolo(tmp_path, *(folder.format(split) for folder in folders))
    assert layouts_of(tmp_path) == ["yolo"]
    folder = folders[0].format("train")
    assert read("yolo", tmp_path)[0]["images"] == [f"{folder}/P1.png"]
    assert read("yolo", tmp_path, "val")[0]["images"] == [folder.replace("train", "valid")
                                                          + "/P1.png"]
    assert "no labels of split 'test'" in row_error("yolo", tmp_path, "test")


def test_a_list_names_the_pictures_of_a_split(tmp_path):
    make_yolo(tmp_path)
    assert read("yolo", tmp_path, "test") == read("yolo", tmp_path)
    write(tmp_path / "train.txt", "./images/P2.png\nimages/without_objects.png\n")
    assert {row["images"][0] for row in read("yolo", tmp_path)} == {"images/P2.png"}
    assert "no such list" in row_error("yolo", tmp_path, "val")


@pytest.mark.parametrize("line, box", [
    ("1 0.5 0.5 0.2 0.4", (80, 30, 120, 70)), ("1.0 .5 5e-1 0.2 0.4", (80, 30, 120, 70)),
    ("1 0.4 0.5 0.5 0.3 0.6 0.5 0.5 0.7", (80, 30, 120, 70)),              # rotated
    ("1 0.4 0.5 0.5 0.3 0.6 0.7", (80, 30, 120, 70)),                      # outlines
    ("1 0.4 0.5 0.5 0.3 0.6 0.5 0.5 0.7 0.45 0.6", (80, 30, 120, 70)),
    ("1 0.5 0.5 1.001 0.4", (-0.1, 30, 200.1, 70))])                       # a rounded side
def test_boxes_rotated_boxes_and_outlines_become_upright_boxes_in_pixels(tmp_path, line, box):
    make_yolo(tmp_path)
    write(tmp_path / "labels/P2.txt", line)
    row = next(row for row in read("yolo", tmp_path) if row["images"] == ["images/P2.png"])
    assert row["boxes"][0] == pytest.approx(box) and row["turns"][0][0] == "plane"


@pytest.mark.parametrize("line, reason", [
    ("1 0.5 0.5 0.2", "not 3 numbers"), ("1 0.5 0.5 0.2 0.2 0.9", "not 5 numbers"),
    ("7 0.5 0.5 0.2 0.2", "class 7 of 3"), ("-1 0.5 0.5 0.2 0.2", "class -1 of 3"),
    ("0.5 0.5 0.5 0.2 0.2", "class 0.5 of 3"), ("1 100 50 20 20", "0 to 1, not 100 50 20 20"),
    ("1 0.5 0.5 -0.2 0.2", "0 to 1"), ("1 0.5 0.5 0 0.2", "no box: x 100 to 100"),
    ("1 nan 0.5 0.2 0.2", "a number"), ("1 0.5 0.5 inf 0.2", "a number"),
    ("plane 0.5 0.5 0.2 0.2", "could not read a number from 'plane'"),
    ("1 0.5 0.5 0.2 " + "9" * 400, "a number")])
def test_a_wrong_line_is_named_and_its_picture_left_out(tmp_path, line, reason):
    make_yolo(tmp_path)
    write(tmp_path / "labels/P2.txt", "1 0.5 0.5 0.2 0.2\n" + line)
    error = row_error("yolo", tmp_path)
    assert "P2.txt: line 2: " in error and reason in error
    skipped = []
    assert {s.images for s in read_data(tmp_path, skipped=skipped)} == {
        (str(tmp_path / "images/P1.png"),)} and skipped == [error]


def test_a_missing_or_damaged_picture_or_one_behind_a_link_is_named(tmp_path):
    make_yolo(tmp_path / "set")
    (tmp_path / "set/images/P1.png").write_bytes(b"<html>")
    shutil.move(tmp_path / "set/images/P2.png", tmp_path / "secret.png")
    assert ["web page" in line or "no such picture" in line
            for line in row_errors("yolo", tmp_path / "set")] == [True, True]
    (tmp_path / "set/images/P2.png").symlink_to(tmp_path / "secret.png")
    assert "a link leads out" in row_errors("yolo", tmp_path / "set")[0]
    with pytest.raises(DataError, match="P2.txt|P1.txt"):
        read_data(tmp_path / "set")


def test_an_empty_label_file_is_a_picture_without_objects(tmp_path):
    make_yolo(tmp_path)
    write(tmp_path / "labels/P1.txt", "\n")
    assert {row["images"][0] for row in read("yolo", tmp_path)} == {"images/P2.png"}


def test_dota_is_not_yolo_and_other_numbers_are_neither(tmp_path):
    make_dota(tmp_path / "dota")
    write(tmp_path / "notes/labels/a.txt", "a line of text")
    write(tmp_path / "long/labels/a.txt", "1 " + "9" * 100_000 + "x")
    assert layouts_of(tmp_path / "dota") == ["dota"]
    assert layouts_of(tmp_path / "notes") == layouts_of(tmp_path / "long") == []


# ---- classes -------------------------------------------------------------------------------------

BLOCK = "names:\n  0: small ship\n  1: harbor\n"


@pytest.mark.parametrize("yaml", [
    "names: ['small ship', harbor]", 'names: ["small ship", \'harbor\',]',
    "names:\n- small ship\n- harbor", "names:\n  - 'small ship'  # one\n\n  - harbor\nnc: 2", BLOCK,
    "nc: 2  # two\nnames: {0: small ship, 1: 'harbor'}\n", "names: [small ship,\n   harbor]\n",
    f"---\n# Ultralytics\npath: ../x # root\ntrain: images/train\n{BLOCK}"
    "download: |\n  from x import y\n  y['a'].b(0)\n", "\ufeff" + BLOCK.replace("\n", "\r\n"),
    "names:\n  [small ship, harbor]\nroboflow:\n  license: CC BY 4.0\n  url: https://x/y#z\n"])
def test_lists_and_maps_of_names_are_read_in_both_styles(tmp_path, yaml):
    write(tmp_path / "data.yaml", yaml)
    assert read_yaml_classes(tmp_path / "data.yaml") == {0: "small ship", 1: "harbor"}


@pytest.mark.parametrize("text, name", [
    ("- driver's cabin", "driver's cabin"), ("- 'it''s'", "it's"), ("- a, b", "a, b"),
    ('- "a: b # c"', "a: b # c"), ("- a#b", "a#b"), ("- 7", "7")])
def test_a_name_is_read_as_yaml_reads_it(tmp_path, text, name):
    write(tmp_path / "data.yaml", f"names:\n  {text}\n")
    assert read_yaml_classes(tmp_path / "data.yaml") == {0: name}


@pytest.mark.parametrize("yaml, reason", [
    ("names: &a [x]", "plain or quoted names"), ("names: *a", "plain or quoted names"),
    ("names: !!python/object:os.system [x]", "plain"), ("names: |\n  a\n", "plain"),
    ("names:\n  - !x y", "plain"), ("names:\n  0: {a: b}", "plain"), ("names:\n  a: 0", "plain"),
    ("names: [a, [b]]", "plain"), ("names: [a, b", "plain"), ("names: {0: a, b}", "plain"),
    ("names: {0: a, 0: b}", "class 0 stands there twice"), ("names: []", "no names"),
    ("names:\n", "no names"), ("names:\n  - ''", "class 0 has no name"),
    ("names: [a]\nnames: [b]", "'names' stands there twice"), ("nc: 3\nnames: [a, b]", "nc is 3"),
    ("names: [a]\nkpt_shape: [17, 3]", "kpt_shape"), ("names: ['a]", "plain"),
    ("names: [" + "[" * 100_000, "plain"), ("names: ['" + "a" * 100_000, "plain"),
    ("names: [a" + " " * 100_000 + "{]", "plain"), ("names:\n  - \"" + "'" * 100_000, "plain")])
def test_any_other_yaml_is_refused_in_a_line(tmp_path, yaml, reason):
    make_yolo(tmp_path)
    write(tmp_path / "data.yaml", yaml)
    line = row_error("yolo", tmp_path)
    assert reason in line and "data.yaml" in line and len(line) < 400


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt"])
def test_classes_may_be_lines_of_a_text(tmp_path, place):
    make_yolo(tmp_path)
    rows = read("yolo", tmp_path)
    (tmp_path / "data.yaml").unlink()
    assert "neither in data.yaml (names:) nor in classes.txt" in row_error("yolo", tmp_path)
    write(tmp_path / place, "harbor\r\nplane\r\nsmall-vehicle\r\n\r\n")
    assert read("yolo", tmp_path) == rows
    write(tmp_path / place, "harbor\n\nsmall-vehicle\n")
    assert "class 1 has no name" in row_error("yolo", tmp_path)


def test_a_check_names_the_rows_that_are_wrong(tmp_path, capsys):
    make_yolo(tmp_path / "set")
    replace_once(tmp_path / "set/labels/P1.txt", "0.2", "20")
    out = tmp_path / "report.json"
    assert main(["--check", str(tmp_path / "set"), "--json", str(out)]) == 1
    assert json.loads(out.read_text())["found"]["row"] == 1
    assert "P1.txt: line 1" in capsys.readouterr().out
