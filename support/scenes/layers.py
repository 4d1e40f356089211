"""What is written of a scene's answers: GeoJSON, GeoPackage, Shapefile, CSV, and a picture.

A feature is a box, or a tile where a question has a value a tile. In a GIS it lies on the scene; of
a scene without a coordinate system the layer has pixels, x and -y, which is where QGIS shows such a
picture.

Source: RFC 7946 (GeoJSON): WGS 84, longitude first, rings counterclockwise.
"""
import csv
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from support.common import Box, UserError, is_installed, write_atomic
from support.images.draw import COLORS, draw_on_picture, save_picture
from support.scenes.answers import SceneAnswer
from support.scenes.georeference import digits_for, geometry_of
from support.scenes.raster import Scene, read_reduced, scene_name
from support.scenes.tiles import Tile

LAYER_SUFFIXES = (".geojson", ".json")
FIONA_DRIVERS = {".gpkg": "GPKG", ".shp": "ESRI Shapefile"}
PIXEL_NOTE = "no coordinate system: coordinates are pixels, x and -y, as QGIS shows such a picture"


# ---- features ------------------------------------------------------------------------------------

def features(answers: Sequence[SceneAnswer], scenes: Sequence[Scene], model: str
             ) -> Iterator[tuple[dict, Box]]:
    """-> the properties of each box, or tile, and where it lies, in pixels of the scene."""
    for answer in answers:
        prompt = answer.question.question
        for found in answer.boxes:
            date = {"picture": scene_name(scenes[found.picture].path)} if len(scenes) > 1 else {}
            yield {"prompt": prompt, "phrase": found.phrase, "confidence": found.confidence,
                   "pixels": list(found.box), **tile_properties(found.tile), **date,
                   "model": model}, found.box
        for value in answer.values:
            yield {"prompt": prompt, "answer": value.answer, "probability": value.probability,
                   "pixels": list(value.tile.window), **tile_properties(value.tile),
                   "model": model}, value.tile.window


def tile_properties(tile: Tile) -> dict:
    return {"tile": list(tile.window), "scale": tile.scale}


def write_layer(file: Path, answers: Sequence[SceneAnswer], scenes: Sequence[Scene], model: str
                ) -> None:
    """GeoJSON, or what fiona writes, by the suffix of `file`. OSError."""
    place = scenes[0].georeference
    digits = digits_for(place, scenes[0].size) if place else 2
    rows = [(properties, geometry_of(box, place, digits))
            for properties, box in features(answers, scenes, model)]
    if file.suffix.lower() in FIONA_DRIVERS:
        write_with_fiona(file, rows, place is not None)
        return
    head: dict = {"type": "FeatureCollection", "scene": [scene_name(s.path) for s in scenes],
                  "tiles": [[answer.question.question, answer.tiles, answer.empty]
                            for answer in answers]}
    if place is None:
        head["note"] = PIXEL_NOTE
    lines = [json.dumps({"type": "Feature", "geometry": geometry, "properties": properties})
             for properties, geometry in rows]
    text = f'{json.dumps(head)[:-1]}, "features": [\n' + ",\n".join(lines) + "\n]}\n"
    write_atomic(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def flat(properties: dict) -> dict:
    """As a table has them, in names of at most ten letters: a box is four columns."""
    names = {"confidence": "confid", "probability": "probab"}
    row = {}
    for name, value in properties.items():
        if isinstance(value, list):
            prefix = "" if name == "pixels" else "tile_"
            row |= {f"{prefix}{side}": float(number) for side, number in
                    zip(("x1", "y1", "x2", "y2"), value, strict=True)}
        else:
            row[names.get(name, name)] = value
    return row


COLUMNS = {"prompt": "str:254", "phrase": "str:254", "answer": "str:254", "confid": "float",
           "probab": "float", "x1": "float", "y1": "float", "x2": "float", "y2": "float",
           "tile_x1": "float", "tile_y1": "float", "tile_x2": "float", "tile_y2": "float",
           "scale": "float", "picture": "str:254", "model": "str:254"}


def write_with_fiona(file: Path, rows: Sequence[tuple[dict, dict]], placed: bool) -> None:
    """A GeoPackage, or a Shapefile with the files that belong to it. UserError."""
    import fiona
    try:
        write_files(fiona, file, rows, placed)
    except fiona.errors.FionaError as error:
        raise UserError(f"{file}: cannot be written ({error})") from None


def write_files(fiona, file: Path, rows: Sequence[tuple[dict, dict]], placed: bool) -> None:
    """In a folder of their own, from where they are moved when they are whole."""
    schema = {"geometry": "MultiPolygon", "properties": COLUMNS}
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        with fiona.open(
                Path(folder) / file.name, "w", driver=FIONA_DRIVERS[file.suffix.lower()],
                schema=schema, crs="EPSG:4326" if placed else None, encoding="utf-8",
                layer=file.stem) as layer:
            for properties, geometry in rows:
                own = dict.fromkeys(COLUMNS) | flat(properties)
                if geometry["type"] == "Polygon":
                    geometry = {"type": "MultiPolygon", "coordinates": [geometry["coordinates"]]}
                layer.write({"type": "Feature", "geometry": geometry, "properties": own})
        for part in sorted(Path(folder).iterdir()):
            part.replace(file.parent / part.name)


# ---- a table -------------------------------------------------------------------------------------

def write_table(file: Path, answers: Sequence[SceneAnswer], scenes: Sequence[Scene], model: str
                ) -> None:
    """CSV, a row a feature, with the longitude and latitude of its middle where they are known."""
    place = scenes[0].georeference
    digits = digits_for(place, scenes[0].size) if place else 0
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "phrase", "answer", "confidence", "probability", "x1",
                                   "y1", "x2", "y2", "longitude", "latitude", "tile", "scale",
                                   "picture", "model"], restval="", lineterminator="\n")
    writer.writeheader()
    for properties, (x1, y1, x2, y2) in features(answers, scenes, model):
        row = properties | {"x1": x1, "y1": y1, "x2": x2, "y2": y2,
                            "tile": " ".join(map(str, properties["tile"]))}
        del row["pixels"]
        if place:
            [(longitude, latitude)] = place.to_lonlat([((x1 + x2) / 2, (y1 + y2) / 2)])
            row |= {"longitude": round(longitude, digits), "latitude": round(latitude, digits)}
        writer.writerow(row)
    write_atomic(file, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8",
                                                              newline=""))


# ---- a picture -----------------------------------------------------------------------------------

PICTURE_SIDE = 2000             # of the whole scene, reduced
MOST_LABELS = 60                # boxes; of more, only the outlines are drawn
TINT = 96                       # of 255, how much of a tile's color covers it
LEGEND_ROWS = 16                # answers that the legend names; the others are gray
OTHERS = "#808080"


def draw_answer(answer: SceneAnswer, scene: Scene) -> Image.Image:
    """The whole scene with the boxes of an answer, a color a phrase, or with its tiles in the
    colors of their values."""
    picture = read_reduced(scene, PICTURE_SIDE)
    if answer.question.kind == "value":
        return color_tiles(picture.image, answer, scene.size)
    phrases = [found.phrase for found in answer.boxes]
    order = list(dict.fromkeys(phrases))
    named = len(answer.boxes) <= MOST_LABELS
    boxes = [(found.phrase if named else "", found.box) for found in answer.boxes]
    colors = [COLORS[order.index(phrase) % len(COLORS)] for phrase in phrases]
    return draw_on_picture(picture, boxes, colors or COLORS)


def color_tiles(image: Image.Image, answer: SceneAnswer, size: tuple[int, int]) -> Image.Image:
    """The core of each tile in the color of its value; a legend below."""
    counts = Counter(value.answer for value in answer.values)
    names = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    colors = dict(zip(names[:LEGEND_ROWS], COLORS * LEGEND_ROWS, strict=False))
    across, down = image.width / size[0], image.height / size[1]
    tint = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(tint)
    for value in answer.values:
        left, top, right, bottom = value.tile.core
        draw.rectangle((left * across, top * down, right * across - 1, bottom * down - 1),
                       fill=colors.get(value.answer, OTHERS) + f"{TINT:02x}", outline="#00000060")
    shown = Image.alpha_composite(image.convert("RGBA"), tint).convert("RGB")
    font = ImageFont.load_default(max(12, image.width // 50))
    height = sum(font.getmetrics()) + 6
    rows = [(colors[name], f"{name} ({counts[name]})") for name in colors]
    if len(names) > len(colors):
        rows.append((OTHERS, f"{len(names) - len(colors)} other answers"))
    sheet = Image.new("RGB", (image.width, image.height + height * len(rows) + 6), "white")
    sheet.paste(shown)
    draw = ImageDraw.Draw(sheet)
    for number, (color, text) in enumerate(rows):
        y = image.height + 6 + number * height
        draw.rectangle((6, y, 6 + height - 6, y + height - 6), fill=color)
        draw.text((height + 12, y - 2), text[:120], fill="black", font=font)
    return sheet


# ---- by suffix -----------------------------------------------------------------------------------

def check_layer(file: Path) -> None:
    """UserError: a kind of layer that is not written, or not without a package."""
    suffix = file.suffix.lower()
    if suffix not in (*LAYER_SUFFIXES, *FIONA_DRIVERS):
        raise UserError(f"{file}: a layer is written as .geojson, .gpkg or .shp")
    if suffix in FIONA_DRIVERS and not is_installed("fiona"):
        raise UserError(f"{file}: {suffix} needs fiona, which adds .gpkg and .shp: pip install "
                        "fiona; .geojson is written without it")


def save_answers(file: Path, answers: Sequence[SceneAnswer], scenes: Sequence[Scene], model: str
                 ) -> str:
    """Write a layer, a table or a picture of the last answer, by the suffix -> what to tell.

    UserError: no such format."""
    suffix = file.suffix.lower()
    file.parent.mkdir(parents=True, exist_ok=True)
    if suffix in (*LAYER_SUFFIXES, *FIONA_DRIVERS):
        check_layer(file)
        write_layer(file, answers, scenes, model)
    elif suffix == ".csv":
        write_table(file, answers, scenes, model)
    else:
        save_picture(draw_answer(answers[-1], scenes[0]), file)
    note = f"; {PIXEL_NOTE}" if suffix in LAYER_SUFFIXES and not scenes[0].georeference else ""
    return f"saved {file}{note}"
