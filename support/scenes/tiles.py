"""A scene in tiles that overlap, and the boxes of all tiles as boxes of the scene, each thing once.

Each place is judged by one tile, the one in whose core it lies: the tile without the outer half of
what it has in common with its neighbors. So a thing in the overlap of two tiles, which both find,
counts in one of them; one that an edge cuts is found whole in the next tile, or, longer than the
overlap, in pieces, which `merge_boxes` puts together.

Shapes: K boxes of one phrase.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from support.common import Box
from support.metrics.boxes import iou
from support.scenes.raster import Window


@dataclass(frozen=True)
class Tile:
    number: int                         # from 0, row by row, scale by scale
    window: Window                      # in pixels of the scene
    scale: float                        # pixels of the tile for each pixel of the scene
    core: tuple[float, float, float, float]     # the part of the window that it alone judges

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the window."""
        left, top, right, bottom = self.window
        return right - left, bottom - top


def tile_grid(size: tuple[int, int], side: int, overlap: int, scales: Sequence[float]
              ) -> list[Tile]:
    """Tiles of `side` pixels that cover a scene of this size, at each scale; a tile at scale 0.5
    covers twice as many pixels of the scene a side.

    The last one of a row or a column lies at the scene's edge, and so overlaps more. The cores of
    the tiles of a scale cover the scene, each pixel once.
    """
    tiles: list[Tile] = []
    for scale in scales:
        across, step = round(side / scale), max(1, round((side - overlap) / scale))
        columns, rows = (spans(length, across, step) for length in size)
        for top, bottom, core_top, core_bottom in rows:
            for left, right, core_left, core_right in columns:
                tiles.append(Tile(len(tiles), (left, top, right, bottom), scale,
                                  (core_left, core_top, core_right, core_bottom)))
    return tiles


def spans(length: int, side: int, step: int) -> list[tuple[int, int, float, float]]:
    """Where the tiles of a row begin and end, and where their cores do."""
    last = max(length - side, 0)
    starts = list(dict.fromkeys([*range(0, last, step), last]))
    ends = [min(start + side, length) for start in starts]
    borders = [0, *((start + end) / 2 for start, end in zip(starts[1:], ends, strict=False)),
               length]
    return list(zip(starts, ends, borders, borders[1:], strict=False))


# ---- boxes of all tiles --------------------------------------------------------------------------

@dataclass(frozen=True)
class Found:
    """A box that the model found in a tile, in pixels of the scene."""
    phrase: str
    box: Box
    confidence: float                   # 0 to 1
    tile: Tile
    picture: int = 0                    # which date, from 0


SAME_TILE = 0.5         # IoU from which two boxes of one tile are one thing
OTHER_TILE = 0.5        # the part of the smaller of two boxes of different tiles ..
EDGE = 0.016            # of a tile's side, over one and a half hundredths, in which boxes are
                        # written: a box as near to the edge is cut off by it
ROUNDED = 0.005         # of a tile's side: as far as the middle of a box in whole hundredths may
                        # lie from that of the thing
FACING = 0.5            # IoU along the edge from which two cut boxes are pieces of one thing


def merge_boxes(found: Iterable[Found], size: tuple[int, int]) -> list[Found]:
    """One box for each thing, of the same phrase in the same date; in reading order.

    Of each tile's boxes those count whose middle is in its core, or as near to it as ROUNDED.
    1. Of boxes that no edge cuts and that show the same, the most confident stays.
    2. A cut one goes where one of these shows the same.
    3. The other pieces that meet across an edge become one box, with the greatest confidence.
    4. Of what is left over from 3 and shows the same, the largest stays, which is the most whole.
    Two boxes show the same if, in one tile, their IoU is SAME_TILE, and in two tiles, OTHER_TILE of
    the smaller one is in the other: tiles see the same pixels, the model tells things in a tile
    apart. `size`: of the scene, whose own edge cuts nothing.
    """
    by_kind: dict[tuple[str, int], list[Found]] = {}
    for item in filter(is_judged, found):
        by_kind.setdefault((item.phrase, item.picture), []).append(item)
    merged = []
    for items in by_kind.values():
        whole = [item for item in items if not any(cut_sides(item, size))]
        cut = [item for item in items if any(cut_sides(item, size))]
        kept = suppress(whole, (), most_confident)
        merged += suppress(fuse(without(cut, kept), size), kept, largest)
    return sorted(merged, key=lambda item: (item.picture, item.box[1], item.box[0], item.box,
                                            item.phrase))


def is_judged(item: Found) -> bool:
    """Whether the middle of the box is in the core of its tile, or as near as ROUNDED."""
    near_x, near_y = (ROUNDED * side for side in item.tile.size)
    left, top, right, bottom = item.tile.core
    x, y = (item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2
    return left - near_x <= x <= right + near_x and top - near_y <= y <= bottom + near_y


def most_confident(item: Found) -> tuple:
    return -item.confidence, item.tile.number, item.box


def largest(item: Found) -> tuple:
    x1, y1, x2, y2 = item.box
    return -(x2 - x1) * (y2 - y1), *most_confident(item)


def suppress(items: Iterable[Found], kept: Sequence[Found], order: Callable[[Found], tuple]
             ) -> list[Found]:
    """-> kept, and of the items, in this order, those that show nothing which is there already."""
    ranked = [*kept, *sorted(items, key=order)]
    stays = np.ones(len(ranked), bool)
    boxes, numbers = as_arrays(ranked)
    for i in range(len(ranked)):
        if stays[i]:
            later = slice(max(i + 1, len(kept)), None)
            stays[later] &= ~shows_same(boxes[i], numbers[i], boxes[later], numbers[later])
    return [item for item, stayed in zip(ranked, stays, strict=True) if stayed]


def without(items: Sequence[Found], shown: Sequence[Found]) -> list[Found]:
    """Those of the items that show nothing which is shown."""
    boxes, numbers = as_arrays(items)
    hidden = np.zeros(len(items), bool)
    for box, number in zip(*as_arrays(shown), strict=True):
        hidden |= shows_same(box, number, boxes, numbers)
    return [item for item, gone in zip(items, hidden, strict=True) if not gone]


def as_arrays(items: Sequence[Found]) -> tuple[np.ndarray, np.ndarray]:
    """-> boxes float[K, 4], numbers of their tiles int[K]."""
    boxes = np.array([item.box for item in items], dtype=float).reshape(-1, 4)
    return boxes, np.array([item.tile.number for item in items], dtype=int)


def shows_same(box: np.ndarray, number: int, boxes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """-> bool[K], whether each of the boxes shows the same as this one, of this tile."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = np.maximum(sides, 0).prod(axis=1)                                          # [K]
    smaller = np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), (box[2:] - box[:2]).prod())
    return np.where(numbers == number, iou(boxes, box) >= SAME_TILE,
                    (shared > 0) & (shared >= OTHER_TILE * smaller))


def cut_sides(item: Found, size: tuple[int, int]) -> tuple[bool, bool, bool, bool]:
    """Left, top, right, bottom: whether the box ends where its tile ends and the scene does not."""
    left, top, right, bottom = item.tile.window
    near_x, near_y = (EDGE * side for side in item.tile.size)
    x1, y1, x2, y2 = item.box
    return (left > 0 and x1 - left <= near_x, top > 0 and y1 - top <= near_y,
            right < size[0] and right - x2 <= near_x, bottom < size[1] and bottom - y2 <= near_y)


def fuse(pieces: Sequence[Found], size: tuple[int, int]) -> list[Found]:
    """Pieces that meet across the edges of their tiles -> one item each, by the most confident."""
    groups: dict[int, list[int]] = {i: [i] for i in range(len(pieces))}
    group_of = list(range(len(pieces)))
    cuts = [cut_sides(item, size) for item in pieces]
    for i, j in facing_pairs(pieces, cuts):
        a, b = sorted((group_of[i], group_of[j]))
        if a != b:
            groups[a] += groups.pop(b)
            for k in groups[a]:
                group_of[k] = a
    fused = []
    for members in groups.values():
        own = [pieces[i] for i in members]
        boxes = np.array([item.box for item in own])
        best = max(own, key=lambda item: (item.confidence, -item.tile.number))
        around = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
        fused.append(replace(best, box=around) if len(own) > 1 else best)
    return fused


def facing_pairs(pieces: Sequence[Found], cuts: Sequence[tuple[bool, bool, bool, bool]]
                 ) -> Iterable[tuple[int, int]]:
    """-> (i, j): the piece i goes on, over its right or its lower edge, in the piece j."""
    if not pieces:
        return
    boxes, cut = np.array([item.box for item in pieces]), np.array(cuts)                # [K, 4]
    windows = np.array([item.tile.window for item in pieces])                           # [K, 4]
    scales = np.array([item.tile.scale for item in pieces])                             # [K]
    for axis in (0, 1):
        low, high, other_low, other_high = axis, axis + 2, 1 - axis, 3 - axis
        for i in np.flatnonzero(cut[:, high]):
            near = 2 * EDGE * (windows[i, high] - windows[i, low])
            shared = (np.minimum(boxes[:, other_high], boxes[i, other_high])
                      - np.maximum(boxes[:, other_low], boxes[i, other_low]))
            together = (np.maximum(boxes[:, other_high], boxes[i, other_high])
                        - np.minimum(boxes[:, other_low], boxes[i, other_low]))
            facing = (cut[:, low] & (scales == scales[i]) & (windows[:, low] > windows[i, low])
                      & (windows[:, low] <= windows[i, high])
                      & (boxes[:, low] <= boxes[i, high] + near)
                      & (boxes[:, high] > boxes[i, high])
                      & (shared >= FACING * np.maximum(together, 1e-9)))
            yield from ((int(i), int(j)) for j in np.flatnonzero(facing))
