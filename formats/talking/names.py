"""Which pictures a line of names means."""
import glob
import shlex
from collections.abc import Sequence
from pathlib import Path

from formats.pictures.clip import natural

Stamp = tuple[str, int]                 # a path, and when its file was changed last


def expand(names: Sequence[str]) -> list[str]:
    """Patterns (*, ?, [..]) become what they match, frame2 before frame10; ~ the home folder.

    ValueError: one line with a pattern that nothing matches.
    """
    paths = []
    for name in names:
        name = str(Path(name).expanduser()) if name.startswith("~") else name
        found = [name]
        if glob.has_magic(name) and not Path(name).exists():
            found = sorted(glob.glob(name), key=lambda path: natural(Path(path)))
        if not found:
            raise ValueError(f"{name}: no such picture")
        paths += found
    return paths


def words(line: str) -> list[str]:
    """Names may stand in quotes, as in a shell, and a blank may be written after a backslash."""
    try:
        return shlex.split(line)
    except ValueError:                  # a quote that is not closed, as in harbor's.png
        return line.split()


def stamp(path: str) -> Stamp:
    file = Path(path)
    return path, file.stat().st_mtime_ns if file.exists() else 0
