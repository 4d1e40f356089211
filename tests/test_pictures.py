"""Pictures as satellites deliver them: 8-bit RGB with the right content, or one clear line."""
import importlib.util
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

import support.images.clips as clips
import support.images.common as limits
import support.images.read as reading
import support.images.tiff as segments
import tiny
from support.images.clips import is_clip, read_clip
from support.images.common import PictureError
from support.images.read import read_picture

TIFFFILE = importlib.util.find_spec("tifffile") is not None
needs_tifffile = pytest.mark.skipif(not TIFFFILE, reason="tifffile is optional")


def scene(width=53, height=37, bands=3):
    """float[H, W, bands] in 0 .. 1: every band another field of waves."""
    y, x = np.mgrid[:height, :width]
    fields = [np.sin(x / (7 + b) + b) + np.cos(y / (5 + 2 * b)) for b in range(bands)]
    return np.stack([(f - f.min()) / (f.max() - f.min()) for f in fields], -1)


BYTES = (scene() * 255).astype(np.uint8)
GRAY16 = (scene()[..., 0] * 3800 + 200).astype(np.uint16)


def save(path, array):
    Image.fromarray(array).save(path)
    return path


def tiff(path, array, **options):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, array, **options)
    return path


def shown(path, **options):
    """[H, W, 3] of a picture that is read without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_picture(path, **options)
    assert picture.image.mode == "RGB" and "\n" not in picture.note
    return np.array(picture.image)


def alike(picture, truth):
    """The least correlation of a channel with the truth, of [H, W] or [H, W, 3]."""
    truth = np.broadcast_to(truth[..., None] if truth.ndim == 2 else truth, picture.shape)
    return min(np.corrcoef(picture[..., c].ravel(), truth[..., c].ravel())[0, 1] for c in range(3))


def refusal(path, **options):
    with pytest.raises(PictureError) as caught:
        read_picture(path, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message


def png16(path, array):
    """A 16-bit PNG, by hand, since Pillow writes gray ones only. Every row has another filter."""
    height, width, bands = array.shape
    rows = array.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    step, lines = 2 * bands, b""
    for y, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        up = rows[y - 1] if y else np.zeros_like(row)
        base = [np.zeros_like(row), left, up, (left + up) // 2][y % 4]
        lines += bytes([y % 4]) + ((row - base) % 256).astype(np.uint8).tobytes()
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks))
    return path


def declared(path, array, nodata):
    """A gray TIFF by Pillow with GDAL's no-data value."""
    Image.fromarray(array).save(path, tiffinfo={42113: nodata})
    return path


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
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_orientation_says(tmp_path, turn, suffix):
    image = Image.fromarray((scene(48, 32) * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = turn
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    picture = read_picture(path)
    image.getexif()[274] = turn
    truth = np.array(ImageOps.exif_transpose(image))
    assert picture.size == picture.image.size == ((32, 48) if turn > 4 else (48, 32))
    assert alike(np.array(picture.image), truth) > (0.99 if suffix == "jpg" else 0.999999)


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
    assert alike(shown(tmp_path / f"a.{suffix}"), np.array(image.convert("RGB"))) > 0.99


# ---- more than 8 bits, with Pillow alone ---------------------------------------------------------

@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_16_bit_gray_picture_is_neither_white_nor_black(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", GRAY16)
    assert alike(shown(path), GRAY16) > 0.99
    assert shown(path).min() == 0 and shown(path).max() == 255
    low, high = np.percentile(GRAY16, (2, 98))
    assert read_picture(path).note == (
        f"16-bit gray, stretched from {low:.6g}..{high:.6g} (2nd to 98th percentile)")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_heights_below_zero_are_stretched(tmp_path, dtype):
    truth = ((scene()[..., 0] - 0.5) * 900).astype(dtype)
    assert alike(shown(save(tmp_path / "a.tif", truth)), truth) > 0.99


def test_what_is_not_a_number_is_black_and_does_not_count(tmp_path):
    truth = (scene()[..., 0] * 30 - 25).astype(np.float32)
    holes = truth.copy()
    holes[:5], holes[5:8], holes[8:10], holes[10] = np.nan, np.inf, -np.inf, -3.4e38
    picture = shown(save(tmp_path / "a.tif", holes))
    assert picture[:11].max() == 0 and alike(picture[11:], truth[11:]) > 0.99


@pytest.mark.parametrize("dtype, nodata", [(np.float32, "-9999"), (np.int32, "-32768"),
                                           (np.uint16, "65535"), (np.uint16, "0 ")])
def test_declared_no_data_are_black_and_do_not_count(tmp_path, dtype, nodata):
    holes = (scene()[..., 0] * 900 + 100).astype(dtype)
    truth = holes[10:].copy()
    holes[:10] = float(nodata)
    picture = shown(declared(tmp_path / "a.tif", holes, nodata))
    assert picture[:10].max() == 0 and alike(picture[10:], truth) > 0.99


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_constant_picture_is_middle_gray(tmp_path, dtype):
    assert (shown(save(tmp_path / "a.tif", np.full((9, 9), 4000, dtype))) == 128).all()


def test_a_few_bright_pixels_on_a_constant_ground_are_seen(tmp_path):
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
    path = png16(tmp_path / "a.png", truth)
    assert alike(shown(path), truth[..., :3]) > 0.99
    assert read_picture(path).note.startswith("16-bit colors, each band stretched on its own")


def test_16_bit_gray_with_transparency_is_refused(tmp_path):
    path = png16(tmp_path / "a.png", (scene(bands=2) * 4000).astype(np.uint16))
    assert "save it without" in refusal(path)


def test_gray_white_is_zero_is_inverted(tmp_path):
    path = tiff(tmp_path / "a.tif", GRAY16, photometric="miniswhite")
    assert alike(shown(path), -GRAY16.astype(float)) > 0.99


def test_a_jpeg_2000_of_over_8_bits_in_color_is_refused_rather_than_dark(tmp_path):
    path = tmp_path / "a.jp2"
    Image.fromarray(BYTES).save(path)
    assert alike(shown(path), BYTES) > 0.99
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\x4f\xff\x51") + 42
    assert data[at] == 7
    data[at] = 15                               # 16 bits
    path.write_bytes(data)
    assert "JPEG 2000" in refusal(path)


# ---- TIFFs that need tifffile --------------------------------------------------------------------

LAYOUTS = [{}, {"tile": (16, 16)}, {"compression": "zlib"}, {"rowsperstrip": 5},
           {"tile": (16, 32), "compression": "zlib", "predictor": True}, {"bigtiff": True},
           {"byteorder": ">", "compression": "zlib"}]


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_16_bit_colors_are_right_in_every_layout(tmp_path, options, planar):
    truth = (scene() * [3000, 1200, 500] + [200, 300, 400]).astype(np.uint16)
    stored = truth if planar == "contig" else np.moveaxis(truth, -1, 0)
    path = tiff(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, **options)
    assert alike(shown(path), truth) > 0.99
    assert shown(path).reshape(-1, 3).max(0).tolist() == [255] * 3
    assert read_picture(path).note.startswith("16-bit colors, each band stretched on its own")


@pytest.mark.parametrize("dtype", "u1 i1 u2 i2 u4 i4 f2 f4 f8 c8".split())
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("options", LAYOUTS[:3], ids=str)
def test_numbers_of_every_kind_are_read_in_both_byte_orders(tmp_path, dtype, order, options):
    truth = (scene()[..., 0] * 100 - 20 * (dtype[0] in "if") + 20).astype(dtype)
    path = tiff(tmp_path / "a.tif", truth, byteorder=order, photometric="minisblack", **options)
    assert alike(shown(path), np.abs(truth) if dtype == "c8" else truth) > 0.99


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("bands", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_the_bands_that_are_asked_for_are_shown(tmp_path, dtype, bands, planar):
    truth = (scene(bands=bands) * 250).astype(dtype)
    stored = truth if planar == "contig" else np.moveaxis(truth, -1, 0)
    path = tiff(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar)
    three = (bands, 1, 2)
    assert alike(shown(path, bands=three), truth[..., [b - 1 for b in three]]) > 0.99
    assert alike(shown(path, bands=(2,)), truth[..., 1]) > 0.99
    assert f"--bands asks for band {bands + 1}; it has {bands}" in refusal(path, bands=(bands + 1,))


@needs_tifffile
@pytest.mark.parametrize("bands, note", [(2, "band 1 of 2 shown"), (3, ""),
                                         (4, "bands 1, 2, 3 of 4 shown")])
@pytest.mark.parametrize("colors", ["rgb", "minisblack"])
def test_of_8_bit_bands_the_first_are_shown_bit_for_bit(tmp_path, bands, note, colors):
    if bands == 2 and colors == "rgb":
        pytest.skip("no such TIFF")
    truth = (scene(bands=bands) * 255).astype(np.uint8)
    extra = {"extrasamples": [0]} if bands == 4 and colors == "rgb" else {}
    path = tiff(tmp_path / "a.tif", truth, photometric=colors, planarconfig="contig", **extra)
    assert (shown(path) == truth[..., :3 if bands > 2 else 1]).all()
    assert read_picture(path).note == note


@pytest.mark.parametrize("dtype, kind", [(np.uint16, "16-bit"), (np.float32, "32-bit float")])
def test_of_many_bands_the_user_must_choose(tmp_path, dtype, kind):
    path = tiff(tmp_path / "a.tif", np.zeros((13, 9, 9), dtype), photometric="minisblack",
                planarconfig="separate")
    message = refusal(path)
    assert f"13 bands of {kind}" in message and "--bands 4,3,2" in message


def test_two_bands_cannot_be_asked_for(tmp_path):
    assert "--bands takes one number or three" in refusal(save(tmp_path / "a.png", BYTES),
                                                         bands=(1, 2))


def test_bands_of_an_ordinary_picture_are_chosen_too(tmp_path):
    path = save(tmp_path / "a.png", BYTES)
    assert (shown(path, bands=(3, 2, 1)) == BYTES[..., ::-1]).all()
    assert (shown(path, bands=(2,)) == BYTES[..., 1:2]).all()
    assert "it has 3" in refusal(path, bands=(4, 1, 2))


def test_16_bit_transparency_is_left_out(tmp_path):
    truth = (scene(bands=4) * 3000 + 100).astype(np.uint16)
    truth[:10, :, 3], truth[10:, :, 3] = 0, 65535
    truth[:10, :, :3] = 60000
    path = tiff(tmp_path / "a.tif", truth, photometric="rgb", extrasamples=["unassalpha"])
    assert shown(path)[:10].max() == 0 and alike(shown(path)[10:], truth[10:, :, :3]) > 0.99
    assert read_picture(path).note.startswith("transparent parts are black; 16-bit colors")


def test_int16_heights_with_no_data(tmp_path):
    truth = (scene()[..., 0] * 3000 - 200).astype(np.int16)
    truth[:10] = -32768
    tag = [(42113, "s", 0, "-32768", True)]
    for order in "<>":
        path = tiff(tmp_path / "a.tif", truth, extratags=tag, byteorder=order, compression="zlib")
        assert shown(path)[:10].max() == 0 and alike(shown(path)[10:], truth[10:]) > 0.99
        assert read_picture(path).note.startswith("16-bit signed gray")


@pytest.mark.parametrize("nodata", ["-1", "nan", "0", "7"])
def test_the_tiles_that_a_sparse_file_leaves_out_are_no_data(tmp_path, nodata):
    truth = (scene(64, 32) * 3000 + 100).astype(np.uint16)
    path = tiff(tmp_path / "a.tif", truth, tile=(32, 32), photometric="rgb",
                extratags=[(42113, "s", 0, nodata, True)])
    import tifffile
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[0].tags
        tags[324].overwrite((0, tags[324].value[1]))            # where the tiles begin
        tags[325].overwrite((0, tags[325].value[1]))            # how long they are
    picture = shown(path)
    assert picture[:, :32].max() == 0 and alike(picture[:, 32:], truth[:, 32:]) > 0.98


@pytest.mark.parametrize("turn", [3, 6])
def test_a_deep_tiff_is_turned_as_its_orientation_says(tmp_path, turn):
    truth = (scene() * 3000).astype(np.uint16)
    path = tiff(tmp_path / "a.tif", truth, photometric="rgb", extratags=[(274, "H", 1, turn, True)])
    turned = np.rot90(truth, {3: 2, 6: -1}[turn])
    assert alike(shown(path), turned) > 0.99
    assert read_picture(path).size == turned.shape[1::-1]


def hide(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)        # import raises ImportError


def by_hand(path, array):
    """A chunky little-endian TIFF of uint16[H, W, C] without a package: header, pixels, tags."""
    height, width, bands = array.shape
    pixels = array.astype("<u2").tobytes()
    bits = 8 + len(pixels)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, bits), (259, 3, 1, 1),
            (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, bands), (279, 4, 1, len(pixels))]
    path.write_bytes(struct.pack("<2sHI", b"II", 42, bits + 2 * bands) + pixels
                     + struct.pack(f"<{bands}H", *[16] * bands) + struct.pack("<H", len(tags))
                     + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4))
    return path


def test_without_tifffile_16_bit_colors_name_it_and_are_never_black(tmp_path, monkeypatch):
    path = by_hand(tmp_path / "a.tif", (scene() * 4000).astype(np.uint16))
    with Image.open(path) as image:
        assert np.array(image).max() < 20               # what Pillow would show
    if TIFFFILE:
        assert alike(shown(path), scene()) > 0.99
    hide(monkeypatch, "tifffile")
    assert "pip install tifffile" in refusal(path)


def test_without_tifffile_many_bands_are_still_counted(tmp_path, monkeypatch):
    hide(monkeypatch, "tifffile")
    path = by_hand(tmp_path / "a.tif", (scene(bands=6) * 4000).astype(np.uint16))
    assert "6 bands of 16-bit" in refusal(path)
    assert "pip install tifffile" in refusal(path, bands=(4, 3, 2))


@needs_tifffile
def test_a_missing_decoder_names_imagecodecs(tmp_path, monkeypatch):
    path = by_hand(tmp_path / "a.tif", (scene() * 4000).astype(np.uint16))

    def gather(*_):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(segments, "gather_segments", gather)
    assert "pip install imagecodecs" in refusal(path)


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


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.jpg", {}), ("a.webp", {"lossless": True}), ("a.tif", {}),
    ("a.tif", {"compression": "tiff_adobe_deflate"}), ("a.tif", {"compression": "tiff_lzw"})])
def test_a_truncated_picture_is_named(tmp_path, name, options, part):
    truth = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(truth).save(tmp_path / name, **options)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:int(len(data) * part)])
    assert "is the file complete?" in refusal(tmp_path / name)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.95])
@pytest.mark.parametrize("options", LAYOUTS[:4], ids=str)
def test_a_truncated_deep_tiff_is_named(tmp_path, options, part):
    truth = np.random.default_rng(0).integers(0, 9999, (90, 70, 3), dtype=np.uint16)
    path = tiff(tmp_path / "a.tif", truth, photometric="rgb", **options)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * part)])
    assert "is the file complete?" in refusal(path)


# ---- large pictures ------------------------------------------------------------------------------

def test_pillows_own_limit_is_what_it_was(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    read_picture(save(tmp_path / "a.png", BYTES))
    refusal(tmp_path / "gone.png")
    assert Image.MAX_IMAGE_PIXELS == before


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_a_picture_over_the_limit_is_refused_with_its_size(tmp_path, monkeypatch, suffix):
    for module in (limits, reading):
        monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    assert "0 million pixels, at most" in refusal(save(tmp_path / f"a.{suffix}", BYTES))


def test_the_limit_is_500_million_pixels(tmp_path):
    path = tmp_path / "a.png"
    save(path, BYTES)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 30000, 20000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    assert "600 million pixels, at most 500" in refusal(path)


@pytest.mark.parametrize("near, side", [(0, 800), (100, 100), (101, 200), (300, 400), (900, 800)])
def test_a_jpeg_may_be_decoded_smaller(tmp_path, near, side):
    truth = (scene(1600, 800) * 255).astype(np.uint8)
    Image.fromarray(truth).save(tmp_path / "a.jpg", quality=95)
    picture = read_picture(tmp_path / "a.jpg", near=near)
    assert picture.image.size == (2 * side, side) and picture.size == (1600, 800)
    assert alike(np.array(picture.image), blocks(truth, 800 // side)) > 0.99


@pytest.fixture
def small_is_large(monkeypatch):
    """Pictures of over 1000 pixels are reduced to at most 20 on a side."""
    monkeypatch.setattr(limits, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(limits, "MAX_SIDE", 20)
    monkeypatch.setattr("support.images.read.MAX_SIDE", 20)


def blocks(truth, factor):
    """Means over squares, those at the right and lower edge smaller."""
    if factor == 1:
        return truth
    height, width = (-(-side // factor) for side in truth.shape[:2])
    rows = [[truth[y * factor:(y + 1) * factor, x * factor:(x + 1) * factor].mean((0, 1))
             for x in range(width)] for y in range(height)]
    return np.array(rows)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.bmp"])
def test_a_large_picture_is_reduced_by_means(tmp_path, name):
    path = save(tmp_path / name, BYTES)
    picture = read_picture(path)
    assert picture.size == (53, 37)
    times = int(picture.note.split()[1])
    assert picture.note == f"reduced {times} times while reading" and times in (3, 4)
    assert max(picture.image.size) <= 20
    limit = 12 if name.endswith("jpg") else 1
    difference = np.abs(np.array(picture.image) - blocks(BYTES, times))
    assert difference.mean() <= limit


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_a_large_deep_tiff_is_reduced_by_means_of_what_has_a_value(tmp_path, options, planar):
    truth = (scene() * 3000 + 100).astype(np.float32)
    stored = truth.copy()
    stored[3, 3] = np.nan                       # one of nine: the block's mean goes on
    stored[9:15, 9:15] = np.nan
    stored = stored if planar == "contig" else np.moveaxis(stored, -1, 0)
    path = tiff(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, **options)
    picture = read_picture(path)
    assert picture.size == (53, 37) and picture.image.size == (18, 13)
    assert picture.note.endswith("reduced 3 times while reading")
    values, small = np.array(picture.image), blocks(truth, 3)
    assert values[3:5, 3:5].max() == 0
    values[3:5, 3:5] = small[3:5, 3:5] = 0
    assert alike(values, small) > 0.98


@pytest.mark.usefixtures("small_is_large")
def test_a_large_palette_is_thinned_not_mixed(tmp_path):
    image = Image.fromarray(BYTES).quantize(16)
    image.save(tmp_path / "a.png")
    colors = {tuple(color) for color in np.array(image.convert("RGB")).reshape(-1, 3)}
    assert {tuple(color) for color in shown(tmp_path / "a.png").reshape(-1, 3)} <= colors


@pytest.mark.usefixtures("small_is_large")
def test_without_tifffile_a_large_tiff_is_reduced_after_decoding(tmp_path, monkeypatch):
    hide(monkeypatch, "tifffile")
    truth = blocks(BYTES, 3)
    assert np.abs(shown(save(tmp_path / "a.tif", BYTES)) - truth).max() <= 1


PEAK = """
import resource, sys
from support.images.read import read_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = read_picture(sys.argv[1])
print(picture.size, picture.image.size, picture.image.getpixel((100, 100)),
      (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_81_million_pixels_are_read_in_bounded_memory(tmp_path):
    truth = np.full((9000, 9000), 77, np.uint8)
    path = tiff(tmp_path / "a.tif", truth, compression="zlib", rowsperstrip=100)
    done = subprocess.run([sys.executable, "-c", PEAK, path], cwd=tiny.ROOT, capture_output=True,
                          text=True, check=True)
    *rest, peak = done.stdout.split()
    assert " ".join(rest) == "(9000, 9000) (4500, 4500) (77, 77, 77)"
    assert int(peak) < 260                      # 4500 x 4500 RGB, 4 bytes a pixel, three times


# ---- clips ---------------------------------------------------------------------------------------

def colors(images):
    return [image.getpixel((5, 5)) for image in images]


FRAMES = [Image.new("RGB", (16, 12), (10 * i, 250 - 10 * i, 5)) for i in range(12)]


def test_a_folder_of_frames_is_in_the_order_of_its_numbers(tmp_path):
    for i, frame in enumerate(FRAMES):
        frame.save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert is_clip(tmp_path)
    assert colors(read_clip(tmp_path, 12)) == colors(read_clip(tmp_path, 99)) \
        == colors(FRAMES)
    assert colors(read_clip(tmp_path, 1)) == colors(FRAMES[6:7])
    assert colors(read_clip(tmp_path, 4)) == colors([FRAMES[i] for i in (1, 4, 7, 10)])


def test_an_empty_folder_and_a_broken_frame_are_named(tmp_path):
    with pytest.raises(PictureError, match="no pictures in this folder"):
        read_clip(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(PictureError, match="a.png: not a picture"):
        read_clip(tmp_path)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_is_a_clip_and_a_still_is_not(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    extra = {"lossless": True} if suffix == "webp" else {}
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:], **extra)
    assert is_clip(path)
    assert colors(read_clip(path, 3)) == colors([FRAMES[i] for i in (2, 6, 10)])
    FRAMES[0].save(path)
    assert not is_clip(path) and not is_clip(tmp_path / f"gone.{suffix}")
    assert not is_clip(save(tmp_path / "a.png", BYTES))


def test_a_video_without_ffmpeg_names_it(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setattr(clips.shutil, "which", lambda _: None)
    assert is_clip(tmp_path / "a.mp4")
    with pytest.raises(PictureError, match="a.mp4: a video is read by ffmpeg"):
        read_clip(tmp_path / "a.mp4")


FAKE = """#!{python}
import sys
if "-progress" in sys.argv:
    print("frame=3"), print("frame=12")
elif "-pix_fmt" in sys.argv:
    for i in (2, 6, 10):
        sys.stdout.buffer.write(b"P6\\n2 1\\n255\\n" + bytes([i] * 6))
"""


def test_ffmpeg_is_asked_for_the_frames_in_the_middle(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(clips.shutil, "which", lambda _: str(program))
    (tmp_path / "a.mp4").write_bytes(b"x")
    images = read_clip(tmp_path / "a.mp4", 3)
    assert [np.array(image).mean() for image in images] == [2, 6, 10]


def test_a_real_video_gives_its_frames(tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    for i, frame in enumerate(FRAMES):
        frame.resize((64, 48)).save(tmp_path / f"{i}.png")
    subprocess.run([ffmpeg, "-v", "error", "-i", f"{tmp_path}/%d.png", f"{tmp_path}/-a b.mp4"],
                   check=True)
    monkeypatch.setattr(clips.shutil, "which", lambda _: ffmpeg)
    images = read_clip(tmp_path / "-a b.mp4", 3)
    truth = [np.array(FRAMES[i]).mean((0, 1)) for i in (2, 6, 10)]
    assert np.abs(np.array([np.array(i).mean((0, 1)) for i in images]) - truth).max() < 8
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(PictureError, match="is the file complete"):
        read_clip(tmp_path / "bad.mp4")
