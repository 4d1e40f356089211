"""TIFFs that Pillow cannot read right: through rasterio, or refused with the package's name."""
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import (
    BYTES,
    GRAY16,
    HAS_RASTERIO,
    block_means,
    correlation,
    hide_package,
    needs_rasterio,
    reduce_from_1000_pixels,
    refusal,
    save,
    save_tiff,
    save_tiff16_by_hand,
    save_tiff_with_nodata,
    scene,
    shown,
    tiff_bytes,
)
from support.images.read import read_header, read_note, read_picture
from support.images.tags import parse_nodata

DEEP = (scene() * 4000).astype(np.uint16)

# ---- layouts, numbers, bands ---------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
LAYOUTS = [{}, {"tile": (16, 16)}, {"compression": "zlib"}, {"rowsperstrip": 5},
           {"tile": (16, 32), "compression": "zlib", "predictor": True}, {"bigtiff": True},
           {"byteorder": ">", "compression": "zlib"}]


def test_gray_white_is_zero_is_inverted(tmp_path):
    path = save_tiff(tmp_path / "a.tif", GRAY16, photometric="miniswhite")
    assert correlation(shown(path), -GRAY16.astype(float)) > 0.99


@needs_rasterio
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_16_bit_colors_are_right_in_every_layout(tmp_path, options, planar):
    truth = (scene() * [3000, 1200, 500] + [200, 300, 400]).astype(np.uint16)
    stored = truth if planar == "contig" else np.moveaxis(truth, -1, 0)
    path = save_tiff(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, **options)
    assert correlation(shown(path), truth) > 0.99
    assert shown(path).reshape(-1, 3).max(0).tolist() == [255] * 3
    assert read_picture(path).note.startswith("16-bit colors, each band stretched on its own")


@needs_rasterio
@pytest.mark.parametrize("dtype", "u1 i1 u2 i2 u4 i4 f2 f4 f8 c8".split())
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("options", LAYOUTS[:3], ids=str)
def test_numbers_of_every_kind_are_read_in_both_byte_orders(tmp_path, dtype, order, options):
    truth = (scene()[..., 0] * 100 - 20 * (dtype[0] in "if") + 20).astype(dtype)
    path = save_tiff(tmp_path / "a.tif", truth, byteorder=order, photometric="minisblack",
                     **options)
    assert correlation(shown(path), np.abs(truth) if dtype == "c8" else truth) > 0.99


@needs_rasterio
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("bands", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_the_bands_that_are_asked_for_are_shown(tmp_path, dtype, bands, planar):
    truth = (scene(bands=bands) * 250).astype(dtype)
    stored = truth if planar == "contig" else np.moveaxis(truth, -1, 0)
    path = save_tiff(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar)
    three = (bands, 1, 2)
    assert correlation(shown(path, bands=three), truth[..., [b - 1 for b in three]]) > 0.99
    assert correlation(shown(path, bands=(2,)), truth[..., 1]) > 0.99
    assert f"--bands asks for band {bands + 1}; it has {bands}" in refusal(path, bands=(bands + 1,))


@needs_rasterio
@pytest.mark.parametrize("bands, note", [(2, "band 1 of 2 shown"), (3, ""),
                                         (4, "bands 1, 2, 3 of 4 shown")])
@pytest.mark.parametrize("colors", ["rgb", "minisblack"])
def test_of_8_bit_bands_the_first_are_shown_bit_for_bit(tmp_path, bands, note, colors):
    if bands == 2 and colors == "rgb":
        pytest.skip("no such TIFF")
    truth = (scene(bands=bands) * 255).astype(np.uint8)
    extra = {"extrasamples": [0]} if bands == 4 and colors == "rgb" else {}
    path = save_tiff(tmp_path / "a.tif", truth, photometric=colors, planarconfig="contig", **extra)
    assert (shown(path) == truth[..., :3 if bands > 2 else 1]).all()
    assert read_picture(path).note == note


@pytest.mark.parametrize("dtype, kind", [(np.uint16, "16-bit"), (np.float32, "32-bit float")])
def test_of_many_bands_the_user_must_choose(tmp_path, dtype, kind):
    path = save_tiff(tmp_path / "a.tif", np.zeros((13, 9, 9), dtype), photometric="minisblack",
                planarconfig="separate")
    message = refusal(path)
    assert f"13 bands of {kind}" in message and "--bands 4,3,2" in message


@needs_rasterio
def test_transparent_parts_of_16_bit_colors_are_black(tmp_path):
    truth = (scene(bands=4) * 3000 + 100).astype(np.uint16)
    truth[:10, :, 3], truth[10:, :, 3] = 0, 65535
    truth[:10, :, :3] = 60000
    path = save_tiff(tmp_path / "a.tif", truth, photometric="rgb", extrasamples=[2])
    assert shown(path)[:10].max() == 0 and correlation(shown(path)[10:], truth[10:, :, :3]) > 0.99
    assert read_picture(path).note.startswith("transparent parts are black; 16-bit colors")


@needs_rasterio
def test_int16_heights_with_no_data(tmp_path):
    truth = (scene()[..., 0] * 3000 - 200).astype(np.int16)
    truth[:10] = -32768
    for order in "<>":
        path = save_tiff(tmp_path / "a.tif", truth, tags={42113: "-32768"}, byteorder=order,
                         compression="zlib")
        assert shown(path)[:10].max() == 0 and correlation(shown(path)[10:], truth[10:]) > 0.99
        assert read_picture(path).note.startswith("16-bit signed gray")


@needs_rasterio
@pytest.mark.parametrize("nodata", ["-1", "nan", "0", "7"])
def test_the_tiles_that_a_sparse_file_leaves_out_are_no_data(tmp_path, nodata):
    truth = (scene(64, 32) * 3000 + 100).astype(np.uint16)
    path = save_tiff(tmp_path / "a.tif", truth, tile=(32, 32), photometric="rgb",
                left_out=1, tags={42113: nodata})
    picture = shown(path)
    assert picture[:, :32].max() == 0 and correlation(picture[:, 32:], truth[:, 32:]) > 0.98


@needs_rasterio
def test_parts_left_out_that_gdal_fills_with_another_number_are_refused(tmp_path):
    truth = (scene(64, 32) * 3000 - 100).astype(np.int16)
    for nodata, told in (("-100000", True), ("2.5", True), ("-9999", False), ("none", False)):
        path = save_tiff(tmp_path / "a.tif", truth, tile=(32, 32), photometric="rgb", left_out=1,
                         tags={42113: nodata})
        if told:
            assert "parts of it are left out" in refusal(path)
        else:
            assert correlation(shown(path)[:, 32:], truth[:, 32:]) > 0.98


@needs_rasterio
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_deep_tiff_is_turned_as_its_orientation_says(tmp_path, orientation):
    truth = (scene() * 3000).astype(np.uint16)
    path = save_tiff(tmp_path / "a.tif", truth, photometric="rgb",
                     tags={274: [orientation]})
    turned = np.rot90(truth, {3: 2, 6: -1}[orientation])
    assert correlation(shown(path), turned) > 0.99
    assert read_picture(path).size == turned.shape[1::-1]


# ---- optional packages ---------------------------------------------------------------------------

def test_without_rasterio_16_bit_colors_name_it_and_are_never_black(tmp_path, monkeypatch):
    path = save_tiff16_by_hand(tmp_path / "a.tif", (scene() * 4000).astype(np.uint16))
    with Image.open(path) as image:
        assert np.array(image).max() < 20               # what Pillow would show
    if HAS_RASTERIO:
        assert correlation(shown(path), scene()) > 0.99
    hide_package(monkeypatch, "rasterio")
    assert "pip install rasterio" in refusal(path)


def test_without_rasterio_many_bands_are_still_counted(tmp_path, monkeypatch):
    hide_package(monkeypatch, "rasterio")
    path = save_tiff16_by_hand(tmp_path / "a.tif", (scene(bands=6) * 4000).astype(np.uint16))
    assert "6 bands of 16-bit" in refusal(path)
    assert "pip install rasterio" in refusal(path, bands=(4, 3, 2))


@needs_rasterio
def test_a_compression_that_gdal_lacks_is_named(tmp_path):
    path = save_tiff(tmp_path / "a.tif", DEEP, photometric="rgb", tags={259: [34712]})
    assert re.search("missing codec .*; save it with another compression", refusal(path))


@pytest.fixture
def small_is_large(monkeypatch):
    reduce_from_1000_pixels(monkeypatch)


@pytest.mark.usefixtures("small_is_large")
def test_without_rasterio_a_large_tiff_is_reduced_after_decoding(tmp_path, monkeypatch):
    hide_package(monkeypatch, "rasterio")
    truth = block_means(BYTES, 3)
    assert np.abs(shown(save(tmp_path / "a.tif", BYTES)) - truth).max() <= 1


# ---- broken and large files ----------------------------------------------------------------------

@pytest.mark.parametrize("kept", [0.01, 0.3, 0.95])
@pytest.mark.parametrize("options", LAYOUTS[:4], ids=str)
def test_a_truncated_deep_tiff_is_named(tmp_path, options, kept):
    truth = np.random.default_rng(0).integers(0, 9999, (90, 70, 3), dtype=np.uint16)
    path = save_tiff(tmp_path / "a.tif", truth, photometric="rgb", **options)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * kept)])
    assert "is the file complete?" in refusal(path)


@needs_rasterio
@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_a_large_deep_tiff_is_reduced_by_means_of_what_has_a_value(tmp_path, options, planar):
    truth = (scene() * 3000 + 100).astype(np.float32)
    stored = truth.copy()
    stored[3, 3] = np.nan                       # one of nine: the block's mean goes on
    stored[9:15, 9:15] = np.nan
    stored = stored if planar == "contig" else np.moveaxis(stored, -1, 0)
    path = save_tiff(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, **options)
    picture = read_picture(path)
    assert picture.size == (53, 37) and picture.image.size == (18, 13)
    assert picture.note.endswith("reduced 3 times while reading")
    values, small = np.array(picture.image), block_means(truth, 3)
    assert values[3:5, 3:5].max() == 0
    values[3:5, 3:5] = small[3:5, 3:5] = 0
    assert correlation(values, small) > 0.98


PEAK = """
import resource, sys
from support.images.read import read_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = read_picture(sys.argv[1])
print(picture.size, picture.image.size, picture.image.getpixel((100, 100)),
      (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@needs_rasterio
def test_81_million_pixels_are_read_in_bounded_memory(tmp_path):
    truth = np.full((9000, 9000), 77, np.uint8)
    path = save_tiff(tmp_path / "a.tif", truth, compression="zlib", rowsperstrip=100)
    done = subprocess.run([sys.executable, "-c", PEAK, path], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    *found, peak = done.stdout.split()
    assert " ".join(found) == "(9000, 9000) (4500, 4500) (77, 77, 77)"
    assert int(peak) < 260                      # 4500 x 4500 RGB, 4 bytes a pixel, three times


# ---- tags ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [
    "nan", "NaN", "-nan", "nan(ind)", "-nan(ind)", "NaNQ", "1.#QNAN", "-1.#IND", "1.#SNAN",
    "-1.#IND00", "1,#QNAN0", "1.#INF", "-1.#INF", "inf", "-Infinity", "1.#J", "-1.#QNB", "1.#R",
    "-1.$", "\"1.#QNAN\""])
def test_what_means_nan_or_infinite_as_no_data_is_no_number(tmp_path, text):
    assert np.isnan(parse_nodata(text)[0]) and parse_nodata(text)[1] == ""
    truth = np.full((30, 40), 1, np.float32)
    truth[:, 20:], truth[:9] = 2, np.nan
    picture = shown(save_tiff_with_nodata(tmp_path / "a.tif", truth, text))
    truth[truth == 1] = -1                      # -1 has a value, too
    other = shown(save_tiff_with_nodata(tmp_path / "b.tif", truth, text))
    assert picture[:9].max() == other[:9].max() == 0
    assert (picture[9:, 20:] == 255).all() and (other[9:, 20:] == 255).all()
    only = np.where(np.isnan(truth), truth, np.sign(truth))     # 1 and -1 alone
    assert (shown(save_tiff_with_nodata(tmp_path / "c.tif", only, text))[9:, 20:] == 255).all()


@pytest.mark.parametrize("text, value", [
    ("none", None), ("N/A", None), ("null", None), ("", None), ("no data", None), ("-9999", -9999),
    ("-9999,0", -9999), ("0 0 0", 0), ("255,255,255", 255), ("-3.4e38", -3.4e38)])
def test_words_are_no_no_data_value_and_numbers_are(tmp_path, text, value):
    assert parse_nodata(text) == (value, "")
    path = save_tiff_with_nodata(tmp_path / "a.tif", BYTES, text or " ")
    assert (shown(path) == BYTES).all() and read_header(str(path)) == (53, 37, "")


@pytest.mark.parametrize("text", ["unknown", "0x10", "1_000", "12abc", "1.2.3"])
def test_a_no_data_value_that_is_no_number_is_noted(tmp_path, text):
    path = save_tiff_with_nodata(tmp_path / "a.tif", GRAY16, text)
    assert "no-data value" in read_picture(path).note and read_note(str(path))
    assert correlation(shown(path), GRAY16) > 0.99


SMALL = BYTES[::4, ::4]


def save_pages(path, *pages):
    """In color; of each page its array and more of its tags."""
    path.write_bytes(tiff_bytes(*((array, {"photometric": "rgb", "tags": tags})
                                  for array, tags in pages)))
    return path


@pytest.mark.parametrize("kind", [1, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_thumbnail_before_the_picture_is_not_shown(tmp_path, kind, dtype):
    if dtype == np.uint16:
        pytest.importorskip("rasterio")
    truth = BYTES.astype(dtype) * (1 if dtype == np.uint8 else 9)
    path = save_pages(tmp_path / "a.tif", (SMALL.astype(dtype), {254: [kind]}), (truth, {}))
    picture = read_picture(path)
    assert picture.size == (53, 37) and picture.note.startswith("page 2 is shown")
    assert correlation(np.array(picture.image), truth) > 0.99
    assert read_header(str(path)) == (53, 37, "") and "page 2" in read_note(str(path))


def test_a_thumbnail_in_the_old_way_of_marking_is_not_shown(tmp_path):
    save_pages(tmp_path / "a.tif", (SMALL, {255: [2]}), (BYTES, {}))
    assert (shown(tmp_path / "a.tif") == BYTES).all()


@pytest.mark.parametrize("kind", [0, 1])
def test_a_page_whose_picture_lies_below_it_is_refused_and_never_shown_instead(tmp_path, kind):
    """As a DNG has its thumbnail; pages below that are smaller are overviews."""
    for name, above, below in (("a.tif", SMALL, BYTES), ("b.tif", BYTES, SMALL)):
        save_tiff(tmp_path / name, above, photometric="rgb", tags={254: [kind * (name == "a.tif")]},
                  below=[(below, {"photometric": "rgb"})])
    assert "53 x 37 pixels below it" in refusal(tmp_path / "a.tif")
    assert "SubIFDs" in read_header(str(tmp_path / "a.tif")).fault
    assert (shown(tmp_path / "b.tif") == BYTES).all() and not read_picture(tmp_path / "b.tif").note


def test_a_larger_page_behind_an_unmarked_one_is_noted(tmp_path):
    save_pages(tmp_path / "a.tif", (SMALL, {}), (SMALL, {}), (BYTES, {}))
    note = "page 1 is shown, page 3 is larger"
    assert read_picture(tmp_path / "a.tif").note == note == read_note(str(tmp_path / "a.tif"))


def test_of_reduced_pages_alone_the_largest_is_shown(tmp_path):
    save_pages(tmp_path / "a.tif", *((array, {254: [1]}) for array in (SMALL, BYTES, SMALL)))
    assert (shown(tmp_path / "a.tif") == BYTES).all()


def test_an_overview_behind_the_picture_changes_nothing(tmp_path):
    save_pages(tmp_path / "a.tif", (BYTES, {}), (SMALL, {254: [1]}))
    assert (shown(tmp_path / "a.tif") == BYTES).all()
    assert read_picture(tmp_path / "a.tif").note == ""


@needs_rasterio
@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_the_header_of_a_tiff_shows_that_it_is_cut_off(tmp_path, options):
    truth = np.random.default_rng(0).integers(0, 9999, (90, 70, 3), dtype=np.uint16)
    path = save_tiff(tmp_path / "a.tif", truth, photometric="rgb", **options)
    assert read_header(str(path)) == (70, 90, "")
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * 0.6)])
    header = read_header(str(path))
    assert header[:2] in ((70, 90), (0, 0)) and ("cut off" in header.fault)


def test_the_header_shows_a_tiff_that_has_to_be_told_its_bands(tmp_path):
    path = str(save_tiff16_by_hand(tmp_path / "a.tif", (scene(bands=8) * 900).astype(np.uint16)))
    assert read_header(path) == (53, 37, "") and "8 bands of 16-bit" in read_note(path)
    assert "8 bands of 16-bit" in read_header(path, ()).fault
    if HAS_RASTERIO:
        assert read_header(path, (4, 3, 2)) == (53, 37, "")


def bomb(path, width, height, bands=4):
    """A TIFF whose strip is not in the file, as a sparse one has it, and little else."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1),
            (262, 3, 1, 2), (273, 4, 1, 0), (277, 3, 1, bands), (278, 4, 1, height), (279, 4, 1, 0)]
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags))
                     + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4))
    return path


PEAK_OF_BOMB = PEAK.replace("(100, 100)", "(0, 0)")


@needs_rasterio
@pytest.mark.parametrize("compression", [8, 32946])
def test_a_strip_that_unpacks_to_far_more_than_its_pixels_takes_their_memory(tmp_path, compression):
    """A megabyte of such a file unpacks to a gigabyte."""
    path = save_tiff(tmp_path / "a.tif", DEEP, photometric="rgb", compression="zlib",
                     surplus=100_000_000, tags={259: [compression]})
    assert (shown(path) == shown(save_tiff(tmp_path / "b.tif", DEEP, photometric="rgb"))).all()
    done = subprocess.run([sys.executable, "-c", PEAK_OF_BOMB, path], cwd=ROOT, text=True,
                          capture_output=True, check=True)
    assert int(done.stdout.split()[-1]) < 80 and done.stderr == ""


@needs_rasterio
def test_a_tile_that_takes_more_memory_than_there_is_is_refused_before_it_is_decoded(tmp_path):
    path = save_tiff(tmp_path / "a.tif", DEEP, photometric="rgb", compression="zlib",
                     tile=(64, 64), tags={322: [60_000], 323: [60_000]})
    assert "take 50.4 GB to decode, at most 2.0 are used" in refusal(path)


@needs_rasterio
def test_a_tiff_without_any_pixels_is_found_by_its_header_and_takes_no_memory(tmp_path):
    path = bomb(tmp_path / "a.tif", 20_000, 20_000)
    assert "no pixel has a value" in read_header(str(path)).fault
    assert "no pixel has a value" in refusal(path)
    assert "at most 500 million" in read_header(str(bomb(path, 30_000, 30_000))).fault
