"""Polygons over a raster become boxes in pixels of its tiles, wherever the raster lies."""
import json

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from examples import geojson_tiles as tiles
from support.readers import read_data

LEFT, TOP, PIXEL = 500000.0, 4000000.0, 0.5


def write_layer(file, *features):
    file.write_text(json.dumps({"type": "FeatureCollection", "features": [
        {"type": "Feature", "properties": properties, "geometry": geometry}
        for properties, geometry in features]}))
    return file


def polygon(x1, y1, x2, y2):
    """Around a box in pixels, as a map has it: y grows upwards."""
    left, right, top, bottom = (LEFT + PIXEL * x1, LEFT + PIXEL * x2, TOP - PIXEL * y1,
                                TOP - PIXEL * y2)
    return [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]


def ship(*box):
    return {"class": "ship"}, {"type": "Polygon", "coordinates": polygon(*box)}


def write_raster(file, size=(100, 80), tags=True):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    more = {}
    if tags:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, values in ((33550, (PIXEL, PIXEL, 0.0)), (33922, (0.0, 0.0, 0.0, LEFT, TOP, 0.0))):
            info.tagtype[tag], info[tag] = 12, values
        more = {"tiffinfo": info}
    Image.fromarray(pixels).save(file, **more)
    return file


def run(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["geojson_tiles.py", *map(str, args)])
    return tiles.main()


@pytest.mark.parametrize("tags", [True, False])
def test_polygons_are_boxes_of_the_tiles_that_hold_half_of_them(tags, tmp_path, monkeypatch,
                                                                capsys):
    raster = write_raster(tmp_path / "scene.tif", tags=tags)
    if not tags:
        (tmp_path / "scene.tfw").write_text(f"{PIXEL}\n0\n0\n-{PIXEL}\n{LEFT + PIXEL / 2}\n"
                                            f"{TOP - PIXEL / 2}\n")
    parts = {"class": "harbor"}, {"type": "MultiPolygon", "coordinates": [
        polygon(70, 50, 80, 60), polygon(85, 50, 95, 60)]}
    layer = write_layer(tmp_path / "a.geojson", ship(10, 20, 30, 25), ship(30, 5, 46, 15), parts,
                        ({"class": "ship"}, {"type": "Point", "coordinates": [LEFT, TOP]}),
                        ship(500, 500, 510, 510))
    assert run(monkeypatch, tmp_path / "out/train", raster, layer, "--label", "class", "--size",
               40) == 0
    assert "3 tiles with 5 boxes of 5 polygons" in capsys.readouterr().out
    samples = [s for s in read_data(tmp_path / "out") if s.task == "detection"]
    found = {(s.images[0].rsplit("/", 1)[1], s.turns[0][0]): s.boxes for s in samples}
    assert found == {("scene_0_0.png", "ship"): ((10, 20, 30, 25), (30, 5, 40, 15)),
                     ("scene_60_40.png", "harbor"): ((10, 10, 20, 20), (25, 10, 35, 20)),
                     ("scene_40_40.png", "harbor"): ((30, 10, 40, 20),)}
    whole, tile = (np.asarray(Image.open(file)) for file in (
        raster, tmp_path / "out/train/scene_0_0.png"))
    assert (tile == whole[:40, :40]).all()


def test_tiles_cover_a_picture_and_lie_in_it():
    for size in ((100, 80), (40, 40), (30, 200), (41, 40)):
        seen = np.zeros(size, bool)
        for left, top, right, bottom in tiles.tiles_of(size, 40):
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
            assert right - left == min(40, size[0]) and bottom - top == min(40, size[1])
            seen[left:right, top:bottom] = True
        assert seen.all()


def test_without_a_label_the_layer_names_the_class(tmp_path):
    layer = write_layer(tmp_path / "small ships.geojson", ({}, ship(1, 2, 3, 4)[1]))
    assert tiles.read_objects(layer, "", (LEFT, TOP, PIXEL, PIXEL)) == [
        ("small ships", (1, 2, 3, 4))]


@pytest.mark.parametrize(("layer", "flags", "why"), [
    ([ship(500, 500, 510, 510)], [], "none of the 1 polygons lies on"),
    ([ship(1, 2, 3, 4)], ["--label", "kind"], "feature 1 has no 'kind'; --label names the "),
    ([ship(1, 2, 3, 4)], ["--size", "3"], "--size 3: at least 16"),
    ([({}, {"type": "Polygon", "coordinates": [[1, 2]]})], [], "feature 1 is not as GeoJSON"),
    ([({}, {"type": "Polygon", "coordinates": [[["1", "2"]]]})], [], "1 is not as GeoJSON")])
def test_what_cannot_be_cut_is_refused_in_a_line(layer, flags, why, tmp_path, monkeypatch, capsys):
    raster = write_raster(tmp_path / "scene.tif")
    file = write_layer(tmp_path / "a.geojson", *layer)
    assert run(monkeypatch, tmp_path / "out", raster, file, *flags) == 2
    assert why in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_raster_without_a_place_is_refused(tmp_path, monkeypatch, capsys):
    layer = write_layer(tmp_path / "a.geojson", ship(1, 2, 3, 4))
    bare = write_raster(tmp_path / "bare.tif", tags=False)
    assert run(monkeypatch, tmp_path / "out", bare, layer) == 2
    assert "no GeoTIFF tags and no world file" in capsys.readouterr().err
    for text, why in (("1\n2\n3", "not the six numbers"), ("1 0.5 0 -1 0 0", "is turned")):
        (tmp_path / "bare.tfw").write_text(text)
        assert run(monkeypatch, tmp_path / "out", bare, layer) == 2
        assert why in capsys.readouterr().err


def test_tiles_are_never_written_over(tmp_path, monkeypatch, capsys):
    raster = write_raster(tmp_path / "scene.tif")
    layer = write_layer(tmp_path / "a.geojson", ship(1, 2, 20, 30))
    assert [run(monkeypatch, tmp_path / "out", raster, layer) for _ in range(2)] == [0, 2]
    assert "holds tiles already" in capsys.readouterr().err
