"""Whether a picture's file is all there, from its structure: nothing is decoded.

A file may go on after its picture: padding, the video of a motion photo, another picture. So the
end of the file says little; the picture's own lengths and marks say where it ends.
"""
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from support.images.common import PictureError

TAIL = 64                           # bytes at the end of a file in which most pictures end
PIECE = 2**20                       # bytes that are read at once
MAX_SCANNED = 2**28                 # bytes that are searched for the end of a JPEG or a GIF
MAX_STEPS = 10**6                   # chunks of a PNG, tile parts of a JPEG 2000
MAX_CHUNKS = 20_000                 # of a PNG beside its pixels, and pixels of less than ..
MIN_PIXEL_CHUNK = 256               # .. so many bytes: each takes time, whatever is in it


def is_complete(path: str | Path, image: Image.Image) -> bool:
    """image: the same file, open. False for one that was cut off before its picture's end."""
    check = {"JPEG": jpeg_is_complete, "MPO": jpeg_is_complete, "PNG": png_is_complete,
             "GIF": gif_is_complete, "WEBP": webp_is_complete,
             "JPEG2000": jpeg2000_is_complete}.get(image.format)
    with open(path, "rb") as file:
        if image.format == "BMP":
            return bmp_is_complete(file, image)
        return check is None or check(file)


def file_size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def read_tail(file: BinaryIO) -> bytes:
    file.seek(max(0, file_size(file) - TAIL))
    return file.read()


# ---- JPEG ----------------------------------------------------------------------------------------

JPEG_END = b"\xff\xd9"
WITHOUT_LENGTH = (0x01, *range(0xd0, 0xd9))     # markers that have no segment


def jpeg_is_complete(file: BinaryIO) -> bool:
    """The end mark is searched from the first scan on: thumbnails have one of their own. Among the
    coded pixels it cannot occur."""
    if JPEG_END in read_tail(file):
        return True
    for marker, start, length in jpeg_segments(file):
        if marker == 0xda:
            return contains(file, JPEG_END, start + length)
    return False


def jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """-> marker, place of its content, its length; up to the first scan."""
    file.seek(2)
    while len(head := file.read(2)) == 2:
        if head[0] != 0xff or head[1] == 0xff:              # fill bytes, or not quite a JPEG
            file.seek(-1, os.SEEK_CUR)
        elif head[1] not in WITHOUT_LENGTH:
            length = int.from_bytes(file.read(2), "big") - 2
            place = file.tell()
            if length < 0:
                return
            yield head[1], place, length
            if head[1] == 0xda:
                return
            file.seek(place + length)


def contains(file: BinaryIO, mark: bytes, start: int) -> bool:
    """Searched from there on, piece by piece, at most MAX_SCANNED bytes."""
    file.seek(start)
    rest = b""
    for _ in range(MAX_SCANNED // PIECE):
        piece = file.read(PIECE)
        if mark in rest + piece:
            return True
        if len(piece) < PIECE:
            return False
        rest = piece[1 - len(mark):]
    return False


def scans_are_separate(file: BinaryIO) -> bool:
    """Of a JPEG whose bands or bits come one after the other: all of them are held to decode it."""
    components = 0
    for marker, start, _ in jpeg_segments(file):
        file.seek(start)
        content = file.read(6)
        if marker in (0xc2, 0xc6, 0xca, 0xce):              # progressive
            return True
        if 0xc0 <= marker <= 0xcf and marker not in (0xc4, 0xc8, 0xcc) and len(content) == 6:
            components = content[5]
        elif marker == 0xda and content:
            return content[0] < components
    return False


MARKER = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")         # none of these is among coded pixels


def count_scans(file: BinaryIO, most: int) -> int:
    """How many scans a JPEG has, counted up to `most`: each one goes over all pixels again."""
    first = next((start for marker, start, _ in jpeg_segments(file) if marker == 0xda), -1)
    if first < 0:
        return 0
    file.seek(first)
    data = file.read(MAX_SCANNED)
    count, place = 1, 0
    while count < most and (found := MARKER.search(data, place)):
        marker, place = data[found.start() + 1], found.end()
        if marker == 0xd9:
            break
        count += marker == 0xda
        if marker not in WITHOUT_LENGTH:
            place += max(2, int.from_bytes(data[place:place + 2], "big"))
    return count


# ---- PNG -----------------------------------------------------------------------------------------

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Chunk(NamedTuple):
    name: bytes
    start: int                      # of its content
    length: int


def png_chunks(file: BinaryIO) -> Iterator[Chunk]:
    """Up to the last, IEND, or to where the file is cut off. PictureError: too many small ones."""
    size, place, small = file_size(file), 8, 0
    for _ in range(MAX_STEPS):
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        if len(head) < 8 or place + 12 + length > size:
            return
        small += head[4:] != b"IDAT" or length < MIN_PIXEL_CHUNK
        if small > MAX_CHUNKS:
            raise PictureError(f"a PNG of over {MAX_CHUNKS:,} tiny chunks; save it anew")
        yield Chunk(head[4:], place + 8, length)
        if head[4:] == b"IEND":
            return
        place += 12 + length


def png_is_complete(file: BinaryIO) -> bool:
    return any(chunk.name == b"IEND" for chunk in png_chunks(file))


# ---- GIF -----------------------------------------------------------------------------------------

class GifFrames(NamedTuple):
    count: int
    size: tuple[int, int]           # of all of them together
    complete: bool                  # whether the file's end mark was found


def gif_is_complete(file: BinaryIO) -> bool:
    return read_gif_frames(file).complete


def read_gif_frames(file: BinaryIO, most: int = MAX_STEPS) -> GifFrames:
    """From its blocks; no more than `most` frames are counted."""
    file.seek(0)
    data = file.read(MAX_SCANNED)
    count, place = 0, 13 + palette_bytes(data[10:11])
    width, height = (int.from_bytes(data[i:i + 2], "little") for i in (6, 8))
    while place < len(data) and count < most:
        kind = data[place]
        if kind == 0x3b:
            return GifFrames(count, (width, height), True)
        if kind == 0x21:                        # an extension: its kind, then blocks
            place = after_blocks(data, place + 2)
        elif kind == 0x2c:                      # a frame: its box, palette, bits, then blocks
            count += 1
            x, y, w, h = (int.from_bytes(data[place + i:place + i + 2], "little")
                          for i in (1, 3, 5, 7))
            width, height = max(width, x + w), max(height, y + h)
            place = after_blocks(data, place + 11 + palette_bytes(data[place + 9:place + 10]))
        else:
            place += 1                          # as Pillow does
    return GifFrames(count, (width, height), False)


def palette_bytes(flags: bytes) -> int:
    return 6 << (flags[0] & 7) if flags and flags[0] & 0x80 else 0


def after_blocks(data: bytes, place: int) -> int:
    """Behind a row of blocks, each with its length before it, and the 0 that ends it."""
    end = len(data)
    while place < end and data[place]:
        place += data[place] + 1
    return place + 1


# ---- WebP, BMP -----------------------------------------------------------------------------------

def webp_is_complete(file: BinaryIO) -> bool:
    file.seek(4)
    return 8 + int.from_bytes(file.read(4), "little") <= file_size(file)


def bmp_is_complete(file: BinaryIO, image: Image.Image) -> bool:
    """Without compression; of others the length is not known."""
    codec, _, offset, (_, stride, _) = image.tile[0]
    return codec != "raw" or offset + stride * image.height <= file_size(file)


# ---- JPEG 2000 -----------------------------------------------------------------------------------

TILE_PART, MAIN_HEADER = b"\xff\x90", b"\xff\x4f"


def jpeg2000_is_complete(file: BinaryIO) -> bool:
    """Its tile parts have their lengths before them."""
    size = file_size(file)
    place = codestream_start(file)
    if place < 0:
        return False
    place += 2
    for _ in range(MAX_STEPS):
        file.seek(place)
        head = file.read(10)
        if head[:2] == JPEG_END:
            return True
        if len(head) < 10 or head[0] != 0xff:
            return False
        if head[:2] == TILE_PART:
            length = int.from_bytes(head[6:10], "big")
            if not length:                      # up to the end
                return JPEG_END in read_tail(file)
            place += max(length, 12)
        else:
            place += 2 + int.from_bytes(head[2:4], "big")
        if place > size:
            return False
    return True


def codestream_start(file: BinaryIO) -> int:
    """Of the box that holds the codestream, or of the file; -1 where there is none."""
    file.seek(0)
    if file.read(2) == MAIN_HEADER:
        return 0
    size, place = file_size(file), 0
    while place < size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        start = 16 if length == 1 else 8        # a length of 8 bytes behind the name
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if head[4:8] == b"jp2c":
            return place + start
        if length < start:                      # 0: up to the end of the file
            return -1
        place += length
    return -1


# ---- what is damaged beside the pixels -----------------------------------------------------------

MAX_REPAIRED = 2**28                # bytes of a file that is held in memory without its extras


def without_extras(path: str | Path) -> io.BytesIO | None:
    """A JPEG or PNG with only what its pixels need; None where it has nothing else, or is another
    format.

    For one that cannot be opened: the fault may lie in its texts, its EXIF, its color profile.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        if file_size(file) > MAX_REPAIRED:
            return None
        if head == PNG_MAGIC:
            return png_without_extras(file)
        return jpeg_without_extras(file) if head.startswith(b"\xff\xd8\xff") else None


KEPT_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


def png_without_extras(file: BinaryIO) -> io.BytesIO | None:
    chunks = list(png_chunks(file))
    names = [chunk.name for chunk in chunks]
    first = names.index(b"IDAT") if b"IDAT" in names else 0
    kept = [chunk for i, chunk in enumerate(chunks)         # behind the pixels tRNS means nothing
            if chunk.name in KEPT_CHUNKS or chunk.name == b"tRNS" and i < first]
    if len(kept) == len(chunks):
        return None
    pieces = [PNG_MAGIC]
    for chunk in kept:
        file.seek(chunk.start - 8)
        pieces.append(file.read(chunk.length + 12))
    return io.BytesIO(b"".join(pieces))


ADOBE = 0xee                        # its segment, if whole, says what the colors are


def jpeg_without_extras(file: BinaryIO) -> io.BytesIO | None:
    """Without application segments and comments."""
    pieces, is_same = [b"\xff\xd8"], True
    for marker, start, length in jpeg_segments(file):
        file.seek(start)
        content = file.read(length)
        is_extra = 0xe0 <= marker <= 0xef or marker == 0xfe
        if is_extra and not (marker == ADOBE and content[:5] == b"Adobe" and length >= 12):
            is_same = False
        else:
            pieces.append(b"\xff" + bytes([marker]) + (length + 2).to_bytes(2, "big") + content)
        if marker == 0xda:
            pieces.append(file.read())
        file.seek(start + length)
    return None if is_same else io.BytesIO(b"".join(pieces))
