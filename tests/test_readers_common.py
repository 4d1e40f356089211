"""support/readers/common.py: many samples in little memory, class names, split lists."""
import math
import random
import sys

import pytest

from data import TEMPLATES
from support.common import UserError
from support.readers.common import (
    FIELD_SEPARATOR,
    TASK_NAMES,
    TURN_SEPARATOR,
    PicturePaths,
    PictureRoot,
    Sample,
    SampleTable,
    box_fault,
    class_name,
    find_files,
    find_picture,
    list_pictures,
    read_head,
    read_lines,
    skip_bad_row,
    subfolders,
    to_number,
)

# ---- samples -------------------------------------------------------------------------------------

def make_rows(count, seed=0):
    """The fields of random samples, with characters that a file or a separator could break."""
    rng = random.Random(seed)
    words = ["a ship", "", "ein Fluß", "河", "{<1><2><3><4>}", "\n", FIELD_SEPARATOR, "\u2028"]
    for i in range(count):
        turns = tuple((rng.choice(words), rng.choice(words) + "x")
                      for _ in range(rng.randint(1, 3)))
        boxes = tuple((rng.random() * 9, 1.5, 1e6, -2.0) for _ in range(rng.choice((0, 0, 2))))
        turns = (*turns, ("<bbox>" * len(boxes), "end"))
        images = tuple(f"{rng.randint(0, 9)}.png" for _ in range(rng.choice((0, 1, 1, 2))))
        yield {"images": images, "turns": turns, "task": "conversation", "source": f"a:{i}",
               "boxes": boxes, "references": tuple(rng.sample(words, rng.choice((0, 2)))),
               "kind": rng.choice(("", "count"))}


def test_every_sample_comes_back_as_it_was():
    rows = list(make_rows(500))
    wanted = [Sample(**row) for row in rows]
    table = SampleTable(rows)
    assert len(table) == 500 and list(table) == wanted and table[-1] == wanted[-1]
    assert table[3:7] == wanted[3:7]
    assert list(table.num_chars) == [sum(len(t) for turn in r["turns"] for t in turn) for r in rows]


def test_control_characters_in_a_source_or_a_type_do_not_mix_up_the_fields():
    for name in ("a\x1fb", "a\x1eb", "a\x1f[]\x1f\x1e"):
        row = dict(images=("a.png",), turns=(("q", "a"),), task="vqa", source=f"{name}.json:1",
                   kind=name)
        [sample] = SampleTable([row])
        assert (sample.task, sample.turns) == ("vqa", (("q", "a"),)) and "\x1f" not in sample.kind
        assert sample.source.endswith(".json:1")


def test_samples_of_the_same_pictures_have_one_number_and_those_without_each_their_own():
    table = SampleTable(make_rows(300))
    pairs = {(table.image_set[i], sample.images or i) for i, sample in enumerate(table)}
    assert len(pairs) == len({number for number, _ in pairs}) == len({key for _, key in pairs})


def test_joined_tables_hold_the_samples_of_both_and_share_no_pictures():
    one, two = SampleTable(make_rows(50)), SampleTable(make_rows(70, seed=1))
    wanted, first = list(one) + list(two), set(one.image_set)
    one.join(two)
    assert list(one) == wanted and not first & set(one.image_set[50:])


@pytest.mark.parametrize("wrong, reason", [
    ({"turns": (("<bbox>", "a"),)}, "1 <bbox> for 0 boxes"),
    ({"turns": (("a", f"b{TURN_SEPARATOR}c"),)}, "the control character"),
    ({"turns": (("a", " "),)}, "an empty answer"),
    ({"task": "dance"}, "unknown task 'dance'")])
def test_a_row_that_is_no_sample_is_named(wrong, reason):
    row = {"images": (), "turns": (("a", "b"),), "task": "vqa", "source": "file:7"} | wrong
    with pytest.raises(ValueError, match=f"file:7: {reason}"):
        SampleTable([row])


def test_a_hundred_thousand_questions_take_less_than_300_bytes_each():
    table = SampleTable({"images": (f"/data/RSVQA_HR/Data/{i // 60}.tif",), "kind": "presence",
                         "turns": (("Is there a small residential building next to a road?",
                                    "yes"),),
                         "task": "vqa", "source": f"/data/SkyEye-968k/vqa/RSVQAHR_train.json:{i}"}
                        for i in range(100_000))
    arrays = (table.ends, table.image_set, table.num_chars)
    used = len(table.text) + sum(len(x) * x.itemsize for x in arrays)
    names = sum(sys.getsizeof(names) + sys.getsizeof(names[0]) for names in table.image_sets)
    assert used + names + sys.getsizeof(table.number_of) < 300 * len(table)


def test_the_tasks_of_samples_are_those_that_have_templates():
    assert set(TASK_NAMES) == set(TEMPLATES)


# ---- errors --------------------------------------------------------------------------------------

@pytest.mark.parametrize("error, line", [
    (KeyError("raw"), "file:3: no 'raw'"), (ValueError("two\n  lines"), "file:3: two lines"),
    (TypeError("no list"), "file:3: no list"), (IndexError("gone"), "file:3: gone")])
def test_what_is_wrong_with_a_row_is_one_line_and_the_next_row_is_read(error, line):
    errors = []
    for row in (error, None):
        with skip_bad_row("file:3", errors):
            if row:
                raise row
    assert errors == [line]


@pytest.mark.parametrize("error", [OSError("a disk"), MemoryError(), KeyboardInterrupt()])
def test_what_is_no_rows_fault_is_raised(error):
    with pytest.raises(type(error)), skip_bad_row("file:3", []):
        raise error


def test_a_file_of_one_row_that_cannot_be_read_is_that_rows_fault(tmp_path):
    errors = []
    for name, content in (("a.txt", b"\xff\xfex\0"), ("b.txt", b"\x92")):
        (tmp_path / name).write_bytes(content)
        with skip_bad_row(str(tmp_path / name), errors):
            read_lines(tmp_path / name)
    assert ["a.txt: line 1 is not UTF-8" in errors[0], "b.txt: line 1 is not" in errors[1]] == [
        True, True]
    assert all(line.count(str(tmp_path)) == 1 for line in errors)


# ---- pictures ------------------------------------------------------------------------------------

def test_a_picture_is_found_in_the_first_folder_that_has_it_with_or_without_suffix(tmp_path):
    for name in ("b/1.png", "c/1.png", "c/2.TIF", "c/harbor/harbor_3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_picture(tmp_path, ["a", "b", "c"], "1.png") == "b/1.png"
    assert find_picture(tmp_path, ["a", "b", "c"], "1") == "b/1.png"
    assert find_picture(tmp_path, ["c"], "2.TIF") == "c/2.TIF"
    assert find_picture(tmp_path, ["a", "b"], "9.png") == "a/9.png"         # where it should be
    paths = PicturePaths(tmp_path, ("b", "c"))
    assert paths["harbor_3.jpg"] == "c/harbor/harbor_3.jpg"                 # in its class's folder
    (tmp_path / "b/harbor_3.jpg").touch()
    assert paths["harbor_3.jpg"] == "c/harbor/harbor_3.jpg"                 # searched for once


@pytest.mark.parametrize("name", ["1.png", "b/1.png", "b\\1.png", "./1.png", ".\\b\\1.png", "b/1",
                                  "1.PNG", "1.Png", "ROOT/b/1.png", "ROOT/b/1", "ROOT/b/1.pNG"])
def test_a_name_may_have_its_folder_or_be_absolute_and_its_suffix_in_any_letters(tmp_path, name):
    place, link = tmp_path / "set", tmp_path / "link"
    (place / "b").mkdir(parents=True)
    (place / "b/1.png").touch()
    link.symlink_to(place)
    for root in (place, link):
        assert find_picture(root, ["a", "b"], name.replace("ROOT", str(root))) == "b/1.png"
    outside = f"{tmp_path}/other/1.png"
    assert find_picture(place, ["a", "b"], outside) == outside              # is refused later


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


# ---- files as other systems write them -----------------------------------------------------------

def test_lines_end_in_line_feeds_alone_and_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\u2028two\x0c\r\nthree\x85\n".encode())
    assert read_lines(file) == ["one\u2028two\x0c", "three\x85"]
    assert read_head(file).startswith("one")
    for encoding in ("utf-16-le", "utf-16-be"):
        file.write_bytes("\ufeff<a>".encode(encoding))
        assert read_head(file) == "<a>"


@pytest.mark.parametrize("encoding", ["cp1252", "gbk"])
def test_a_text_in_another_encoding_is_named_with_what_to_do(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("fine\nl’été 河\n".encode(encoding, "ignore"))
    with pytest.raises(UserError, match=r"a\.txt: line 2 is not UTF-8; convert .*iconv"):
        read_lines(tmp_path / "a.txt")


def test_what_a_mac_leaves_is_no_file_and_capitals_make_no_difference(tmp_path):
    for name in ("._1.xml", "1.XML", "._a.jpg", "b.BMP", "__MACOSX/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in find_files(tmp_path, "*.xml")] == ["1.XML"]
    (tmp_path / "@eaDir").mkdir()
    assert list_pictures(tmp_path) == ["b.BMP"] and subfolders(tmp_path) == []
    assert find_picture(tmp_path, ["."], "b") == find_picture(tmp_path, ["."], "b.bmp") == "b.BMP"


def test_a_picture_is_inside_its_folder_by_its_name_and_by_its_links(tmp_path):
    data, outside = tmp_path / "data", tmp_path / "outside"
    for folder in (data / "img", outside):
        folder.mkdir(parents=True)
        (folder / "a.jpg").touch()
    (data / "link.jpg").symlink_to(outside / "a.jpg")
    (data / "folder").symlink_to(outside)
    (data / "own.jpg").symlink_to(data / "img/a.jpg")
    root = PictureRoot(data)
    for name in ("img/a.jpg", "img\\a.jpg", f"{data}/img/a.jpg", "img/a.JPG"):
        assert root.resolve(name) == str(data / "img/a.jpg")
    assert root.resolve("own.jpg") == str(data / "own.jpg")
    for name in ("link.jpg", "folder/a.jpg", "..\\outside\\a.jpg", f"{outside}/a.jpg", "/etc/a.jpg",
                 "x" * 300 + ".jpg", "a\ud800.jpg", "a\0.jpg"):
        with pytest.raises(ValueError):
            root.resolve(name)


def test_numbers_may_be_texts_and_are_never_written_behind_each_other():
    assert to_number("10") + to_number("30.5") == 40.5 and to_number(" -7 ") == -7
    assert to_number("1e2") == 100 and to_number(".5") == 0.5 and type(to_number("7")) is int
    for wrong in (None, True, "x", "nan", math.nan, math.inf, 10 ** 400, "1" * 400, [1], "1e999",
                  "inf", "1_0", "1,5", "0x10", "\uff11\uff12", "\u0663", "1.#QNAN", "-1.#IND", ""):
        with pytest.raises(ValueError):
            to_number(wrong)


@pytest.mark.parametrize("box, reason", [
    ((1, 1, math.nan, 3), "not a number"), ((20, 1, 30, 5), "outside"), ((1, 1, 1, 5), "no area"),
    ((5, 5, 1, 1), ""), ((-5, 1, 3, 30), "")])
def test_a_box_that_is_none_in_its_picture_has_a_reason(box, reason):
    assert (reason in box_fault(box, 10, 10)) and bool(box_fault(box, 10, 10)) == bool(reason)
