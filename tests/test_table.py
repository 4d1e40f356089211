"""Many samples in little memory."""
import random
import sys

import pytest

from support.readers.common import FIELD_SEPARATOR, TEXT_SEPARATOR, RowTable, SampleTable


def rows(count, seed=0):
    rng = random.Random(seed)
    words = ["a ship", "", "ein Fluß", "河", "{<1><2><3><4>}", "\n", FIELD_SEPARATOR, "\udc80"]
    for i in range(count):
        turns = tuple((rng.choice(words), rng.choice(words)) for _ in range(rng.randint(1, 3)))
        boxes = tuple((rng.random() * 9, 1.5, 1e6, -2.0) for _ in range(rng.choice((0, 0, 2))))
        turns = (*turns, ("<bbox>" * len(boxes), "end"))
        images = tuple(f"{rng.randint(0, 9)}.png" for _ in range(rng.choice((0, 1, 1, 2))))
        yield {"images": images, "turns": turns, "task": "conversation", "source": f"a:{i}",
               "boxes": boxes, "references": tuple(rng.sample(words, rng.choice((0, 2)))),
               "kind": rng.choice(("", "count"))}


def test_every_row_comes_back_as_it_was():
    wanted = list(rows(500))
    table = RowTable(wanted)
    assert len(table) == 500 and list(table) == wanted and table[-1] == wanted[-1]
    assert list(table.letters) == [sum(len(t) for turn in r["turns"] for t in turn) for r in wanted]


def test_rows_of_one_picture_have_one_number_and_rows_without_one_each_their_own():
    table = RowTable(rows(300))
    pairs = {(table.image[i], row["images"] or i) for i, row in enumerate(table)}
    assert len(pairs) == len({number for number, _ in pairs}) == len({name for _, name in pairs})


def test_joined_tables_hold_the_rows_of_both_and_share_no_picture():
    one, two = RowTable(rows(50)), RowTable(rows(70, seed=1))
    wanted, first = list(one) + list(two), set(one.image)
    one.join(two)
    assert list(one) == wanted and not first & set(one.image[50:])


@pytest.mark.parametrize("turns", [(("<bbox>", "a"),), (("a", f"b{TEXT_SEPARATOR}c"),)])
def test_a_row_that_does_not_fit_is_named(turns):
    with pytest.raises(ValueError, match="file:7"):
        RowTable([{"images": (), "turns": turns, "task": "vqa", "source": "file:7"}])


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="file:8: unknown task 'dance'"):
        SampleTable([{"images": (), "turns": (("a", "b"),), "task": "dance", "source": "file:8"}])


def test_a_hundred_thousand_questions_take_less_than_300_bytes_each():
    table = SampleTable({"images": (f"/data/RSVQA_HR/Data/{i // 60}.tif",), "kind": "presence",
                     "turns": (("Is there a small residential building next to a road?", "yes"),),
                     "task": "vqa", "source": f"/data/SkyEye-968k/vqa/RSVQAHR_train.json:{i}"}
                    for i in range(100_000))
    arrays = (table.ends, table.image, table.letters)
    taken = len(table.block) + sum(len(x) * x.itemsize for x in arrays)
    names = sum(sys.getsizeof(names) + sys.getsizeof(names[0]) for names in table.images)
    assert taken + names + sys.getsizeof(table.number) < 300 * len(table)
