"""The box codec: pixels to text and back, whatever the text."""
import math
import random

import pytest

from data import encode_box, parse_boxes, preprocess, upright_box
from support.metrics.boxes import grid_ceiling, iou


def boxes(count, seed=0):
    """Random pictures and boxes in them -> (box, width, height)"""
    rng = random.Random(seed)
    for _ in range(count):
        width, height = rng.randint(1, 3000), rng.randint(1, 3000)
        x, y = sorted(rng.uniform(0, width) for _ in "12"), sorted(rng.uniform(0, height)
                                                                  for _ in "12")
        yield (x[0], y[0], x[1], y[1]), width, height


@pytest.mark.parametrize("pad", [False, True])
def test_a_box_comes_back_within_half_a_bin(pad):
    for box, width, height in boxes(2000):
        (_, found), = parse_boxes(encode_box(box, width, height, pad), width, height, pad=pad)
        bins = (max(width, height),) * 2 if pad else (width, height)
        for i, (a, b) in enumerate(zip(box, found, strict=True)):
            assert abs(a - b) <= 0.5 * bins[i % 2] / 100 + 1e-6


def test_upstreams_corner_is_within_a_bin_and_never_behind_the_truth():
    for box, width, height in boxes(500, seed=1):
        (_, found), = parse_boxes(encode_box(box, width, height), width, height, corner=True)
        for i, (a, b) in enumerate(zip(box, found, strict=True)):
            assert -1e-6 <= a - b <= (width, height)[i % 2] / 100 + 1e-6


def test_any_text_gives_boxes_inside_the_picture_and_never_an_exception():
    rng, alphabet = random.Random(3), "{}<>0123456789 |-p/delim,.\n\u00e9\ufffd"
    pieces = ["{<1><2><3><4>}", "{<99", "><", "|<-90>}", "{<5><6><7><8>|<45>}", "<p>a</p> ", "{"]
    for _ in range(5000):
        text = "".join(rng.choice((rng.choice(alphabet), rng.choice(pieces))) for _ in range(20))
        for phrase, (x1, y1, x2, y2) in parse_boxes(text, 640, 480, rng.random() < 0.5,
                                                   rng.random() < 0.5):
            assert 0 <= x1 <= x2 <= 640 and 0 <= y1 <= y2 <= 480 and isinstance(phrase, str)


def test_several_boxes_of_a_phrase_keep_it():
    text = "<p>two ships</p> {<0><0><10><10>}<delim>{<50><50><60><60>}<p>a car</p> {<1><2><3><4>}"
    assert [phrase for phrase, _ in parse_boxes(text, 100, 100)] == ["two ships"] * 2 + ["a car"]


def test_corners_in_the_wrong_order_are_sorted_and_what_reaches_over_the_edge_is_cut():
    assert encode_box((80, 90, 10, 20), 100, 100) == encode_box((10, 20, 80, 90), 100, 100)
    assert encode_box((-50, -9, 40, 170), 100, 100) == "{<0><0><40><100>}"


@pytest.mark.parametrize("box", [(math.nan, 0, 5, 5), (0, math.nan, 5, 5), (0, 0, math.nan, 5),
                                 (0, 0, 5, math.nan), (101, 0, 120, 9), (0, -9, 5, -1)])
def test_a_box_that_is_not_in_the_picture_is_an_error(box):
    with pytest.raises(ValueError):
        encode_box(box, 100, 100)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, -60, 180, 359])
def test_a_turned_box_gives_the_upright_box_around_its_corners(degrees):
    box, angle = (20, 30, 60, 50), math.radians(degrees)
    corners = [(x - 40, y - 40) for x in (20, 60) for y in (30, 50)]
    x = [40 + a * math.cos(angle) - b * math.sin(angle) for a, b in corners]
    y = [40 + a * math.sin(angle) + b * math.cos(angle) for a, b in corners]
    assert upright_box(box, degrees) == pytest.approx((min(x), min(y), max(x), max(y)))


def test_geochats_boxes_are_read():
    (phrase, box), = parse_boxes("<p>ship</p> {<20><30><60><50>|<90>}", 100, 100, corner=True)
    assert phrase == "ship" and box == pytest.approx((30, 20, 50, 60))


def test_padding_puts_a_box_where_the_padded_picture_shows_it():
    """A white box in a black strip: the text's hundredths are those of the square fed in."""
    from PIL import Image, ImageDraw
    image = Image.new("RGB", (400, 100))
    ImageDraw.Draw(image).rectangle((100, 20, 199, 79), fill="white")
    x = preprocess(image, 200, style="vicuna_v1")[0] > 1.5
    rows, columns = x.any(1).nonzero()[:, 0], x.any(0).nonzero()[:, 0]
    seen = [columns[0] / 2, rows[0] / 2, (columns[-1] + 1) / 2, (rows[-1] + 1) / 2]
    text = encode_box((100, 20, 200, 80), 400, 100, pad=True)
    written = [int(n) for n in text.strip("{}<>").split("><")]
    assert all(abs(float(a) - b) <= 1 for a, b in zip(seen, written, strict=True))


def test_the_ceiling_is_what_a_perfect_answer_scores():
    truths = [(100, 100, 103, 103)], [(100, 100, 500, 400), (7, 7, 300, 200)]   # one below a bin
    rows = [{"size": (1000, 1000), "boxes": boxes, "references": []} for boxes in truths]
    ceiling = grid_ceiling(rows)
    assert ceiling.value(ceiling.stats.sum(axis=0)) == pytest.approx([2 / 3])
    again = parse_boxes(encode_box((100, 100, 103, 103), 1000, 1000), 1000, 1000)[0][1]
    assert iou(again, (100, 100, 103, 103)) < 0.5
