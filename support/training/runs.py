"""One run a folder: its lock, its identity, and what of another run lies there.

    OUTPUT_DIR/run.lock         process and host of the run that writes there now
    OUTPUT_DIR/run.json         the identity of the run: "id", drawn at random, "processes", and
                                hashes of what it learns from: "data" and "pictures" (of each
                                --data), "tokenizer", "base". Each checkpoint has it too.

Hashed are the rows themselves, and of pictures and weights names, sizes and times, not contents.
"""
import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from support.checkpoints.files import ModelError, read_json, visible_files, write_json
from support.common import FolderLock, UserError
from support.readers.common import SampleTable

# ---- places --------------------------------------------------------------------------------------

def check_places(output_dir: str, model: str) -> None:
    """UserError where the run would write over the model it starts from, or over a base of it."""
    out, place = Path(output_dir).resolve(), Path(model) if model else None
    seen = set()
    while place and place.resolve() not in seen:
        place = place.resolve()
        seen.add(place)
        if place == out or out in place.parents:
            raise UserError(f"--output_dir {output_dir}: the run would write over {place}, which "
                            "it starts from; name another --output_dir")
        try:
            base = read_json(place / "config.json").get("base")
        except ModelError:
            return
        place = place / base if isinstance(base, str) and base else None


# ---- lock ----------------------------------------------------------------------------------------

@contextlib.contextmanager
def lock_folder(out: Path, rank: int) -> Iterator[None]:
    """Within, rank 0 is the only run that writes into the folder; one that was made for it and
    stays empty is removed. UserError: another run is there, or it cannot be written to."""
    new = not out.exists()
    if rank:
        yield
        return
    lock = FolderLock(out)
    try:
        lock.__enter__()
    except OSError as error:
        raise UserError(f"--output_dir {out}: cannot be written to ({error.strerror}); name "
                        "another folder") from None
    try:
        yield
    finally:
        lock.__exit__()
        if new:
            with contextlib.suppress(OSError):          # not empty
                out.rmdir()


# ---- identity ------------------------------------------------------------------------------------

RUN_FILE = "run.json"


def read_run(folder: Path) -> dict:
    """The identity that a folder or a checkpoint names; {} where an earlier version wrote it."""
    try:
        return read_json(folder / RUN_FILE)
    except (ModelError, OSError):
        return {}


def new_run(identity: dict) -> dict:
    return {"id": secrets.token_hex(8)} | identity


def write_run(folder: Path, run: dict) -> None:
    write_json(folder / RUN_FILE, run)


def describe_sources(data_sets: Sequence[SampleTable], bases: Iterable[str], tokenizer: Path,
                     processes: int) -> dict:
    """What a run learns from, as an identity: hashes, and the number of processes.

    bases: the model and the vision encoder it starts with; "" for none."""
    return {"processes": processes,
            "data": [short_hash(bytes(samples.text)) for samples in data_sets],
            "pictures": [hash_files(path for paths in samples.image_sets for path in paths)
                         for samples in data_sets],
            "tokenizer": short_hash(tokenizer.read_bytes()),
            "base": " ".join(hash_model(Path(base)) for base in bases if base)}


def short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def hash_files(paths: Iterator[str | Path]) -> str:
    """Of names, sizes and times."""
    found = hashlib.sha256()
    for path in paths:
        try:
            entry = os.stat(path)
            stamp = (entry.st_size, entry.st_mtime_ns)
        except OSError:
            stamp = (-1, -1)
        found.update(json.dumps([os.path.basename(path), *stamp]).encode())
    return found.hexdigest()[:16]


def hash_model(folder: Path) -> str:
    """Of the weight files of a model folder and of its bases, or of one file."""
    if folder.is_file():
        return hash_files(iter([folder]))
    paths, seen = [], set()
    while folder.resolve() not in seen and folder.is_dir():
        seen.add(folder.resolve())
        paths += sorted(path for path in folder.iterdir()
                        if path.suffix in (".safetensors", ".bin", ".pth")
                        and not path.name.startswith("."))
        if not (folder / "config.json").is_file():
            break
        base = read_json(folder / "config.json").get("base")
        if not isinstance(base, str) or not base:
            break
        folder = folder / base
    return hash_files(iter(paths))


def changed_sources(saved: dict, now: dict, settings: dict) -> list[str]:
    """A few words for each part of the identity that is not what it was, without processes."""
    lines = []
    for key, what in (("data", "the rows"), ("pictures", "size or time of the pictures")):
        pairs = zip(saved.get(key, ()), now[key], settings["data"], strict=False)
        lines += [f"{what} of {place} have changed" for old, new, place in pairs if old != new]
    for key, what in (("tokenizer", "tokenizer.model has"),
                      ("base", f"the weights of {settings['model'] or settings['vit']} have")):
        if key in saved and saved[key] != now[key]:
            lines.append(f"{what} changed")
    return lines


def rows_a_step(settings: dict, processes: int) -> int:
    return settings["batch_size"] * settings["grad_accum"] * processes


def changed_processes(saved: dict, now: dict, old: dict, new: dict) -> tuple[list[str], bool]:
    """-> "processes 1 -> 2" if their number has changed; and whether the rows of a step are still
    as many, so that batch_size and grad_accum may change. old, new: the settings."""
    before, after = saved.get("processes", now["processes"]), now["processes"]
    same = rows_a_step(old, before) == rows_a_step(new, after)
    return ([f"processes {before} -> {after}"] if before != after else []), same


# ---- what of another run lies there --------------------------------------------------------------

def refuse_other_run(out: Path, found: Sequence[Path], run_id: str | None, overwrite: bool) -> None:
    """UserError where checkpoints or a result lie in the output folder that are not this run's.

    found: its checkpoints. run_id: of the run that goes on; None for a new one.
    """
    names = [path.name for path in (*found, *visible_files(out, "*.safetensors"))]
    if names and not overwrite and (run_id is None or read_run(out).get("id", "") != run_id):
        ways = "replace it (--overwrite) or name another --output_dir"
        ways = f"go on with it (--resume auto), {ways}" if found else (
            f"{ways}, where --model {out} trains it further")       # ended without a checkpoint
        raise UserError(f"{out}: {names[-1]} of another run is there; {ways}")


def is_of_run(checkpoint: Path, run_id: str) -> bool:
    return read_run(checkpoint).get("id", "") == run_id
