"""support/evaluation/runs.py"""
import hashlib
import json
import os
import platform
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from data import encode_box
from support.common import UserError
from support.readers.common import ROW_ERRORS, located

# ---- predictions ---------------------------------------------------------------------------------
# predictions.jsonl: a line a question, written when it is answered, so that a run can go on.

def read_jsonl(file: Path, cut: bool = False) -> list[dict]:
    """All rows; cut: the last line, cut off by a kill, is none. UserError names a wrong one."""
    lines, rows = file.read_bytes().split(b"\n"), []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError:
            if not cut or number < len(lines):
                raise UserError(f"{file}:{number}: not valid JSON; a line is one object") from None
    return rows


def write_jsonl(file: Path, rows: Iterable[dict]) -> None:
    """Aside, then renamed: a reader sees the old file or the new one."""
    aside = file.with_name(file.name + ".tmp")
    with aside.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in rows)
        opened.flush()
        os.fsync(opened.fileno())
    aside.replace(file)


def gather_predictions(folder: Path) -> list[dict]:
    """What all processes have written, in the order of rows, each once, as predictions.jsonl."""
    parts = sorted(folder.glob("predictions.rank*.jsonl"))
    files = [file for file in (folder / "predictions.jsonl", *parts) if file.is_file()]
    rows = {row["row"]: row for file in files for row in read_jsonl(file, cut=True)}
    write_jsonl(folder / "predictions.jsonl", [rows[number] for number in sorted(rows)])
    for part in parts:                  # a kill before this leaves rows twice until the next time
        part.unlink()
    return [rows[number] for number in sorted(rows)]


# ---- runs ----------------------------------------------------------------------------------------
# Whether a run may go on with the answers of one that was stopped.

# What may not change between the starts of one run. Other settings change no answer.
MUST_MATCH = ("benchmark", "split", "tasks", "limit", "weights", "data", "prompt", "decoding", "dtype",
        "bits", "bands", "frames")


def begin_run(folder: Path, record: dict, fresh: bool, rank: int, wait: Callable[[], None]
          ) -> set[int]:
    """-> the rows that are answered already, or with `fresh` none, as they are thrown away.

    record: what is known of this run, kept beside its answers; wait: for the other processes.
    UserError: the answers that are there were given with other settings.
    """
    side = folder / "predictions.settings.json"
    if not fresh:
        check_same_run(folder, side, record)
    wait()
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("predictions*.jsonl") if fresh else ():
            file.unlink()
        write_jsonl(side, [record])
        gather_predictions(folder)
    wait()
    return {row["row"] for row in read_jsonl(folder / "predictions.jsonl")}


def check_same_run(folder: Path, side: Path, record: dict) -> None:
    if any(folder.glob("predictions*.jsonl")):
        old = read_jsonl(side)[0] if side.is_file() else {}
        new = json.loads(json.dumps(record))
        told = ", ".join(f"{name} {old.get(name)} -> {new[name]}" for name in MUST_MATCH
                         if old.get(name) != new[name])
        if told:
            raise UserError(f"{folder}: holds answers of {'another run' if old else 'no known run'}"
                           f" ({told}); --fresh throws them away, --output_dir goes elsewhere")


# ---- foreign -------------------------------------------------------------------------------------
# Predictions to be scored: ours again, or another system's, which need a JSON object a line,
#
#     {"task": "vqa", "answer": "yes", "references": ["yes"], "type": "presence"}
#     {"task": "refer", "answer": "{<1><2><30><40>}", "boxes": [[9, 9, 80, 90]], "size": [256, 256]}
#
# Boxes are x1, y1, x2, y2 in pixels of a picture of `size`, width and height. A caption has a list of
# references. Without "type" a question has none; without "image" (names) a row is a picture of its
# own; without "task" it is that of --benchmark.

LOCATED_TASKS = ("refer", "detection", "grounding")            # tasks that are scored by boxes


def load_predictions(file: Path, tasks: Collection[str], task: str = "") -> list[dict]:
    """Rows with all that a score needs; task: of rows that do not tell. UserError names the row."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; --score takes a predictions.jsonl")
    rows = []
    for number, row in enumerate(read_jsonl(file)):
        try:
            rows.append(complete_row(row, number, tasks, task))
        except ROW_ERRORS as error:
            raise UserError(str(located(f"{file}:{number + 1}", error))) from None
    if not rows:
        raise UserError(f"{file}: no rows")
    return rows


def complete_row(row: dict, number: int, tasks: Collection[str], task: str) -> dict:
    """The row, what it may lack added."""
    row = {"row": number, "task": task, "image": [f"row {number}"], "type": "", "question": "",
           "references": [], "boxes": [], "pad": False, "size": [0, 0]} | row
    if row["task"] not in tasks:
        raise ValueError(f"task {row['task']!r} is none of {', '.join(tasks)}")
    row["image"], row["references"] = as_texts(row["image"]), as_texts(row["references"])
    as_texts([row["answer"]])
    row["boxes"] = [tuple(map(float, box)) for box in row["boxes"]]
    if any(len(box) != 4 for box in row["boxes"]):
        raise ValueError("a box is four numbers: x1, y1, x2, y2")
    if row["task"] in LOCATED_TASKS:
        if len(row["size"]) != 2 or not min(row["size"]) > 0:
            raise ValueError("size is the width and height of the picture, in pixels")
        for box in row["boxes"]:
            encode_box(box, *row["size"])       # ValueError: it is not in the picture
    if not row["references"] and not (row["task"] in LOCATED_TASKS and row["boxes"]):
        raise ValueError("no references (or boxes and size) to score it against")
    return row


def as_texts(values: str | Sequence) -> list[str]:
    values = [values] if isinstance(values, str) else list(values)
    if not all(type(value) is str for value in values):
        raise ValueError(f"a text is expected, not {repr(values)[:60]}")
    return values


# ---- hashes --------------------------------------------------------------------------------------
# Short hashes of weights and of annotations.

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".bin")


LARGE_FILE = 1 << 30                 # bytes; a base's files above are told by their sizes


def hash_weights(folder: Path) -> dict[str, str]:
    """{file: the first 16 digits of its sha256}, config.json too, of the folder and of its base.

    What lies outside the folder and is over 1 GB is not read again: `13,476,838,456 bytes`.
    """
    found, own = {}, True
    while folder:
        config = folder / "config.json"
        for file in sorted(folder.iterdir()):
            if file.suffix in WEIGHT_SUFFIXES or file == config:
                name, size = str(file if not own else file.name), file.stat().st_size
                found[name] = hash_file(file) if own or size < LARGE_FILE else f"{size:,} bytes"
        told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        folder, own = told.get("base") and folder / told["base"], False
    return found


def hash_file(file: Path) -> str:
    """As `sha256sum` begins."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            found.update(block)
    return found.hexdigest()[:16]


def hash_texts(texts: Iterable[str]) -> str:
    """Of texts in their order, each after its length, so that none runs into the next."""
    found = hashlib.sha256()
    for text in texts:
        block = text.encode("utf-8", "surrogatepass")
        found.update(b"%d:" % len(block) + block)
    return found.hexdigest()[:16]


def sample_texts(samples: Iterable) -> Iterator[str]:
    """All that samples say; of their pictures the names, which a move of the folder leaves."""
    for sample in samples:
        yield from (Path(name).name for name in sample.images)
        yield from (text for turn in sample.turns for text in turn)
        yield json.dumps([sample.kind, sample.boxes, sample.references])


# ---- provenance ----------------------------------------------------------------------------------
# What a score was measured with: enough to measure it again, or to see why it differs.

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "sentencepiece")


def provenance(model: Path, texts: Iterable[str], **said) -> dict:
    """texts: hashes.texts_of the samples. said: commit, split, rows, dtype, device, decoding, seed,
    as the caller knows them."""
    return {**said, "weights": hash_weights(Path(model)), "data": hash_texts(texts),
            "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def provenance_line(record: dict) -> str:
    """The record in one line, what is empty left out."""
    return "; ".join(f"{name} {format_value(value)}" for name, value in record.items()
                     if value not in ("", None, {}))


def format_value(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return str(value)


# ---- batching ------------------------------------------------------------------------------------
# Which questions are asked together: all about one picture, of several pictures.

KindOf = Callable[[int], Hashable]            # of a sample's number: questions of a kind go together


def group_by_picture(samples: Sequence, numbers: Iterable[int], size: int, kind: KindOf
              ) -> list[list[int]]:
    """Numbers of samples of a kind with the same pictures, short questions first, at most `size`.

    Groups of a kind follow one another, those with short questions first.
    """
    def length(i: int) -> int:
        return len(samples[i].turns[0][0])

    groups: dict[tuple, list[int]] = defaultdict(list)
    for i in numbers:
        groups[kind(i), samples[i].images].append(i)
    order = list(dict.fromkeys(key for key, _ in groups))
    whole = sorted((sorted(own, key=length) for own in groups.values()), key=lambda own: (
        order.index(kind(own[0])), len(samples[own[0]].images), length(own[-1])))
    return [own[k:k + size] for own in whole for k in range(0, len(own), size)]


def make_batches(groups: Iterable[list[int]], size: int, kind: KindOf) -> Iterator[list[list[int]]]:
    """Groups of a kind that follow one another, with at most `size` questions in all."""
    batch: list[list[int]] = []
    for group in groups:
        count = sum(map(len, batch)) + len(group)
        if batch and (kind(batch[0][0]) != kind(group[0]) or count > size):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def load_ahead(load: Callable, batches: Iterable) -> Iterator:
    """load(batch) of each batch, in a thread: the next one while one is being used."""
    with ThreadPoolExecutor(1) as pool:
        coming = deque()
        for batch in batches:
            coming.append(pool.submit(load, batch))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
