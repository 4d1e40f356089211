"""A scene's windows: their pixels, one stretch for all, empty ones, several dates on one grid."""
import importlib.util

import numpy as np
import pytest
from PIL import Image

import support.images.common as limits
from pictures import reduce_from_1000_pixels
from pictures import scene as waves
from support.common import UserError
from support.images.common import MissingPackage, PictureError
from support.images.read import read_picture
from support.scenes import raster
from support.scenes.raster import PictureScene, RasterScene, open_scene, open_scenes, read_reduced

HAS_RASTERIO = importlib.util.find_spec("rasterio") is not None
needs_rasterio = pytest.mark.skipif(not HAS_RASTERIO, reason="rasterio is optional")

WAVES = waves(160, 120, 4)                      # float[120, 160, 4] in 0 .. 1


def write(path, values, **options):
    """values: [H, W, C]"""
    import rasterio
    from rasterio.transform import from_origin
    options = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 2, 2)} | options
    palette = options.pop("palette", None)
    mask = options.pop("mask", None)
    with rasterio.open(path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1],
                       count=values.shape[2], dtype=values.dtype.name, **options) as out:
        out.write(np.moveaxis(values, -1, 0))
        if palette:
            out.write_colormap(1, palette)
        if mask is not None:
            out.write_mask(mask)
    return str(path)


def pixels(scene, window, size=None):
    size = size or (window[2] - window[0], window[3] - window[1])
    return np.asarray(scene.read(window, size))


# ---- with Pillow ---------------------------------------------------------------------------------

def test_a_window_of_a_picture_is_cut_from_it(tmp_path):
    values = (WAVES[..., :3] * 255).astype(np.uint8)
    values[40:80, 40:80] = 0
    Image.fromarray(values).save(tmp_path / "a.png")
    scene = open_scene(str(tmp_path / "a.png"))
    assert isinstance(scene, PictureScene) and scene.size == (160, 120) and not scene.georeference
    assert (pixels(scene, (10, 20, 60, 50)) == values[20:50, 10:60]).all()
    assert scene.read((40, 40, 80, 80), (40, 40)) is None and scene.note == ""
    assert pixels(scene, (0, 0, 160, 120), (80, 60)).shape == (60, 80, 3)


def test_without_rasterio_a_scene_has_no_coordinates_and_says_what_would_add_them(tmp_path,
                                                                                  monkeypatch):
    from examples.miniworld import geo_tags
    monkeypatch.setattr(raster, "is_installed", lambda package: False)
    picture = Image.fromarray((WAVES[..., :3] * 255).astype(np.uint8))
    picture.save(tmp_path / "a.tif", tiffinfo=geo_tags(5e5, 5e6, 32633))
    picture.save(tmp_path / "b.tif")
    scene = open_scene(str(tmp_path / "a.tif"))
    assert scene.georeference is None and "pip install rasterio" in scene.note
    assert open_scene(str(tmp_path / "b.tif")).note == ""
    reduce_from_1000_pixels(monkeypatch)
    with pytest.raises(MissingPackage, match=r"b.tif: 160 x 120 .* pip install rasterio reads it"):
        open_scene(str(tmp_path / "b.tif"))
    picture.save(tmp_path / "c.png")
    with pytest.raises(PictureError, match=r"c.png: .* save it as a TIFF"):
        open_scene(str(tmp_path / "c.png"))


def test_what_is_no_file_or_no_picture_is_told_in_one_line(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0")
    (tmp_path / "b.vrt").write_text("<VRTDataset><SourceFilename>/etc/passwd</SourceFilename>")
    for name in ("a.tif", "b.vrt", "c.tif", "."):
        with pytest.raises(UserError) as caught:
            open_scene(str(tmp_path / name))
        text = str(caught.value)
        assert "\n" not in text and text.count(str(tmp_path / name)) == 1
    for name in ("/vsicurl/http://127.0.0.1/a.tif", "http://127.0.0.1/a.tif", "/vsimem/a.tif"):
        with pytest.raises(PictureError, match="no such picture"):
            open_scene(name)


# ---- with rasterio -------------------------------------------------------------------------------

@needs_rasterio
@pytest.mark.parametrize("layout", [
    {}, {"tiled": True, "blockxsize": 32, "blockysize": 16}, {"interleave": "band"},
    {"compress": "deflate", "predictor": 2}, {"BIGTIFF": "YES", "compress": "lzw"}])
def test_a_window_of_8_bits_has_the_pixels_of_the_file_and_of_read_picture(tmp_path, layout):
    values = (WAVES[..., :3] * 255).astype(np.uint8)
    scene = open_scene(write(tmp_path / "a.tif", values, photometric="rgb", **layout))
    assert isinstance(scene, RasterScene) and scene.note == ""
    assert (pixels(scene, (10, 20, 60, 50)) == values[20:50, 10:60]).all()
    assert (pixels(scene, (0, 0, 160, 120)) == np.asarray(
        read_picture(tmp_path / "a.tif").image)).all()
    half = pixels(scene, (0, 0, 160, 120), (80, 60)).astype(int)
    means = values.reshape(60, 2, 80, 2, 3).mean((1, 3))
    assert np.abs(half - means).max() <= 1


@needs_rasterio
def test_jpeg_2000_of_16_bits_is_read_by_windows_too(tmp_path):
    from rasterio.shutil import copy
    values = (WAVES[..., :3] * 3000 + 500).astype(np.uint16)
    tiff = write(tmp_path / "a.tif", values, photometric="rgb")
    copy(tiff, tmp_path / "a.jp2", driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    one, two = open_scene(tiff), open_scene(str(tmp_path / "a.jp2"))
    assert isinstance(two, RasterScene) and two.georeference == one.georeference
    assert (pixels(two, (30, 20, 90, 80)) == pixels(one, (30, 20, 90, 80))).all()


@needs_rasterio
def test_all_windows_share_one_stretch(tmp_path):
    values = (WAVES[..., :3] * 3000 + 500).astype(np.uint16)
    values[:60] //= 4                                           # the upper half is darker
    scene = open_scene(write(tmp_path / "a.tif", values))
    whole = pixels(scene, (0, 0, 160, 120))
    for window in ((0, 0, 80, 60), (80, 60, 160, 120), (40, 30, 120, 90)):
        left, top, right, bottom = window
        assert (pixels(scene, window) == whole[top:bottom, left:right]).all()
    lows, highs = np.percentile(values.reshape(-1, 3), (2, 98), axis=0)
    wanted = ((values - lows) * 255 / (highs - lows)).clip(0, 255)
    assert np.abs(whole - wanted).max() <= 1 and "all tiles stretched" in scene.note
    assert pixels(scene, (0, 0, 160, 60)).max() < 130           # a stretch of its own would be 255


@needs_rasterio
@pytest.mark.parametrize("border", ["nodata", "mask", "zero", "nan", "alpha"])
def test_no_data_is_black_counts_in_no_stretch_and_its_windows_are_empty(tmp_path, border):
    values = (WAVES[..., :3] * 3000 + 500).astype(np.float32 if border == "nan" else np.uint16)
    outside = np.zeros((120, 160), bool)
    outside[:, :64] = True
    options = {}
    if border == "nodata":
        values[outside], options = 65535, {"nodata": 65535}
    elif border == "nan":
        values[outside] = np.nan
    elif border == "zero":
        values[outside] = 0
    elif border == "mask":
        values[outside], options = 60000, {"mask": ~outside}
    else:
        values[outside] = 60000
        values = np.concatenate([values, np.where(outside, 0, 65535)[..., None].astype(np.uint16)],
                                -1)
        options = {"photometric": "rgb", "alpha": "yes"}
    scene = open_scene(write(tmp_path / "a.tif", values, **options))
    assert scene.read((0, 0, 64, 64), (64, 64)) is None
    part = pixels(scene, (32, 0, 96, 64))
    assert (part[:, :32] == 0).all() and part[:, 32:].std() > 20
    inside = values[:, 64:, 0]
    assert scene.ranges[0] == pytest.approx(tuple(np.percentile(inside, (2, 98))), rel=0.01)


@needs_rasterio
def test_bands_palettes_and_rare_kinds(tmp_path):
    six = np.concatenate([WAVES, WAVES[..., :2] ** 2], -1)
    path = write(tmp_path / "six.tif", (six * 3000).astype(np.uint16) + 1, photometric="minisblack")
    with pytest.raises(PictureError, match=r"six.tif: 6 bands of 16-bit data; .* --bands 4,3,2"):
        open_scene(path)
    with pytest.raises(PictureError, match="asks for band 7"):
        open_scene(path, (7, 1, 1))
    shown = pixels(open_scene(path, (4, 3, 2)), (0, 0, 160, 120))
    for c, band in enumerate((3, 2, 1)):
        assert np.corrcoef(shown[..., c].ravel(), six[..., band].ravel())[0, 1] > 0.99
    gray = pixels(open_scene(path, (6,)), (0, 0, 160, 120))
    assert (gray[..., 0] == gray[..., 2]).all()
    numbers = (WAVES[..., :1] * 3).astype(np.uint8)
    colors = {0: (0, 0, 0), 1: (250, 10, 20), 2: (30, 240, 40), 3: (1, 2, 3)}
    path = write(tmp_path / "palette.tif", numbers, photometric="palette", palette=colors)
    shown = pixels(open_scene(path), (0, 0, 160, 120))
    assert (shown == np.array([colors[i] for i in numbers.ravel()]).reshape(120, 160, 3)).all()
    bits = (WAVES[..., :1] > 0.5).astype(np.uint8)
    path = write(tmp_path / "bits.tif", bits, nbits=1)
    assert (pixels(open_scene(path), (0, 0, 160, 120))[..., :1] == 255 * bits).all()
    white = (WAVES[..., :1] * 250).astype(np.uint8)
    path = write(tmp_path / "white.tif", white, photometric="miniswhite")
    assert (pixels(open_scene(path), (0, 0, 160, 120)) == np.asarray(
        read_picture(path).image)).all()
    path = write(tmp_path / "cmyk.tif", (WAVES * 255).astype(np.uint8), photometric="cmyk")
    with pytest.raises(PictureError, match="color space|CMYK"):
        open_scene(path)
    radar = (WAVES[..., :1] * 3000 - 1000 + 0j).astype(np.complex64)
    path = write(tmp_path / "radar.tif", radar)
    assert np.corrcoef(pixels(open_scene(path), (0, 0, 160, 120))[..., 0].ravel(),
                       np.abs(radar).ravel())[0, 1] > 0.98
    path = write(tmp_path / "empty.tif", np.zeros((8, 8, 1), np.uint16), nodata=0)
    with pytest.raises(PictureError, match="no pixel has a value"):
        open_scene(path)


@needs_rasterio
def test_a_damaged_part_is_told_with_the_file(tmp_path):
    values = np.random.default_rng(0).integers(1, 255, (256, 256, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    write(path, values, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    content = bytearray(path.read_bytes())
    content[len(content) // 2:len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    scene = open_scene(str(path))
    with pytest.raises(PictureError) as caught:
        scene.read((0, 0, 256, 256), (256, 256))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: cannot be read")
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(PictureError, match="cut off"):
        open_scene(str(path))


@needs_rasterio
def test_a_file_whose_parts_are_too_large_to_decode_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", (WAVES[..., :3] * 255).astype(np.uint8), blockysize=120,
                 compress="deflate")
    monkeypatch.setattr(limits, "MAX_DECODED_BYTES", 50_000)
    with pytest.raises(PictureError, match="save it as a TIFF in tiles"):
        open_scene(path)


@needs_rasterio
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path):
    values = (WAVES[..., :3] * 3000 + 1).astype(np.uint16)
    path, rng, told = tmp_path / "a.tif", np.random.default_rng(0), 0
    write(path, values, tiled=True, blockxsize=32, blockysize=32, compress="deflate", nodata=0)
    whole = path.read_bytes()
    for number in range(150):
        content = np.frombuffer(whole, np.uint8).copy()
        # Its header and tags lie in front, where half of the changes go.
        end = 2000 if number % 2 else len(content)
        content[rng.integers(0, end, 6)] = rng.choice([0, 1, 255, int(rng.integers(256))], 6)
        path.write_bytes(content.tobytes()[:len(content) - int(rng.integers(2)) * 900])
        try:
            scene = open_scene(str(path))
            scene.read((0, 0, *scene.size), (30, 20))
            scene.close()
        except UserError as error:
            told += 1
            assert "\n" not in str(error) and str(error).startswith(f"{path}: ")
    assert 20 < told < 150


@needs_rasterio
def test_a_scene_of_absurd_size_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", (WAVES[..., :3] * 255).astype(np.uint8))
    monkeypatch.setattr(raster, "MAX_SCENE_PIXELS", 1000)
    with pytest.raises(PictureError, match="160 x 120 pixels, at most"):
        open_scene(path)


# ---- several dates -------------------------------------------------------------------------------

@needs_rasterio
def test_a_second_date_is_read_on_the_grid_of_the_first(tmp_path):
    from rasterio.transform import from_origin
    values = (WAVES[..., :3] * 200 + 20).astype(np.uint8)
    first = write(tmp_path / "a.tif", values)                   # 2 m, from 500,000 and 5,000,000
    part = values[20:100, 30:150]
    moved = write(tmp_path / "b.tif", part, transform=from_origin(5e5 + 60, 5e6 - 40, 2, 2))
    fine = write(tmp_path / "c.tif", np.repeat(np.repeat(values, 2, 0), 2, 1),
                 transform=from_origin(5e5, 5e6, 1, 1))
    a, b, c = open_scenes([first, moved, fine])
    assert b.size == c.size == a.size and b.georeference == a.georeference
    window = (40, 30, 140, 90)
    assert (pixels(a, window) == pixels(b, window)).all()
    inner = pixels(c, window)[2:-2, 2:-2].astype(int)
    assert np.abs(inner - pixels(a, window)[2:-2, 2:-2]).max() <= 3
    assert b.read((0, 0, 20, 15), (20, 15)) is None             # where the second does not lie
    for scene in (a, b, c):
        scene.close()


def test_dates_that_cannot_be_aligned_are_refused(tmp_path):
    for name, side in (("a", 30), ("b", 30), ("c", 31)):
        Image.new("RGB", (side, 30), "red").save(tmp_path / f"{name}.png")
    a, b, c = (str(tmp_path / f"{name}.png") for name in "abc")
    assert len(open_scenes([a, b])) == 2                        # as many pixels, so the same place
    with pytest.raises(PictureError, match=r"c.png: 31 x 30 pixels, .*a.png has 30 x 30"):
        open_scenes([a, c])


# ---- all of it, small ----------------------------------------------------------------------------

def test_the_reduced_scene_keeps_the_size_of_the_whole(tmp_path):
    Image.fromarray((WAVES[..., :3] * 255).astype(np.uint8)).save(tmp_path / "a.png")
    picture = read_reduced(open_scene(str(tmp_path / "a.png")), 40)
    assert picture.image.size == (40, 30) and picture.size == (160, 120)
    Image.new("RGB", (90, 50)).save(tmp_path / "b.png")
    assert read_reduced(open_scene(str(tmp_path / "b.png")), 30).image.getbbox() is None
