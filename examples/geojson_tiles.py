"""A raster and a layer of polygons, as QGIS saves them, cut into training pictures with boxes.

    python examples/geojson_tiles.py tiles/train scene.tif ships.geojson --label class

The layer is GeoJSON in the raster's own coordinate system. Where the raster lies is read from its
GeoTIFF tags, or from a world file beside it (.tfw, .pgw, .jgw, .wld). Written are pictures of
--size pixels a side, and _annotations.coco.json with their boxes: COCO, as data.py reads it. A box
that a tile cuts belongs to it where at least half of it is inside. Tiles without a box are not
written. Train on one scene and validate on another (tiles/train, tiles/valid): tiles side by side
show the same things.
"""
import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.common import Box, UserError, printable, read_json, read_text, write_atomic  # noqa: E402
from support.images.common import one_line_errors, parse_bands, pixel_limit  # noqa: E402
from support.images.read import read_picture  # noqa: E402

PIXEL_SCALE, TIE_POINT, TRANSFORMATION = 33550, 33922, 34264        # tags of GeoTIFF
WORLD_FILES = (".tfw", ".tifw", ".pgw", ".jgw", ".wld")
LEAST_INSIDE = 0.5              # of a box's area, for it to belong to a tile

Corner = tuple[float, float, float, float]      # x, y of the upper left corner; pixel width, height


# ---- where the raster lies -----------------------------------------------------------------------

def read_corner(raster: Path) -> Corner:
    """UserError: the raster is not georeferenced, or is turned."""
    with one_line_errors(raster), pixel_limit(), Image.open(raster) as image:
        tags = dict(getattr(image, "tag_v2", {}))
    if TRANSFORMATION in tags:
        raise UserError(f"{raster}: a raster that is turned; in QGIS: Raster, Projections, Warp")
    if PIXEL_SCALE in tags and TIE_POINT in tags:
        (width, height, *_), (column, row, _, x, y, *_) = tags[PIXEL_SCALE], tags[TIE_POINT]
        return x - column * width, y + row * height, width, height
    for suffix in WORLD_FILES:
        if raster.with_suffix(suffix).is_file():
            return read_world_file(raster.with_suffix(suffix))
    raise UserError(f"{raster}: no GeoTIFF tags and no world file beside it; in QGIS: Export, Save "
                    "As, GeoTIFF")


def read_world_file(file: Path) -> Corner:
    """Six lines: pixel width, two turns, minus the pixel height, x and y of the first middle."""
    try:
        width, turn_x, turn_y, height, x, y = map(float, read_text(file).split())
    except ValueError:
        raise UserError(f"{file}: not the six numbers of a world file") from None
    if turn_x or turn_y or width <= 0 or height >= 0:
        raise UserError(f"{file}: a raster that is turned; in QGIS: Raster, Projections, Warp")
    return x - width / 2, y - height / 2, width, -height


# ---- what the layer holds ------------------------------------------------------------------------

def read_objects(layer: Path, label: str, corner: Corner) -> list[tuple[str, Box]]:
    """-> class and box, in pixels of the raster, of each polygon. UserError: it is no such layer,
    or a feature has no class."""
    left, top, width, height = corner
    data = read_json(layer)
    if not isinstance(data, dict) or not isinstance(data.get("features"), list):
        raise UserError(f"{layer}: not a GeoJSON layer (a FeatureCollection)")
    found = []
    for number, feature in enumerate(data["features"], start=1):
        try:
            name = str(feature["properties"].get(label) or "").strip() if label else layer.stem
            points = [list(points_of(part)) for part in polygons(feature["geometry"])]
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UserError(f"{layer}: feature {number} is not as GeoJSON has it") from None
        if not name:
            known = ", ".join(map(printable, feature["properties"])) or "none"
            raise UserError(f"{layer}: feature {number} has no {label!r}; --label names the "
                            f"attribute with the class (there are: {known})")
        for part in points:
            x, y = [(px - left) / width for px, _ in part], [(top - py) / height for _, py in part]
            found.append((name, (min(x), min(y), max(x), max(y))))
    return found


def polygons(geometry: dict | None) -> list:
    """The coordinates of each polygon; of points and lines, which have no box, none."""
    kind = geometry["type"] if geometry else ""
    if kind not in ("Polygon", "MultiPolygon"):
        return []
    return [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]


def points_of(polygon: list) -> Iterator[tuple[float, float]]:
    """Of its outer ring. ValueError, TypeError: they are no numbers."""
    for x, y, *_ in polygon[0]:
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError("not finite")
        yield x, y


# ---- tiles ---------------------------------------------------------------------------------------

def tiles_of(size: tuple[int, int], side: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows of `side` pixels that cover a picture; the last of a row lies at its edge."""
    for top in dict.fromkeys([*range(0, max(size[1] - side, 0), side), max(size[1] - side, 0)]):
        for left in dict.fromkeys([*range(0, max(size[0] - side, 0), side),
                                   max(size[0] - side, 0)]):
            yield left, top, min(left + side, size[0]), min(top + side, size[1])


def clip(box: Box, tile: tuple[int, int, int, int]) -> Box | None:
    """The part of a box in a tile, from the tile's corner; None: less than LEAST_INSIDE of it."""
    x1, y1 = max(box[0], tile[0]), max(box[1], tile[1])
    x2, y2 = min(box[2], tile[2]), min(box[3], tile[3])
    area = (box[2] - box[0]) * (box[3] - box[1])
    if x2 <= x1 or y2 <= y1 or (x2 - x1) * (y2 - y1) < LEAST_INSIDE * area:
        return None
    return x1 - tile[0], y1 - tile[1], x2 - tile[0], y2 - tile[1]


def write_tiles(out: Path, raster: Path, objects: list[tuple[str, Box]], side: int,
                bands: tuple[int, ...]) -> tuple[int, int]:
    """-> how many tiles and boxes were written. UserError: none of the objects is on the raster."""
    picture = read_picture(raster, bands)
    if picture.image.size != picture.size:
        raise UserError(f"{raster}: {picture.note}; cut it up first, in QGIS: Raster, Extraction")
    if picture.note:
        print(picture.note, file=sys.stderr)
    names = sorted({name for name, _ in objects})
    images, annotations = [], []
    for tile in tiles_of(picture.size, side):
        inside = [(name, part) for name, box in objects if (part := clip(box, tile))]
        if not inside:
            continue
        file = f"{raster.stem}_{tile[0]}_{tile[1]}.png"
        out.mkdir(parents=True, exist_ok=True)
        picture.image.crop(tile).save(out / file)
        for name, (x1, y1, x2, y2) in inside:
            sides = [round(number, 2) for number in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append({"id": len(annotations) + 1, "image_id": len(images) + 1,
                                "category_id": names.index(name) + 1, "bbox": sides})
        images.append({"id": len(images) + 1, "file_name": file, "width": tile[2] - tile[0],
                       "height": tile[3] - tile[1]})
    if not images:
        raise UserError(f"none of the {len(objects)} polygons lies on {raster}: save the layer in "
                        "the raster's coordinate system")
    data = {"images": images, "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)]}
    write_atomic(out / "_annotations.coco.json",
                 lambda temporary: temporary.write_text(json.dumps(data), encoding="utf-8"))
    return len(images), len(annotations)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write, as tiles/train")
    parser.add_argument("raster", type=Path, help="the picture, a GeoTIFF or with a world file")
    parser.add_argument("layer", type=Path, help="GeoJSON with polygons")
    parser.add_argument("--label", default="", help="attribute with the class of a polygon "
                        "(default: the name of the layer is the class of all)")
    parser.add_argument("--size", type=int, default=512,
                        help="of a tile, in pixels a side (default: %(default)s)")
    parser.add_argument("--bands", type=parse_bands, default=(), metavar="R,G,B",
                        help="bands to show as red, green and blue, counted from 1")
    args = parser.parse_args()
    try:
        if args.size < 16:
            raise UserError(f"--size {args.size}: at least 16")
        if (args.out / "_annotations.coco.json").exists():
            raise UserError(f"{args.out}: holds tiles already; name another folder")
        objects = read_objects(args.layer, args.label, read_corner(args.raster))
        tiles, boxes = write_tiles(args.out, args.raster, objects, args.size, args.bands)
    except (UserError, OSError) as error:
        print(f"geojson_tiles.py: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {tiles:,} tiles with {boxes:,} boxes of {len(objects):,} polygons")
    return 0


if __name__ == "__main__":
    sys.exit(main())
