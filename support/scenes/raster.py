"""A scene: a picture of any size that is read window by window, in the colors of the whole.

`rasterio`, an optional package, reads TIFF and JPEG 2000: of the file no more than the window, from
an overview where that suffices, in any codec, with its mask and its coordinate system. Without it,
and of other formats, the picture is read whole with Pillow, up to LARGE_PIXELS, and has no
coordinates.

More than 8 bits are stretched between two percentiles of the whole scene, so that neighboring
windows look alike. A window is empty where none of its pixels has a value, or all are zero, as in
the border of a scene that does not declare one.
"""
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from support.common import is_installed
from support.images.common import (
    LARGE_PIXELS,
    MissingPackage,
    PictureError,
    check_memory,
    choose_bands,
    describe_bands,
    join_notes,
    one_line_errors,
    percentile_range,
    scale_to_bytes,
)
from support.images.gdal import NEEDS_RASTERIO, open_raster, rasterio_settings
from support.images.read import Picture, read_picture
from support.images.tags import (
    JPEG,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    read_layout,
    read_missing,
    read_tags,
    read_tiff_info,
)
from support.scenes.georeference import Georeference, read_georeference

Window = tuple[int, int, int, int]      # left, top, right, bottom, in pixels of the scene

CACHE_BYTES = 256 * 2**20           # of decoded blocks, which GDAL keeps
WARP_MEGABYTES = 64                 # for resampling a second date
SAMPLE_SIDE = 1024                  # of the reduced scene that the percentiles are computed from
PALETTE = 3                         # a photometric interpretation
MAX_SCENE_PIXELS = 100_000_000_000  # a scene of more is refused
GEO_KEYS_TAG = 34735                # of a TIFF that names its coordinate system


class Scene(Protocol):
    """What the tiles are cut from."""
    path: str
    size: tuple[int, int]               # width, height
    note: str                           # "" or what the user should know
    georeference: Georeference | None   # where it lies; None: not known
    ranges: list[tuple[float, float]]   # of each band the values that become black and white; []:
                                        # they are shown as they are, or it was read whole

    def read(self, window: Window, size: tuple[int, int]) -> Image.Image | None:
        """The window as RGB of `size`, at most its own; None where it is empty. PictureError."""

    def close(self) -> None: ...


def open_scene(path: str, bands: Sequence[int] = ()) -> Scene:
    """bands: as read_picture takes them. PictureError, MissingPackage: one line with the path."""
    with one_line_errors(path):
        driver = driver_of(path)
        if driver and is_installed("rasterio"):
            return RasterScene(path, tuple(bands), driver)
    return PictureScene(path, tuple(bands), is_tiff=driver == "GTiff")


def open_scenes(paths: Sequence[str], bands: Sequence[int] = ()) -> list[Scene]:
    """Several dates of a place: all but the first are read on the first one's grid. PictureError
    where that cannot be."""
    scenes: list[Scene] = []
    for path in paths:
        scene = open_scene(path, bands)
        if scenes and not is_same_grid(scenes[0], scene):
            if not (isinstance(scene, RasterScene) and isinstance(scenes[0], RasterScene)
                    and scene.georeference and scenes[0].georeference):
                raise PictureError(
                    f"{path}: {scene.size[0]} x {scene.size[1]} pixels, {scenes[0].path} has "
                    f"{scenes[0].size[0]} x {scenes[0].size[1]}: dates are aligned by coordinates, "
                    "which takes rasterio and two pictures with a coordinate system")
            with one_line_errors(path):
                scene.align(scenes[0])
        scenes.append(scene)
    return scenes


def is_same_grid(a: Scene, b: Scene) -> bool:
    """Whether the same pixel is the same place; of pictures that do not say so, as many pixels."""
    return a.size == b.size and (a.georeference == b.georeference
                                 or not (a.georeference and b.georeference))


def driver_of(path: str) -> str:
    """GDAL's name of the format, by the file's first bytes; "" where Pillow reads it.

    No others: some run programs, name further files, or fetch them.
    """
    with open(path, "rb") as file:
        head = file.read(12)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "GTiff"
    is_jpeg_2000 = head[:4] == b"\xff\x4f\xff\x51" or head[4:8] == b"jP  "
    return "JP2OpenJPEG" if is_jpeg_2000 else ""


# ---- whole, with Pillow --------------------------------------------------------------------------

class PictureScene:
    """A picture that is held in memory."""

    def __init__(self, path: str, bands: tuple[int, ...], is_tiff: bool):
        picture = read_picture(path, bands)
        if picture.image.size != picture.size:
            advice = f"{NEEDS_RASTERIO} reads it by windows" if is_tiff else "save it as a TIFF"
            raise MissingPackage(f"{path}: {picture.size[0]} x {picture.size[1]} pixels, over "
                                 f"{LARGE_PIXELS // 10**6} million, do not go into tiles at their "
                                 f"full size; {advice}")
        self.path, self.size, self.image = path, picture.size, picture.image
        self.georeference, self.ranges = None, []
        placed = is_tiff and has_coordinate_system(path)
        self.note = join_notes(picture.note, f"its coordinates are not read; {NEEDS_RASTERIO} "
                               "adds that" if placed else "")

    def read(self, window: Window, size: tuple[int, int]) -> Image.Image | None:
        part = self.image.crop(window)
        if part.getbbox() is None:                              # black throughout
            return None
        return part if part.size == size else part.resize(size, Image.Resampling.BOX)

    def close(self) -> None:
        self.image.close()


def has_coordinate_system(path: str) -> bool:
    """Of a TIFF: whether its first page has GeoTIFF's keys."""
    with open(path, "rb") as file:
        layout = read_layout(file)
        return layout is not None and GEO_KEYS_TAG in read_tags(
            file, layout, layout.first, (GEO_KEYS_TAG,)).tags


# ---- by windows, with rasterio -------------------------------------------------------------------

class RasterScene:
    """A file that stays open; to be read by one thread at a time."""

    def __init__(self, path: str, bands: tuple[int, ...], driver: str):
        self.path, self.photometric, page = path, RGB, 0
        if driver == "GTiff":
            self.photometric, page = check_tiff(path)
        with rasterio_settings(CACHE_BYTES):
            self.dataset = self.source = open_raster(path, driver, page)
        self.size = check_area((self.dataset.width, self.dataset.height))
        self.georeference, note = read_georeference(self.dataset)
        self.choose(bands)
        self.ranges = self.find_ranges()
        self.note = join_notes(describe_bands(self.chosen, self.total), self.describe_ranges(),
                               note)

    def choose(self, bands: tuple[int, ...]) -> None:
        """Which bands are shown, and what their values are. PictureError."""
        from rasterio.enums import ColorInterp, MaskFlags
        source = self.source
        dtype = np.dtype(source.dtypes[0])
        alpha = ColorInterp.alpha in source.colorinterp and not bands
        self.total = source.count - alpha
        bits = int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * dtype.itemsize))
        kinds = {"i": " signed", "f": " float", "c": " complex"}
        self.kind = f"{bits}-bit{kinds.get(dtype.kind, '')}"
        self.chosen = choose_bands(bands, self.total, self.kind)
        if ColorInterp.cyan in source.colorinterp and not bands:
            raise PictureError(f"{self.kind} values in CMYK; save it as RGB")
        self.palette = None
        if source.colorinterp[0] == ColorInterp.palette and self.total == 1 and not bands:
            table = source.colormap(1)
            colors = [table.get(i, (0, 0, 0, 0))[:3] for i in range(max(table) + 1)]
            self.palette = np.array(colors, np.uint8)
        self.is_byte = dtype == np.uint8 and bits == 8 or self.palette is not None
        self.low_bits = bits if dtype == np.uint8 and bits < 8 else 0
        self.is_complex, self.is_integer = dtype.kind == "c", dtype.kind in "ui"
        flags = [source.mask_flag_enums[band - 1] for band in self.chosen]
        self.masked = any(MaskFlags.all_valid not in own for own in flags)
        rows, columns = source.block_shapes[0]
        planes = source.count if str(source.profile.get("interleave")) == "pixel" else 1
        check_memory((columns, rows), planes * dtype.itemsize)

    def align(self, first: "RasterScene") -> None:
        """Read it on the grid of another scene from now on, with no data where it does not lie."""
        from rasterio.enums import Resampling
        from rasterio.vrt import WarpedVRT
        nearest = self.palette is not None or self.is_complex
        with rasterio_settings(CACHE_BYTES):
            self.dataset = WarpedVRT(
                self.source, crs=first.source.crs, transform=first.source.transform,
                width=first.size[0], height=first.size[1], add_alpha=not self.masked,
                resampling=Resampling.nearest if nearest else Resampling.bilinear,
                warp_mem_limit=WARP_MEGABYTES)
        self.size, self.georeference, self.masked = first.size, first.georeference, True

    def values(self, window: Window, size: tuple[int, int], smooth: bool = True
               ) -> tuple[np.ndarray, np.ndarray]:
        """-> the chosen bands as stored, [H, W, C], and which pixels have a value, bool[H, W].

        smooth: where it is reduced, means; else every n-th pixel.
        """
        from rasterio.enums import Resampling
        from rasterio.windows import Window as RasterWindow
        left, top, right, bottom = window
        place = RasterWindow(left, top, right - left, bottom - top)
        shape = size[::-1]
        means = smooth and self.palette is None and not self.is_complex
        with rasterio_settings(CACHE_BYTES):
            values = self.dataset.read(
                list(self.chosen), window=place, out_shape=(len(self.chosen), *shape),
                resampling=Resampling.average if means else Resampling.nearest)
            valid = np.ones(shape, bool)
            if self.masked:
                valid = self.dataset.dataset_mask(window=place, out_shape=shape) > 0
        values = np.moveaxis(values, 0, -1)                     # [H, W, C]
        if self.is_complex:
            values = np.abs(values)
        if values.dtype.kind == "f":
            valid &= (np.abs(values) < 1e30).all(axis=-1)       # neither NaN nor absurd
        return values, valid

    def find_ranges(self) -> list[tuple[float, float]]:
        """The values of each shown band that become black and white; [] of 8-bit pictures."""
        if self.is_byte:
            return []
        if self.low_bits:
            return [(0, 2**self.low_bits - 1)] * len(self.chosen)
        shrink = max(1, max(self.size) / SAMPLE_SIDE)
        width, height = (max(1, int(side / shrink)) for side in self.size)
        values, valid = self.values((0, 0, *self.size), (width, height), smooth=False)
        if self.is_integer and (valid & (values != 0).any(axis=-1)).any():
            valid &= (values != 0).any(axis=-1)                 # a border that is not declared
        if not valid.any():
            raise PictureError("no pixel has a value: all are no-data; take another file")
        return [percentile_range(values[..., c][valid].astype(np.float32))
                for c in range(len(self.chosen))]

    def describe_ranges(self) -> str:
        if not self.ranges or self.low_bits:
            return ""
        shown = ", ".join(f"{low:.6g}..{high:.6g}" for low, high in self.ranges)
        return f"{self.kind} values, all tiles stretched from {shown} (2nd to 98th percentile)"

    def read(self, window: Window, size: tuple[int, int]) -> Image.Image | None:
        with one_line_errors(self.path):
            values, valid = self.values(window, size)
        if not (valid & (values != 0).any(axis=-1)).any():
            return None
        if self.palette is not None:
            pixels = self.palette[np.minimum(values[..., 0], len(self.palette) - 1)]
        elif self.is_byte:
            pixels = values.copy()
        else:
            pixels = np.stack([scale_to_bytes(values[..., c].astype(np.float32), *self.ranges[c])
                               for c in range(len(self.chosen))], axis=-1)
        if self.photometric == WHITE_IS_ZERO:
            pixels = 255 - pixels
        pixels[~valid] = 0
        return Image.fromarray(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1))

    def close(self) -> None:
        self.dataset.close()
        self.source.close()


def check_area(size: tuple[int, int]) -> tuple[int, int]:
    """-> the same width and height. PictureError: too many pixels."""
    if size[0] * size[1] > MAX_SCENE_PIXELS:
        raise PictureError(f"{size[0]} x {size[1]} pixels, at most {MAX_SCENE_PIXELS // 10**6:,} "
                           "million are read; cut it into smaller scenes")
    return size


def check_tiff(path: str) -> tuple[int, int]:
    """-> its photometric interpretation, and which page is shown. PictureError: it is cut off, or
    has no RGB in it."""
    tiff = read_tiff_info(path)
    check_area(tiff.size)
    if missing := read_missing(path):
        complete = "; is the file complete?" if "cut off" in missing else ""
        raise PictureError(f"{missing}{complete}")
    jpeg = (tiff.photometric, tiff.compression) == (YCBCR, JPEG)
    if tiff.photometric > PALETTE and not jpeg:
        raise PictureError(f"{tiff.kind} values in color space {tiff.photometric}; save it as RGB")
    return tiff.photometric, tiff.page


# ---- all of it, small ----------------------------------------------------------------------------

def read_reduced(scene: Scene, side: int) -> Picture:
    """The whole scene, its longer side at most so long. PictureError: it has no pixel."""
    shrink = max(1, max(scene.size) / side)
    size = tuple(max(1, round(length / shrink)) for length in scene.size)
    image = scene.read((0, 0, *scene.size), size)
    if image is None:
        image = Image.new("RGB", size)
    return Picture(image, scene.size, scene.note)


def scene_name(path: str) -> str:
    """A picture's name without what is of this machine alone."""
    return re.sub(r"^.*[\\/]", "", str(Path(path)))
