"""A folder put on the disk so that neither a crash nor a power cut leaves half of it."""
import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path


class SaveError(Exception):
    """A checkpoint that cannot be written: a line that names the folder and what to do."""


def make_room(out: Path, step: int, need: int) -> None:
    """Remove what interrupted runs left up to `step`; then are `need` bytes and 5 % free?"""
    out.mkdir(parents=True, exist_ok=True)
    for path in out.glob("checkpoint-*.tmp"):
        told = path.name[11:].split(".")[0]
        if told.isdecimal() and int(told) <= step:
            shutil.rmtree(path, ignore_errors=True)
    need, free = need + need // 20, shutil.disk_usage(out).free
    if need > free:
        raise SaveError(f"{out / f'checkpoint-{step}'}: {need:,} bytes to write, {free:,} free; "
                        "make room or name another --output_dir")


def flush(path: Path, deep: bool = True) -> None:
    """A file, or a folder and, if deep, all in it, onto the disk. Raises OSError."""
    for inner in path.iterdir() if deep and path.is_dir() else ():
        flush(inner)
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def put(aside: Path, final: Path) -> None:
    """Rename a folder; one of that name stands until then, and again if the renaming fails."""
    before = final.with_name(final.name + ".old.tmp")
    if final.exists():
        final.rename(before)
    try:
        aside.rename(final)
    except BaseException:
        if before.exists():
            before.rename(final)
        raise
    flush(final.parent, deep=False)
    shutil.rmtree(before, ignore_errors=True)


def remove(found: Sequence[Path], final: Path, limit: int) -> None:
    """The oldest, so that `limit` stay (0: all), `final` among them; half of one is never seen."""
    old = [path for path in found if path != final]
    for path in old[:len(old) + 1 - limit] if limit else ():
        aside = path.with_name(path.name + ".tmp")
        with contextlib.suppress(OSError):      # the new one stands, which is what counts
            path.rename(aside)
            shutil.rmtree(aside)
