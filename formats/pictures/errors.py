"""What is wrong with a picture: always one line, with the file and what to do."""
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from formats.pictures.limits import too_large

KNOWN = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM")


class PictureError(Exception):
    """A picture that cannot be shown: one line that names the file and what to do."""


class MissingPackage(PictureError):
    """A picture that an optional package would read."""


@contextmanager
def one_line(path: str | Path) -> Iterator[None]:
    """Whatever a decoder raises inside becomes a PictureError that begins with the path."""
    try:
        yield
    except PictureError as error:
        raise type(error)(f"{path}: {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise PictureError(f"{path}: no such picture") from None
    except IsADirectoryError:
        raise PictureError(f"{path}: not a picture (a folder)") from None
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture ({describe_file(path)})") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path}: {too_large(int(re.findall(r'[0-9]+', str(error))[0]))}"
                           ) from None
    except MemoryError:
        raise PictureError(f"{path}: too large for this machine's memory; cut it up") from None
    except Exception as error:      # zlib, struct, libtiff, tifffile: each has its own kinds
        text = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"{path}: cannot be read ({text}); is the file complete?") from None


def describe_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        head = file.read(200)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: run git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "a web page: the download failed"
    if head.startswith(KNOWN):
        return "its beginning is one's, the rest is damaged; is the file complete?"
    return "unknown format; PNG, JPEG, TIFF, GIF, WebP and BMP are read"
