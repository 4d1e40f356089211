"""LLaVA's conversations, one JSON list or one object a line (.jsonl): RS-GPT4V, GeoChat, your own.

    [{"image": "a.jpg", or a list, or absent,      pictures are named from the file's folder
      "conversations": [{"from": "human", "value": "<image>\\nwhat is it?"},
                        {"from": "gpt", "value": "a harbor"}, ..]}, ..]

or as ms-swift has them: "images", "messages" of {"role", "content"}, "objects" (formats/swift.py).
"""
import json
from collections.abc import Iterator
from pathlib import Path

from formats.common import load_json
from formats.swift import fill, turns_of
from formats.wrong import attempt


def matches(place: Path) -> bool:
    return place.is_file() and place.suffix in (".json", ".jsonl")


def read(place: Path, split: str) -> Iterator[dict | ValueError]:
    """All rows: such a file is one split."""
    for number, row in enumerate(read_rows(place), start=1):
        yield from attempt(f"{place}:{number}", conversation, row, f"{place}:{number}")


def read_rows(file: Path) -> list[dict]:
    if file.suffix == ".jsonl":
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
        except ValueError as error:
            raise ValueError(f"{file}: not valid JSON ({error})") from None
    else:
        rows = load_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: a list of objects is expected")
    return rows


def conversation(row: dict, source: str) -> dict:
    names, (texts, boxes) = pictures(row), fill(turns_of(row), row.get("objects") or {})
    marks = sum(text.count("<image>") for text in texts)
    if marks > len(names):
        raise ValueError(f"{marks} <image> marks for {len(names)} pictures")
    questions = [" ".join(text.replace("<image>", " ").split()) for text in texts[::2]]
    if not all(questions):
        raise ValueError("a question is empty")
    return {"images": names, "task": "conversation", "source": source, "boxes": boxes,
            "turns": tuple(zip(questions, texts[1::2], strict=True)), "kind": row.get("type", "")}


def pictures(row: dict) -> list[str]:
    names = row.get("images", row.get("image")) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"the pictures must be a name or a list of names, not {repr(names)[:60]}")
    return names
