"""A run of an evaluation: its answers on the disk, what they were made with, how it is batched.

predictions.jsonl has a line for each question, written when it is answered, so that a run that was
stopped continues with the same command. Several processes write predictions.rankN.jsonl each, which
are merged. predictions.settings.json holds what the answers depend on: model, data, settings.

Pictures and rows are named as --data names them; where that is a whole path, from the folder
that the data lie in, so that a file which is given away shows nothing else of the machine.

The answers of another system can be scored too. They need a JSON object a line,

    {"task": "vqa", "answer": "yes", "references": ["yes"], "type": "presence"}
    {"task": "refer", "answer": "{<1><2><30><40>}", "boxes": [[9, 9, 80, 90]], "size": [256, 256]}

with boxes as x1, y1, x2, y2 in pixels of a picture of `size`, width and height. A caption has a
list of references. Without "type" a question has none; without "image" (names) a row is a picture
of its own; without "task" it has that of --benchmark. A number is taken as text, null as if the
name were missing.
"""
import contextlib
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from data import encode_box
from support.common import (
    UserError,
    differences,
    environment,
    hash_file,
    parse_json,
    read_bytes,
    read_json,
    write_atomic,
)
from support.evaluation.rows import select_scorable, unreadable_truth
from support.metrics.boxes import LOCATED_TASKS, has_true_box
from support.metrics.figures import TASK_SCORES
from support.readers.common import Sample, error_context
from support.training.distributed import wait_for_all

# ---- predictions.jsonl ---------------------------------------------------------------------------

def read_jsonl(file: Path, drop_partial: bool = False) -> list[dict]:
    """All rows. UserError names a line that is not a JSON object.

    drop_partial: leave out a last line that was cut off when the process was killed.
    """
    return [row for _, row in numbered_rows(file, drop_partial)]


def numbered_rows(file: Path, drop_partial: bool = False) -> Iterator[tuple[int, dict]]:
    """(number of the line from 1, row) of each line that is not blank."""
    lines = read_bytes(file).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            if drop_partial and number == len(lines):
                continue
            raise UserError(f"{file}:{number}: not valid JSON; a line is one object") from None
        if not isinstance(row, dict):
            text = line[:40].decode("utf-8", "replace")
            raise UserError(f"{file}:{number}: not a JSON object, but {text}")
        yield number, row


def write_jsonl(file: Path, rows: Iterable[dict]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomic(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def gather_predictions(folder: Path) -> list[dict]:
    """Merge what all processes wrote into predictions.jsonl, sorted by row, each row once."""
    files = prediction_files(folder)
    rank_files = [file for file in files if file.name != "predictions.jsonl"]
    rows = {}
    for file in files:
        for number, row in numbered_rows(file, drop_partial=True):
            key = row.get("row")
            if type(key) is not int or key < 0:
                raise UserError(f'{file}:{number}: not a line of eval.py: "row" must be a number; '
                                "remove the line, or --fresh begins again")
            rows[key] = row
    merged = [rows[number] for number in sorted(rows)]
    write_jsonl(folder / "predictions.jsonl", merged)
    for file in rank_files:             # a kill before this leaves rows twice until the next start
        file.unlink()
    return merged


def prediction_files(folder: Path) -> list[Path]:
    """Those that eval.py writes: predictions.jsonl first, then those of several processes."""
    names = re.compile(r"predictions(\.rank\d+)?\.jsonl")
    files = sorted(folder.glob("predictions*.jsonl"), key=lambda file: (len(file.name), file.name))
    return [file for file in files if names.fullmatch(file.name) and file.is_file()]


# ---- start and resume ----------------------------------------------------------------------------

# What may not change when a run is resumed. No other setting changes an answer.
MUST_MATCH = ("benchmark", "split", "tasks", "limit", "sample", "weights", "data", "prompt",
              "questions", "decoding", "dtype", "bits", "bands", "frames")


def begin_run(folder: Path, record: dict, fresh: bool, rank: int) -> set[int]:
    """-> the rows that are answered already; none with `fresh`, which deletes them.

    record: what its answers depend on, stored beside them. All processes call it. UserError: the
    folder holds answers that were generated with other settings, or lines that cannot be scored.
    """
    check_same_run(folder, record, fresh)
    wait_for_all()
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            for file in prediction_files(folder):
                file.unlink()
        write_jsonl(record_file(folder / "predictions.jsonl"), [record])
        gather_predictions(folder)
    wait_for_all()
    predictions = folder / "predictions.jsonl"
    if not answers_in(predictions):
        return set()
    return {row["row"] for row in load_predictions(predictions, skip_bad=True)}


def answers_in(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def check_same_run(folder: Path, record: dict, fresh: bool = False) -> None:
    """fresh: the answers are to be deleted, so only whether eval.py wrote them."""
    if not any(map(answers_in, prediction_files(folder))):
        return
    file = record_file(folder / "predictions.jsonl")
    old = read_record_file(file) if file.is_file() else {}
    if fresh and old:
        return
    if fresh:
        raise UserError(f"{folder}: holds answers of an unknown run, without {file.name}; --fresh "
                        "deletes only what eval.py wrote: --output_dir names another folder")
    new = json.loads(json.dumps(record))            # as the old one was read: lists, no tuples
    saved, now = ({name: comparable(name, settings[name]) for name in MUST_MATCH
                   if name in settings} for settings in (old, new))
    if changed := differences(saved, now):
        raise UserError(f"{folder}: holds answers of {'another run' if old else 'an unknown run'} "
                        f"({', '.join(changed)}); --fresh deletes them, --output_dir names another "
                        "folder")


def comparable(name: str, value: object) -> object:
    """A setting as runs are compared: of weights the names of their files and what is in them."""
    if name == "weights" and isinstance(value, dict):
        return sorted(f"{Path(file).name} {digest}" for file, digest in value.items())
    return value


def read_record(predictions: Path) -> dict:
    """The record of the run that wrote this file; of another system's file the name alone."""
    file = record_file(predictions)
    return read_record_file(file) if file.is_file() else {"model": predictions.stem}


# What is read of a record; the other settings are only compared and shown.
RECORD_TYPES = {"model": str, "benchmark": str | None, "split": str | None, "sample": str | None,
                "limit": int | None, "left_out": int | None}


def read_record_file(file: Path) -> dict:
    """UserError: it is not what eval.py writes beside its answers."""
    rows = read_jsonl(file)
    record = rows[0] if len(rows) == 1 else {}
    wrong = [name for name, kinds in RECORD_TYPES.items()
             if not isinstance(record.get(name), kinds) or isinstance(record.get(name), bool)]
    if wrong:
        raise UserError(f"{file}: not the settings of a run of eval.py; {wrong[0]} is "
                        f"{repr(record.get(wrong[0]))[:80]}")
    return record


def record_file(predictions: Path) -> Path:
    return predictions.with_suffix(".settings.json")


@contextlib.contextmanager
def output_errors(file: Path) -> Iterator[None]:
    """What goes wrong in writing, as on a full disk, becomes a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or file}: {error.strerror or error}; the answers so far "
                        "are kept, and the same command continues") from None


# ---- predictions to score, ours or another system's ----------------------------------------------

def load_predictions(file: Path, default_task: str = "", skip_bad: bool = False) -> list[dict]:
    """Rows with all that a score needs. UserError names the row.

    default_task: of rows without one. skip_bad: leave out rows whose truth has no box.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; --score takes a predictions.jsonl")
    rows, texts = [], []
    for number, row in numbered_rows(file):
        try:
            with error_context(f"{file}:{number}"):
                rows.append(complete_row(row, len(rows), default_task))
        except (ValueError, OverflowError) as error:
            text = str(error)
            raise UserError(text if text.startswith(str(file)) else f"{file}:{number}: {text}"
                            ) from None
        truth = unreadable_truth(rows[-1]["task"], rows[-1]["boxes"], " ".join(
            rows[-1]["references"][:1]))
        texts.append((f"{file}:{number}", truth))
    if not rows:
        raise UserError(f"{file}: no rows")
    return select_scorable(rows, texts, skip_bad)[0]


def complete_row(row: dict, number: int, default_task: str) -> dict:
    """The row with defaults for what it lacks. ValueError, TypeError or KeyError: it is wrong."""
    row = {"row": number, "task": default_task, "image": [f"row {number}"], "type": "",
           "question": "", "references": [], "boxes": [], "pad": False, "size": [0, 0]
           } | {name: value for name, value in row.items() if value is not None or name == "answer"}
    if row["task"] not in TASK_SCORES:
        raise ValueError(f"task {row['task']!r} is none of {', '.join(TASK_SCORES)}")
    for name in ("answer", "type", "question"):
        row[name] = as_text(row[name])
    row["image"], row["references"] = as_texts(row["image"]), as_texts(row["references"])
    for name in ("pad", "corner"):
        if not isinstance(row.get(name, False), bool):
            raise ValueError(f'"{name}" must be true or false, not {repr(row[name])[:60]}')
    row["boxes"] = [tuple(map(float, box)) for box in row["boxes"]]
    if any(len(box) != 4 for box in row["boxes"]):
        raise ValueError("a box is four numbers: x1, y1, x2, y2")
    located = row["task"] in LOCATED_TASKS or (
        row["task"] == "conversation" and has_true_box(row["boxes"], *row["references"][:1]))
    size = row["size"]
    if located and (len(size) != 2 or not 0 < min(size) <= max(size) < math.inf):
        raise ValueError("size is the width and height of the picture, in pixels")
    for box in row["boxes"] if located else ():
        encode_box(box, *row["size"])           # ValueError: it is not in the picture
    if not row["references"] and not (located and row["boxes"]):
        raise ValueError("no references (or boxes and size) to score it against")
    return row


def as_texts(values: str | Sequence[str]) -> list[str]:
    """One text or several -> a list of them."""
    return [as_text(text) for text in (values if isinstance(values, list) else [values])]


def as_text(value: object) -> str:
    """A number as JSON writes it. ValueError: neither a text nor a number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return json.dumps(value)
    if not isinstance(value, str):
        raise ValueError(f"a text is expected, not {repr(value)[:60]}")
    return value


# ---- provenance ----------------------------------------------------------------------------------

PACKAGES = ("numpy", "pillow", "safetensors", "sentencepiece")
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".bin")
LARGE_FILE = 1 << 30                # bytes; larger files of a base are identified by their size


def provenance(model: Path, device: str, **settings) -> dict:
    """What a score was measured with: enough to measure it again, or to see why it differs."""
    name = str(model).removeprefix(f"{Path.cwd()}/")
    name = Path(name).name if Path(name).is_absolute() else name
    return {"model": name, **environment(device, PACKAGES), **settings,
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
    hashes = {file.name: hash_file(file)[:16] for file in weight_files(folder)}
    model = folder
    while folder := base_folder(folder):
        for file in weight_files(folder):
            size, name = file.stat().st_size, f"{folder.name}/{file.name}"
            if file.is_relative_to(model):              # a base that is named from the model
                name = file.relative_to(model).as_posix()
            hashes[name] = hash_file(file)[:16] if size < LARGE_FILE else f"{size:,} bytes"
    return hashes


def weight_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir())
            if file.suffix in WEIGHT_SUFFIXES and not file.name.startswith(".")
            or file.name == "config.json"]


def base_folder(folder: Path) -> Path | None:
    """The folder with the tensors that this one leaves out, if there is one."""
    config = folder / "config.json"
    base = read_json(config).get("base") if config.is_file() else ""
    return folder / base if base else None


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
        *before, (question, _) = samples[i].turns
        return sum(len(text) for turn in before for text in turn) + len(question)

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
