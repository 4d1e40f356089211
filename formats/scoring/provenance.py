"""What a score was measured with: enough to measure it again, or to see why it differs."""
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from formats.scoring.hashes import digest, weights

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "sentencepiece")


def provenance(model: Path, texts: Iterable[str], **said) -> dict:
    """texts: hashes.texts_of the samples. said: commit, split, rows, dtype, device, decoding, seed,
    as the caller knows them."""
    return {**said, "weights": weights(Path(model)), "data": digest(texts),
            "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def line(record: dict) -> str:
    """The record in one line, what is empty left out."""
    return "; ".join(f"{name} {tell(value)}" for name, value in record.items()
                     if value not in ("", None, {}))


def tell(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return str(value)
