"""Tiles cover a scene, and of what their boxes show, each thing is there once, whole."""
import math
import random

import numpy as np
import pytest

from data import encode_box, parse_boxes
from support.metrics.boxes import iou
from support.scenes.tiles import Found, Tile, fuse, merge_boxes, spans, tile_grid

SIZE = (1000, 700)              # of the scene
A = Tile(0, (0, 0, 200, 200), 1.0, (0, 0, 175, 200))
B = Tile(1, (150, 0, 350, 200), 1.0, (175, 0, 350, 200))
LEAST_SEEN = 0.15               # of a thing's area, for a tile to show it
GAP = 12                        # between things: 6 hundredths of a tile of 200


def found_by_oracle(things, tiles, phrase="ships"):
    """What a model would answer that sees all, in hundredths of a tile's sides."""
    rng = random.Random(1)
    found = []
    for tile in tiles:
        left, top, right, bottom = tile.window
        for x1, y1, x2, y2 in things:
            seen = max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)
            area = max(seen[2] - seen[0], 0) * max(seen[3] - seen[1], 0)
            if area < LEAST_SEEN * (x2 - x1) * (y2 - y1):
                continue
            text = encode_box(tuple(np.subtract(seen, (left, top, left, top))), *tile.size)
            [(_, box)] = parse_boxes(text, *tile.size)
            box = tuple(float(side) for side in np.add(box, (left, top, left, top)))
            found.append(Found(phrase, box, round(rng.random(), 4), tile))
    return found


def assert_each_once(things, merged, least=0.5):
    assert len(merged) == len(things)
    for thing in things:
        matches = [item for item in merged if iou(item.box, thing) >= least]
        assert len(matches) == 1, (thing, [item.box for item in merged])


# ---- the grid ------------------------------------------------------------------------------------

@pytest.mark.parametrize(("size", "side", "overlap", "scales"), [
    ((1000, 700), 200, 50, (1.0,)), ((1000, 700), 200, 0, (1.0, 0.5)), ((90, 700), 200, 30, (1.0,)),
    ((513, 512), 512, 64, (1.0, 0.5, 2.0)), ((30, 20), 512, 64, (0.25,))])
def test_the_tiles_of_each_scale_cover_every_pixel_and_none_leaves_the_scene(size, side, overlap,
                                                                             scales):
    tiles = tile_grid(size, side, overlap, scales)
    assert [tile.number for tile in tiles] == list(range(len(tiles)))
    for scale in scales:
        covered = np.zeros(size[::-1], int)
        for tile in tiles:
            left, top, right, bottom = tile.window
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
            if tile.scale == scale:
                assert right - left == min(round(side / scale), size[0])
                covered[top:bottom, left:right] += 1
        assert covered.min() == 1 or min(size) <= side / scale or overlap
        assert covered.min() >= 1


def test_neighbors_have_at_least_the_overlap_in_common():
    for length in range(100, 400, 7):
        places = [start for start, *_ in spans(length, 100, 70)]
        assert places[0] == 0 and places[-1] + 100 == max(length, 100)
        assert all(0 < b - a <= 70 for a, b in zip(places, places[1:], strict=False))


@pytest.mark.parametrize("overlap", [0, 50, 90])
def test_every_place_is_judged_by_one_tile_of_a_scale_half_the_overlap_from_its_edge(overlap):
    tiles = tile_grid((517, 480), 200, overlap, (1.0,))
    judged = np.zeros((480, 517), int)
    for tile in tiles:
        left, top, right, bottom = (math.ceil(side - 0.5) for side in tile.core)
        judged[top:bottom, left:right] += 1
        for inner, outer, end in zip(tile.core, tile.window, (0, 0, 517, 480), strict=True):
            assert inner == outer == end or abs(inner - outer) >= overlap / 2
    assert (judged == 1).all()


# ---- merging -------------------------------------------------------------------------------------

EDGES_200_50 = (150, 200, 300, 350)     # where tiles of 200 with 50 in common begin and end


@pytest.mark.parametrize("overlap", [0, 20, 50])
@pytest.mark.parametrize("thing", [
    (130, 60, 170, 90), (180, 60, 220, 100), (140, 140, 180, 175), (185, 190, 215, 212),
    (190, 190, 240, 230), (199, 120, 230, 150), (170, 60, 201, 90), (150, 150, 200, 200),
    (200, 200, 250, 250), (0, 0, 40, 30), (970, 670, 1000, 700), (5, 185, 40, 215)])
def test_a_thing_on_an_edge_or_a_corner_is_counted_once(thing, overlap):
    tiles = tile_grid(SIZE, 200, overlap, (1.0,))
    found = found_by_oracle([thing], tiles)
    assert_each_once([thing], merge_boxes(found, SIZE))
    if overlap == 50 and thing == (150, 150, 200, 200):
        assert len(found) > 1                   # else nothing is merged here


@pytest.mark.parametrize("thing", [
    (100, 60, 420, 90), (60, 100, 90, 420), (120, 130, 320, 330), (20, 310, 980, 350)])
@pytest.mark.parametrize("overlap", [0, 30])
def test_pieces_of_a_thing_longer_than_the_overlap_become_one_box(thing, overlap):
    tiles = tile_grid(SIZE, 200, overlap, (1.0,))
    found = [item for item in found_by_oracle([thing], tiles)]
    if thing[2] - thing[0] > 900:               # LEAST_SEEN of it is in no tile
        left, top, right, bottom = thing
        parts = [(max(left, tile.window[0]), top, min(right, tile.window[2]), bottom) for tile in
                 tiles if tile.window[1] <= top and bottom <= tile.window[3]]
        rows = {tile.window[1] for tile in tiles if tile.window[1] <= top
                and bottom <= tile.window[3]}
        own = [tile for tile in tiles if tile.window[1] in rows]
        found = [Found("ships", tuple(map(float, part)), 0.5, tile)
                 for part, tile in zip(parts, own, strict=True)]
    assert len(found) > 1
    assert_each_once([thing], merge_boxes(found, SIZE), least=0.85)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("overlap", "scales"), [(0, (1.0,)), (50, (1.0,)), (50, (1.0, 0.5))])
def test_of_a_random_scene_every_thing_is_counted_once(seed, overlap, scales):
    rng, things = random.Random(seed), []
    while len(things) < 60:
        w, h = rng.uniform(18, 48), rng.uniform(18, 48)
        x, y = rng.uniform(0, SIZE[0] - w), rng.uniform(0, SIZE[1] - h)
        box = (x, y, x + w, y + h)
        if all(x > b[2] + GAP or b[0] > x + w + GAP or y > b[3] + GAP or b[1] > y + h + GAP
               for b in things):
            things.append(box)
    found = found_by_oracle(things, tile_grid(SIZE, 200, overlap, scales))
    assert len(found) > len(things) + 10
    assert_each_once(things, merge_boxes(found, SIZE))


def test_things_that_the_model_tells_apart_in_one_tile_stay_apart():
    wide = Tile(1, (0, 0, 400, 200), 0.5, (0, 0, 400, 200))
    large, small = (20.0, 20.0, 120.0, 120.0), (30.0, 30.0, 60.0, 60.0)
    together = [Found("ships", large, 0.4, A), Found("ships", small, 0.9, A)]
    assert len(merge_boxes(together, (400, 200))) == 2
    apart = [together[0], Found("ships", small, 0.9, wide)]
    assert [item.box for item in merge_boxes(apart, (400, 200))] == [small]    # the more confident
    twice = [together[0], Found("ships", (22.0, 20.0, 121.0, 119.0), 0.5, A)]
    assert [item.confidence for item in merge_boxes(twice, (400, 200))] == [0.5]


def test_a_place_is_judged_by_the_tile_in_whose_core_it_lies():
    near_b = (176.0, 20.0, 198.0, 40.0)                         # its middle is at 187
    for tile, kept in ((A, 0), (B, 1)):
        assert len(merge_boxes([Found("ships", near_b, 0.9, tile)], (350, 200))) == kept
    on_border = (164.0, 20.0, 186.0, 40.0)                      # both judge it, and it counts once
    for tiles in ((A,), (B,), (A, B)):
        assert len(merge_boxes([Found("ships", on_border, 0.9, tile) for tile in tiles],
                               (350, 200))) == 1
    for beyond, kept in ((0.9, 1), (1.1, 0)):               # boxes are in whole hundredths
        box = (164.0 + beyond, 20.0, 186.0 + beyond, 40.0)
        assert len(merge_boxes([Found("ships", box, 0.9, A)], (350, 200))) == kept


def test_a_whole_thing_outweighs_a_more_confident_piece_of_it():
    whole = Found("ships", (155.0, 50.0, 230.0, 80.0), 0.2, B)
    piece = Found("ships", (148.0, 50.0, 200.0, 80.0), 0.9, A)          # its middle is at 174
    for order in ([whole, piece], [piece, whole]):
        assert merge_boxes(order, (350, 200)) == [whole]
    assert merge_boxes([piece], (350, 200)) == [piece]          # where it is missed in the next
    # At the scene's own edge nothing is cut.
    alone = Tile(0, (0, 0, 200, 200), 1.0, (0, 0, 200, 200))
    [kept] = merge_boxes([Found("ships", (170.0, 50.0, 200.0, 80.0), 0.9, alone),
                          Found("ships", (168.0, 48.0, 200.0, 82.0), 0.3, alone)], (200, 200))
    assert kept.confidence == 0.9


def test_other_phrases_and_other_dates_are_other_things():
    box = (165.0, 20.0, 185.0, 40.0)
    found = [Found("ships", box, 0.5, A), Found("cars", box, 0.4, B),
             Found("ships", box, 0.3, B, picture=1)]
    assert len(merge_boxes(found, (350, 200))) == 3
    assert len(merge_boxes([found[0], Found("ships", box, 0.4, B)], (350, 200))) == 1


def test_neighbors_that_lie_side_by_side_at_an_edge_are_not_fused():
    a = Tile(0, (0, 0, 200, 200), 1.0, (0, 0, 200, 200))
    b = Tile(1, (200, 0, 400, 200), 1.0, (200, 0, 400, 200))
    left = Found("ships", (170.0, 50.0, 200.0, 70.0), 0.5, a)
    right = Found("ships", (200.0, 64.0, 230.0, 84.0), 0.5, b)          # 30 % of the two together
    assert len(fuse([left, right], (400, 200))) == 2
    level = Found("ships", (200.0, 52.0, 230.0, 72.0), 0.4, b)
    [both] = fuse([left, level], (400, 200))
    assert both.box == (170.0, 50.0, 230.0, 72.0) and both.confidence == 0.5


def test_the_order_of_the_tiles_answers_changes_nothing():
    things = [(30 * i + 5.0, 20 * i + 3.0, 30 * i + 27.0, 20 * i + 18.0) for i in range(25)]
    found = found_by_oracle(things, tile_grid(SIZE, 200, 50, (1.0, 0.5)))
    wanted = merge_boxes(found, SIZE)
    random.Random(3).shuffle(found)
    assert merge_boxes(found, SIZE) == wanted and merge_boxes([], SIZE) == []
