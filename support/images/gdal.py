"""GDAL through rasterio, an optional package: of a raster's file that, and nothing else, is read.

GDAL follows what a raster names: files beside it with its overviews, its mask, its coordinates, and
a file or an address that its metadata call its overviews. Nothing of that is opened here.
"""
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.images.common import PictureError

NEEDS_RASTERIO = "pip install rasterio"


@contextmanager
def rasterio_settings(cache_bytes: int) -> Iterator[None]:
    """Within, GDAL keeps so many bytes of decoded blocks, warns of nothing, and what it raises is
    a ValueError with its reason, or a PictureError. Each thread enters it anew.
    """
    import rasterio
    from rasterio.session import DummySession
    with warnings.catch_warnings(), rasterio.Env(
            DummySession(),                             # another looks for the keys of clouds
            GDAL_CACHEMAX=cache_bytes, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
            GDAL_PAM_ENABLED="NO", CPL_VSIL_CURL_ALLOWED_FILENAME="none"):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            yield
        except rasterio.errors.RasterioError as error:
            reason: BaseException = error
            while reason.__cause__:
                reason = reason.__cause__
            if "missing codec" in str(reason):
                raise PictureError(f"{reason}; save it with another compression") from None
            raise ValueError(str(reason)) from None


def open_raster(path: str | Path, driver: str, page: int = 0):
    """-> a rasterio dataset of this file, read by this driver of GDAL and no other.

    Within `rasterio_settings`. page: of a TIFF, from 0. PictureError: it is not read.
    """
    import rasterio
    name = os.path.abspath(path)                        # so it cannot be taken for an address
    if name.startswith("/vsi"):
        raise PictureError("GDAL takes such a path for its virtual files; move the file")
    dataset = rasterio.open(f"GTIFF_DIR:{page + 1}:{name}" if page else name, driver=driver)
    if dataset.tags(ns="OVERVIEWS"):                    # GDAL opens whatever stands there
        dataset.close()
        raise PictureError("its metadata name another file as its overviews; save it without that")
    return dataset
