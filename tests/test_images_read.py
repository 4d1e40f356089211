"""Pictures as satellites deliver them: 8-bit RGB with the right content, or one clear line."""
import os
import signal
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageOps

import support.images.common as limits
import support.images.read as reading
from pictures import (
    BYTES,
    GRAY16,
    block_means,
    correlation,
    reduce_from_1000_pixels,
    refusal,
    save,
    save_png16,
    save_tiff_with_nodata,
    scene,
    shown,
)
from support.images.clips import check_pixels, read_clip
from support.images.common import PICTURE_SUFFIXES, PictureError
from support.images.ends import count_scans
from support.images.read import (
    map_pictures,
    read_header,
    read_headers,
    read_note,
    read_picture,
)
from support.readers import read_split

# ---- 8 bits --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "two words.png", "wieś-łódź-東京.png"])
def test_an_8_bit_picture_is_shown_bit_for_bit(tmp_path, name):
    path = save(tmp_path / name, BYTES)
    assert (shown(path) == BYTES).all()
    assert read_picture(path).size == (53, 37) and read_picture(path).note == ""


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_compressed_tiff_of_8_bits_is_shown_bit_for_bit(tmp_path, compression):
    Image.fromarray(BYTES).save(tmp_path / "a.tif", compression=compression)
    assert (shown(tmp_path / "a.tif") == BYTES).all()


@pytest.mark.parametrize("width, height", [(400, 50), (50, 400), (1, 4000), (4000, 1), (1, 1)])
def test_strips_are_pictures_too(tmp_path, width, height):
    truth = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert (shown(save(tmp_path / "a.png", truth)) == truth).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_orientation_says(tmp_path, orientation, suffix):
    image = Image.fromarray((scene(48, 32) * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    picture = read_picture(path)
    image.getexif()[274] = orientation
    truth = np.array(ImageOps.exif_transpose(image))
    assert picture.size == picture.image.size == (
        (32, 48) if orientation > 4 else (48, 32))
    assert correlation(np.array(picture.image), truth) > (0.99 if suffix == "jpg" else 0.999999)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_black(tmp_path, mode):
    image = Image.fromarray(BYTES).convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[mode])
    truth = np.array(image.convert("RGB"))
    mask = Image.new("L", image.size, 255)
    mask.paste(0, (0, 0, 20, 37))
    image = image.convert("RGBA" if mode == "PA" else mode)
    image.putalpha(mask)
    image.save(tmp_path / "a.png")
    truth[:, :20] = 0
    assert (shown(tmp_path / "a.png") == truth).all()
    assert read_picture(tmp_path / "a.png").note == "transparent parts are black"


def test_a_tiff_with_declared_alpha_is_put_on_black(tmp_path):
    image = Image.fromarray(BYTES)
    image.putalpha(Image.new("L", image.size, 0))
    image.save(tmp_path / "a.tif")
    assert shown(tmp_path / "a.tif").max() == 0
    assert read_picture(tmp_path / "a.tif").note == "transparent parts are black"


def test_an_opaque_alpha_changes_nothing(tmp_path):
    Image.fromarray(BYTES).convert("RGBA").save(tmp_path / "a.png")
    assert (shown(tmp_path / "a.png") == BYTES).all()
    assert read_picture(tmp_path / "a.png").note == ""


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_keeps_its_colors_and_its_transparent_entry_is_black(tmp_path, suffix):
    image = Image.fromarray(np.tile(np.uint8([[0, 1, 2, 3]]), (4, 1)), "P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 250, 250, 250])
    image.save(tmp_path / f"a.{suffix}", transparency=3)
    row = shown(tmp_path / f"a.{suffix}")[0]
    assert row.tolist() == [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 0]]


@pytest.mark.parametrize("mode, suffix", [
    ("1", "png"), ("1", "tif"), ("L", "png"), ("L", "tif"), ("L", "jpg"), ("CMYK", "tif"),
    ("CMYK", "jpg"), ("P", "tif"), ("YCbCr", "tif")])
def test_a_picture_of_any_mode_becomes_rgb(tmp_path, mode, suffix):
    image = Image.fromarray(BYTES).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    assert correlation(shown(tmp_path / f"a.{suffix}"), np.array(image.convert("RGB"))) > 0.99


# ---- more than 8 bits, with Pillow alone ---------------------------------------------------------

@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_16_bit_gray_picture_is_neither_white_nor_black(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", GRAY16)
    assert correlation(shown(path), GRAY16) > 0.99
    assert shown(path).min() == 0 and shown(path).max() == 255
    low, high = np.percentile(GRAY16, (2, 98))
    assert read_picture(path).note == (
        f"16-bit gray, stretched from {low:.6g}..{high:.6g} (2nd to 98th percentile)")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_heights_below_zero_are_stretched(tmp_path, dtype):
    truth = ((scene()[..., 0] - 0.5) * 900).astype(dtype)
    assert correlation(shown(save(tmp_path / "a.tif", truth)), truth) > 0.99


def test_what_is_not_a_number_is_black_and_does_not_count(tmp_path):
    truth = (scene()[..., 0] * 30 - 25).astype(np.float32)
    holes = truth.copy()
    holes[:5], holes[5:8], holes[8:10], holes[10] = np.nan, np.inf, -np.inf, -3.4e38
    picture = shown(save(tmp_path / "a.tif", holes))
    assert picture[:11].max() == 0 and correlation(picture[11:], truth[11:]) > 0.99


@pytest.mark.parametrize("dtype, nodata", [(np.float32, "-9999"), (np.int32, "-32768"),
                                           (np.uint16, "65535"), (np.uint16, "0 ")])
def test_declared_no_data_are_black_and_do_not_count(tmp_path, dtype, nodata):
    holes = (scene()[..., 0] * 900 + 100).astype(dtype)
    truth = holes[10:].copy()
    holes[:10] = float(nodata)
    picture = shown(save_tiff_with_nodata(tmp_path / "a.tif", holes, nodata))
    assert picture[:10].max() == 0 and correlation(picture[10:], truth) > 0.99


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_constant_picture_is_middle_gray(tmp_path, dtype):
    assert (shown(save(tmp_path / "a.tif", np.full((9, 9), 4000, dtype))) == 128).all()


def test_a_few_bright_pixels_on_a_constant_ground_are_visible(tmp_path):
    truth = np.full((50, 50), 7, np.uint16)
    truth[20, 20:25] = 4000
    picture = shown(save(tmp_path / "a.tif", truth))
    assert (picture[20, 20:25] == 255).all() and np.median(picture) == 0


def test_a_picture_without_a_value_is_refused(tmp_path):
    assert "no pixel has a value" in refusal(save(tmp_path / "a.tif",
                                                  np.full((5, 5), np.nan, np.float32)))


@pytest.mark.parametrize("bands", [3, 4])
def test_16_bit_colors_of_a_png_keep_all_their_bits(tmp_path, bands):
    truth = (scene(bands=bands) * 200 + 300).astype(np.uint16)      # one high byte, or two
    truth[..., 3:] = 65535
    path = save_png16(tmp_path / "a.png", truth)
    assert correlation(shown(path), truth[..., :3]) > 0.99
    assert read_picture(path).note.startswith("16-bit colors, each band stretched on its own")


def test_16_bit_gray_with_transparency_is_refused(tmp_path):
    path = save_png16(tmp_path / "a.png", (scene(bands=2) * 4000).astype(np.uint16))
    assert "save it without" in refusal(path)


def test_a_jpeg_2000_of_over_8_bits_in_color_is_refused_rather_than_dark(tmp_path):
    path = tmp_path / "a.jp2"
    Image.fromarray(BYTES).save(path)
    assert correlation(shown(path), BYTES) > 0.99
    data = bytearray(path.read_bytes())
    depth = data.index(b"\xff\x4f\xff\x51") + 42
    assert data[depth] == 7
    data[depth] = 15                            # 16 bits
    path.write_bytes(data)
    assert "JPEG 2000" in refusal(path)


# ---- bands ---------------------------------------------------------------------------------------

def test_two_bands_cannot_be_asked_for(tmp_path):
    assert "--bands takes one number or three" in refusal(save(tmp_path / "a.png", BYTES),
                                                         bands=(1, 2))


def test_bands_of_an_8_bit_picture_can_be_chosen_too(tmp_path):
    path = save(tmp_path / "a.png", BYTES)
    assert (shown(path, bands=(3, 2, 1)) == BYTES[..., ::-1]).all()
    assert (shown(path, bands=(2,)) == BYTES[..., 1:2]).all()
    assert "it has 3" in refusal(path, bands=(4, 1, 2))


# ---- broken files --------------------------------------------------------------------------------

BROKEN = {
    "empty.png": (b"", "not a picture (the file is empty)"),
    "page.jpg": (b"\n<!DOCTYPE html><html>gone</html>", "a web page: the download failed"),
    "pointer.tif": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "text.png": (b"hello, this is a text", "not a picture (unknown format"),
    "head.png": (b"\x89PNG\r\n\x1a\n", "is the file complete?"),
    "head.tif": (b"II*\0\xff\xff\0\0", "is the file complete?"),
    "big.tif": (b"II+\0", "is the file complete?"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_picture_is_named_with_the_reason(tmp_path, name):
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert reason in refusal(tmp_path / name)


def test_a_missing_picture_and_a_folder_are_named(tmp_path):
    assert "no such picture" in refusal(tmp_path / "gone.png")
    assert "no such picture" in refusal(save(tmp_path / "a.png", BYTES) / "b.png")
    assert "not a picture (a folder)" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.jpg", {}), ("a.webp", {"lossless": True}), ("a.tif", {}),
    ("a.tif", {"compression": "tiff_adobe_deflate"}), ("a.tif", {"compression": "tiff_lzw"})])
def test_a_truncated_picture_is_named(tmp_path, name, options, kept):
    truth = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(truth).save(tmp_path / name, **options)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:int(len(data) * kept)])
    assert "is the file complete?" in refusal(tmp_path / name)


# ---- large pictures ------------------------------------------------------------------------------

def test_pillows_own_limit_is_what_it_was(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    read_picture(save(tmp_path / "a.png", BYTES))
    refusal(tmp_path / "gone.png")
    assert Image.MAX_IMAGE_PIXELS == before


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_a_picture_over_the_limit_is_refused_with_its_size(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(limits, "MAX_PIXELS", 1000)
    assert "0 million pixels, at most" in refusal(save(tmp_path / f"a.{suffix}", BYTES))


def test_the_limit_is_500_million_pixels(tmp_path):
    path = tmp_path / "a.png"
    save(path, BYTES)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 30000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    assert "600 million pixels, at most 500" in refusal(path)


@pytest.mark.parametrize("min_side, side", [(0, 800), (100, 100), (101, 200), (300, 400),
                                            (900, 800)])
def test_a_jpeg_may_be_decoded_smaller(tmp_path, min_side, side):
    truth = (scene(1600, 800) * 255).astype(np.uint8)
    Image.fromarray(truth).save(tmp_path / "a.jpg", quality=95)
    picture = read_picture(tmp_path / "a.jpg", min_side=min_side)
    assert picture.image.size == (2 * side, side) and picture.size == (1600, 800)
    assert correlation(np.array(picture.image), block_means(truth, 800 // side)) > 0.99


@pytest.fixture
def small_is_large(monkeypatch):
    reduce_from_1000_pixels(monkeypatch)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.bmp"])
def test_a_large_picture_is_reduced_by_means(tmp_path, name):
    path = save(tmp_path / name, BYTES)
    picture = read_picture(path)
    assert picture.size == (53, 37)
    factor = int(picture.note.split()[1])
    assert picture.note == f"reduced {factor} times while reading" and factor in (3, 4)
    assert max(picture.image.size) <= 20
    limit = 12 if name.endswith("jpg") else 1
    difference = np.abs(np.array(picture.image) - block_means(BYTES, factor))
    assert difference.mean() <= limit


@pytest.mark.usefixtures("small_is_large")
def test_a_large_palette_picture_is_subsampled_not_averaged(tmp_path):
    image = Image.fromarray(BYTES).quantize(16)
    image.save(tmp_path / "a.png")
    colors = {tuple(color) for color in np.array(image.convert("RGB")).reshape(-1, 3)}
    assert {tuple(color) for color in shown(tmp_path / "a.png").reshape(-1, 3)} <= colors


# ---- headers -------------------------------------------------------------------------------------

@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_header_gives_the_sides_as_they_are_shown(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (80, 40)).save(tmp_path / "a.jpg", exif=exif)
    header = read_header(str(tmp_path / "a.jpg"))
    assert header == (*((40, 80) if orientation > 4 else (80, 40)), "")
    assert header[:2] == read_picture(tmp_path / "a.jpg").size


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif"])
def test_a_header_shows_that_a_file_is_cut_off(tmp_path, name):
    path = save(tmp_path / name, BYTES)
    assert read_header(str(path)) == (53, 37, "")
    path.write_bytes(path.read_bytes()[:-100])
    assert read_header(str(path)) == (53, 37, f"{path}: cut off at its end")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "jp2"])
def test_a_header_tells_of_a_missing_end_if_and_only_if_it_cannot_be_shown(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", BYTES)
    data = path.read_bytes()
    for missing in range(1, 41):
        path.write_bytes(data[:-missing])
        try:
            read_picture(path)
        except PictureError:
            assert read_header(str(path)).fault, missing
        else:
            assert read_header(str(path)) == (53, 37, ""), missing


def test_the_header_of_a_clip_shows_only_whether_it_is_there(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert read_header(str(tmp_path)) == read_header(str(tmp_path / "a.mp4")) == (0, 0, "")
    assert read_header(str(tmp_path / "b.mp4")).fault == f"{tmp_path / 'b.mp4'}: no such video"


def test_many_headers_are_read_by_several_processes_with_the_same_result(tmp_path):
    save(tmp_path / "a.png", BYTES)
    paths = [str(tmp_path / "a.png")] + [str(tmp_path / f"{i}.png") for i in range(600)]
    found = read_headers(paths)
    assert found[paths[0]] == (53, 37, "") and "no such picture" in found[paths[-1]].fault
    assert list(found) == paths


# ---- suffixes ------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_data_sets_and_clips_find_the_same_kinds_of_pictures(tmp_path, suffix):
    for name in ("harbor", "forest"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / f"{name}_1{suffix}", BYTES)
    paths = {str(tmp_path / name / f"{name}_1{suffix}") for name in ("harbor", "forest")}
    single, _, _ = read_split(tmp_path, "train")
    assert {path for sample in single for path in sample.images} == paths
    assert correlation(shown(min(paths)), BYTES) > 0.95
    assert [frame.size for frame in read_clip(tmp_path / "harbor")] == [(53, 37)]


# ---- whole files that look damaged ---------------------------------------------------------------

def with_exif(path, block, truth=BYTES):
    """A picture with this block for its EXIF data, lossless where its format can be."""
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(truth).save(path, exif=block, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("block", [
    b"Exif\0\0garbage" * 9, b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"])
def test_a_picture_with_damaged_exif_is_shown_and_the_note_says_so(tmp_path, suffix, block):
    path = with_exif(tmp_path / f"a.{suffix}", block)
    picture = read_picture(path)
    assert correlation(np.array(picture.image), BYTES) > 0.98
    assert "EXIF data are damaged" in picture.note and picture.size == (53, 37)
    assert read_header(str(path)) == (53, 37, "") and read_note(str(path)) == picture.note


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_orientation_that_does_not_exist_is_damaged_exif_too(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 77
    path = with_exif(tmp_path / f"a.{suffix}", exif)
    assert "EXIF data are damaged" in read_picture(path).note
    assert read_header(str(path)) == (53, 37, "") and "EXIF" in read_note(str(path))


def test_a_png_whose_exif_chunk_has_a_wrong_checksum_is_shown(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = with_exif(tmp_path / "a.png", exif)
    data = bytearray(path.read_bytes())
    data[data.index(b"eXIf") + 20] ^= 255
    path.write_bytes(data)
    assert (shown(path) == BYTES).all()
    assert "damaged" in read_picture(path).note and read_header(str(path)) == (53, 37, "")


def chunk(name, data, wrong=0):
    """A PNG's chunk; wrong: what its checksum is changed by."""
    check = zlib.crc32(name + data) ^ wrong
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


DAMAGED_CHUNKS = {
    "length of pHYs": chunk(b"pHYs", b"\0"), "length of gAMA": chunk(b"gAMA", b""),
    "length of cHRM": chunk(b"cHRM", b"1"), "length of sRGB": chunk(b"sRGB", b""),
    "profile": chunk(b"iCCP", b"x\0\7garbage"), "checksum": chunk(b"iCCP", b"x\0\0x", wrong=1),
    "text": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000))),
    "text's checksum": chunk(b"tEXt", b"a\0b", wrong=1), "animation": chunk(b"acTL", b"\0"),
    "frame": chunk(b"fcTL", b"\0\0"), "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0garbage")}


@pytest.mark.parametrize("place", [33, -12])                # behind its size, before its end
@pytest.mark.parametrize("name", DAMAGED_CHUNKS)
def test_a_png_is_shown_whatever_is_damaged_beside_its_pixels(tmp_path, name, place):
    path = save(tmp_path / "a.png", BYTES)
    data = path.read_bytes()
    path.write_bytes(data[:place] + DAMAGED_CHUNKS[name] + data[place:])
    assert (shown(path) == BYTES).all() and read_header(str(path)) == (53, 37, "")
    deep = save_png16(tmp_path / "b.png", (scene() * 60_000).astype(np.uint16))
    truth, data = shown(deep), deep.read_bytes()
    deep.write_bytes(data[:place] + DAMAGED_CHUNKS[name] + data[place:])
    assert (shown(deep) == truth).all()


def segment(marker, content):
    return bytes([255, marker]) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize("damaged", [
    segment(0xe0, b"JFIF\0"), segment(0xee, b"Adobe\0"), segment(0xe1, b"Exif\0\0II*\0\xff"),
    segment(0xe1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta <<<"), segment(0xe2, b"MPF\0garbage"),
    segment(0xe2, b"ICC_PROFILE\0\0\0"), segment(0xe2, b"ICC_PROFILE\0\1\3x"),
    segment(0xed, b"Photoshop 3.0\x008BIM\4\4\xff\xff\xff")], ids=lambda data: str(data[4:12]))
def test_a_jpeg_is_shown_whatever_is_damaged_beside_its_pixels(tmp_path, damaged):
    path = save(tmp_path / "a.jpg", BYTES)
    truth, data = shown(path), path.read_bytes()
    path.write_bytes(data[:2] + damaged + data[2:])
    assert (shown(path) == truth).all() and read_header(str(path)) == (53, 37, "")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_filled_up_behind_where_it_was_cut_off_is_refused(tmp_path, progressive):
    path = tmp_path / "a.jpg"
    Image.fromarray(BYTES).save(path, progressive=progressive)
    data = path.read_bytes()
    path.write_bytes(data[:len(data) * 2 // 3] + bytes(5000))
    assert "cut off" in refusal(path) and "cut off" in read_header(str(path)).fault


def test_the_exif_of_a_png_may_come_behind_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    path = save(tmp_path / "a.png", BYTES)
    data = path.read_bytes()
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block
    path.write_bytes(data[:-12] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + data[-12:])
    assert read_picture(path).size == (37, 53) and read_header(str(path)) == (37, 53, "")


@pytest.mark.parametrize("added", [bytes(512), b"\xff" * 5000, b"ftypmp42 a video" * 5000])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.jp2", "a.tif"])
def test_bytes_behind_the_end_of_a_picture_are_no_fault(tmp_path, name, added):
    path = save(tmp_path / name, BYTES)
    truth = shown(path)
    path.write_bytes(path.read_bytes() + added)
    assert (shown(path) == truth).all() and read_header(str(path)) == (53, 37, "")


@pytest.mark.parametrize("kept", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("name, options", [
    ("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.png", {}), ("a.gif", {}), ("a.webp", {}),
    ("a.bmp", {}), ("a.jp2", {}), ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"})])
def test_a_header_shows_every_kind_of_cut_off_file(tmp_path, name, options, kept):
    truth = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(truth).save(path, **options)
    assert read_header(str(path)) == (70, 90, "")
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * kept)])
    assert "cut off" in read_header(str(path)).fault or "complete?" in read_header(str(path)).fault


@pytest.mark.parametrize("suffix", ["JPG", "Png", "TIFF"])
def test_a_suffix_may_be_in_capitals(tmp_path, suffix):
    save(tmp_path / f"a.{suffix}", BYTES)
    assert [frame.size for frame in read_clip(tmp_path)] == [(53, 37)]


# ---- hostile files -------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.gif", "a.mp4"])
def test_what_is_no_regular_file_is_never_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "a FIFO, not a file" in read_header(str(tmp_path / name)).fault
    with pytest.raises(PictureError, match="a FIFO, not a file"):
        (read_clip if name == "a.mp4" else read_picture)(tmp_path / name)
    assert "a device" in refusal_of("/dev/zero")


def refusal_of(path):
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert message.isprintable() and read_header(path).fault == message
    return message


def test_names_that_no_file_can_have_are_one_line(tmp_path):
    assert "no such picture" in refusal_of(f"{tmp_path}/{'x' * 300}.png")
    assert "no file can have this name" in refusal_of(f"{tmp_path}/a\0.png")
    assert "no file can have this name" in refusal_of(f"{tmp_path}/a\ud800.png")
    assert "no such picture" in refusal_of(f"{tmp_path}/a\nb.png")
    assert len(refusal_of(f"{tmp_path}/{'x' * 100_000}.png")) < 1200


@pytest.mark.parametrize("content", [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n",
    b"P6\n2 1\n255\nabcdef", b"\0\0\1\0\1\0\1\1\0\0\1\0\x20\0"])
def test_only_the_formats_that_the_docs_name_are_opened(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert "unknown format" in refusal(tmp_path / "a.png")


def test_a_picture_that_takes_too_much_to_decode_is_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_DECODED_BYTES", 53 * 37 * 4)
    read_picture(save(tmp_path / "a.png", BYTES))
    for name, options in (("a.webp", {}), ("a.jp2", {}), ("a.jpg", {"progressive": True})):
        Image.fromarray(BYTES).save(tmp_path / name, **options)
        assert "GB to decode" in refusal(tmp_path / name)
        assert "GB to decode" in read_header(str(tmp_path / name)).fault


def many_scans(path, count):
    Image.fromarray(BYTES[:20, :20]).save(path, progressive=True)
    data = path.read_bytes()
    scan = data[data.rfind(b"\xff\xda"):-2]
    path.write_bytes(data[:-2] + count * scan + data[-2:])


def many_chunks(path, count, name=b"abcd"):
    data = save(path, BYTES[:20, :20]).read_bytes()
    chunk = bytes(4) + name + struct.pack(">I", zlib.crc32(name))
    path.write_bytes(data[:33] + count * chunk + data[33:])


@pytest.mark.parametrize("suffix, make, few, many", [
    (".jpg", many_scans, 60, 4000), (".jpeg", many_scans, 0, 9000),
    (".png", many_chunks, 50, 21_000),
    (".png", partial(many_chunks, name=b"IDAT"), 0, 21_000)])
def test_what_takes_a_time_out_of_all_proportion_is_refused(tmp_path, monkeypatch, suffix, make,
                                                            few, many):
    monkeypatch.setattr(reading, "MAX_SCANNED_PIXELS", 500 * 400)       # of this small picture
    path = tmp_path / f"a{suffix}"
    make(path, few)
    assert read_header(str(path)).fault == "" and read_picture(path).size == (20, 20)
    make(path, many)
    message = refusal(path)
    assert "; save it anew" in message and read_header(str(path)).fault == message


def test_the_scans_of_a_jpeg_are_counted(tmp_path):
    for count, options in ((1, {}), (10, {"progressive": True})):
        path = tmp_path / "a.jpg"
        Image.fromarray(BYTES).save(path, quality=100, **options)
        with open(path, "rb") as file:
            assert count_scans(file, 100) == count


def end_this_process(path):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_the_check_in_one_line():
    with pytest.raises(PictureError, match="^0.png: a process that reads this picture"):
        map_pictures(end_this_process, [f"{i}.png" for i in range(600)])


# ---- every pixel ---------------------------------------------------------------------------------

def test_a_deep_check_finds_what_no_header_shows(tmp_path):
    good, nan = save(tmp_path / "a.png", BYTES), np.full((5, 5), np.nan, np.float32)
    damaged = save(tmp_path / "b.png", BYTES)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2:len(data) // 2 + 40] = bytes(40)
    damaged.write_bytes(data)
    empty = save(tmp_path / "c.tif", nan)
    assert [read_header(str(path)).fault for path in (good, damaged, empty)] == ["", "", ""]
    found = check_pixels([str(good), str(damaged), str(empty), str(good)])
    assert found[str(good)] == "" and "is the file complete?" in found[str(damaged)]
    assert "no pixel has a value" in found[str(empty)] and len(found) == 3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.jp2", "a.tif"])
def test_damaged_bytes_raise_nothing_but_the_one_line(tmp_path, name, seed):
    rng = np.random.default_rng(seed)
    whole = save(tmp_path / name, BYTES[:20, :20]).read_bytes()
    for _ in range(40):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, min(300, len(data)), 3)] = rng.integers(0, 256, 3)
        (tmp_path / name).write_bytes(data.tobytes()[:rng.integers(1, 2 * len(data))])
        header = read_header(str(tmp_path / name))
        try:
            picture = read_picture(tmp_path / name)
            assert header.fault or header[:2] == picture.size
        except PictureError as error:
            assert "\n" not in str(error)
