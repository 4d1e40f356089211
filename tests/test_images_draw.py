"""Boxes drawn on pictures, file names for them, contact sheets."""
import numpy as np
import pytest
from PIL import Image, ImageDraw

import tiny
from support.common import UserError
from support.images.draw import (
    COLORS,
    contact_sheet,
    draw_boxes,
    draw_on_picture,
    merge_boxes,
    overlap,
    save_picture,
    unused_name,
)
from support.images.read import Picture

RED, YELLOW = (0xff, 0x3b, 0x30), (0xff, 0xcc, 0x00)


def test_boxes_are_drawn_in_the_colors_in_turn_and_the_picture_itself_is_unchanged():
    image = Image.new("RGB", (200, 100))
    drawn = np.array(draw_boxes(image, [("", (50, 20, 150, 80)), ("a ship", (0, 0, 199, 99))]))
    assert not np.array(image).any()
    assert tuple(drawn[50, 50]) == RED == tuple(drawn[20, 100])
    assert tuple(drawn[50, 199]) == YELLOW
    assert not drawn[50, 100].any()


def test_there_are_as_many_colors_as_needed():
    boxes = [("", (10 * i, 10, 10 * i + 5, 20)) for i in range(len(COLORS) + 1)]
    drawn = np.array(draw_boxes(Image.new("RGB", (100, 40)), boxes))
    assert tuple(drawn[15, 0]) == RED == tuple(drawn[15, 80]) != tuple(drawn[15, 70])


def test_lines_run_around_a_box_and_hide_nothing_in_it():
    for size, box, line in (((6000, 4000), (1000, 1000, 2000, 2000), 20), ((64, 64), (9, 9, 20, 20),
                            1), ((6000, 4000), (1000, 1000, 1040, 1100), 5), ((6000, 40), (2, 2, 5,
                            5), 1)):
        drawn = np.array(draw_boxes(Image.new("RGB", size, "#123456"), [("", box)]))
        x1, y1, x2, y2 = box
        inside = drawn[y1 + 1:y2, x1 + 1:x2]
        assert (inside == (0x12, 0x34, 0x56)).all()
        assert (drawn[(y1 + y2) // 2] == RED).all(-1).sum() == 2 * line


def test_boxes_of_the_same_pixels_are_one_with_their_phrases_joined():
    box, image = (40, 40, 80, 60), Image.new("RGB", (300, 100))
    joined = draw_boxes(image, [("a ship, a boat", box), ("a tree", (200, 70, 220, 80))])
    again = draw_boxes(image, [("a ship", box), ("a boat", (40.3, 39.6, 80.2, 60)), ("a ship", box),
                               ("", box), ("a tree", (200, 70, 220, 80))], COLORS[:3] * 2)
    third = np.array(again)[75, 200]            # the colors go by the numbers of the boxes
    assert tuple(third) == YELLOW and again.tobytes() == draw_boxes(
        image, [("a ship, a boat", box), ("", box), ("", box), ("", box),
                ("a tree", (200, 70, 220, 80))], COLORS[:3] * 2).tobytes()
    assert (np.array(joined)[:60] == np.array(again)[:60]).all()


def labels(size, boxes):
    """The rectangles that are drawn as labels, each of one color."""
    drawn = []
    real = ImageDraw.ImageDraw.rectangle

    def record(self, xy, fill=None, **more):
        if fill:
            drawn.append(tuple(xy))
        return real(self, xy, fill=fill, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "rectangle", record)
        draw_boxes(Image.new("RGB", size), boxes)
    return drawn


@pytest.mark.parametrize("side", [64, 256, 6000])
@pytest.mark.parametrize("count", [1, 8, 40])
def test_labels_overlap_no_other_stay_in_the_picture_and_hide_little_of_any_box(side, count):
    rng = np.random.default_rng(count)
    corners, sides = rng.uniform(0, 0.8, (count, 2)), rng.uniform(0.05, 0.2, (count, 2))
    boxes = [("ship", tuple(np.concatenate([corner, corner + sides_]) * side))
             for corner, sides_ in zip(corners, sides, strict=True)]
    found = labels((side, side), boxes)
    whole = list(merge_boxes(boxes, (side, side)))
    assert len(found) >= min(count, 8 if side > 64 else 1)
    for i, place in enumerate(found):
        assert min(place) >= 0 and max(place) < side
        assert not any(overlap(place, other) for other in found[:i])
        assert all(overlap(place, box) <= 0.2 * overlap(box, box) for box in whole)


def test_a_label_without_room_is_left_out():
    assert labels((64, 64), [("a very large storage tank", (9, 9, 20, 20))]) == []
    assert labels((300, 100), [("a very large storage tank", (9, 9, 20, 20))]) != []


@pytest.mark.parametrize("box", [(0, 0, 30, 20), (150, 80, 199, 99), (90, 40, 110, 60)])
def test_a_label_is_inside_the_picture_wherever_the_box_is(box):
    def red(phrase):
        drawn = np.array(draw_boxes(Image.new("RGB", (200, 100)), [(phrase, box)]))
        return (drawn == RED).all(-1)

    label = red("a ship") & ~red("")
    rows, columns = label.nonzero()
    assert label.sum() > 250 and np.ptp(rows) >= 10 and np.ptp(columns) >= 25


def test_boxes_in_pixels_of_the_whole_picture_are_drawn_on_the_reduced_one():
    picture = Picture(Image.new("RGB", (50, 40)), (200, 80), "")
    drawn = np.array(draw_on_picture(picture, [("", (40, 20, 160, 60))]))
    rows, columns = (drawn == RED).all(-1).nonzero()
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 40, 10, 30)


def test_a_file_that_exists_is_never_the_unused_name(tmp_path):
    picture = str(tmp_path / "a picture.png")
    first = unused_name(picture)
    assert first == tmp_path / "a picture_boxes.png"
    first.touch()
    assert unused_name(picture) == tmp_path / "a picture_boxes_2.png"
    unused_name(picture).touch()
    assert unused_name(picture) == tmp_path / "a picture_boxes_3.png"


def test_a_contact_sheet_has_rows_of_cells_as_high_as_their_highest():
    cells = [(Image.new("RGB", size, color), "one\n\nthree") for size, color in (
        ((100, 50), "#ff0000"), ((50, 100), "#00ff00"), ((10, 10), "#0000ff"))]
    sheet = contact_sheet(cells, width=112, columns=2)
    assert sheet.size == (224, (100 + 48 + 18) * 2)
    assert sheet.getpixel((6, 6)) == (255, 0, 0) and sheet.getpixel((106, 6)) == (255, 255, 255)
    assert sheet.getpixel((118, 105)) == (0, 255, 0)
    assert sheet.getpixel((105, 166 + 105)) == (0, 0, 255)
    text = np.array(sheet)[50 + 12:50 + 12 + 16, 6:106]
    assert text.min() < 100 and np.array(sheet)[78:94, 6:106].min() == 255


def test_a_long_text_ends_after_24_lines():
    sheet = contact_sheet([(Image.new("RGB", (10, 10)), "word " * 2000)], width=112)
    assert sheet.size == (4 * 112, 100 + 24 * 16 + 18)


@pytest.mark.parametrize("name, form", [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.tif", "TIFF")])
def test_a_picture_is_written_in_the_format_of_its_suffix(name, form, tmp_path):
    save_picture(Image.new("RGB", (5, 7)), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.size == (5, 7) and image.format == form
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.png.gz"])
def test_no_picture_is_written_under_another_suffix(name, tmp_path):
    refused = tiny.refusal(UserError, save_picture, Image.new("RGB", (5, 7)), tmp_path / name)
    assert f"{name}: a picture is written as .png" in refused and not list(tmp_path.iterdir())
