"""Render a miniature world: small aerial pictures together with the exact truth about them.

The pictures are drawn with Pillow, so every box, count and color is known.  They are written in
the layout of the SkyEye-968k data set, which makes it possible to train a small vision-language
model from scratch, without any download.

    python examples/miniworld.py ROOT                  # 8000 + 300 + 600 pictures and some clips
    python examples/miniworld.py ROOT --train 200 --val 20 --test 20 --clips 10
    python examples/miniworld.py --examples DIR        # large example pictures with their truth
    python examples/miniworld.py --scene 4096 ROOT     # one large scene, a GeoTIFF, with its truth

How it works: a scene function lays out a `Sketch` (ground, trees and boxed things) in a unit
square; `render` draws the sketch; `describe` turns its truth into captions, questions, boxes and
conversations.  Points are complex numbers x + y*1j, so turning a shape is one multiplication.
Every picture has its own random generator, seeded from (seed, split, index).
"""
import argparse
import cmath
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, TiffImagePlugin, TiffTags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.common import ABSENT  # noqa: E402

RGB = tuple[int, int, int]
Row = dict[str, Any]

WORLD = "out/miniworld"         # what train.py and eval.py use when they are given no data

CLASSES = ("harbor", "airport", "farmland", "forest", "residential", "storage tanks",
           "sports field", "parking lot", "river", "desert")
CLIP_CLASSES = ("harbor", "airport", "residential", "river", "farmland", "desert")
NAMES = ("ship", "airplane", "storage tank", "tennis court", "baseball field", "car", "house",
         "bridge")
COLORS: dict[str, RGB] = {"red": (200, 42, 38), "white": (240, 240, 238), "blue": (38, 84, 190),
                          "yellow": (238, 202, 40), "green": (40, 142, 66)}
CHOICES = {"ship": ("white", "white", "red", "blue", "green", None),  # None: gray, never named
           "car": ("red", "white", "blue", "yellow", "green", None),
           "house": ("red", "red", "blue", None, None)}
PLAIN: dict[str, tuple[RGB, ...]] = {  # colors that get no name
    "ship": ((112, 116, 122), (84, 88, 94)), "car": ((58, 60, 64), (104, 107, 112)),
    "house": ((134, 122, 110), (112, 112, 118)), "airplane": ((236, 238, 242), (222, 226, 232)),
    "storage tank": ((232, 232, 228), (214, 218, 222), (226, 214, 190)),
    "tennis court": ((60, 120, 84), (52, 96, 150), (190, 100, 62)),
    "baseball field": ((86, 142, 66), (74, 130, 62)), "bridge": ((150, 148, 144),)}
LENGTHS = {"ship": (.16, .27), "airplane": (.18, .27), "storage tank": (.13, .19),
           "tennis court": (.18, .25), "baseball field": (.32, .44), "car": (.125, .16),
           "house": (.145, .2), "bridge": (.3, .4)}
HEIGHT = {"ship": .008, "airplane": .014, "storage tank": .02, "car": .006, "house": .014,
          "bridge": .012, "tennis court": 0., "baseball field": 0.}  # length of the shadow
KINDS = {"harbor": ("ship", "car", "storage tank"), "airport": ("airplane", "car", "storage tank"),
         "farmland": ("house", "car", "storage tank"), "forest": ("house", "car"),
         "residential": ("house", "car", "tennis court"),
         "storage tanks": ("storage tank", "car", "house"),
         "sports field": ("tennis court", "baseball field", "car"),
         "parking lot": ("car", "house", "tennis court"),
         "river": ("ship", "bridge", "house"), "desert": ("house", "car", "storage tank")}
NEEDS = {"storage tanks": ("storage tank",), "sports field": ("tennis court", "baseball field"),
         "residential": ("house",)}
TEXTURE = {"harbor": (.05, .02), "airport": (.06, .025), "farmland": (.07, .035),
           "forest": (.12, .05), "desert": (.07, .03)}  # strength of patches and of grain

WATER, GRASS, SAND, SOIL = (52, 96, 124), (104, 132, 74), (206, 176, 128), (168, 142, 104)
CONCRETE, ASPHALT, PAVED, PAINT = (176, 172, 164), (104, 105, 108), (140, 140, 141), (236, 236, 230)
DARK, BROWN = (44, 50, 58), (176, 124, 82)
TREES = ((50, 88, 44), (62, 100, 50), (44, 78, 46), (76, 108, 52))
FIELDS = ((122, 146, 74), (150, 158, 84), (196, 178, 106), (92, 126, 64), (172, 140, 98),
          (138, 112, 80), (206, 194, 136))

SCENE = {"harbor": "a harbor", "airport": "an airport", "farmland": "farmland",
         "forest": "a forest", "residential": "a residential area",
         "storage tanks": "an industrial area", "sports field": "a sports field",
         "parking lot": "a parking lot", "river": "a river scene", "desert": "a desert"}
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
FULL = ("{scene} with {all}", "{all} {be_all} in {scene}", "there {be_first} {all} in {scene}",
        "{scene} with {extra} and {group}", "{group} {be} {where}",
        "an aerial view of {scene} with {group}")
EMPTY = ("{scene} with {extra}", "{scene} seen from above", "an aerial view of {scene}",
         "this is {scene} with {extra}")
CLIP = ("{group} {be} {doing}", "{scene} in which {group} {be} moving",
        "the camera flies over {scene} where {group} {be} {doing}")
DOING = {"ship": "sailing on the water", "airplane": "moving along the runway",
         "car": "driving along the road"}
CLASSIFY = ("Classify the image within one of the given classes: " + ", ".join(CLASSES)
            + ". Answer it using the above category word or phrase.")
FILES = {"caption": "caption/caption_Mini_{}.json", "clip": "caption/caption_MiniClip_{}.json",
         "vqa": "vqa/Mini_vqa_{}.json", "scene": "vqa/Mini_scene_{}.json",
         "vg": "vg/Mini_vg_{}.json", "identify": "vg/Mini_identify_{}.json",
         "pg": "phrasegrounding/Mini_pg_{}.json",
         "talk": "multitask_conversation/Mini_Conversa_{}.json", "objects": "objects_{}.json"}
EXAMPLES = {"harbor": ("harbor", "ship", 6), "airport": ("airport", "airplane", 4),
            "farmland": ("farmland", "house", 2), "forest": ("forest", "house", 2),
            "residential": ("residential", "house", 6), "tanks": ("storage tanks", "car", 2),
            "sports": ("sports field", "tennis court", 2), "parking": ("parking lot", "car", 7),
            "river": ("river", "ship", 2), "desert": ("desert", "car", 1)}


# ---- shapes of the things ------------------------------------------------------------------------

class Shape(NamedTuple):
    """A filled polygon, or a disc around its single point."""

    points: tuple[complex, ...]
    color: RGB
    radius: float = 0.


def shade(color: RGB, factor: float) -> RGB:
    """The color made lighter or darker."""
    return tuple(max(0, min(255, round(c * factor))) for c in color)  # type: ignore[return-value]


def bar(x1: float, y1: float, x2: float, y2: float, color: RGB) -> Shape:
    """An upright rectangle."""
    return Shape((complex(x1, y1), complex(x2, y1), complex(x2, y2), complex(x1, y2)), color)


def disc(center: complex, radius: float, color: RGB) -> Shape:
    return Shape((center,), color, radius)


def twice(half: Sequence[complex], color: RGB) -> Shape:
    """A polygon that is symmetric about the x axis, from its upper half."""
    return Shape((*half, *(p.conjugate() for p in reversed(half))), color)


def both(points: Sequence[complex], color: RGB) -> list[Shape]:
    """A polygon and its mirror image, such as two wings."""
    return [Shape(tuple(points), color), Shape(tuple(p.conjugate() for p in points), color)]


def ship(rng: random.Random, color: RGB) -> list[Shape]:
    half = (-.5 + .10j, -.46 + .15j, .14 + .15j, .34 + .10j, .5 + 0j)
    cabin = shade(color, .78) if sum(color) > 650 else (236, 236, 232)
    hatches = [bar(x, -.075, x + .12, .075, shade(color, .68)) for x in (-.18, -.02, .14)]
    return [twice(half, shade(color, .8)), twice([.87 * p for p in half], color),
            *hatches[:rng.randint(2, 3)], bar(-.43, -.1, -.24, .1, cabin),
            bar(-.27, -.1, -.24, .1, DARK), disc(-.36 + 0j, .035, shade(color, .5))]


def airplane(rng: random.Random, color: RGB) -> list[Shape]:
    accent = rng.choice(((196, 60, 50), (50, 90, 170), (90, 100, 116)))
    wing = (.16 + .03j, -.12 + .47j, -.2 + .47j, -.08 + .03j)
    tail = (-.34 + .02j, -.45 + .18j, -.5 + .18j, -.46 + .02j)
    engine = (.12 + .16j, .12 + .21j, .0 + .21j, .0 + .16j)
    body = (-.5 + .012j, -.34 + .05j, .36 + .055j, .45 + .04j, .5 + 0j)
    return [*both(engine, (120, 126, 136)), *both(wing, shade(color, .93)),
            *both(tail, shade(color, .93)), twice(body, color),
            twice((-.5 + .016j, -.32 + .016j), accent), bar(.41, -.03, .44, .03, DARK)]


def storage_tank(rng: random.Random, color: RGB) -> list[Shape]:
    return [disc(0j, .5, shade(color, .66)), disc(0j, .46, color), disc(0j, .38, shade(color, .8)),
            disc(.03 + .03j, .35, shade(color, .97)), disc(0j, .05, shade(color, .6)),
            bar(.02, -.02, .46, .02, shade(color, .72))]


def tennis_court(rng: random.Random, color: RGB) -> list[Shape]:
    inner = (64, 128, 176) if color[1] > color[0] and color[1] > color[2] else (78, 146, 92)
    lines = ((-.36, -.185, .36, -.165), (-.36, .165, .36, .185), (-.36, -.145, .36, -.13),
             (-.36, .13, .36, .145), (-.375, -.185, -.355, .185), (.355, -.185, .375, .185),
             (-.2, -.14, -.185, .14), (.185, -.14, .2, .14), (-.2, -.008, .2, .008))
    return [bar(-.5, -.29, .5, .29, color), bar(-.37, -.18, .37, .18, inner),
            *(bar(*line, PAINT) for line in lines), bar(-.012, -.23, .012, .23, DARK)]


def baseball_field(rng: random.Random, color: RGB) -> list[Shape]:
    home = -.38 + 0j

    def fan(radius: float, tint: RGB) -> Shape:
        arc = (cmath.rect(radius, math.radians(a)) for a in range(-45, 46, 6))
        return Shape((home, *(home + p for p in arc)), tint)

    grass = [fan(r, shade(color, 1.08 if i % 2 else .96))
             for i, r in enumerate((.7, .64, .58, .52, .46))]
    square = [home + .06 + .22 * p for p in (0j, .707 + .707j, 1.414 + 0j, .707 - .707j)]
    foul = [home, home + .5 + .5j, home + .515 + .485j, home + .02]
    return [fan(.75, BROWN), *grass, fan(.4, BROWN), Shape(tuple(square), shade(color, 1.1)),
            *both(foul, PAINT), disc(home + .215, .04, BROWN), disc(home + .06, .05, BROWN),
            *(disc(p, .014, PAINT) for p in square[1:])]


def car(rng: random.Random, color: RGB) -> list[Shape]:
    half = (-.5 + .17j, -.46 + .22j, .4 + .22j, .48 + .17j, .5 + .1j)
    front = (.24 + .19j, .06 + .15j, .06 - .15j, .24 - .19j)
    rear = (-.3 + .14j, -.4 + .17j, -.4 - .17j, -.3 - .14j)
    side = (.16 + .19j, .04 + .165j, -.28 + .155j, -.36 + .185j)
    return [twice(half, shade(color, .9)), Shape(front, DARK), Shape(rear, DARK),
            *both(side, DARK), bar(-.3, -.15, .06, .15, shade(color, 1.06)),
            bar(.44, -.18, .48, -.1, (250, 246, 214)), bar(.44, .1, .48, .18, (250, 246, 214))]


def house(rng: random.Random, color: RGB) -> list[Shape]:
    hip = rng.choice((0., 0., .2))
    ends = both((-.5 - .37j, -.5 + .37j, -.5 + hip + 0j), shade(color, .88))
    right = tuple(-p.conjugate() for p in ends[0].points)
    upper = (-.5 - .37j, .5 - .37j, .5 - hip + 0j, -.5 + hip + 0j)
    lower = tuple(p.conjugate() for p in upper)
    return [bar(-.5, -.37, .5, .37, shade(color, .9)), ends[0], Shape(right, shade(color, .95)),
            Shape(upper, shade(color, 1.08)), Shape(lower, shade(color, .68)),
            bar(-.5 + hip, -.012, .5 - hip, .012, shade(color, 1.2)),
            bar(.2, -.2, .28, -.12, (150, 84, 70))]


def bridge(rng: random.Random, color: RGB) -> list[Shape]:
    dashes = [bar(x / 100, -.006, x / 100 + .06, .006, PAINT) for x in range(-46, 46, 12)]
    return [bar(-.5, -.12, .5, .12, shade(color, 1.45)), bar(-.5, -.1, .5, .1, ASPHALT), *dashes,
            *(bar(x, s * .13 - .02, x + .04, s * .13 + .02, shade(color, 1.2))
              for x in (-.5, -.25, -.02, .21, .46) for s in (-1, 1))]


PARTS: dict[str, Callable[[random.Random, RGB], list[Shape]]] = {
    "ship": ship, "airplane": airplane, "storage tank": storage_tank, "bridge": bridge,
    "tennis court": tennis_court, "baseball field": baseball_field, "car": car, "house": house}


# ---- the sketch ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Thing:
    """One boxed object; lengths are fractions of the picture's side."""

    name: str
    color: str | None
    where: str
    length: float
    box: tuple[float, float, float, float]
    shapes: tuple[Shape, ...]
    wake: tuple[Shape, ...] = ()
    velocity: complex = 0j

    def pixels(self, size: int) -> list[int]:
        return [round(v * size) for v in self.box]

    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def bounds(shapes: Sequence[Shape]) -> tuple[float, float, float, float]:
    """The smallest upright box around the corners and discs of the shapes."""
    xs = [p.real + r * s.radius for s in shapes for p in s.points for r in (-1, 1)]
    ys = [p.imag + r * s.radius for s in shapes for p in s.points for r in (-1, 1)]
    return min(xs), min(ys), max(xs), max(ys)


def apart(a: Sequence[float], b: Sequence[float], gap: float) -> bool:
    return (a[0] > b[2] + gap or b[0] > a[2] + gap or a[1] > b[3] + gap or b[1] > a[3] + gap)


class Sketch:
    """A scene under construction.  Scene functions lay it out upright; the sketch turns it."""

    def __init__(self, rng: random.Random, kind: str, clip: bool = False) -> None:
        self.rng, self.kind, self.clip = rng, kind, clip
        self.urban = kind not in ("farmland", "forest", "desert")
        self.spin = cmath.rect(1, math.radians(rng.choice((0, 90, 180, 270)) + rng.gauss(0, 7)))
        self.flip = rng.random() < .5
        self.pan = cmath.rect(.01, rng.uniform(0, math.tau)) if clip else 0j
        self.width = self.height = 1.  # what things may lie in
        self.most = 8  # things of one name
        self.ground: list[Shape] = []
        self.trees: list[Shape] = []
        self.things: list[Thing] = []
        self.notes: list[str] = []  # unboxed surroundings, for the captions
        self.solid: list[tuple[float, float, float, float]] = []

    def at(self, point: complex) -> complex:
        """From the upright layout to the turned picture."""
        point -= .5 + .5j
        return (point.conjugate() if self.flip else point) * self.spin + (.5 + .5j)

    def moved(self, shapes: Sequence[Shape], center: complex, turn: complex) -> tuple[Shape, ...]:
        return tuple(Shape(tuple(self.at(center + turn * p) for p in s.points), s.color,
                           s.radius * abs(turn)) for s in shapes)

    def fill(self, *shapes: Shape) -> None:
        self.ground.extend(self.moved(shapes, 0j, 1 + 0j))

    def area(self, x1: float, y1: float, x2: float, y2: float, color: RGB) -> None:
        """A solid rectangle: no tree grows there and no thing is scattered there."""
        self.fill(bar(x1, y1, x2, y2, color))
        self.solid.append((x1, y1, x2, y2))

    def road(self, x: float, y: float, width: float, color: RGB = ASPHALT, down: bool = False,
             dash: RGB | None = PAINT, start: float = -1., end: float = 2.) -> None:
        """A straight road through (x, y) across the picture, or down it."""
        half, mark = width / 2, width / 30
        spots = [start + .02 + .1 * i for i in range(int((end - start) / .1))] if dash else []
        if down:
            self.area(x - half, start, x + half, end, color)
            self.fill(*(bar(x - mark, s, x + mark, s + .045, dash) for s in spots))
        else:
            self.area(start, y - half, end, y + half, color)
            self.fill(*(bar(s, y - mark, s + .045, y + mark, dash) for s in spots))

    def free(self, x: float, y: float, half: float) -> bool:
        return all(apart((x - half, y - half, x + half, y + half), s, 0.) for s in self.solid)

    def plant(self, count: int, sizes: tuple[float, float] = (.015, .03)) -> None:
        """Trees at random places beside the solid areas and the things."""
        for _ in range(count):
            radius = self.rng.uniform(*sizes)
            self.tree(complex(self.rng.uniform(-.2, 1.2), self.rng.uniform(-.2, 1.2)), radius)

    def tree(self, point: complex, radius: float) -> None:
        spot = self.at(point)
        box = (spot.real - radius, spot.imag - radius, spot.real + radius, spot.imag + radius)
        if not self.free(point.real, point.imag, radius):
            return
        if all(apart(box, thing.box, .012) for thing in self.things):
            color = shade(self.rng.choice(TREES), self.rng.uniform(.9, 1.15))
            self.trees += [disc(spot, radius, color),
                           disc(spot - radius * (.25 + .25j), radius * .55, shade(color, 1.25))]

    def put(self, name: str, point: complex, degrees: float, where: str, length: float = 0.,
            moves: bool = False, color: str | None = None) -> bool:
        """Add a thing unless it leaves the picture or comes too near another one."""
        rng, gap = self.rng, .1 if self.clip else .015
        length = length or rng.uniform(*LENGTHS[name])
        color = color or rng.choice(CHOICES.get(name, (None,)))
        tint = shade(COLORS[color] if color else rng.choice(PLAIN[name]), rng.uniform(.95, 1.04))
        turn = cmath.rect(length, math.radians(degrees))
        shapes = self.moved(PARTS[name](rng, tint), point, turn)
        box = bounds(shapes)
        if (min(box) < gap or box[2] > self.width - gap or box[3] > self.height - gap
                or max(box[2] - box[0], box[3] - box[1]) < .115):
            return False
        same = sum(thing.name == name for thing in self.things)
        if same == self.most or not all(apart(box, thing.box, gap) for thing in self.things):
            return False
        ahead = (self.at(point + turn) - self.at(point)) / length
        wake = self.moved(WAKE, point, turn) if moves and name == "ship" else ()
        speed = ahead * rng.uniform(.012, .018) if moves and self.clip else 0j
        self.things.append(Thing(name, color, where, length, box, shapes, wake, speed))
        return True

    def some(self, name: str, count: int, area: tuple[float, float, float, float], where: str,
             turns: Sequence[float] = (), moves: bool = False, solid: bool = True) -> None:
        """Scatter things over an area, off its solid parts (unless `solid` is False)."""
        rng = self.rng
        for _ in range(count * 14):
            x, y = rng.uniform(area[0], area[2]), rng.uniform(area[1], area[3])
            degrees = rng.choice(turns) if turns else rng.uniform(0, 360)
            length = rng.uniform(*LENGTHS[name])
            if not solid or self.free(x, y, length * (.85 if moves else .55)):
                count -= self.put(name, complex(x, y), degrees, where, length, moves)
            if count <= 0:
                return

    def maybe(self, most: int, chance: float = .55) -> int:
        """Zero, or else between one and `most`."""
        return self.rng.randint(1, most) if self.rng.random() < chance else 0


WAKE = (Shape((-.48 + .1j, -.48 - .1j, -1.1 - .2j, -.85 + 0j, -1.1 + .2j), (112, 150, 168)),
        Shape((-.48 + .05j, -.48 - .05j, -.9 + 0j), (176, 200, 208)))


# ---- the scenes ----------------------------------------------------------------------------------

def ripples(s: Sketch, y1: float, y2: float, color: RGB = WATER) -> None:
    """Short light and dark strokes on water or sand."""
    for _ in range(60):
        x, y = s.rng.uniform(-.2, 1.2), s.rng.uniform(y1, y2)
        length, tint = s.rng.uniform(.02, .08), shade(color, s.rng.choice((.93, 1.1)))
        s.fill(Shape((complex(x, y), complex(x + length / 2, y + .006), complex(x + length, y),
                      complex(x + length / 2, y + .002)), tint))


def harbor(s: Sketch) -> None:
    rng = s.rng
    shore = rng.uniform(.33, .4)
    s.fill(bar(-1, -1, 2, 2, WATER))
    ripples(s, shore, 1.2)
    s.area(-1, -1, 2, shore, CONCRETE)
    s.fill(bar(-1, shore - .012, 2, shore, (112, 108, 102)))
    s.solid.pop()
    s.road(.5, shore - .09, .09)
    s.notes += ["a road along the shore", "open water"]
    piers = rng.sample((.16, .5, .84), rng.randint(0, 2))
    s.notes += ["a long pier" if len(piers) == 1 else "long piers"] * len(piers)
    for x in piers:
        s.area(x - .03, shore - .005, x + .03, shore + rng.uniform(.36, .5), (164, 156, 144))
        for side in (-1, 1):
            length = rng.uniform(.17, .34)
            spot = complex(x + side * (.045 + .15 * length), shore + .05 + length / 2)
            if rng.random() < .6:
                s.put("ship", spot, rng.choice((90, -90)), "moored at a pier", length)
    s.some("ship", s.maybe(4, .75), (.0, shore + .12, 1, 1), "on the water", moves=True)
    s.some("car", s.maybe(3), (0, shore - .09, 1, shore - .09), "on the road", (0, 180), True,
           solid=False)
    s.some("storage tank", s.maybe(3), (0, 0, 1, shore - .2), "on the shore")


def airport(s: Sketch) -> None:
    rng = s.rng
    s.fill(bar(-1, -1, 2, 2, GRASS))
    runway = rng.uniform(.66, .7)
    s.road(.5, runway, .17, (92, 93, 97))
    for edge in (-.078, .074):
        s.fill(bar(-1, runway + edge, 2, runway + edge + .004, PAINT))
    s.area(-1, -1, 2, .43, PAVED)
    for x in (.1, .9):
        s.area(x - .04, .42, x + .04, runway - .07, PAVED)
        s.fill(bar(x - .004, .3, x + .004, runway - .08, (214, 184, 70)))
    s.fill(bar(-1, -1, 2, -.02, GRASS), bar(.1, -.12, .9, .09, (196, 198, 202)),
           bar(.1, .03, .9, .045, (150, 156, 164)), bar(-1, .395, 2, .4, (214, 184, 70)))
    s.notes += ["a runway", "a terminal building"]
    for x in rng.sample((.17, .39, .61, .83), s.maybe(4, .85)):
        s.put("airplane", complex(x, .245), rng.choice((-90, -90, -90, 90)), "parked near the "
              "terminal building")
    s.some("airplane", s.maybe(2, .5), (.1, runway, .9, runway), "on the runway", (0, 180), True,
           solid=False)
    s.some("car", s.maybe(3), (.2, .5, .8, .52), "beside the runway", (0, 180))
    s.some("storage tank", s.maybe(3), (0, .83, 1, .96), "on the grass")
    s.plant(20)


def field(s: Sketch, x: float, y: float, width: float, height: float) -> None:
    """One field with its crop rows."""
    color, rows = s.rng.choice(FIELDS), s.rng.randint(5, 11)
    s.fill(bar(x, y, x + width - .008, y + height - .008, color))
    along = s.rng.random() < .5
    for i in range(rows):
        a, b = i / rows, (i + .4) / rows
        box = (0, a, 1, b) if along else (a, 0, b, 1)
        s.fill(bar(x + box[0] * (width - .008), y + box[1] * (height - .008),
                   x + box[2] * (width - .008), y + box[3] * (height - .008), shade(color, .93)))


def farmland(s: Sketch) -> None:
    rng = s.rng
    s.fill(bar(-1, -1, 2, 2, (112, 126, 72)))
    x = -.3
    while x < 1.3:
        width, y = rng.uniform(.22, .38), -.3
        while y < 1.3:
            height = rng.uniform(.2, .36)
            field(s, x, y, width, height)
            y += height
        x += width
    s.notes += ["green and yellow fields", "crop rows"]
    road = rng.uniform(.3, .7)
    if rng.random() < .8:
        s.road(.5, road, .075, SOIL, dash=None)
        s.notes.append("a dirt road")
        s.some("car", s.maybe(2, .6), (.05, road, .95, road), "on the road", (0, 180), True,
               solid=False)
    s.some("house", s.maybe(3), (0, 0, 1, 1), "between the fields", (0, 90))
    s.some("storage tank", s.maybe(2, .5), (0, 0, 1, 1), "between the fields")
    s.plant(14)


def forest(s: Sketch) -> None:
    rng = s.rng
    s.fill(bar(-1, -1, 2, 2, (58, 84, 46)))
    s.notes += ["many green trees", "dense trees"]
    if rng.random() < .75:
        road = rng.uniform(.25, .75)
        s.road(.5, road, .085, SOIL, dash=None)
        s.notes.append("a dirt road")
        s.some("car", s.maybe(2, .7), (.05, road, .95, road), "on the road", (0, 180), True,
               solid=False)
    s.some("house", s.maybe(3), (0, 0, 1, 1), "between the trees")
    for _ in range(rng.randint(0, 2)):
        spot = complex(rng.random(), rng.random())
        s.fill(disc(spot, rng.uniform(.06, .13), (98, 120, 66)))
    for i in range(196):
        x, y = i % 14, i // 14
        spot = complex(x + rng.uniform(-.4, .4), y + rng.uniform(-.4, .4)) / 10.8 - (.1 + .1j)
        if rng.random() < .93:
            s.tree(spot, rng.uniform(.03, .05))


def residential(s: Sketch) -> None:
    rng = s.rng
    s.fill(bar(-1, -1, 2, 2, GRASS))
    road, cross = rng.uniform(.44, .56), rng.choice((.04, .5, .96))
    s.road(cross, .5, .1, down=True)
    s.road(.5, road, .11)
    s.notes += ["a road", "gardens and trees"]
    spots = [(x, road + side * off) for x in (.14, .38, .62, .86) for side in (-1, 1)
             for off in (.19, .39) if abs(x - cross) > .14]
    rng.shuffle(spots)
    if rng.random() < .5:
        x, y = spots.pop()
        s.put("tennis court", complex(x, y), rng.choice((0, 90)), "near the houses", .19)
    for x, y in spots[:rng.randint(2, 9)]:
        s.put("house", complex(x, y), rng.choice((0, 0, 90, 180)), "surrounded by gardens")
        if abs(y - road) < .2:
            near, far = sorted((road + math.copysign(.055, y - road), y))
            s.fill(bar(x + .02, near, x + .05, far, CONCRETE))
    for x, y in spots[9:11]:
        s.area(x - .035, y - .02, x + .035, y + .02, (110, 186, 206))
    s.some("car", s.maybe(3), (.05, road - .02, .95, road + .02), "on the road", (0, 180), True,
           solid=False)
    s.plant(60)


def storage_tanks(s: Sketch) -> None:
    rng = s.rng
    s.fill(bar(-1, -1, 2, 2, (158, 152, 138)))
    across = rng.choice((2, 3))
    cell, size = .9 / across, rng.uniform(.55, .68) / across
    s.road(.5, .87, .1)
    s.notes += ["pipes", "a road", "gravel ground"]
    for i in range(across * 2):
        x, y = .05 + cell * (i % across + .5), .06 + .37 * (i // across + .5)
        s.area(x - cell * .47, y - .175, x + cell * .47, y + .175, (176, 170, 154))
        s.fill(bar(x - cell * .45, y - .165, x + cell * .45, y + .165, (146, 140, 126)),
               bar(x - .006, y, x + .006, .8, (196, 196, 192)))
        if rng.random() < .75:
            s.put("storage tank", complex(x, y), rng.uniform(0, 360), "beside pipes",
                  min(size * rng.uniform(.85, 1), .27))
        elif rng.random() < .5:
            s.put("house", complex(x, y), 0, "on the gravel ground")
    s.fill(bar(-1, .79, 2, .802, (200, 200, 196)))
    s.some("car", s.maybe(4), (.05, .85, .95, .89), "on the road", (0, 180), True, solid=False)


def track(s: Sketch, x: float, y: float) -> None:
    """A running track around a lawn (surroundings, without a box)."""
    for scale, color in ((1., (178, 84, 62)), (.9, (206, 120, 98)), (.84, (178, 84, 62)),
                         (.68, (96, 150, 72))):
        r = .115 * scale
        s.fill(bar(x - .09, y - r, x + .09, y + r, color), disc(complex(x - .09, y), r, color),
               disc(complex(x + .09, y), r, color))
    s.fill(bar(x - .002, y - .07, x + .002, y + .07, PAINT))
    s.solid.append((x - .21, y - .12, x + .21, y + .12))
    s.notes.append("a running track")


def sports_field(s: Sketch) -> None:
    rng = s.rng
    s.fill(bar(-1, -1, 2, 2, (112, 148, 80)))
    s.road(.5, .5, .06, CONCRETE, dash=None)
    s.road(.5, .5, .06, CONCRETE, down=True, dash=None)
    s.notes += ["footpaths", "green grass"]
    quarters = [.26 + .26j, .74 + .26j, .26 + .74j, .74 + .74j]
    rng.shuffle(quarters)
    first = rng.choice(("baseball", "tennis"))
    for spot, use in zip(quarters, (first, *rng.choices(("baseball", "tennis", "cars", "track",
                                                         "trees"), k=3)), strict=True):
        if use == "baseball":
            s.put("baseball field", spot, rng.choice((0, 90, 180, 270)), "on the grass")
        elif use == "tennis":
            turn, two = rng.choice((0, 90)), rng.random() < .6
            step = .09 * cmath.rect(1, math.radians(turn + 90))
            for side in (-1, 1) if two else (0,):
                s.put("tennis court", spot + side * step, turn, "beside a footpath", .25)
        elif use == "cars":
            s.area(spot.real - .17, spot.imag - .15, spot.real + .17, spot.imag + .15, PAVED)
            for x in rng.sample((-.11, 0., .11), rng.randint(1, 3)):
                s.put("car", spot + x, 90, "beside the grass")
        elif use == "track":
            track(s, spot.real, spot.imag)
    s.plant(45)


def parking_lot(s: Sketch) -> None:
    rng = s.rng
    s.fill(bar(-1, -1, 2, 2, GRASS))
    s.area(-1, .27, 2, 1.5, ASPHALT)
    s.fill(bar(-1, .255, 2, .27, CONCRETE))
    s.notes += ["white lines", "a strip of grass"]
    free = []
    for y in (.38, .64, .86):
        for i in range(-3, 14):
            s.fill(bar(.02 + i * .1, y - .09, .026 + i * .1, y + .09, PAINT))
        free += [complex(.073 + i * .1, y) for i in range(0, 9)]
    s.fill(bar(-1, .748, 2, .752, PAINT))
    for spot in rng.sample(free, rng.randint(1, 14)):
        s.put("car", spot, rng.choice((90, -90)), "parked between white lines")
    s.some("house", s.maybe(4), (.0, .05, 1, .16), "beside the parking lot", (0, 0, 90))
    s.some("tennis court", s.maybe(2, .5), (.1, .11, .9, .15), "beside the parking lot", (0,))
    s.plant(45)


def blocks(s: Sketch, count: int) -> None:
    """Large flat-roofed buildings (surroundings, without a box)."""
    for _ in range(count * 6):
        x, y = s.rng.uniform(0, 1), s.rng.uniform(0, 1)
        w, h = s.rng.uniform(.07, .1), s.rng.uniform(.05, .08)
        if count and s.free(x, y, .1):
            count, roof = count - 1, shade((186, 186, 182), s.rng.uniform(.9, 1.1))
            s.area(x - w, y - h, x + w, y + h, shade(roof, .8))
            s.fill(bar(x - w + .008, y - h + .008, x + w - .008, y + h - .008, roof),
                   *(bar(x + i * .03, y - .01, x + i * .03 + .015, y + .01, shade(roof, .7))
                     for i in (-1, 0, 1)))


def river(s: Sketch) -> None:
    rng = s.rng
    s.urban = rng.random() < .5
    s.fill(bar(-1, -1, 2, 2, (150, 148, 140) if s.urban else (116, 140, 80)))
    s.notes += ["water", "a paved bank" if s.urban else "green banks"]
    across, wide, wave = rng.uniform(.32, .68), rng.uniform(.11, .15), rng.uniform(.02, .08)
    middle = [across + wave * math.cos(3.5 * (i / 20 - .5)) for i in range(-8, 29)]
    for extra, tint in ((.02, (92, 116, 72) if not s.urban else (120, 116, 110)), (0., WATER)):
        top = [complex(i / 20, y - wide - extra) for i, y in enumerate(middle, -8)]
        low = [complex(i / 20, y + wide + extra) for i, y in enumerate(middle, -8)]
        s.fill(Shape((*top, *reversed(low)), tint))
    ripples(s, across + wave - wide * .8, across + wave + wide * .6)
    s.solid += [(i / 20 - .03, y - wide - .03, i / 20 + .03, y + wide + .03)
                for i, y in enumerate(middle, -8)]
    where = rng.uniform(.35, .65)
    center = across + wave * math.cos(3.5 * (where - .5))
    if rng.random() < .55:
        s.road(where, .5, .06, down=True, end=center - wide, dash=None)
        s.road(where, .5, .06, down=True, start=center + wide, dash=None)
        s.put("bridge", complex(where, center), 90, "over the river", 2 * wide + .08)
    s.some("ship", s.maybe(3), (0, across + wave * .6 - .03, 1, across + wave * .6 + .03),
           "on the river", (0, 180), True, solid=False)
    if s.urban:
        s.road(.5, across + wide + .22, .07)
        blocks(s, 5)
    s.some("house", s.maybe(4), (0, 0, 1, 1), "near the river", (0, 90))
    s.plant(20 if s.urban else 70)


def desert(s: Sketch) -> None:
    rng = s.rng
    s.fill(bar(-1, -1, 2, 2, SAND))
    for _ in range(rng.randint(6, 10)):
        x, y, r = rng.uniform(-.1, 1.1), rng.uniform(-.1, 1.1), rng.uniform(.15, .35)
        arc = [complex(x + r * (i / 10), y + .25 * r * math.sin(math.pi * i / 10))
               for i in range(11)]
        back = [complex(x + r * (i / 10), y + .08 * r * math.sin(math.pi * i / 10))
                for i in range(10, -1, -1)]
        s.fill(Shape((*arc, *back), shade(SAND, .86)),
               Shape(tuple(p - .012j for p in back), shade(SAND, 1.08)))
    ripples(s, -.2, 1.2, SAND)
    s.notes += ["yellow sand", "sand dunes"]
    road = rng.uniform(.25, .75)
    if rng.random() < .75:
        s.road(.5, road, .085, (124, 118, 110))
        s.notes.append("a road")
        s.some("car", s.maybe(3, .7), (.05, road, .95, road), "on the road", (0, 180), True,
               solid=False)
    s.some("house", s.maybe(3), (0, 0, 1, 1), "on the sand", (0, 90))
    s.some("storage tank", s.maybe(3, .5), (0, 0, 1, 1), "on the sand")
    s.plant(2, (.012, .018))


BUILDERS: dict[str, Callable[[Sketch], None]] = {
    "harbor": harbor, "airport": airport, "farmland": farmland, "forest": forest,
    "residential": residential, "storage tanks": storage_tanks, "sports field": sports_field,
    "parking lot": parking_lot, "river": river, "desert": desert}


def sketch(rng: random.Random, kind: str, clip: bool = False) -> Sketch:
    """A scene with the things that its class needs; in a clip at least one of them moves."""
    while True:
        result = Sketch(rng, kind, clip)
        BUILDERS[kind](result)
        typical = kind not in NEEDS or any(t.name in NEEDS[kind] for t in result.things)
        if typical and (not clip or any(thing.velocity for thing in result.things)):
            return result


# ---- drawing -------------------------------------------------------------------------------------

def draw(image: Image.Image, shapes: Sequence[Shape], scale: int, shift: complex,
         ink: Any = None) -> None:
    """Draw shapes of the unit square on an image of `scale` pixels a side."""
    pen, offset = ImageDraw.Draw(image), shift * scale - (.5 + .5j)
    for shape in shapes:
        color = shape.color if ink is None else ink
        spots = [p * scale + offset for p in shape.points]
        if shape.radius:
            (x, y), r = (spots[0].real, spots[0].imag), shape.radius * scale
            pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
        else:
            pen.polygon([(p.real, p.imag) for p in spots], fill=color)


def noise(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Smooth random patches, about -1 to 1."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def texture(seed: int, kind: str, size: int, shift: tuple[int, int]) -> np.ndarray:
    """Brightness factors of the ground, float[size, size, 3]; a clip's frame is a window of it."""
    patch, grain = TEXTURE.get(kind, (.05, .025))
    rng, side = np.random.default_rng(seed), size + size // 8
    light = patch * (.5 * noise(rng, 5, side) + .4 * noise(rng, 18, side)
                     + .3 * noise(rng, 60, side))
    light += grain * rng.standard_normal((side, side), dtype=np.float32)
    tint = [.25 * patch * noise(rng, 7, side) for _ in range(3)]
    x, y = size // 16 - shift[0], size // 16 - shift[1]
    return np.stack([1 + light + t for t in tint], axis=-1)[y:y + size, x:x + size]


def render(scene: Sketch, seed: int, size: int, frame: int = 0) -> Image.Image:
    """Draw the ground, its texture, the shadows and, on a layer of their own, the things."""
    double = 2 * size
    pan = scene.pan * frame
    pan = complex(round(pan.real * size), round(pan.imag * size)) / size
    ground = Image.new("RGB", (double, double))
    draw(ground, scene.ground, double, pan)
    shadow, layer = Image.new("L", ground.size), Image.new("RGBA", ground.size)
    draw(shadow, scene.trees[::2], double, pan + .008 * (1 + 1j), 255)
    draw(layer, scene.trees, double, pan)
    for thing in scene.things:
        shift = pan + thing.velocity * frame
        draw(ground, thing.wake, double, shift)
        draw(shadow, thing.shapes, double, shift + HEIGHT[thing.name] * (1 + 1j), 255)
        draw(layer, thing.shapes, double, shift)
    moved = round(pan.real * size), round(pan.imag * size)
    light = texture(seed, scene.kind, size, moved)
    dark = shadow.reduce(2).filter(ImageFilter.BoxBlur(size / 200))
    light = light * (1 - np.asarray(dark, np.float32)[..., None] * (.45 / 255))
    pixels = np.clip(np.asarray(ground.reduce(2)) * light, 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    top = layer.reduce(2)
    picture.paste(top, (0, 0), top)
    return picture


# ---- text ----------------------------------------------------------------------------------------

def noun(name: str, color: str | None = None, many: bool = False) -> str:
    """"white ship", "tennis courts", "house with a red roof": the words for a thing."""
    word = name + "s" * many
    if name == "house" and color:
        return f"{word} with {'' if many else 'a '}{color} roof{'s' * many}"
    return f"{color} {word}" if color else word


def a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def counted(things: Sequence[Thing]) -> str:
    """"three white ships": things of one name, with their color if they share it."""
    colors = {thing.color for thing in things}
    color = colors.pop() if len(colors) == 1 else None
    words = noun(things[0].name, color, len(things) > 1)
    return f"{COUNTS[len(things)]} {words}" if len(things) > 1 else a(words)


def groups(things: Sequence[Thing]) -> dict[str, list[Thing]]:
    found = {name: [t for t in things if t.name == name] for name in NAMES}
    return {name: group for name, group in found.items() if group}


def listing(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def captions(scene: Sketch, rng: random.Random) -> list[str]:
    """Three different true sentences."""
    sets = list(groups(scene.things).values())
    rng.shuffle(sets)
    words = {"scene": SCENE[scene.kind], "extra": rng.choice(scene.notes)}
    if not sets:
        return [p.format(**words) for p in rng.sample(EMPTY, 3)]
    group = max(sets, key=len)
    places = {thing.where for thing in group}
    words |= {"all": listing([counted(g) for g in sets]), "group": counted(group),
              "be": "are" if len(group) > 1 else "is", "where": group[0].where,
              "be_first": "are" if len(sets[0]) > 1 else "is",
              "be_all": "are" if len(scene.things) > 1 else "is"}
    patterns = [p for p in FULL if "{where}" not in p or len(places) == 1]
    return [p.format(**words) for p in rng.sample(patterns, 3)]


def clip_captions(scene: Sketch, rng: random.Random) -> list[str]:
    moving = groups([thing for thing in scene.things if thing.velocity])
    group = max(moving.values(), key=len)
    words = {"scene": SCENE[scene.kind], "group": counted(group), "doing": DOING[group[0].name],
             "be": "are" if len(group) > 1 else "is"}
    return [pattern.format(**words) for pattern in CLIP]


def presence(scene: Sketch, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Questions about a kind that is there, one that is not, and a color."""
    found = groups(scene.things)
    usual = KINDS[scene.kind]
    for answer in ("yes", "no"):
        pool = [n for n in NAMES if (n in found) == (answer == "yes")]
        likely = [n for n in pool if n in usual] if rng.random() < .85 else pool
        if likely or (answer == "no" and rng.random() < .5):
            name = rng.choice(likely or pool)
            yield rng.choice((f"is there {a(name)} ?", f"are there any {name}s ?")), answer
    colored = [n for n in found if n in CHOICES]
    if colored:
        name = rng.choice(colored)
        seen = {thing.color for thing in found[name]} - {None}
        unseen = set(CHOICES[name]) - seen - {None}
        answer = "yes" if seen and (not unseen or rng.random() < .5) else "no"
        color = rng.choice(sorted(seen if answer == "yes" else unseen))
        yield f"is there {a(noun(name, color))} ?", answer


def compare(scene: Sketch, rng: random.Random) -> Iterator[tuple[str, str]]:
    """One question with an even chance of yes, about numbers that are close."""
    found = groups(scene.things)
    number = {name: len(found.get(name, ())) for name in KINDS[scene.kind]}
    pairs = [(number[x] - number[y], rng.random(), x, y)
             for x in number for y in number if number[x] > number[y]]
    if pairs:
        *_, more, less = min(pairs)
        answer = rng.choice(("yes", "no"))
        first, second = (more, less) if answer == "yes" else (less, more)
        yield f"are there more {first}s than {second}s ?", answer


def questions(scene: Sketch, rng: random.Random) -> list[Row]:
    """About six questions with their answers and types."""
    rows = [("presence", *pair) for pair in presence(scene, rng)]
    found = groups(scene.things)
    for name in rng.sample(KINDS[scene.kind], 2)[:1 + (rng.random() < .5)]:
        rows.append(("count", f"how many {name}s are there ?",
                     str(len(found.get(name, ())))))
    rows += [("comp", *pair) for pair in compare(scene, rng)]
    rows.append(("rural_urban", "is it a rural or an urban area ?",
                 "urban" if scene.urban else "rural"))
    rows.append(("theme", "what is the theme of this picture ?", scene.kind))
    return [{"question": q, "answer": answer, "type": kind} for kind, q, answer in rows]


def extremes(group: Sequence[Thing]) -> Iterator[tuple[str, Thing]]:
    """Superlatives that hold by a clear margin in a group of two or more."""
    name = noun(group[0].name)
    by_x = sorted(group, key=lambda t: t.box[0] + t.box[2])
    by_y = sorted(group, key=lambda t: t.box[1] + t.box[3])
    for words, order, axis in (("the leftmost {}", by_x, 0), ("the rightmost {}", by_x[::-1], 0),
                               ("the {} at the top", by_y, 1),
                               ("the {} at the bottom", by_y[::-1], 1)):
        first, second = (t.box[axis] + t.box[axis + 2] for t in order[:2])
        if abs(first - second) >= .2:  # twice the distance of the centers
            yield words.format(name), order[0]
    by_size = sorted(group, key=Thing.area)
    for word, one, two in (("smallest", *by_size[:2]), ("largest", *by_size[:-3:-1])):
        ratios = one.area() / two.area(), (one.length / two.length) ** 2
        if min(ratios) >= 1.4 or max(ratios) <= 1 / 1.4:
            yield f"the {word} {name}", one


def expressions(scene: Sketch, rng: random.Random) -> list[tuple[str, Thing]]:
    """Up to four expressions that denote exactly one thing each."""
    found: list[tuple[str, Thing]] = []
    for name, group in groups(scene.things).items():
        colors = [thing.color for thing in group]
        if len(group) == 1:
            found.append((f"the {name}", group[0]))
        else:
            found += extremes(group)
        found += [(f"the {noun(name, t.color)}", t) for t in group
                  if t.color and colors.count(t.color) == 1]
    rng.shuffle(found)
    return found[:4]


def detections(scene: Sketch, rng: random.Random) -> list[tuple[str, list[Thing]]]:
    """Up to two phrases, each with all the things it denotes from left to right."""
    found = []
    for name, group in groups(scene.things).items():
        found.append((noun(name, None, len(group) > 1), group))
        for color in sorted({t.color for t in group if t.color}):
            some = [t for t in group if t.color == color]
            if len(group) > 1:
                found.append((noun(name, color, len(some) > 1), some))
    rng.shuffle(found)
    return [(words, sorted(some, key=lambda t: t.box[0])) for words, some in found[:2]]


def as_text(thing: Thing, size: int) -> str:
    """The box as text, as in the conversations: whole hundredths of the picture's side."""
    return "{" + "".join(f"<{100 * v // size}>" for v in thing.pixels(size)) + "}"


def absent(scene: Sketch, rng: random.Random) -> Iterator[tuple[str, str | None]]:
    """What somebody might look for in vain, in random order: name, and color or None."""
    found = groups(scene.things)
    missing: list[tuple[str, str | None]] = [(n, None) for n in NAMES if n not in found]
    for name in found.keys() & CHOICES.keys():
        seen = {thing.color for thing in found[name]}
        missing += [(name, color) for color in sorted(set(COLORS) & set(CHOICES[name]) - seen)]
    missing.sort(key=str)
    usual = KINDS[scene.kind]
    weights = [3 if name in usual else 1 for name, _ in missing]
    while missing:
        i = rng.choices(range(len(missing)), weights)[0]
        del weights[i]
        yield missing.pop(i)


def conversation(scene: Sketch, truth: Row, size: int, rng: random.Random) -> list[Row]:
    """Two to eight turns that change between tasks, as rows of human and gpt. What is identified
    is not what another turn asks the box of."""
    turns = [(rng.choice(("[caption] briefly describe the image", "what can you see ?")),
              rng.choice(truth["captions"]))]
    turns += [(f"[vqa] {row['question']}", row["answer"]) for row in rng.sample(truth["vqa"], 3)]
    located = expressions(scene, rng)[:2]
    turns += [(f"[refer] where is {words} ?", as_text(thing, size)) for words, thing in located]
    for words, some in detections(scene, rng)[:1]:
        boxes = "<delim>".join(as_text(thing, size) for thing in some)
        turns.append((f"[detection] {words}", f"<p>{words}</p> {boxes}"))
    for name, color in islice(absent(scene, rng), rng.randint(0, 1)):
        turns.append((rng.choice((f"[refer] where is the {noun(name, color)} ?",
                                  f"[detection] {noun(name, color, True)}")), ABSENT))
    others = [thing for thing in scene.things if thing not in [one for _, one in located]]
    if others:
        thing = rng.choice(others)
        turns.append((f"[identify] what is it in {as_text(thing, size)}",
                      noun(thing.name, thing.color)))
    rng.shuffle(turns)
    rows = [{"from": who, "value": text} for turn in turns[:rng.randint(2, 8)]
            for who, text in zip(("human", "gpt"), turn, strict=True)]
    rows[0]["value"] = "<image>\n" + rows[0]["value"]
    return rows


def describe(scene: Sketch, size: int, rng: random.Random) -> Row:
    """The truth about a scene as plain data, boxes in pixels."""
    things = scene.things
    truth: Row = {
        "class": scene.kind, "rural_urban": "urban" if scene.urban else "rural",
        "surroundings": sorted(set(scene.notes)), "captions": captions(scene, rng),
        "objects": [{"name": t.name, "color": t.color, "box": t.pixels(size)} for t in things],
        "vqa": questions(scene, rng),
        "refer": [{"expression": words, "bbox": t.pixels(size)}
                  for words, t in expressions(scene, rng)],
        "detection": [{"phrase": words, "bboxes": [t.pixels(size) for t in some]}
                      for words, some in detections(scene, rng)],
        "identify": [{"bbox": t.pixels(size), "phrase": noun(t.name, t.color), "task": "identify"}
                     for t in rng.sample(things, min(2, len(things)))]}
    (name, color), (other, tint) = islice(absent(scene, rng), 2)
    truth["refer"] += [{"expression": f"the {noun(name, color)}", "bbox": []}] * rng.randint(0, 1)
    truth["detection"] += [{"phrase": noun(other, tint, True), "bboxes": []}] * rng.randint(0, 1)
    truth["conversation"] = conversation(scene, truth, size, rng)
    return truth


# ---- the data set --------------------------------------------------------------------------------

class Job(NamedTuple):
    split: str
    index: int
    clip: bool = False


def make_scene(kind: str, size: int, *key: object) -> tuple[Sketch, Row, int]:
    """A scene, its truth and its texture seed, all from the key."""
    rng = random.Random("/".join(map(str, key)))
    scene = sketch(rng, kind)
    grain = rng.getrandbits(32)
    return scene, describe(scene, size, rng), grain


def picture_rows(job: Job, folder: Path, seed: int, size: int) -> dict[str, list[Row]]:
    """Draw one picture of a split and return its rows for every file."""
    kind = CLASSES[job.index % len(CLASSES)]
    scene, truth, grain = make_scene(kind, size, seed, job.split, job.index)
    name = f"{job.split}/{job.index:06d}.jpg"
    render(scene, grain, size).save(folder / "images" / name, quality=90)
    image = {"image": name}
    talk = {"id": f"mini_{job.split}_{job.index:06d}", **image,
            "conversations": truth["conversation"]}
    return {"caption": [image | {"caption": text} for text in truth["captions"]],
            "vqa": [image | row for row in truth["vqa"]],
            "scene": [image | {"question": CLASSIFY, "answer": kind, "type": "scene"}],
            "vg": [image | row for row in truth["refer"]],
            "identify": [image | row for row in truth["identify"]],
            "pg": [image | row for row in truth["detection"]],
            "talk": [talk] if grain % 4 == 0 else [],  # about one picture in four
            "objects": [image | {"objects": [{"class": row["name"], "color": row["color"],
                                              "box": row["box"]} for row in truth["objects"]]}]}


def clip_rows(job: Job, folder: Path, seed: int, size: int) -> dict[str, list[Row]]:
    """Draw the four frames of one clip and return its caption rows."""
    rng = random.Random(f"{seed}/{job.split}/clip/{job.index}")
    scene = sketch(rng, CLIP_CLASSES[job.index % len(CLIP_CLASSES)], clip=True)
    grain, name = rng.getrandbits(32), f"{job.split}/clip_{job.index:06d}"
    (folder / "images" / name).mkdir()
    names = [f"{name}/{frame}.jpg" for frame in range(4)]
    for frame, path in enumerate(names):
        render(scene, grain, size, frame).save(folder / "images" / path, quality=90)
    return {"clip": [{"image": names, "caption": text} for text in clip_captions(scene, rng)]}


def perform(job: Job, folder: Path, seed: int, size: int) -> dict[str, list[Row]]:
    return (clip_rows if job.clip else picture_rows)(job, folder, seed, size)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a JSON list with one row on each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="ascii")


def write_split(folder: Path, split: str, jobs: Sequence[Job], seed: int, size: int,
                workers: int) -> None:
    """Draw the pictures of one split and write its files."""
    work = partial(perform, folder=folder, seed=seed, size=size)
    if workers > 1 and len(jobs) > 1:
        with multiprocessing.Pool(workers) as pool:
            results = pool.map(work, jobs, chunksize=16)
    else:
        results = [work(job) for job in jobs]
    for key, pattern in FILES.items():
        rows = [row for result in results for row in result.get(key, ())]
        write_rows(folder / pattern.format(split), rows)


def ensure_world(places: Sequence[str]) -> None:
    """Render the default data of train.py and eval.py if it is wanted and not there yet."""
    if WORLD in places and not Path(WORLD).exists():
        print(f"rendering a miniature world into {WORLD} (once, one or two minutes)",
              file=sys.stderr)
        write_world(WORLD)


def write_world(root: str | Path, train: int = 8000, val: int = 300, test: int = 600,
                clips: int = 300, seed: int = 0, size: int = 256,
                workers: int | None = None) -> Path:
    """Write a whole data set under `root`, which must not exist; it appears when complete.

    `clips` counts those of train; val and test get a tenth of it each.
    """
    root = Path(root)
    if root.exists():
        raise FileExistsError(f"{root} exists")
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        for split, count, moving in (("train", train, clips), ("val", val, clips // 10),
                                     ("test", test, clips // 10)):
            (folder / "images" / split).mkdir(parents=True)
            jobs = [Job(split, i) for i in range(count)]
            jobs += [Job(split, i, clip=True) for i in range(moving)]
            write_split(folder, split, jobs, seed, size, workers or os.cpu_count() or 1)
        folder.chmod(0o755)
        folder.rename(root)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return root


def example(name: str, size: int) -> tuple[Image.Image, Row]:
    """The first scene of its class that shows enough things to be worth looking at."""
    kind, wanted, least = EXAMPLES[name]
    for attempt in range(10_000):
        scene, truth, grain = make_scene(kind, size, "example", name, attempt)
        biggest = any(row["expression"] == f"the largest {wanted}" for row in truth["refer"])
        enough = len(groups(scene.things).get(wanted, ())) >= least
        if enough and (biggest or name != "harbor"):
            return render(scene, grain, size), truth
    raise RuntimeError(f"no example of {name}")


def write_examples(folder: str | Path, size: int = 512) -> None:
    """Write one large PNG picture for each class, and its truth beside it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES:
        picture, truth = example(name, size)
        small = picture.quantize(256, kmeans=2, dither=Image.Dither.NONE)
        small.save(folder / f"{name}.png", optimize=True)
        (folder / f"{name}.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="ascii")


# ---- a whole scene -------------------------------------------------------------------------------

UNIT = 256                      # pixels of a scene for the side of a picture of the data set
METERS = .25                    # a pixel
BLOCK = 512                     # pixels a side that are drawn at a time
SCENE_CORNER = {"north": (500_000., 5_400_000., 32_633), "south": (430_000., 7_610_000., 32_723)}


class Landscape(Sketch):
    """A large scene, drawn as one piece; lengths are in units of UNIT pixels. Belts of land and
    water lie one below the other, and each is as wide as the scene."""

    def __init__(self, rng: random.Random, width: float, height: float) -> None:
        super().__init__(rng, "landscape")
        self.width, self.height, self.most = width, height, 10**9
        top = 0.
        while top < height:
            for belt, tall in rng.choice(BELTS):
                belt(self, top, top + tall)
                top += tall

    def at(self, point: complex) -> complex:
        return point

    def strip(self, top: float, bottom: float, color: RGB) -> None:
        self.fill(bar(-1, top, self.width + 1, bottom, color))

    def along(self, y: float, width: float, **more: Any) -> None:
        self.road(0, y, width, start=-1, end=self.width + 1, **more)

    def scatter(self, name: str, density: float, top: float, bottom: float, where: str,
                turns: Sequence[float] = (), **more: Any) -> None:
        """density: things on a square unit."""
        count = round(density * self.width * max(bottom - top, .3))
        self.some(name, count, (0, top, self.width, bottom), where, turns, **more)

    def greens(self, count: float, top: float, bottom: float, sizes: tuple[float, float]) -> None:
        """Trees, `count` on a square unit."""
        for _ in range(round(count * self.width * (bottom - top))):
            radius = self.rng.uniform(*sizes)
            self.tree(complex(self.rng.uniform(0, self.width),
                              self.rng.uniform(top + radius, bottom - radius)), radius)


def sea(s: Landscape, top: float, bottom: float) -> None:
    s.strip(top, bottom, WATER)
    for _ in range(round(20 * s.width * (bottom - top))):
        x, y = s.rng.uniform(0, s.width), s.rng.uniform(top + .05, bottom - .05)
        length, tint = s.rng.uniform(.02, .08), shade(WATER, s.rng.choice((.93, 1.1)))
        s.fill(Shape((complex(x, y), complex(x + length / 2, y + .006), complex(x + length, y),
                      complex(x + length / 2, y + .002)), tint))
    s.scatter("ship", 4, top + .18, bottom - .18, "on the water", moves=True)


def quay(s: Landscape, top: float, bottom: float, water_below: bool = False) -> None:
    s.strip(top, bottom, CONCRETE)
    shore = bottom - .012 if water_below else top
    s.strip(shore, shore + .012, (112, 108, 102))
    road = bottom - .1 if water_below else top + .1
    s.along(road, .09)
    s.scatter("car", 1.5, road - .01, road + .01, "on the road", (0, 180), solid=False)
    low, high = (top + .1, bottom - .26) if water_below else (top + .26, bottom - .1)
    s.scatter("storage tank", 2, low, high, "on the shore")


def streets(s: Landscape, top: float, bottom: float) -> None:
    s.strip(top, bottom, GRASS)
    middle, x = (top + bottom) / 2, s.rng.uniform(.3, 2)
    while x < s.width:
        s.road(x, top, .1, down=True, start=top, end=bottom)
        x += s.rng.uniform(1.8, 3.2)
    s.along(middle, .11)
    for i in range(int(s.width / .26)):
        for off in (-.39, -.19, .19, .39):
            spot = complex(.13 + .26 * i, middle + off)
            if s.rng.random() < .5 and s.free(spot.real, spot.imag, .09):
                s.put("house", spot, s.rng.choice((0, 0, 90, 180)), "surrounded by gardens")
    s.scatter("car", 2, middle - .02, middle + .02, "on the road", (0, 180), solid=False)
    s.greens(25, top, bottom, (.015, .03))


def lot(s: Landscape, top: float, bottom: float) -> None:
    s.strip(top, bottom, ASPHALT)
    s.strip(top, top + .015, CONCRETE)
    for y in (top + .14, bottom - .14):
        for i in range(int(s.width / .1) + 1):
            s.fill(bar(.02 + i * .1, y - .09, .026 + i * .1, y + .09, PAINT))
            if s.rng.random() < .3:
                s.put("car", complex(.073 + i * .1, y), s.rng.choice((90, -90)),
                      "parked between white lines")


def fields(s: Landscape, top: float, bottom: float) -> None:
    s.strip(top, bottom, (112, 126, 72))
    x = 0.
    while x < s.width:
        width, y = s.rng.uniform(.22, .38), top
        while y < bottom - .01:
            height = min(s.rng.uniform(.2, .36), bottom - y)
            field(s, x, y, width, height)
            y += height
        x += width
    road = s.rng.uniform(top + .3, bottom - .3)
    s.along(road, .075, color=SOIL, dash=None)
    s.scatter("car", .7, road, road, "on the road", (0, 180), solid=False)
    s.scatter("house", .8, top + .1, bottom - .1, "between the fields", (0, 90))
    s.scatter("storage tank", .4, top + .1, bottom - .1, "between the fields")
    s.greens(8, top, bottom, (.015, .03))


def woods(s: Landscape, top: float, bottom: float) -> None:
    s.strip(top, bottom, (58, 84, 46))
    road = s.rng.uniform(top + .3, bottom - .3)
    s.along(road, .085, color=SOIL, dash=None)
    s.scatter("car", .9, road, road, "on the road", (0, 180), solid=False)
    s.scatter("house", .8, top + .1, bottom - .1, "between the trees")
    s.greens(110, top, bottom, (.03, .05))


def sands(s: Landscape, top: float, bottom: float) -> None:
    s.strip(top, bottom, SAND)
    road = s.rng.uniform(top + .3, bottom - .3)
    s.along(road, .085, color=(124, 118, 110))
    s.scatter("car", .9, road, road, "on the road", (0, 180), solid=False)
    s.scatter("house", .8, top + .1, bottom - .1, "on the sand", (0, 90))
    s.scatter("storage tank", .5, top + .1, bottom - .1, "on the sand")
    s.greens(2, top, bottom, (.012, .018))


def courts(s: Landscape, top: float, bottom: float) -> None:
    s.strip(top, bottom, (112, 148, 80))
    s.along((top + bottom) / 2, .06, color=CONCRETE, dash=None)
    s.scatter("tennis court", .9, top + .15, bottom - .15, "beside a footpath", (0, 90))
    s.scatter("baseball field", .5, top + .2, bottom - .2, "on the grass", (0, 90, 180, 270))
    s.greens(25, top, bottom, (.015, .03))


def airfield(s: Landscape, top: float, bottom: float) -> None:
    s.strip(top, bottom, GRASS)
    runway = bottom - .35
    s.along(runway, .17, color=(92, 93, 97))
    s.strip(top, top + .45, PAVED)
    s.scatter("airplane", 1.6, top + .2, top + .3, "parked", (-90, 90), solid=False)
    s.scatter("airplane", .6, runway, runway, "on the runway", (0, 180), solid=False)
    s.greens(12, top + .5, bottom, (.015, .03))


Belt = Callable[[Landscape, float, float], None]
BELTS: tuple[tuple[tuple[Belt, float], ...], ...] = (      # those that lie together, and how tall
    ((partial(quay, water_below=True), .5), (sea, .9), (quay, .5)),
    ((streets, 1.1), (streets, 1.1)), ((lot, .62),), ((fields, 2.2),), ((woods, 1.9),),
    ((sands, 2.2),), ((courts, 1.3),), ((airfield, 1.4),))


class Canvas:
    """The shapes of a landscape, drawn block by block."""

    def __init__(self, land: Landscape, seed: int) -> None:
        self.land, self.seed, rng = land, seed, np.random.default_rng(seed)
        things = land.things
        shadows = [(shape, .008 * (1 + 1j)) for shape in land.trees[::2]]
        shadows += [(shape, HEIGHT[thing.name] * (1 + 1j)) for thing in things
                    for shape in thing.shapes]
        ground = [*land.ground, *(shape for thing in things for shape in thing.wake)]
        layer = [*land.trees, *(shape for thing in things for shape in thing.shapes)]
        self.layers = {"ground": [(shape, 0j) for shape in ground],
                       "layer": [(shape, 0j) for shape in layer], "shadow": shadows}
        self.bounds = {name: np.array([bounds([shape]) for shape, _ in shapes]).reshape(-1, 4)
                       for name, shapes in self.layers.items()}
        self.patches = [Image.fromarray(rng.standard_normal(
            (round(land.height * cells) + 2, round(land.width * cells) + 2), dtype=np.float32))
            for cells in (4.4, 16, 53, 6, 6, 6)]        # on a unit, as texture has them

    def draw(self, image: Image.Image, name: str, left: float, top: float, ink: Any = None) -> None:
        """The shapes of a layer on an image whose corner is here, two pixels for one."""
        side, scale = image.width / (2 * UNIT), 2 * UNIT
        box = self.bounds[name]
        near = ((box[:, 0] < left + side + .1) & (box[:, 2] > left - .1)
                & (box[:, 1] < top + side + .1) & (box[:, 3] > top - .1))
        for i in np.flatnonzero(near):
            shape, shift = self.layers[name][i]
            draw(image, [shape], scale, shift - complex(left, top), ink)

    def light(self, left: int, top: int, size: int) -> np.ndarray:
        """As `texture`, of a block in pixels: float[size, size, 3]."""
        def patch(i: int) -> np.ndarray:
            across = self.patches[i].width / (self.land.width * UNIT + 1)
            down = self.patches[i].height / (self.land.height * UNIT + 1)
            box = (left * across, top * down, min((left + size) * across, self.patches[i].width),
                   min((top + size) * down, self.patches[i].height))
            return np.asarray(self.patches[i].resize((size, size), Image.Resampling.BICUBIC, box))

        strength, grain = .06, .025
        rng = np.random.default_rng([self.seed, left, top])
        light = strength * (.5 * patch(0) + .4 * patch(1) + .3 * patch(2))
        light += grain * rng.standard_normal((size, size), dtype=np.float32)
        return np.stack([1 + light + .25 * strength * patch(i) for i in (3, 4, 5)], axis=-1)

    def block(self, left: int, top: int, size: int = BLOCK) -> Image.Image:
        """A square of the scene whose corner is this pixel, as `render` draws pictures."""
        x, y = left / UNIT, top / UNIT
        margin = 4                                      # pixels, for the blur of the shadows
        ground = Image.new("RGB", (2 * size, 2 * size))
        shadow = Image.new("L", (2 * size + 4 * margin, 2 * size + 4 * margin))
        layer = Image.new("RGBA", ground.size)
        self.draw(ground, "ground", x, y)
        self.draw(shadow, "shadow", x - margin / UNIT, y - margin / UNIT, 255)
        self.draw(layer, "layer", x, y)
        dark = shadow.reduce(2).filter(ImageFilter.BoxBlur(UNIT / 200))
        dark = dark.crop((margin, margin, margin + size, margin + size))
        light = self.light(left, top, size)
        light = light * (1 - np.asarray(dark, np.float32)[..., None] * (.45 / 255))
        pixels = np.clip(np.asarray(ground.reduce(2)) * light, 0, 255).astype(np.uint8)
        picture, top_layer = Image.fromarray(pixels), layer.reduce(2)
        picture.paste(top_layer, (0, 0), top_layer)
        return picture


def render_scene(size: int, seed: int) -> tuple[Image.Image, list[Row]]:
    """A scene of size x size pixels, and each of its things with its box in pixels."""
    land = Landscape(random.Random(f"scene/{seed}/{size}"), size / UNIT, size / UNIT)
    canvas, picture = Canvas(land, seed), Image.new("RGB", (size, size))
    for top in range(0, size, BLOCK):
        for left in range(0, size, BLOCK):
            picture.paste(canvas.block(left, top), (left, top))
    return picture, [{"name": thing.name, "color": thing.color,
                      "box": [round(side * UNIT, 1) for side in thing.box]}
                     for thing in land.things]


def geo_tags(x: float, y: float, epsg: int) -> TiffImagePlugin.ImageFileDirectory_v2:
    """GeoTIFF's tags for a picture whose upper left corner is here, in meters."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, values in (
            (33550, TiffTags.DOUBLE, (METERS, METERS, 0.)),             # the size of a pixel
            (33922, TiffTags.DOUBLE, (0., 0., 0., x, y, 0.)),           # where the corner lies
            (34735, TiffTags.SHORT, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1,
                                     3072, 0, 1, epsg))):               # projected, areas, EPSG
        tags.tagtype[tag], tags[tag] = kind, values
    return tags


def write_scene(root: str | Path, size: int = 4096, seed: int = 0, where: str = "north") -> Path:
    """Write scene.tif, a GeoTIFF in a UTM zone, and scene.json, its truth, into the new folder
    `root`."""
    root = Path(root)
    root.mkdir(parents=True)
    x, y, epsg = SCENE_CORNER[where]
    picture, objects = render_scene(size, seed)
    picture.save(root / "scene.tif", compression="tiff_deflate", tiffinfo=geo_tags(x, y, epsg))
    truth = {"size": [size, size], "crs": f"EPSG:{epsg}",
             "transform": [METERS, 0., x, 0., -METERS, y], "objects": objects}
    write_rows_of(root / "scene.json", truth)
    return root


def write_rows_of(path: Path, truth: Row) -> None:
    """A JSON object whose objects lie on a line each."""
    rows = ",\n".join(map(json.dumps, truth.pop("objects")))
    head = json.dumps(truth)[:-1]
    path.write_text(f'{head}, "objects": [\n{rows}\n]}}\n', encoding="ascii")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", nargs="?", help="folder to create for the data set")
    parser.add_argument("--examples", metavar="DIR", help="write the example pictures to DIR")
    parser.add_argument("--scene", type=int, metavar="SIDE", help="write to ROOT, instead of a "
                        "data set, one scene of SIDE x SIDE pixels, as a GeoTIFF")
    for option, default, text in (
            ("train", 8000, "pictures in the training split"),
            ("val", 300, "pictures in the validation split"),
            ("test", 600, "pictures in the test split"),
            ("clips", 300, "clips in the training split; the others get a tenth of it each"),
            ("seed", 0, "seed of every random choice"),
            ("size", 256, "side of a picture in pixels"),
            ("workers", None, "processes that render; without it, one for each CPU core")):
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(f"--{option}", type=int, default=default, help=text + shown)
    options = vars(parser.parse_args(argv))
    root, examples, scene = (options.pop(name) for name in ("root", "examples", "scene"))
    if (root is None) == (examples is None):
        parser.error("give either ROOT or --examples DIR")
    if examples:
        write_examples(examples)
    elif scene:
        print("wrote", write_scene(root, scene, options["seed"]))
    else:
        print("wrote", write_world(root, **options))


if __name__ == "__main__":
    main()
