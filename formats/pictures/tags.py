"""What a TIFF holds, from its tags alone: read before a pixel is."""
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import TiffImagePlugin

from formats.pictures.errors import PictureError

UNSIGNED, SIGNED, FLOAT = 1, 2, 3               # SampleFormat; 5 and 6 are complex
NAMES = {SIGNED: " signed", FLOAT: " float", 5: " complex", 6: " complex"}


@dataclass(frozen=True)
class Tiff:
    size: tuple[int, int]           # width, height as stored
    bands: int
    bits: int                       # of a value
    format: int
    colors: int                     # 0 gray, white is zero; 1 gray; 2 RGB; 6 YCbCr; ..
    compression: int
    alpha: bool                     # the last band is declared to be one
    nodata: float | None            # GDAL's
    turn: int                       # EXIF orientation, 1 .. 8
    little: bool                    # the byte order

    @property
    def kind(self) -> str:
        return f"{self.bits}-bit{NAMES.get(self.format, '')}"


def read_tags(path: str | Path) -> Tiff | None:
    """None for a file that is no TIFF; PictureError for one that is cut off before its tags."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")         # what is wrong is found out below
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
        head += file.read(8) if b"+" in head[2:4] else b""
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        if not tags.get(256) or not tags.get(257):
            raise PictureError("cannot be read (no size in its tags); is the file complete?")
        return from_tags(tags, head[:1] == b"I")


def from_tags(tags, little: bool) -> Tiff:
    """tags: Pillow's, a number or a tuple of numbers by the tag's number."""
    def most(tag: int, default: int) -> int:
        value = tags.get(tag, default)
        return max(value, default=default) if isinstance(value, tuple) else value

    nodata = re.match(r"[-+.\w]+", str(tags.get(42113, "")).strip())
    return Tiff((tags[256], tags[257]), most(277, 1), most(258, 1), most(339, UNSIGNED),
                most(262, 1), most(259, 1), bool({1, 2} & {*tags.get(338, ())}),
                float(nodata[0]) if nodata else None, most(274, 1), little)
