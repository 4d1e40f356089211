"""Damage to files: `mutate` changes a sound file's bytes as accidents and attackers do.

Bytes of any kind are flipped, cut off, repeated and replaced by extreme numbers; texts get foreign
characters, numbers and nesting; JSON changes types; PNG, TIFF, JPEG, GIF, WebP, BMP, JPEG 2000, zip
and safetensors are damaged inside their structure, checksums put right, so that decoders get far.
"""
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

BIG = 100_000                       # letters of a long name or line, levels of deep nesting

# ---- bytes of any kind ---------------------------------------------------------------------------

EXTREMES = (0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**24,
            2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def span(rng: random.Random, data: bytes, most: int = 0) -> tuple[int, int]:
    """Start and end of a random block, half of the time in the first 512 bytes."""
    size = min(len(data), 512) if rng.random() < 0.5 else len(data)
    start = rng.randrange(size + 1)
    length = 1 + int(rng.random() ** 3 * (most or max(1, len(data) - start)))
    return start, min(start + length, len(data))


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64)) if data else 0):
        result[span(rng, data[:-1])[0]] ^= 1 << rng.randrange(8)
    return bytes(result)


def cut_off(rng: random.Random, data: bytes) -> bytes:
    return data[:rng.choice((0, 1, 4, 8, 16, len(data) - 1, span(rng, data)[0]))]


def remove_block(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data)
    return data[:start] + data[end:]


def repeat_block(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data)
    block = data[start:end]
    return data[:end] + block * min(rng.choice((1, 1, 2, 1000)), 2**20 // max(1, len(block))
                                    ) + data[end:]


def fill_block(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data, 64)
    fill = rng.choice((b"\0", b"\xff", b"[", b" ", b"\n"))
    return data[:start] + fill * (end - start) + data[end:]


def random_block(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data, 64)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def swap_blocks(rng: random.Random, data: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def extreme_number(rng: random.Random, data: bytes) -> bytes:
    """A number of 1, 2, 4 or 8 bytes, in either order, becomes an extreme one."""
    size, start = rng.choice((1, 2, 4, 8)), span(rng, data)[0]
    number = rng.choice(EXTREMES) % 2**(8 * size)
    block = number.to_bytes(size, rng.choice(("little", "big")))
    return data[:start] + block + data[start + size:]


def add_behind(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((bytes(1), bytes(5000), b"\xff" * 5000, data, b"\n", b"<html>"))


BYTES = (flip_bits, flip_bits, cut_off, remove_block, repeat_block, fill_block, random_block,
         swap_blocks, extreme_number, extreme_number, add_behind)

# ---- texts ---------------------------------------------------------------------------------------

FOREIGN = ("\0", "\ufeff", "\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1b[31m", "\x1e", "\x1f",
           "\r", "\r\n", "\n", "\t", "\ud800", "\udfff", "\\ud800", "\\", "\\u0000", '"', "'", "/",
           "../", "%s", "{}", "\u202e", "\u0301", "\U0001f6f0", "<bbox>", "<image>", "<p>", "</p>",
           "{<1><2><3><4>}", "<ref-object>", "&lol;", "<![CDATA[", "]]>", ":", "?", "\u0663",
           "\xb2")
NUMBERS = ("-1", "0", "-0", "1e999", "-1e999", "NaN", "nan", "Infinity", "-Infinity", "inf", "1.5",
           "1e308", "4294967296", "9223372036854775808", "-9223372036854775809", "1" + "0" * 400,
           "-" + "9" * 400, "0." + "0" * 400 + "1", "1" * 5000, "1e-400", "0x10", "1_0", "\u0663",
           "\xb2", "null", '"10"', "true", "[]", "{}", "", "1,5", "1.#QNAN", "1000000000")


def as_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def as_bytes(text: str) -> bytes:
    """Surrogates that stood for single bytes become those bytes, others their three."""
    return b"".join(bytes([ord(c) - 0xdc00]) if 0xdc80 <= ord(c) <= 0xdcff
                    else c.encode("utf-8", "surrogatepass") for c in text) if re.search(
        "[\ud800-\udfff]", text) else text.encode()


def insert_foreign(rng: random.Random, data: bytes) -> bytes:
    text, piece = as_text(data), rng.choice(FOREIGN)
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.choice((0, len(text), rng.randrange(len(text) + 1)))
        text = text[:place] + piece + text[place:]
    return as_bytes(text)


def replace_number(rng: random.Random, data: bytes) -> bytes:
    text = as_text(data)
    found = list(re.finditer(r"-?\d+(\.\d+)?", text[:200_000]))
    if not found:
        return insert_foreign(rng, data)
    match = rng.choice(found)
    return as_bytes(text[:match.start()] + rng.choice(NUMBERS) + text[match.end():])


def replace_word(rng: random.Random, data: bytes) -> bytes:
    text = as_text(data)
    found = list(re.finditer(r"[A-Za-z_]+", text[:200_000]))
    if not found:
        return insert_foreign(rng, data)
    one, two = rng.choice(found), rng.choice(found)
    other = rng.choice((two[0], "", "null", "x" * 300, one[0] * 2, one[0].upper(), "/etc/passwd"))
    return as_bytes(text[:one.start()] + other + text[one.end():])


def insert_long(rng: random.Random, data: bytes) -> bytes:
    """A long word, a long row of words, or deep nesting."""
    text = as_text(data)
    place = rng.randrange(len(text) + 1)
    unit = rng.choice(("x", "a ", "[", '{"a":', "<p>", "{<", "<a>", "9", " ", "\n", "?", ":", "(",
                       "<bbox>", "]", "\\", '"', "-", "a.", "..", "//"))
    return as_bytes(text[:place] + unit * (BIG // len(unit)) + text[place:])


def change_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, lines[rng.randrange(len(lines))])
    elif kind == 2:
        lines.insert(place, b"")
    elif kind == 3:
        rng.shuffle(lines)
    else:
        return b"\r\n".join(lines)
    return b"\n".join(lines)


def change_encoding(rng: random.Random, data: bytes) -> bytes:
    text = as_text(data) + rng.choice(("", "\xe9", "\u4e2d"))
    encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "gbk", "utf-7"))
    return text.encode(encoding, "replace")


TEXT = (insert_foreign, insert_foreign, replace_number, replace_number, replace_word, replace_word,
        insert_long, change_lines, change_encoding)

# ---- JSON ----------------------------------------------------------------------------------------

VALUES = (None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**400, -10**400, 2**63, "",
          " ", "x", "\ud800", "a\0b", "\u2028", "x" * 300, "x" * 5000, "1", "-1", "../../etc/x",
          "/etc/passwd", "a\\b", [], {}, [None], [[]], [1, 2, 3, 4], [1, 2, 3], ["a"], {"a": 1},
          [[1, 2], [3, 4]], {"type": "text"}, [0, 0, 0, 0], [-5, -5, 10**9, 10**9], 1e308, ".",
          "..")


def paths_of(value: object, path: tuple = ()) -> list[tuple]:
    """Where every value of a document stands, its own place first."""
    found = [path]
    items = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ())
    for key, inner in items:
        found += paths_of(inner, (*path, key))
    return found


def value_at(document: object, path: tuple) -> object:
    for key in path:
        document = document[key]
    return document


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Of one document, or of one line of JSON Lines."""
    text = as_text(data)
    lines = text.split("\n")
    try:
        document, place = json.loads(text), -1
    except ValueError:
        place = rng.randrange(len(lines))
        try:
            document = json.loads(lines[place])
        except ValueError:
            return replace_word(rng, data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        document = change_value(rng, document)
    changed = json.dumps(document, ensure_ascii=rng.random() < 0.5,
                         indent=rng.choice((None, None, 1)) if place < 0 else None)
    if place < 0:
        return as_bytes(changed)
    lines[place] = changed
    return as_bytes("\n".join(lines))


def change_value(rng: random.Random, document: object) -> object:
    paths = paths_of(document)
    path = rng.choice(paths)
    value = rng.choice(VALUES)
    kind = rng.randrange(8)
    if kind == 0:                               # another value of the document
        value = json.loads(json.dumps(value_at(document, rng.choice(paths))))
    elif kind == 1:
        value = [value_at(document, path)]
    elif kind == 2:
        old = value_at(document, path)
        value = str(old) if isinstance(old, int | float) else {"a": old}
    if not path:
        return value
    outer, key = value_at(document, path[:-1]), path[-1]
    if kind == 3:
        del outer[key]
    elif kind == 4 and isinstance(outer, dict):
        outer[rng.choice((f"{key}s", "", str(key).upper(), "x" * 300, "\ud800"))] = outer.pop(key)
    elif kind == 5 and isinstance(outer, list):
        outer.insert(key, value)
    else:
        outer[key] = value
    return document


# ---- PNG -----------------------------------------------------------------------------------------

PNG_NAMES = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"iCCP", b"zTXt", b"iTXt",
             b"tEXt", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"sRGB", b"pHYs", b"abcd")


def png_chunk(name: bytes, content: bytes) -> bytes:
    return (struct.pack(">I", len(content)) + name + content
            + struct.pack(">I", zlib.crc32(name + content)))


def change_png(rng: random.Random, data: bytes) -> bytes:
    """Chunks changed, with checksums that are right again."""
    chunks, place = [], 8
    while place + 8 <= len(data):
        length = int.from_bytes(data[place:place + 4], "big")
        chunks.append((data[place + 4:place + 8], data[place + 8:place + 8 + length]))
        place += 12 + length
    if not chunks:
        return flip_bits(rng, data)
    number, kind = rng.randrange(len(chunks)), rng.randrange(8)
    name, content = chunks[number]
    if kind == 0:
        del chunks[number]
    elif kind == 1:
        chunks[number:number] = [chunks[number]] * rng.choice((1, 2, 1000))
    elif kind == 2:
        rng.shuffle(chunks)
    elif kind == 3:
        chunks[number] = (rng.choice(PNG_NAMES), content)
    elif kind == 4:                             # a text or profile that unpacks to a lot
        packed = zlib.compress(bytes(rng.choice((10**3, 10**7))))
        head = {b"iTXt": b"a\0\1\0\0\0"}.get(extra := rng.choice(PNG_NAMES), b"a\0\0")
        chunks.insert(rng.choice((1, len(chunks) - 1)), (extra, head + packed))
    elif kind == 5:                             # the size, and as many pixels or not
        sides = [rng.choice((0, 1, 53, 5000, 20000, 40000, 2**31 - 1)) for _ in "wh"]
        chunks[0] = (b"IHDR", struct.pack(">II", *sides) + chunks[0][1][8:])
    elif kind == 6 and chunks[0][0] == b"IHDR":
        more = bytes([rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0,
                      rng.randrange(2)])
        chunks[0] = (b"IHDR", chunks[0][1][:8] + more)
    else:
        chunks[number] = (name, rng.choice(BYTES)(rng, content))
    return data[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


# ---- TIFF ----------------------------------------------------------------------------------------

TIFF_TAGS = (254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322,
             323, 324, 325, 330, 338, 339, 347, 530, 532, 33432, 34377, 34665, 34675, 42113)


def change_tiff(rng: random.Random, data: bytes) -> bytes:
    """Fields of one tag's entry, or where a list of tags goes on."""
    result = bytearray(data)
    order, big = ("<" if data[:1] == b"I" else ">"), data[2:4].strip(b"\0") == b"+"
    size, code = (8, "Q") if big else (4, "I")
    start, = struct.unpack_from(order + code, data, 8 if big else 4)
    count, = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    first = start + (8 if big else 2)
    length = 4 + 2 * size
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry = first + length * rng.randrange(min(count, 100) + 1)
        field = rng.randrange(5)
        if entry == first + length * count:                 # where the next page is
            struct.pack_into(order + code, result, entry, rng.choice((start, 0, 8, 2**32 - 1)))
        elif field == 0:
            struct.pack_into(order + "H", result, entry, rng.choice(TIFF_TAGS))
        elif field == 1:
            struct.pack_into(order + "H", result, entry + 2, rng.randrange(20))
        elif field == 2:
            struct.pack_into(order + code, result, entry + 4,
                             rng.choice(EXTREMES) % 2**(8 * size))
        else:
            value = rng.choice((*EXTREMES, 5, 6, 32773, 34712, 50000, rng.randrange(len(data))))
            kind = "H" if rng.random() < 0.5 else code
            value %= 2**16 if kind == "H" else 2**(8 * size)
            struct.pack_into(order + kind, result, entry + 4 + size, value)
    return bytes(result)


# ---- JPEG ----------------------------------------------------------------------------------------

def change_jpeg(rng: random.Random, data: bytes) -> bytes:
    """Whole segments, their lengths, the size of the picture, more scans."""
    places, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xff:
        end = place + 2 + int.from_bytes(data[place + 2:place + 4], "big")
        places.append((place, end))
        if data[place + 1] == 0xda:
            break
        place = end
    if not places:
        return flip_bits(rng, data)
    start, end = rng.choice(places)
    kind = rng.randrange(7)
    if kind == 0:
        return data[:start] + data[end:]
    if kind == 1:
        return data[:end] + data[start:end] * rng.choice((1, 3, 500)) + data[end:]
    if kind == 2:
        return data[:start + 2] + struct.pack(">H", rng.choice(EXTREMES) % 65536) + data[start + 4:]
    if kind == 3:
        return data[:start + 1] + bytes([rng.randrange(256)]) + data[start + 2:]
    if kind == 4:                               # the size
        frames = [s for s, _ in places if data[s + 1] in (0xc0, 0xc1, 0xc2)]
        if frames:
            sides = [rng.choice((0, 1, 37, 5000, 20000, 65535)) for _ in "hw"]
            return data[:frames[0] + 5] + struct.pack(">HH", *sides) + data[frames[0] + 9:]
    if kind == 5:                               # the scans again and again
        scans = data[places[-1][0]:-2]
        return data[:-2] + scans * min(200, 2**18 // max(1, len(scans))) + data[-2:]
    inner = rng.choice(BYTES)(rng, data[start + 4:end])[:65000]
    return data[:start + 2] + struct.pack(">H", len(inner) + 2) + inner + data[end:]


# ---- GIF, WebP, BMP, JPEG 2000 -------------------------------------------------------------------

SIDES = (0, 1, 20, 3000, 8000, 16383, 22300, 65535)


def change_gif(rng: random.Random, data: bytes) -> bytes:
    """The canvas, a frame's box, or one frame many times."""
    result = bytearray(data)
    frames = [match.start() for match in re.finditer(rb"\x2c....[\0-\x7f].[\0-\x7f].", data, re.S)]
    kind = rng.randrange(4)
    if kind == 0 and len(data) > 10:
        struct.pack_into("<HH", result, 6, rng.choice(SIDES), rng.choice(SIDES))
    elif kind == 1 and frames:
        at = rng.choice(frames)
        struct.pack_into("<HHHH", result, at + 1, *(rng.choice(SIDES) for _ in range(4)))
    elif kind == 2 and frames:
        at = rng.choice(frames)
        return data[:-1] + data[at:-1] * min(5000, 2**19 // max(1, len(data) - at)) + data[-1:]
    else:
        return rng.choice(BYTES)(rng, data)
    return bytes(result)


def change_webp(rng: random.Random, data: bytes) -> bytes:
    """A chunk's length or content, the canvas, one chunk many times."""
    chunks = [match.start() for match in re.finditer(rb"VP8[ LX]|ANIM|ANMF|ALPH|EXIF|ICCP", data)]
    if not chunks:
        return flip_bits(rng, data)
    result, at = bytearray(data), rng.choice(chunks)
    kind = rng.randrange(4)
    if kind == 0:
        result[at + 4:at + 8] = struct.pack("<I", rng.choice(EXTREMES) % 2**32)
    elif kind == 1:
        result[at:at + 4] = rng.choice((b"VP8 ", b"VP8L", b"VP8X", b"ANMF", b"EXIF", b"ABCD"))
    elif kind == 2:                             # sizes of 24 bits
        field = at + 8 + rng.choice((4, 7, 0, 3, 6, 9))
        result[field:field + 3] = (rng.choice(SIDES) or 1).to_bytes(3, "little")
    else:
        end = at + 8 + int.from_bytes(data[at + 4:at + 8], "little")
        block = data[at:end]
        result = bytearray(data[:end] + block * min(3000, 2**19 // max(1, len(block))) + data[end:])
    result[4:8] = struct.pack("<I", len(result) - 8)
    return bytes(result)


def change_bmp(rng: random.Random, data: bytes) -> bytes:
    """A number of its two headers."""
    result = bytearray(data)
    field, code = rng.choice(((2, "I"), (10, "I"), (14, "I"), (18, "i"), (22, "i"), (26, "H"),
                              (28, "H"), (30, "I"), (34, "I"), (46, "I")))
    if field + 4 > len(data):
        return flip_bits(rng, data)
    value = rng.choice((*EXTREMES[:21], 24, 32, 20000, 30000))
    limit = {"I": 2**32, "i": 2**31, "H": 2**16}[code]
    struct.pack_into("<" + code, result, field, value % limit * (
        rng.choice((1, -1)) if code == "i" else 1))
    return bytes(result)


def change_jp2(rng: random.Random, data: bytes) -> bytes:
    """A number of SIZ (sizes, tiles, components) or of COD (levels, code blocks)."""
    result = bytearray(data)
    siz, cod = data.find(b"\xff\x51"), data.find(b"\xff\x52")
    if siz < 0 or siz + 40 > len(data):
        return flip_bits(rng, data)
    if cod > 0 and rng.random() < 0.3:
        result[cod + rng.randrange(4, 14)] = rng.randrange(256)
        return bytes(result)
    field = siz + rng.choice((6, 10, 14, 18, 22, 26, 30, 34))
    struct.pack_into(">I", result, field, rng.choice((*EXTREMES[:20], 20, 3000, 20000)) % 2**32)
    return bytes(result)


# ---- zip files of torch.save, safetensors --------------------------------------------------------

def change_zip(rng: random.Random, data: bytes) -> bytes:
    """One entry's content, name or compression; checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        entries = [(name, file.read(name)) for name in file.namelist()]
    number, kind = rng.randrange(len(entries)), rng.randrange(6)
    if rng.random() < 0.5:                      # the pickle is what matters most
        number = next((i for i, (name, _) in enumerate(entries) if name.endswith(".pkl")), number)
    name, content = entries[number]
    if kind == 0:
        del entries[number]
    elif kind == 1:
        entries.append((name + "x", content))
    elif kind == 2:
        entries[number] = ("/".join(["a", *name.split("/")[1:]]), content)
    elif kind > 2:
        entries[number] = (name, rng.choice(BYTES)(rng, content))
    result = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED
    with zipfile.ZipFile(result, "w", packing) as file:
        for name, content in entries:
            file.writestr(name, content)
    return result.getvalue()


def change_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The header, its length put right."""
    length = int.from_bytes(data[:8], "little")
    header = data[8:8 + length]
    change = rng.choice((change_json, change_json, change_json, replace_number, replace_word))
    header = change(rng, header)
    return struct.pack("<Q", len(header)) + header + data[8 + length:]


# ---- choice --------------------------------------------------------------------------------------

Mutation = Callable[[random.Random, bytes], bytes]

OF_FORMAT: dict[str, tuple[Mutation, ...]] = {
    "json": (change_json,) * 3, "png": (change_png,), "tiff": (change_tiff,),
    "jpeg": (change_jpeg,), "gif": (change_gif,), "webp": (change_webp,), "bmp": (change_bmp,),
    "jp2": (change_jp2,), "zip": (change_zip,), "safetensors": (change_safetensors,), "text": (),
    "bytes": (),
}
TEXT_FORMATS = ("json", "text")


def mutate(rng: random.Random, data: bytes, kind: str) -> bytes:
    """kind: of OF_FORMAT. One mutation, sometimes several after each other."""
    general = TEXT if kind in TEXT_FORMATS else BYTES
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        pool = OF_FORMAT[kind] if OF_FORMAT[kind] and rng.random() < 0.5 else general
        if kind in TEXT_FORMATS and rng.random() < 0.15:
            pool = BYTES
        try:
            data = rng.choice(pool)(rng, data)
        except Exception:                       # damaged so far that its structure is gone
            data = flip_bits(rng, data)
        if len(data) > 2**23:
            data = data[:2**23]
    return data
