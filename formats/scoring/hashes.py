"""Short hashes of weights and of annotations."""
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

WEIGHTS = (".safetensors", ".pth", ".bin")
LARGE = 1 << 30                 # bytes; a base's files above are told by their sizes


def weights(folder: Path) -> dict[str, str]:
    """{file: the first 16 digits of its sha256}, config.json too, of the folder and of its base.

    What lies outside the folder and is over 1 GB is not read again: `13,476,838,456 bytes`.
    """
    found, own = {}, True
    while folder:
        config = folder / "config.json"
        for file in sorted(folder.iterdir()):
            if file.suffix in WEIGHTS or file == config:
                name, size = str(file if not own else file.name), file.stat().st_size
                found[name] = sha256(file) if own or size < LARGE else f"{size:,} bytes"
        told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        folder, own = told.get("base") and folder / told["base"], False
    return found


def sha256(file: Path) -> str:
    """As `sha256sum` begins."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            found.update(block)
    return found.hexdigest()[:16]


def digest(texts: Iterable[str]) -> str:
    """Of texts in their order, each after its length, so that none runs into the next."""
    found = hashlib.sha256()
    for text in texts:
        block = text.encode("utf-8", "surrogatepass")
        found.update(b"%d:" % len(block) + block)
    return found.hexdigest()[:16]


def texts_of(samples: Iterable) -> Iterator[str]:
    """All that samples say; of their pictures the names, which a move of the folder leaves."""
    for sample in samples:
        yield from (Path(name).name for name in sample.images)
        yield from (text for turn in sample.turns for text in turn)
        yield json.dumps([sample.kind, sample.boxes, sample.references])
