"""Lists of the pictures of a split, {train,val,test}.txt: a name a line."""
from collections.abc import Iterable, Iterator
from pathlib import Path

from formats.common import PICTURES


def listed(folder: Path, split: str) -> list[tuple[str, str]] | None:
    """[(where it stands, name)]; None where no split has a list."""
    file = folder / f"{split}.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        return [(f"{file}:{i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    if any((folder / f"{name}.txt").is_file() for name in ("train", "val", "test")):
        raise ValueError(f"{file}: no such list, though other splits have theirs")
    return None


def chosen(folders: Iterable[Path], split: str, files: list[Path]) -> Iterator[Path | ValueError]:
    """Of a picture each, the annotation files in the split's list; all, where there is no list."""
    lists = (listed(folder, split) for folder in folders)
    names = next((names for names in lists if names is not None), None)
    if names is None:
        yield from files
        return
    known = {file.stem: file for file in files}
    for source, name in names:
        stem = name[:-len(Path(name).suffix)] if Path(name).suffix.lower() in PICTURES else name
        yield known.get(stem) or ValueError(f"{source}: {name} has no annotation file")
