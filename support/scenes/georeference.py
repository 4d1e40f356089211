"""Where a scene lies: pixels to longitude and latitude (WGS 84), and shapes as GeoJSON has them.

A scene's affine transform takes a pixel (x to the right, y downwards, the corner of the first one
is 0, 0) to its coordinate system; PROJ, which comes with rasterio, takes that to WGS 84.

Source: RFC 7946, sections 3.1.6 (rings), 3.1.9 (the antimeridian) and 11.2 (digits).
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass

from support.common import Box

Point = tuple[float, float]
WGS_84 = "OGC:CRS84"                # longitude first


@dataclass(frozen=True)
class Georeference:
    transform: tuple[float, float, float, float, float, float]  # x = a * column + b * row + c, ..
    crs: str                        # the coordinate system, as WKT

    def to_crs(self, points: Sequence[Point]) -> list[Point]:
        """Pixels -> the scene's own coordinates."""
        a, b, c, d, e, f = self.transform
        return [(a * x + b * y + c, d * x + e * y + f) for x, y in points]

    def to_lonlat(self, points: Sequence[Point]) -> list[Point]:
        """Pixels -> longitude and latitude in degrees; infinite where there are none."""
        from rasterio.warp import transform
        own = self.to_crs(points)
        longitudes, latitudes = transform(self.crs, WGS_84, [x for x, _ in own],
                                          [y for _, y in own])
        return [(longitude if -180 <= longitude <= 180 else (longitude + 180) % 360 - 180, latitude)
                for longitude, latitude in zip(longitudes, latitudes, strict=True)]


def read_georeference(dataset) -> tuple[Georeference | None, str]:
    """Of an open rasterio dataset; None where it has none that can be used, and a note why."""
    if dataset.crs is None or dataset.transform.is_identity:
        if dataset.gcps[0]:
            return None, ("it has ground control points and no grid: warp it, as in QGIS: Raster, "
                          "Projections, Warp")
        if not dataset.transform.is_identity:
            return None, ("it has coordinates, but of no known system: name it, as in QGIS: "
                          "Raster, Projections, Assign Projection")
        return None, ""
    found = Georeference(tuple(dataset.transform)[:6], dataset.crs.to_wkt())
    width, height = dataset.width, dataset.height
    corners = [(math.inf, math.inf)]            # of an engineer's own grid
    if dataset.crs.is_projected or dataset.crs.is_geographic:
        corners = found.to_lonlat([(0, 0), (width, 0), (width, height), (0, height)])
    if not all(math.isfinite(number) for point in corners for number in point):
        return None, "its coordinate system has no way to longitude and latitude"
    return found, ""


def box_corners(box: Box) -> list[Point]:
    x1, y1, x2, y2 = box
    return [(x1, y1), (x1, y2), (x2, y2), (x2, y1)]


def geometry_of(box: Box, place: Georeference | None, digits: int = 9) -> dict:
    """A box in pixels as a geometry of GeoJSON, its ring counterclockwise.

    Without a place it is in x and -y: so QGIS shows a picture that lies nowhere. A box across the
    antimeridian is cut in two there.
    """
    if place is None:
        return polygons_to_geometry([[(x, -y) for x, y in box_corners(box)]], 2)
    ring = place.to_lonlat(box_corners(box))
    longitudes = [longitude for longitude, _ in ring]
    if max(longitudes) - min(longitudes) <= 180:
        return polygons_to_geometry([ring], digits)
    east = [(longitude % 360, latitude) for longitude, latitude in ring]       # 0 to 360
    western, eastern = cut_ring(east, 180, -1), cut_ring(east, 180, 1)
    return polygons_to_geometry(
        [western, [(longitude - 360, latitude) for longitude, latitude in eastern]], digits)


def cut_ring(ring: Sequence[Point], x: float, side: int) -> list[Point]:
    """The part of a convex ring with coordinates below x (side -1) or above it (1)."""
    kept: list[Point] = []
    for i, (x2, y2) in enumerate(ring):
        x1, y1 = ring[i - 1]
        if (x1 - x) * (x2 - x) < 0:
            kept.append((x, y1 + (y2 - y1) * (x - x1) / (x2 - x1)))
        if (x2 - x) * side >= 0:
            kept.append((x2, y2))
    return kept


def polygons_to_geometry(rings: Sequence[Sequence[Point]], digits: int) -> dict:
    closed = []
    for ring in rings:
        ring = list(ring) if signed_area(ring) > 0 else list(ring)[::-1]
        points = [[round(x, digits) + 0.0, round(y, digits) + 0.0] for x, y in ring]    # no -0.0
        closed.append([[*points, points[0]]])
    if len(closed) == 1:
        return {"type": "Polygon", "coordinates": closed[0]}
    return {"type": "MultiPolygon", "coordinates": closed}


def signed_area(ring: Sequence[Point]) -> float:
    """Above 0 where the ring runs counterclockwise."""
    return sum(ring[i - 1][0] * y - x * ring[i - 1][1] for i, (x, y) in enumerate(ring)) / 2


def digits_for(place: Georeference, size: tuple[int, int]) -> int:
    """How many digits of a degree tell a hundredth of a pixel, in the scene's middle."""
    x, y = size[0] / 2, size[1] / 2
    (x1, y1), (x2, y2) = place.to_lonlat([(x, y), (x + 1, y + 1)])
    pixel = math.hypot((x2 - x1 + 180) % 360 - 180, y2 - y1) / 2
    return min(max(math.ceil(-math.log10(pixel / 100)), 6), 12)
