"""What can be wrong with a downloaded file, told before a tensor is read."""
import json
from pathlib import Path

from formats.released.tensors import ModelError


def check_download(file: Path) -> None:
    """Missing, empty, a git-lfs pointer, a web page: what a failed download leaves behind."""
    if not file.is_file():
        raise ModelError(f"{file}: no such file; the download is not complete")
    with open(file, "rb") as opened:
        head = opened.read(200)
    if not head:
        raise ModelError(f"{file}: empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{file}: a git-lfs pointer and not the weights; run git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise ModelError(f"{file}: a web page and not the weights; download it again")


def check_size(file: Path) -> None:
    """A safetensors file is there, and as long as its header says."""
    check_download(file)
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size, 100 << 20):
            raise ModelError(f"{file}: not a safetensors file, or cut off; download it again")
        try:
            entries = json.loads(opened.read(length)).items()
            told = max((e["data_offsets"][1] for name, e in entries if name != "__metadata__"),
                       default=0)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ModelError(f"{file}: not a safetensors file; download it again") from None
    if size != 8 + length + told:
        raise ModelError(f"{file}: {size:,} bytes, it should have {8 + length + told:,}; "
                         "the download was interrupted, do it again")


def read_json(file: Path) -> dict:
    if not file.is_file():
        raise ModelError(f"{file}: no such file; the download is not complete")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: a JSON object is expected")
    return content


def check_empty(folder: Path) -> None:
    """A model is written where nothing is."""
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ModelError(f"{folder}: there is something already; name another folder with --out")
