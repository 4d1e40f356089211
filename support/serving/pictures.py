"""Pictures that come with a request: bytes in, what the model gets out.

Nothing of a request names a file. The bytes are written to a file without a name of its own, since
the readers of pictures read files, and it is deleted when it has been read. One thread reads them,
one after the other: two large ones at once would take twice the memory.
"""
import base64
import hashlib
import io
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data import preprocess
from support.common import UserError
from support.images.common import one_line_errors, pixel_limit
from support.images.read import Picture, read_header, read_picture
from support.images.tags import read_tiff_info
from support.serving.engine import EncodedPicture

MAX_PIXELS = 100_000_000        # of an uploaded picture, by its header, before it is decoded
PREVIEW_PIXELS = 4_000_000      # of a copy for the page, of a format that browsers do not show
KEPT_PICTURES = 64              # that are not read again when a conversation goes on
SHOWN_BY_BROWSERS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PIXEL_SCALE, TIE_POINT, TRANSFORMATION, GEO_KEYS = 33550, 33922, 34264, 34735   # of GeoTIFF
EPSG_KEYS = (3072, 2048)        # in GEO_KEYS: the projected coordinate system, the geographic one


class Coordinates(NamedTuple):
    """Where an upright picture lies: of its upper left corner, and the sides of a pixel."""
    left: float
    top: float
    width: float
    height: float
    epsg: int | None            # the coordinate system's number, where the file names it


class PictureReader:
    """Uploaded pictures as the model gets them; those of late are kept."""

    def __init__(self, side: int, style: str):
        """side: pixels of the model's own picture; style: as of data.preprocess."""
        self.side, self.style = side, style
        self.kept: OrderedDict[str, EncodedPicture] = OrderedDict()
        self.lock = threading.Lock()
        self.worker = ThreadPoolExecutor(1, "pictures")

    def read(self, text: str, name: str) -> EncodedPicture:
        """text: a file in base64, ASCII; name: what errors call it. UserError: it cannot be read,
        or is too large."""
        key = hashlib.sha256(text.encode()).hexdigest()
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        try:
            content = base64.b64decode(text, validate=True)
        except ValueError:
            raise UserError(f"{name}: not base64") from None
        found = self.worker.submit(self.encode, content, key, name).result()
        with self.lock:
            found = self.kept.setdefault(key, found)
            while len(self.kept) > KEPT_PICTURES:
                self.kept.popitem(last=False)
        return found

    def encode(self, content: bytes, key: str, name: str) -> EncodedPicture:
        picture = with_file(content, name, open_picture)
        image = preprocess(picture.image, self.side, style=self.style)
        return EncodedPicture(key, picture.size, image, picture.note)

    def describe(self, content: bytes) -> dict:
        """What the page shows of a picture: its size, a note, where it lies, and a copy of it where
        browsers do not show its format. UserError as of `read`."""
        return self.worker.submit(with_file, content, "the picture", describe_file).result()

    def close(self) -> None:
        self.worker.shutdown(wait=False, cancel_futures=True)


def with_file(content: bytes, name: str, function: Callable):
    """function(path of a file that holds the bytes). UserError names `name`, not the path."""
    with tempfile.NamedTemporaryFile(prefix="skyeye-") as file:
        file.write(content)
        file.flush()
        try:
            return function(file.name)
        except (UserError, OSError) as error:
            text = str(error).replace(file.name, name)
            raise UserError(text) from None


def open_picture(path: str, most: int = 0) -> Picture:
    """As support.images.read.read_picture, but no more than MAX_PIXELS are decoded."""
    width, height, fault = read_header(path, ())
    if fault:
        raise UserError(fault)
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million "
                        "are taken; cut it into smaller pictures")
    return read_picture(path, most=most)


def describe_file(path: str) -> dict:
    picture = open_picture(path, PREVIEW_PIXELS)
    found = {"width": picture.size[0], "height": picture.size[1], "note": picture.note}
    if coordinates := read_coordinates(path):
        found["coordinates"] = coordinates._asdict()
    with one_line_errors(path), pixel_limit(), Image.open(path) as image:
        shown = image.format in SHOWN_BY_BROWSERS
    if not shown:
        copy = io.BytesIO()
        picture.image.save(copy, "PNG", compress_level=1)
        found["preview"] = "data:image/png;base64," + base64.b64encode(copy.getvalue()).decode()
    return found


def read_coordinates(path: str) -> Coordinates | None:
    """From a TIFF's own tags; None for other files, and for pictures that are turned."""
    info = read_tiff_info(path)
    if info is None or info.orientation != 1:
        return None
    with one_line_errors(path), pixel_limit(), Image.open(path) as image:
        tags = dict(image.tag_v2)
    if TRANSFORMATION in tags or PIXEL_SCALE not in tags or TIE_POINT not in tags:
        return None
    (width, height, *_), (column, row, _, x, y, *_) = tags[PIXEL_SCALE], tags[TIE_POINT]
    keys = tags.get(GEO_KEYS, ())
    entries = {keys[i]: keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i + 1] == 0}
    known = [entries[key] for key in EPSG_KEYS if 1024 <= entries.get(key, 0) < 32767]
    return Coordinates(x - column * width, y + row * height, width, height,
                       known[0] if known else None)


def example_files() -> dict[str, Path]:
    """The rendered pictures of this repository that have a truth, by their names; none where they
    are not there."""
    found = sorted(EXAMPLES.glob("*.png")) if EXAMPLES.is_dir() else []
    return {file.name: file for file in found if file.with_suffix(".json").is_file()}
