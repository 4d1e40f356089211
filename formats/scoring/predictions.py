"""predictions.jsonl: a line a question, written when it is answered, so that a run can go on."""
import json
import os
from collections.abc import Iterable
from pathlib import Path


class RunError(Exception):
    """An evaluation that cannot begin or go on: one line that says what to do."""


def read(file: Path, cut: bool = False) -> list[dict]:
    """All rows; cut: the last line, cut off by a kill, is none. RunError names a wrong one."""
    lines, rows = file.read_bytes().split(b"\n"), []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError:
            if not cut or number < len(lines):
                raise RunError(f"{file}:{number}: not valid JSON; a line is one object") from None
    return rows


def write(file: Path, rows: Iterable[dict]) -> None:
    """Aside, then renamed: a reader sees the old file or the new one."""
    aside = file.with_name(file.name + ".tmp")
    with aside.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in rows)
        opened.flush()
        os.fsync(opened.fileno())
    aside.replace(file)


def gather(folder: Path) -> list[dict]:
    """What all processes have written, in the order of rows, each once, as predictions.jsonl."""
    parts = sorted(folder.glob("predictions.rank*.jsonl"))
    files = [file for file in (folder / "predictions.jsonl", *parts) if file.is_file()]
    rows = {row["row"]: row for file in files for row in read(file, cut=True)}
    write(folder / "predictions.jsonl", [rows[number] for number in sorted(rows)])
    for part in parts:                  # a kill before this leaves rows twice until the next time
        part.unlink()
    return [rows[number] for number in sorted(rows)]
