"""A run of an evaluation: its answers on the disk, what they were made with, how it is batched.

predictions.jsonl has a line for each question, written when it is answered, so that a run that was
stopped continues with the same command. Several processes write predictions.rankN.jsonl each, which
are merged. predictions.settings.json holds what the answers depend on: model, data, settings.

The answers of another system can be scored too. They need a JSON object a line,

    {"task": "vqa", "answer": "yes", "references": ["yes"], "type": "presence"}
    {"task": "refer", "answer": "{<1><2><30><40>}", "boxes": [[9, 9, 80, 90]], "size": [256, 256]}

with boxes as x1, y1, x2, y2 in pixels of a picture of `size`, width and height. A caption has a
list of references. Without "type" a question has none; without "image" (names) a row is a picture
of its own; without "task" it has that of --benchmark.
"""
import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data import encode_box
from support.common import UserError, differences, environment, read_json, write_atomic
from support.metrics.boxes import LOCATED_TASKS
from support.metrics.figures import TASK_SCORES
from support.readers.common import Sample, error_context
from support.training.distributed import wait_for_all

# ---- predictions.jsonl ---------------------------------------------------------------------------

def read_jsonl(file: Path, drop_partial: bool = False) -> list[dict]:
    """All rows. UserError names a line that is not JSON.

    drop_partial: leave out a last line that was cut off when the process was killed.
    """
    lines, rows = file.read_bytes().split(b"\n"), []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            if not (drop_partial and number == len(lines)):
                raise UserError(f"{file}:{number}: not valid JSON; a line is one object") from None
    return rows


def write_jsonl(file: Path, rows: Iterable[dict]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomic(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def gather_predictions(folder: Path) -> list[dict]:
    """Merge what all processes wrote into predictions.jsonl, sorted by row, each row once."""
    rank_files = sorted(folder.glob("predictions.rank*.jsonl"))
    rows = {}
    for file in (folder / "predictions.jsonl", *rank_files):
        if file.is_file():
            rows |= {row["row"]: row for row in read_jsonl(file, drop_partial=True)}
    merged = [rows[number] for number in sorted(rows)]
    write_jsonl(folder / "predictions.jsonl", merged)
    for file in rank_files:             # a kill before this leaves rows twice until the next start
        file.unlink()
    return merged


# ---- start and resume ----------------------------------------------------------------------------

# What may not change when a run is resumed. No other setting changes an answer.
MUST_MATCH = ("benchmark", "split", "tasks", "limit", "weights", "data", "prompt", "decoding",
              "dtype", "bits", "bands", "frames")


def begin_run(folder: Path, record: dict, fresh: bool, rank: int) -> set[int]:
    """-> the rows that are answered already; none with `fresh`, which deletes them.

    record: what its answers depend on, stored beside them. All processes call it. UserError: the
    folder holds answers that were generated with other settings.
    """
    if not fresh:
        check_same_run(folder, record)
    wait_for_all()
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            for file in folder.glob("predictions*.jsonl"):
                file.unlink()
        write_jsonl(record_file(folder / "predictions.jsonl"), [record])
        gather_predictions(folder)
    wait_for_all()
    return {row["row"] for row in read_jsonl(folder / "predictions.jsonl")}


def check_same_run(folder: Path, record: dict) -> None:
    if not any(folder.glob("predictions*.jsonl")):
        return
    file = record_file(folder / "predictions.jsonl")
    old = read_jsonl(file)[0] if file.is_file() else {}
    new = json.loads(json.dumps(record))            # as the old one was read: lists, no tuples
    saved, now = ({name: settings[name] for name in MUST_MATCH if name in settings}
                  for settings in (old, new))
    if changed := differences(saved, now):
        raise UserError(f"{folder}: holds answers of {'another run' if old else 'an unknown run'} "
                        f"({', '.join(changed)}); --fresh deletes them, --output_dir names another "
                        "folder")


def read_record(predictions: Path) -> dict:
    """The record of the run that wrote this file; of another system's file the name alone."""
    file = record_file(predictions)
    return read_jsonl(file)[0] if file.is_file() else {"model": predictions.stem}


def record_file(predictions: Path) -> Path:
    return predictions.with_suffix(".settings.json")


# ---- predictions to score, ours or another system's ----------------------------------------------

def load_predictions(file: Path, default_task: str = "") -> list[dict]:
    """Rows with all that a score needs; default_task: of rows without one. UserError names the row.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; --score takes a predictions.jsonl")
    rows = []
    for number, row in enumerate(read_jsonl(file)):
        try:
            with error_context(f"{file}:{number + 1}"):
                rows.append(complete_row(row, number, default_task))
        except ValueError as error:
            raise UserError(str(error)) from None
    if not rows:
        raise UserError(f"{file}: no rows")
    return rows


def complete_row(row: dict, number: int, default_task: str) -> dict:
    """The row with defaults for what it lacks. ValueError, TypeError or KeyError: it is wrong."""
    row = {"row": number, "task": default_task, "image": [f"row {number}"], "type": "",
           "question": "", "references": [], "boxes": [], "pad": False, "size": [0, 0]} | row
    if row["task"] not in TASK_SCORES:
        raise ValueError(f"task {row['task']!r} is none of {', '.join(TASK_SCORES)}")
    located = row["task"] in LOCATED_TASKS
    check_text(row["answer"])
    row["image"], row["references"] = as_texts(row["image"]), as_texts(row["references"])
    row["boxes"] = [tuple(map(float, box)) for box in row["boxes"]]
    if any(len(box) != 4 for box in row["boxes"]):
        raise ValueError("a box is four numbers: x1, y1, x2, y2")
    if located and (len(row["size"]) != 2 or not min(row["size"]) > 0):
        raise ValueError("size is the width and height of the picture, in pixels")
    for box in row["boxes"] if located else ():
        encode_box(box, *row["size"])           # ValueError: it is not in the picture
    if not row["references"] and not (located and row["boxes"]):
        raise ValueError("no references (or boxes and size) to score it against")
    return row


def as_texts(values: str | Sequence[str]) -> list[str]:
    """One text or several -> a list of them."""
    texts = [values] if isinstance(values, str) else list(values)
    for text in texts:
        check_text(text)
    return texts


def check_text(value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"a text is expected, not {repr(value)[:60]}")


# ---- provenance ----------------------------------------------------------------------------------

PACKAGES = ("numpy", "pillow", "safetensors", "sentencepiece")
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".bin")
LARGE_FILE = 1 << 30                # bytes; larger files of a base are identified by their size


def provenance(model: Path, device: str, **settings) -> dict:
    """What a score was measured with: enough to measure it again, or to see why it differs."""
    return {"model": str(model), **environment(device, PACKAGES), **settings,
            "weights": hash_weights(model)}


def provenance_line(record: dict) -> str:
    """The record in one line, without what is empty."""
    entries = []
    for name, value in record.items():
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {what}" for inner, what in value.items())
        if value not in ("", None):
            entries.append(f"{name} {value}")
    return "; ".join(entries)


def hash_weights(folder: Path) -> dict[str, str]:
    """{file: the first 16 digits of its sha256} of the folder's weights and config.json.

    The same of its base, whose files over 1 GB are not read: `13,476,838,456 bytes`.
    """
    hashes = {file.name: hash_file(file) for file in weight_files(folder)}
    while folder := base_folder(folder):
        for file in weight_files(folder):
            size = file.stat().st_size
            hashes[str(file)] = hash_file(file) if size < LARGE_FILE else f"{size:,} bytes"
    return hashes


def weight_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir())
            if file.suffix in WEIGHT_SUFFIXES or file.name == "config.json"]


def base_folder(folder: Path) -> Path | None:
    """The folder with the tensors that this one leaves out, if there is one."""
    config = folder / "config.json"
    base = read_json(config).get("base") if config.is_file() else ""
    return folder / base if base else None


def hash_file(file: Path) -> str:
    """The first 16 digits that `sha256sum` prints."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


def hash_samples(samples: Iterable[Sample]) -> str:
    """Of all texts and boxes; of pictures the names alone, so a moved folder has the same hash."""
    return hash_texts(sample_texts(samples))


def hash_texts(texts: Iterable[str]) -> str:
    """Of texts in their order, each after its length, so that their limits count."""
    digest = hashlib.sha256()
    for text in texts:
        block = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(block) + block)
    return digest.hexdigest()[:16]


def sample_texts(samples: Iterable[Sample]) -> Iterator[str]:
    for sample in samples:
        yield from (Path(name).name for name in sample.images)
        yield from (text for turn in sample.turns for text in turn)
        yield json.dumps([sample.kind, sample.boxes, sample.references])


# ---- batches -------------------------------------------------------------------------------------

Kinds = Mapping[int, Hashable]          # of each sample's number; only one kind is in a batch


def group_by_picture(samples: Sequence[Sample], numbers: Iterable[int], size: int, kinds: Kinds
                     ) -> list[list[int]]:
    """Groups of at most `size` samples, given by their numbers, of one kind about one picture.

    Short questions come first in a group; groups of a kind follow one another, those with few
    pictures and short questions first.
    """
    def length(i: int) -> int:
        return len(samples[i].turns[0][0])

    def order(group: list[int]) -> tuple[int, int, int]:
        return kind_order.index(kinds[group[0]]), len(samples[group[0]].images), length(group[-1])

    by_picture: dict[tuple, list[int]] = defaultdict(list)
    for i in numbers:
        by_picture[kinds[i], samples[i].images].append(i)
    kind_order = list(dict.fromkeys(kind for kind, _ in by_picture))
    groups = sorted((sorted(group, key=length) for group in by_picture.values()), key=order)
    return [group[start:start + size] for group in groups for start in range(0, len(group), size)]


def make_batches(groups: Iterable[list[int]], size: int, kinds: Kinds) -> Iterator[list[list[int]]]:
    """Consecutive groups of one kind with at most `size` questions in all."""
    batch: list[list[int]] = []
    for group in groups:
        count = sum(map(len, batch)) + len(group)
        if batch and (kinds[batch[0][0]] != kinds[group[0]] or count > size):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def load_ahead(items: Iterable) -> Iterator:
    """The same items; a thread makes the next one while one is used."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item
