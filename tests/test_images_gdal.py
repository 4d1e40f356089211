"""Of a raster nothing but its file is read, whatever it names, and nothing is written."""
import socket

import numpy as np
import pytest

from pictures import BYTES, needs_rasterio, refusal, save_tiff, scene, shown, tiff_bytes
from support.images.common import PictureError
from support.images.gdal import open_raster, rasterio_settings
from support.images.read import read_picture
from support.scenes.raster import open_scene

pytestmark = needs_rasterio
DEEP = (scene(64, 48) * 4000 + 1).astype(np.uint16)
METADATA = 42112                    # GDAL's tag, an XML


def metadata(name):
    return ('<GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">'
            f"{name}</Item></GDALMetadata>")


@pytest.mark.parametrize("escaped", [False, True])
def test_a_file_or_address_that_metadata_name_is_never_opened(tmp_path, escaped):
    other = save_tiff(tmp_path / "other.tif", DEEP[::4, ::4] * 0 + 777, photometric="rgb")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.tif"
        for name in (other, address, f"/vsicurl/{address}", f"WMS:{address}"):
            text = metadata(name)
            if escaped:
                text = text.replace("OVERVIEW_FILE", "OVERVIEW&#95;FILE")
            path = save_tiff(tmp_path / "a.tif", DEEP, photometric="rgb", tags={METADATA: text})
            assert "another file as its overviews" in refusal(path)
            with pytest.raises(PictureError, match="another file as its overviews"):
                open_scene(str(path))
        with pytest.raises(BlockingIOError):
            server.accept()                     # nobody has called


def test_files_beside_a_raster_are_not_read_and_none_is_written(tmp_path):
    path = save_tiff(tmp_path / "a.tif", DEEP, photometric="rgb")
    truth, place = shown(path), open_scene(str(path))
    whole = np.asarray(place.read((0, 0, 64, 48), (16, 12)))
    place.close()
    save_tiff(tmp_path / "a.tif.ovr", DEEP[::4, ::4] * 0 + 777, photometric="rgb",
              tags={254: [1]})
    save_tiff(tmp_path / "a.tif.msk", BYTES[:48, :53, 0] * 0)
    (tmp_path / "a.tfw").write_text("2\n0\n0\n-2\n500000\n5000000\n")
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:32633</SRS><Metadata domain='OVERVIEWS'>"
        "<MDI key='OVERVIEW_FILE'>a.tif.ovr</MDI></Metadata></PAMDataset>")
    files = sorted(tmp_path.iterdir())
    assert (shown(path) == truth).all()
    beside = open_scene(str(path))
    assert (np.asarray(beside.read((0, 0, 64, 48), (16, 12))) == whole).all()
    assert beside.georeference is None and sorted(tmp_path.iterdir()) == files
    beside.close()


def test_a_name_is_a_file_here_and_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:" / "127.0.0.1:9").mkdir(parents=True)
    truth = shown(save_tiff(tmp_path / "a.tif", DEEP, photometric="rgb"))
    for name in ("http://127.0.0.1:9/a.tif", "zip:a.tif", "GTIFF_DIR:2:a.tif"):
        (tmp_path / name).write_bytes((tmp_path / "a.tif").read_bytes())
        assert (np.array(read_picture(name).image) == truth).all()
        scene_of_it = open_scene(name)
        assert scene_of_it.size == (64, 48)
        scene_of_it.close()
    with rasterio_settings(2**20), pytest.raises(PictureError, match="virtual files"):
        open_raster("/vsimem/a.tif", "GTiff")


def test_a_damaged_file_ends_in_one_line_and_says_nothing_else(tmp_path, capfd):
    rng = np.random.default_rng(0)
    for options in ({"compression": "zlib"}, {"tile": (16, 16), "compression": "zlib"}, {}):
        whole = save_tiff(tmp_path / "a.tif", DEEP, photometric="rgb", **options).read_bytes()
        for _ in range(20):
            content = np.frombuffer(whole, np.uint8).copy()
            content[rng.integers(8, len(content), 9)] = rng.integers(0, 256, 9)
            (tmp_path / "a.tif").write_bytes(content)
            try:
                read_picture(tmp_path / "a.tif")
            except PictureError as error:
                assert "\n" not in str(error)
    assert capfd.readouterr() == ("", "")


def test_a_scene_shows_the_page_that_a_picture_shows(tmp_path):
    options = {"photometric": "rgb"}
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes((DEEP[::4, ::4], options | {"tags": {254: [1]}}), (DEEP, options)))
    place = open_scene(str(path))
    assert place.size == (64, 48) == read_picture(path).size
    place.close()
