"""The answers of the tiles on the disk, beside the layer: a run that was stopped continues.

OUTPUT.tiles.jsonl begins with a line of settings, what the answers depend on, and one of the files
that the run writes, which it may write over; then each tile that is answered has a line. Lines are
only ever added, a batch at a time: of a run that was killed, the last line may be cut off, and that
tile is asked again. With several processes each has a file of its own, OUTPUT.tiles.rankN.jsonl.
"""
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from support.common import (
    UserError,
    differences,
    hash_file,
    lock_file,
    parse_json,
    read_bytes,
    write_atomic,
)
from support.evaluation.runs import LARGE_FILE
from support.scenes.answers import TileAnswers


def journal_file(output: Path, rank: int = 0) -> Path:
    return output.with_name(f"{output.name}.tiles.rank{rank}.jsonl" if rank
                            else f"{output.name}.tiles.jsonl")


def journal_files(output: Path) -> list[Path]:
    """Those of all processes that ever worked on it."""
    own = output.name + ".tiles"
    return [file for file in sorted(output.parent.iterdir())
            if file.name == f"{own}.jsonl" or (file.name.startswith(f"{own}.rank")
                                               and file.name.endswith(".jsonl")
                                               and file.name[len(own) + 5:-6].isdecimal())
            ] if output.parent.is_dir() else []


def identify(path: str) -> str:
    """Of a picture: name and digest; of a large one name, bytes and when it was changed last."""
    file = Path(path)
    status = file.stat()
    if status.st_size < LARGE_FILE:
        return f"{file.name} {hash_file(file)[:16]}"
    return f"{file.name} {status.st_size} bytes of {status.st_mtime_ns // 10**9}"


def read_lines(file: Path) -> list[dict]:
    """The objects in it; what a kill cut off is left out."""
    rows = []
    for line in read_bytes(file).split(b"\n"):
        try:
            row = parse_json(line) if line.strip() else None
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def outputs_of(output: Path) -> set[str]:
    """The files that the run of this file writes, or has written."""
    file = journal_file(output)
    rows = read_lines(file) if file.is_file() else []
    return {str(name) for row in rows for name in row.get("outputs") or ()}


def begin(output: Path, settings: dict, kinds: Sequence[str], fresh: bool,
          outputs: Sequence[str] = ()) -> dict[int, TileAnswers]:
    """-> the tiles that are answered already; none with `fresh`, which deletes them. To be called
    by one process.

    kinds: of the questions' answers; outputs: the files that the run writes. UserError: they were
    answered with other settings, or another run is at it.
    """
    settings = json.loads(json.dumps(settings))                 # lists, no tuples
    output.parent.mkdir(parents=True, exist_ok=True)
    file = journal_file(output)
    if fresh:
        with open_journal(output):                              # nobody else writes it
            for old in journal_files(output):
                old.unlink()
    rows = {path: read_lines(path) for path in journal_files(output)}
    if not any(rows.values()):
        text = f'{json.dumps({"settings": settings})}\n{json.dumps({"outputs": list(outputs)})}\n'
        write_atomic(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return {}
    first = rows.get(file) or [{}]
    saved = first[0].get("settings")
    if not isinstance(saved, dict):
        raise UserError(f"{file}: not answers of chat.py --tiles; --fresh deletes them")
    if changed := differences(saved, settings):
        raise UserError(f"{file}: holds answers of another run ({', '.join(changed)}); --fresh "
                        "deletes them, or name another file")
    return {number: row["answers"] for own in rows.values() for row in own
            if is_answered(number := row.get("tile"), row.get("answers", ()), kinds)}


def is_answered(number: object, answers: object, kinds: Sequence[str]) -> bool:
    """Whether a line holds what `Journal` writes."""
    if type(number) is not int or number < 0:
        return False
    return answers is None or isinstance(answers, list) and len(answers) == len(kinds) and all(
        map(is_answer, answers, kinds))


def is_answer(entry: object, kind: str) -> bool:
    if not isinstance(entry, dict):
        return False
    if kind == "value":
        return isinstance(entry.get("answer"), str) and is_number(entry.get("probability"))
    boxes = entry.get("boxes")
    return isinstance(boxes, list) and all(
        isinstance(box, list) and len(box) == 7 and isinstance(box[0], str)
        and all(map(is_number, box[1:])) and type(box[6]) is int for box in boxes)


def is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def open_journal(output: Path, rank: int = 0) -> TextIO:
    """To add lines. UserError: another process does."""
    file = open(journal_file(output, rank), "a", encoding="utf-8")      # noqa: SIM115
    try:
        lock_file(file, journal_file(output, rank), "file")
    except BaseException:
        file.close()
        raise
    return file


class Journal:
    """`with Journal(output, rank) as journal:` adds the answers of batches."""

    def __init__(self, output: Path, rank: int = 0):
        self.output, self.rank = output, rank

    def __enter__(self) -> "Journal":
        self.file = open_journal(self.output, self.rank)
        path = journal_file(self.output, self.rank)
        if path.stat().st_size and not read_bytes(path).endswith(b"\n"):
            self.file.write("\n")               # after a line that was cut off
        return self

    def add_outputs(self, names: Sequence[str]) -> None:
        """That the run writes these files too."""
        if not set(names) <= outputs_of(self.output):
            self.file.write(json.dumps({"outputs": list(names)}) + "\n")
            self.file.flush()

    def write(self, answers: dict[int, TileAnswers]) -> None:
        self.file.write("".join(json.dumps({"tile": number, "answers": own}) + "\n"
                                for number, own in answers.items()))
        self.file.flush()

    def __exit__(self, *_) -> None:
        self.file.close()


def settings_of(scenes: Sequence[str], questions: Sequence[str], **more) -> dict:
    """What the answers depend on."""
    return {"scene": [identify(path) for path in scenes], "questions": list(questions)} | more
