"""support/readers/common.py: many samples in little memory, class names, split lists."""
import random
import sys

import pytest

from data import TEMPLATES
from support.readers.common import (
    FIELD_SEPARATOR,
    TASK_NAMES,
    TURN_SEPARATOR,
    PicturePaths,
    Sample,
    SampleTable,
    class_name,
    find_picture,
    skip_bad_row,
)

# ---- samples -------------------------------------------------------------------------------------

def make_rows(count, seed=0):
    """The fields of random samples, with characters that a file or a separator could break."""
    rng = random.Random(seed)
    words = ["a ship", "", "ein Fluß", "河", "{<1><2><3><4>}", "\n", FIELD_SEPARATOR, "\udc80"]
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
