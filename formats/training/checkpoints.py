"""Folders checkpoint-N: found, written whole or not at all, and the oldest removed."""
import shutil
from collections.abc import Callable
from pathlib import Path

from formats.released.files import SafetensorError
from formats.released.tensors import ModelError
from formats.training.disk import SaveError, flush, make_room, put, remove
from formats.training.telling import is_out_of_memory
from formats.training.whole import fault, numbered

BROKEN = (OSError, RuntimeError, SafetensorError, ModelError)   # how the writers tell a full disk


def complete(out: Path) -> list[Path]:
    """Those that are whole, oldest first."""
    return [path for path in numbered(out) if not fault(path)]


def newest(out: Path) -> tuple[Path | None, list[str]]:
    """The newest whole one, and a line for each newer one that is torn."""
    lines = []
    for path in reversed(numbered(out)):
        if not (what := fault(path)):
            return path, lines
        lines.append(f"{path.name} is torn ({what}), passed over")
    return None, lines


def save(out: Path, step: int, write: Callable[[Path], None], need: int, limit: int) -> Path:
    """checkpoint-STEP, of `need` bytes, that `write` puts into the folder it is given.

    Then the oldest go, so that `limit` stay (0: all). Raises SaveError; all earlier ones are
    then as they were. An error of memory passes through."""
    final, aside = out / f"checkpoint-{step}", out / f"checkpoint-{step}.tmp"
    try:
        make_room(out, step, need)
        aside.mkdir()
        write(aside)
        flush(aside)
        put(aside, final)
    except BROKEN as error:
        if is_out_of_memory(error):
            raise
        raise SaveError(f"{final}: not written ({' '.join(str(error).split())}); make room or "
                        "name another --output_dir; earlier checkpoints are whole") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    remove(complete(out), final, limit)
    return final
