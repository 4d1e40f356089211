"""Coordinates: pixels to longitude and latitude and back, and geometries as RFC 7946 has them."""
import importlib.util
import math
import random

import numpy as np
import pytest

from support.scenes.georeference import (
    Georeference,
    digits_for,
    geometry_of,
    read_georeference,
    signed_area,
)

needs_rasterio = pytest.mark.skipif(importlib.util.find_spec("rasterio") is None,
                                    reason="rasterio is optional")

SIZE = (4000, 3000)
# Each: coordinate system, transform, and which pixel size in meters it has.
PLACES = {
    "UTM": ("EPSG:32633", (0.5, 0, 412_345.6, 0, -0.5, 5_432_100.4)),
    "southern zone": ("EPSG:32723", (10, 0, 300_000, 0, -10, 7_400_000)),
    "Web Mercator": ("EPSG:3857", (0.3, 0, 1_671_234, 0, -0.3, 6_100_000)),
    "rotated": ("EPSG:32633", (0.4, 0.3, 500_000, 0.3, -0.4, 5_400_000)),
    "degrees": ("EPSG:4326", (2e-6, 0, 15.1, 0, -2e-6, 48.2)),
    "degrees of 0 to 360": ("EPSG:4326", (1e-5, 0, 300.1, 0, -1e-5, 48.2)),
    "latitude first, feet": ("EPSG:2263", (1, 0, 980_000, 0, -1, 200_000)),
}


def place_of(name):
    from rasterio.crs import CRS
    crs, transform = PLACES[name]
    return Georeference(tuple(map(float, transform)), CRS.from_string(crs).to_wkt())


def to_pixels(place, points):
    """The way back, by rasterio and a matrix: longitude and latitude -> pixels."""
    from rasterio.warp import transform
    xs, ys = transform("OGC:CRS84", place.crs, *zip(*points, strict=True))
    a, b, c, d, e, f = place.transform
    inverse = np.linalg.inv([[a, b], [d, e]])
    return (inverse @ np.array([np.array(xs) - c, np.array(ys) - f])).T


@needs_rasterio
@pytest.mark.parametrize("name", PLACES)
def test_a_box_comes_back_from_its_geometry_within_half_a_pixel(name):
    place, rng = place_of(name), random.Random(2)
    digits = digits_for(place, SIZE)
    for _ in range(40):
        x1, y1 = rng.uniform(0, SIZE[0] - 60), rng.uniform(0, SIZE[1] - 60)
        box = (x1, y1, x1 + rng.uniform(1, 60), y1 + rng.uniform(1, 60))
        geometry = geometry_of(box, place, digits)
        assert geometry["type"] == "Polygon"
        [ring] = geometry["coordinates"]
        pixels = to_pixels(place, ring)
        if name == "degrees of 0 to 360":                       # it came back as -180 to 180
            pixels[:, 0] += 360 / place.transform[0]
        found = (*pixels.min(axis=0), *pixels.max(axis=0))
        assert np.abs(np.subtract(found, box)).max() < 0.05     # half a pixel is asked for
        assert all(-180 <= x <= 180 and -90 <= y <= 90 for x, y in ring)
        with pytest.raises(AssertionError):                     # it could fail: whole degrees
            assert np.abs(to_pixels(place, np.round(ring, 3)) - pixels).max() < 0.5


@needs_rasterio
def test_longitude_and_latitude_are_those_of_the_formulas():
    [(x, y)] = place_of("Web Mercator").to_lonlat([(100, 200)])
    easting, northing = 1_671_234 + 30, 6_100_000 - 60          # a sphere of 6,378,137 m
    assert x == pytest.approx(math.degrees(easting / 6_378_137), abs=1e-9)
    assert y == pytest.approx(math.degrees(2 * math.atan(math.exp(northing / 6_378_137))
                                           - math.pi / 2), abs=1e-9)
    # Of a UTM zone the middle meridian has x = 500,000; the equator has y = 10,000,000 in the south
    from rasterio.crs import CRS
    south = Georeference((10.0, 0, 500_000, 0, -10.0, 10_000_000),
                         CRS.from_string("EPSG:32723").to_wkt())
    assert south.to_lonlat([(0, 0)])[0] == pytest.approx((-45, 0), abs=1e-9)
    [(_, below)] = south.to_lonlat([(0, 100)])                  # 1 km to the south
    assert below == pytest.approx(-1000 / 0.9996 / 110_574.4, rel=1e-4)


@needs_rasterio
def test_rings_are_closed_and_run_counterclockwise_however_the_scene_is_turned():
    from rasterio.crs import CRS
    wkt = CRS.from_string("EPSG:32633").to_wkt()
    for transform in ((1, 0, 0, -1), (1, 0, 0, 1), (-1, 0, 0, -1), (0, 1, 1, 0), (.6, .8, .8, -.6)):
        a, b, d, e = transform
        place = Georeference((a, b, 500_000.0, d, e, 5_400_000.0), wkt)
        [ring] = geometry_of((10, 20, 40, 30), place)["coordinates"]
        assert len(ring) == 5 and ring[0] == ring[-1] and signed_area(ring[:-1]) > 0


@needs_rasterio
def test_a_box_across_the_antimeridian_is_cut_there():
    from rasterio.crs import CRS
    from rasterio.warp import transform
    wkt = CRS.from_string("EPSG:32701").to_wkt()                # around -177; its edge is at 180
    [x], [y] = transform("OGC:CRS84", wkt, [180.0], [-17.0])
    place = Georeference((10.0, 0, x - 500, 0, -10.0, y + 500), wkt)
    geometry = geometry_of((0, 0, 100, 100), place)
    assert geometry["type"] == "MultiPolygon"
    west, east = (ring for [ring] in geometry["coordinates"])
    assert max(x for x, _ in west) == 180 and min(x for x, _ in west) > 179.9
    assert min(x for x, _ in east) == -180 and max(x for x, _ in east) < -179.9
    for ring in (west, east):
        assert ring[0] == ring[-1] and signed_area(ring[:-1]) > 0
    areas = [signed_area(ring[:-1]) for ring in (west, east)]
    [whole] = [signed_area([(x % 360, y) for x, y in place.to_lonlat(
        [(0, 0), (0, 100), (100, 100), (100, 0)])])]
    assert sum(areas) == pytest.approx(whole, rel=1e-6)


def test_without_a_coordinate_system_the_geometry_is_in_x_and_minus_y():
    assert geometry_of((1, 2, 5, 8), None) == {
        "type": "Polygon", "coordinates": [[[1, -2], [1, -8], [5, -8], [5, -2], [1, -2]]]}


@needs_rasterio
def test_what_cannot_be_placed_has_no_georeference_and_a_note(tmp_path):
    import rasterio
    from rasterio.control import GroundControlPoint
    from rasterio.transform import from_origin

    def note(**options):
        with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=8, height=8, count=1,
                           dtype="uint8", **options):
            pass
        with rasterio.open(tmp_path / "a.tif") as dataset:
            return read_georeference(dataset)

    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        assert note() == (None, "")
    place, text = note(transform=from_origin(5, 5, 1, 1))
    assert place is None and "of no known system" in text
    points = [GroundControlPoint(row, col, col / 100, row / 100) for row, col in
              ((0, 0), (0, 8), (8, 0), (8, 8))]
    place, text = note(gcps=points, crs="EPSG:4326")
    assert place is None and "ground control points" in text
    place, text = note(transform=from_origin(5e5, 5e6, 1, 1), crs='LOCAL_CS["a hall",UNIT["m",1]]')
    assert place is None and "no way to longitude" in text
    place, text = note(transform=from_origin(5e5, 5e6, 1, 1), crs="EPSG:32633")
    assert place.transform == (1, 0, 5e5, 0, -1, 5e6) and text == ""
