"""What several layouts need: errors that name their row, split lists, pictures beside a file."""
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """What goes wrong with a row becomes a ValueError of one line that names it."""
    try:
        yield
    except (AttributeError, LookupError, SyntaxError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{source}: {what}") from None


def attempt(source: str, make: Callable, *given) -> list[dict | ValueError]:
    """The samples that `make` has for a row; in their place the error, if the row is wrong."""
    try:
        with naming(source):
            made = make(*given)
            return [made] if isinstance(made, dict) else list(made)
    except ValueError as error:
        return [error]


def load_json(file: Path):
    with naming(f"{file}: not valid JSON"), file.open(encoding="utf-8") as opened:
        return json.load(opened)


def head(file: Path) -> str:
    """The beginning, enough to tell what a file is."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(1 << 16)


def text(row: dict, name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} must be a text, not {repr(value)[:60]}")
    return value


def member(rows: dict, what: str, number: int):
    if number not in rows:
        raise ValueError(f"no {what} has id {number}")
    return rows[number]


def find(place: Path, folders: Sequence[str], name: str) -> str:
    """Which of `folders` has that picture, a suffix added if need be; else where it should be."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return name             # to be refused, not looked for
    ends = [""] if name.lower().endswith(PICTURES) else ["", *PICTURES]
    paths = [Path(folder, name + end) for folder in folders for end in ends]
    return next((path for path in paths if (place / path).is_file()), paths[0]).as_posix()
