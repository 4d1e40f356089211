"""A TIFF's tags: which of its pages is shown, what that is, and whether all its pixels are there.

Read by hand, since of a file that may be anything no more is read than it says it has: a tag's
values lie in the file or it is damaged. Nothing is decoded.
"""
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from support.common import printable
from support.images.common import ORIENTATION_TAG, PictureError, ceil_div, join_notes

SUBFILE_TAG, OLD_SUBFILE_TAG, WIDTH_TAG, HEIGHT_TAG, BITS_TAG = 254, 255, 256, 257, 258
COMPRESSION_TAG, PHOTOMETRIC_TAG, BANDS_TAG, ROWS_TAG, PLANAR_TAG = 259, 262, 277, 278, 284
STRIP_OFFSETS_TAG, STRIP_BYTES_TAG = 273, 279
TILE_WIDTH_TAG, TILE_HEIGHT_TAG, TILE_OFFSETS_TAG, TILE_BYTES_TAG = 322, 323, 324, 325
SUB_PAGES_TAG, EXTRA_BANDS_TAG, SAMPLE_FORMAT_TAG, GDAL_NODATA_TAG = 330, 338, 339, 42113
TAGS = (SUBFILE_TAG, OLD_SUBFILE_TAG, WIDTH_TAG, HEIGHT_TAG, BITS_TAG, COMPRESSION_TAG,
        PHOTOMETRIC_TAG, BANDS_TAG, ROWS_TAG, PLANAR_TAG, TILE_WIDTH_TAG, TILE_HEIGHT_TAG,
        SUB_PAGES_TAG, EXTRA_BANDS_TAG, SAMPLE_FORMAT_TAG, ORIENTATION_TAG, GDAL_NODATA_TAG)
SEGMENT_TAGS = (STRIP_OFFSETS_TAG, STRIP_BYTES_TAG, TILE_OFFSETS_TAG, TILE_BYTES_TAG)

UNSIGNED, SIGNED, FLOAT = 1, 2, 3               # sample formats; 5 and 6 are complex
FORMAT_NAMES = {SIGNED: " signed", FLOAT: " float", 5: " complex", 6: " complex"}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, MASK, YCBCR = 0, 1, 2, 4, 6      # photometric interpretations
UNCOMPRESSED, OLD_JPEG, JPEG = 1, 6, 7          # compressions
ALPHA = (1, 2)                                  # kinds of extra bands: premultiplied or not


@dataclass(frozen=True)
class TiffInfo:
    """What a TIFF's tags say about the page that is shown."""
    size: tuple[int, int]           # width, height as stored
    bands: int
    bits: int                       # of a value
    sample_format: int
    photometric: int
    compression: int
    alpha: bool                     # whether the last band is declared to be alpha
    nodata: float | None            # the value that GDAL declares to mean "no data"
    orientation: int                # as in EXIF, 1 .. 8
    little_endian: bool
    page: int                       # which one is shown, from 0
    note: str                       # "" or what the user should know of its tags

    @property
    def kind(self) -> str:
        """"16-bit", "32-bit float"."""
        return f"{self.bits}-bit{FORMAT_NAMES.get(self.sample_format, '')}"


def read_tiff_info(path: str | Path) -> TiffInfo | None:
    """None for a file that is no TIFF; PictureError for one that is cut off before its tags."""
    with open(path, "rb") as file:
        layout = read_layout(file)
        if layout is None:
            return None
        page, pages = choose_page(file, layout)
        check_sub_pages(file, layout, pages[page])
        info = describe_page(pages[page], page, layout.order == "<")
        if larger := find_larger_page(file, layout, pages):
            return replace(info, note=join_notes(info.note, larger))
        return info


def read_missing(path: str | Path) -> str:
    """What of the shown page's pixels is not in the file: "" where all are there."""
    return missing_pixels(*read_segment_tags(path))


# ---- tags as they are stored ---------------------------------------------------------------------

MAX_PAGES = 100                     # of a file are looked at
MAX_TAGS = 65_535                   # of a page, as a TIFF that is no BigTIFF can have
ASCII = 2
NUMBER_TYPES = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8",
                18: "u8"}           # whole numbers; of others no tag here has its values

Values = np.ndarray | str           # whole numbers, or a text


class Layout(NamedTuple):
    order: str                      # of the bytes, as NumPy has it: "<" or ">"
    big: bool                       # BigTIFF: lengths and places of 8 bytes, not of 4
    first: int                      # where the tags of the first page begin
    file_size: int


class Page(NamedTuple):
    offset: int                     # where its tags begin
    tags: dict[int, Values]         # those that are asked for, can be read and have a value
    damaged: tuple[int, ...]        # those whose values cannot be read
    next: int                       # where the tags of the next page begin; 0 after the last


def read_layout(file: BinaryIO) -> Layout | None:
    """None for a file that is no TIFF."""
    head = file.read(16)
    if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    order, big = "<" if head[:1] == b"I" else ">", b"+" in head[2:4]
    first = head[8:16] if big else head[4:8]
    if len(first) != (8 if big else 4):
        raise PictureError("cut off in its header; is the file complete?")
    return Layout(order, big, int(np.frombuffer(first, f"{order}u{len(first)}")[0]),
                  file.seek(0, os.SEEK_END))


def read_tags(file: BinaryIO, layout: Layout, offset: int, wanted: tuple[int, ...] = TAGS) -> Page:
    """The tags at this place. PictureError where their list is cut off."""
    order, size = layout.order, 8 if layout.big else 4
    entry = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2"),
                      ("count", f"{order}u{size}"), ("value", f"V{size}")])
    head = read_at(file, layout, offset, 8 if layout.big else 2)
    count = int(np.frombuffer(head, f"{order}u{len(head)}")[0]) if head else MAX_TAGS + 1
    start = offset + len(head)
    body = read_at(file, layout, start, count * entry.itemsize) if count <= MAX_TAGS else b""
    if not body:
        raise PictureError("cut off or damaged in its list of tags; is the file complete?")
    tags: dict[int, Values] = {}
    damaged = []
    entries = np.frombuffer(body, entry)
    for row in entries[np.isin(entries["tag"], wanted)]:
        tag = int(row["tag"])
        if tag not in tags:
            value = read_value(file, layout, row)
            if value is None:
                damaged.append(tag)
            elif len(value):
                tags[tag] = value
    place = read_at(file, layout, start + len(body), size)      # may be missing after the last page
    following = int(np.frombuffer(place, f"{order}u{size}")[0]) if place else 0
    return Page(offset, tags, tuple(damaged), following)


def read_value(file: BinaryIO, layout: Layout, row: np.void) -> Values | None:
    """None where it is not in the file or of no type that is read here."""
    kind, count, value = int(row["type"]), int(row["count"]), row["value"].tobytes()
    number = np.dtype("u1" if kind == ASCII else layout.order + NUMBER_TYPES.get(kind, "u1"))
    if kind != ASCII and kind not in NUMBER_TYPES:
        return None
    length = count * number.itemsize
    if length > len(value):
        place = int(np.frombuffer(value, f"{layout.order}u{len(value)}")[0])
        value = read_at(file, layout, place, length)
        if not value:
            return None
    if kind == ASCII:
        return value[:length].split(b"\0")[0].decode("latin-1")
    return np.frombuffer(value[:length], number)


def read_at(file: BinaryIO, layout: Layout, offset: int, length: int) -> bytes:
    """b"" where not all of it is in the file."""
    if offset + length > layout.file_size:
        return b""
    file.seek(offset)
    data = file.read(length)
    return data if len(data) == length else b""


# ---- which page ----------------------------------------------------------------------------------

def choose_page(file: BinaryIO, layout: Layout) -> tuple[int, list[Page]]:
    """-> the first page that is not marked as a reduced copy or a mask, else the largest; and the
    pages up to it, at least."""
    pages = [read_tags(file, layout, layout.first)]
    while is_secondary(pages[-1].tags):
        following = pages[-1].next
        if not following or following in {page.offset for page in pages} or len(pages) == MAX_PAGES:
            break
        try:
            pages.append(read_tags(file, layout, following))
        except PictureError:                    # the file goes on, but not in tags
            break
    else:
        return len(pages) - 1, pages
    areas = list(map(area_of, pages))
    return areas.index(max(areas)), pages


def area_of(page: Page) -> int:
    return number(page.tags, WIDTH_TAG, 0) * number(page.tags, HEIGHT_TAG, 0)


def check_sub_pages(file: BinaryIO, layout: Layout, page: Page) -> None:
    """PictureError where a page below this one is larger: this is its thumbnail, as in a DNG."""
    places = page.tags.get(SUB_PAGES_TAG, ())
    for place in () if isinstance(places, str) else places[:MAX_PAGES]:
        try:
            below = read_tags(file, layout, int(place))
        except PictureError:
            continue
        if area_of(below) > area_of(page):
            width, height = (number(below.tags, tag, 0) for tag in (WIDTH_TAG, HEIGHT_TAG))
            raise PictureError(f"its page is a reduced copy of one of {width} x {height} pixels "
                               "below it (SubIFDs), which is not read; save that as a plain TIFF")


def find_larger_page(file: BinaryIO, layout: Layout, pages: list[Page]) -> str:
    """A note where a page behind the one that is shown, the last of `pages`, is larger."""
    shown, page = len(pages), pages[-1]
    met = {page.offset for page in pages}
    for index in range(shown, MAX_PAGES):
        if not page.next or page.next in met:
            break
        try:
            page = read_tags(file, layout, page.next)
        except PictureError:                    # the file goes on, but not in tags
            break
        met.add(page.offset)
        if area_of(page) > area_of(pages[-1]) and not is_secondary(page.tags):
            return f"page {shown} is shown, page {index + 1} is larger"
    return ""


def is_secondary(tags: Mapping[int, Values]) -> bool:
    """A reduced copy (a thumbnail, an overview) or a mask of another page."""
    kind, old_kind = number(tags, SUBFILE_TAG, 0), number(tags, OLD_SUBFILE_TAG, 0)
    return bool(kind & 5) or old_kind == 2 or number(tags, PHOTOMETRIC_TAG, 0) == MASK


def number(tags: Mapping[int, Values], tag: int, default: int) -> int:
    """A tag's value; the largest where each band has one of its own."""
    value = tags.get(tag)
    return default if value is None or isinstance(value, str) else int(value.max())


def describe_page(page: Page, index: int, little_endian: bool) -> TiffInfo:
    tags = page.tags
    size = number(tags, WIDTH_TAG, 0), number(tags, HEIGHT_TAG, 0)
    if min(size) < 1:
        raise PictureError("cannot be read (no size in its tags); is the file complete?")
    orientation = number(tags, ORIENTATION_TAG, 1)
    notes = [f"page {index + 1} is shown, those before are reduced copies or masks"] * (index > 0)
    if orientation not in range(1, 9) or ORIENTATION_TAG in page.damaged:
        notes.append(f"{DAMAGED_EXIF}: not turned")
        orientation = 1
    text = tags.get(GDAL_NODATA_TAG, "")
    nodata, note = parse_nodata(text if isinstance(text, str) else text.tobytes().decode("latin-1"))
    extra = tags.get(EXTRA_BANDS_TAG, ())
    return TiffInfo(
        size=size,
        bands=number(tags, BANDS_TAG, 1),
        bits=number(tags, BITS_TAG, 1),
        sample_format=number(tags, SAMPLE_FORMAT_TAG, UNSIGNED),
        photometric=number(tags, PHOTOMETRIC_TAG, BLACK_IS_ZERO),
        compression=number(tags, COMPRESSION_TAG, 1),
        alpha=any(kind in ALPHA for kind in extra),
        nodata=nodata,
        orientation=orientation,
        little_endian=little_endian,
        page=index,
        note=join_notes(*notes, note),
    )


DAMAGED_EXIF = "its EXIF data are damaged"      # beginning of a note


def exif_is_damaged(block: bytes) -> bool:
    """Of the EXIF data of another format, which are a TIFF without pixels."""
    block = block.removeprefix(b"Exif\0\0")
    if not block.strip(b"\0"):
        return False                            # as some programs leave them
    file = io.BytesIO(block)
    try:
        layout = read_layout(file)
        return layout is None or ORIENTATION_TAG in read_tags(file, layout, layout.first).damaged
    except PictureError:
        return True


# ---- no data -------------------------------------------------------------------------------------

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII)
# As C libraries print it: nan, -nan(ind), nan(0x8000), NaNQ; 1.#QNAN, -1.#IND00 on Windows.
# With few digits those round to 1.#J, 1.#QNB, 1.$.
NAN = re.compile(r"[-+]?([qs]?nan[qs]?(\(\w*\))?|1?[.,]?#?([qs]nan|ind|nan)\d*|1[.,]?#\w*|1[.,]\$)",
                 re.ASCII)
INFINITE = re.compile(r"[-+]?(inf(inity)?|1?[.,]?#inf\d*)", re.ASCII)
NO_VALUE = ("", "none", "null", "nil", "n/a", "na", "#n/a", "no", "nodata", "no data", "undefined",
            "-", "--")


def parse_nodata(text: str) -> tuple[float | None, str]:
    """GDAL's no-data value as it is written -> the number, NaN, or None for no value; and a note.

    Of one for each band the first counts.
    """
    text = text.strip().strip("\"'").strip().lower()
    if text in NO_VALUE:
        return None, ""
    first = text.split()[0]
    if NAN.fullmatch(first) or INFINITE.fullmatch(first):       # black in any case
        return float("nan"), ""
    whole, *parts = re.split("[,;]", first)     # of each band, or with a decimal comma
    if len(parts) == 1 and parts[0] != whole:
        whole = f"{whole}.{parts[0]}"
    if NUMBER.fullmatch(whole):
        return float(whole), ""
    if first in NO_VALUE:
        return None, ""
    return None, f"its no-data value {printable(text[:30])} is not a number and is ignored"


# ---- whether all pixels are there ----------------------------------------------------------------

NO_PIXELS = "no pixel has a value: all are no-data; take another file"


def missing_pixels(tags: Mapping[int, Values], file_size: int) -> str:
    """The places and lengths of strips or tiles against the file's size.

    Of those that a sparse file leaves out, place and length are 0.
    """
    tiled = TILE_OFFSETS_TAG in tags
    places = tags.get(TILE_OFFSETS_TAG if tiled else STRIP_OFFSETS_TAG)
    lengths = tags.get(TILE_BYTES_TAG if tiled else STRIP_BYTES_TAG)
    compression = number(tags, COMPRESSION_TAG, 1)
    if compression == OLD_JPEG:                 # may have its data in other tags
        return ""
    if places is None or isinstance(places, str) or isinstance(lengths, str):
        return "cut off: its tags do not say where its pixels are"
    count = count_segments(tags, tiled)
    if len(places) < count:
        return f"cut off: {len(places)} of its {count} strips or tiles"
    expected = expected_lengths(tags, tiled)
    places = places[:count].astype(np.uint64)
    if lengths is None or len(lengths) < count:
        lengths = np.where(places > 0, expected if compression == UNCOMPRESSED else 1, 0)
    lengths = lengths[:count].astype(np.uint64)
    if compression == UNCOMPRESSED and number(tags, PHOTOMETRIC_TAG, 0) != YCBCR:
        unknown = (lengths == 0) & (places > 0)
        lengths = np.where(unknown, expected, np.minimum(lengths, expected))
    if not ((places > 0) & (lengths > 0)).any():
        return NO_PIXELS
    end = np.uint64(file_size)
    beyond = (lengths > 0) & ((places > end) | (lengths > end - np.minimum(places, end)))
    return "cut off at its end" if beyond.any() else ""


def read_segment_tags(path: str | Path) -> tuple[dict[int, Values], int]:
    """-> the shown page's tags and those of where its pixels are; the file's size."""
    with open(path, "rb") as file:
        layout = read_layout(file)
        page, pages = choose_page(file, layout)
        tags = pages[page].tags | read_tags(file, layout, pages[page].offset, SEGMENT_TAGS).tags
        return tags, layout.file_size


def find_left_out(path: str | Path) -> tuple[int, int, int] | None:
    """Of a sparse file, the first strip or tile that is left out: its first pixel's x and y, and
    one of its bands, from 1."""
    tags, _ = read_segment_tags(path)
    tiled = TILE_OFFSETS_TAG in tags
    count = count_segments(tags, tiled)
    left_out = np.zeros(count, bool)
    for tag in SEGMENT_TAGS[2:] if tiled else SEGMENT_TAGS[:2]:     # their places and lengths
        values = tags.get(tag, "")
        if not isinstance(values, str):
            left_out[:len(values)] |= values[:count] == 0
    if not left_out.any():
        return None
    across, down = segment_shape(tags, tiled)
    columns = ceil_div(number(tags, WIDTH_TAG, 0), across)
    rows = ceil_div(number(tags, HEIGHT_TAG, 0), down)
    plane, place = divmod(int(left_out.argmax()), columns * rows)
    return place % columns * across, place // columns * down, plane + 1


def segment_shape(tags: Mapping[int, Values], tiled: bool) -> tuple[int, int]:
    """Width and height of a tile, or of a strip that is not the last."""
    width, height = number(tags, WIDTH_TAG, 0), number(tags, HEIGHT_TAG, 0)
    if tiled:
        return number(tags, TILE_WIDTH_TAG, 0) or width, number(tags, TILE_HEIGHT_TAG, 0) or height
    return width, min(number(tags, ROWS_TAG, 0) or height, height)


def count_planes(tags: Mapping[int, Values]) -> int:
    return number(tags, BANDS_TAG, 1) if number(tags, PLANAR_TAG, 1) == 2 else 1


def count_segments(tags: Mapping[int, Values], tiled: bool) -> int:
    """How many strips or tiles there must be."""
    across, rows = segment_shape(tags, tiled)
    width, height = number(tags, WIDTH_TAG, 0), number(tags, HEIGHT_TAG, 0)
    return ceil_div(width, across) * ceil_div(height, rows) * count_planes(tags)


def expected_lengths(tags: Mapping[int, Values], tiled: bool) -> np.ndarray:
    """uint64[strips or tiles]: how many bytes of pixels without compression each has."""
    across, rows = segment_shape(tags, tiled)
    planes = count_planes(tags)
    heights = np.full(count_segments(tags, tiled) // planes, rows)
    if not tiled:
        heights[-1] = number(tags, HEIGHT_TAG, 0) - rows * (len(heights) - 1)
    values = across * (number(tags, BANDS_TAG, 1) // planes)
    row_bytes = ceil_div(values * number(tags, BITS_TAG, 1), 8)
    return np.tile(heights * row_bytes, planes).astype(np.uint64)
