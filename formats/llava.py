"""LLaVA's conversations, one JSON list or one object a line (.jsonl): RS-GPT4V, GeoChat, your own.

    [{"image": "a.jpg", or a list, or absent,      pictures are named from the file's folder
      "conversations": [{"from": "human", "value": "<image>\\nwhat is it?"},
                        {"from": "gpt", "value": "a harbor"}, ..]}, ..]
"""
import json
from collections.abc import Iterator
from pathlib import Path


def matches(place: Path) -> bool:
    return place.is_file() and place.suffix in (".json", ".jsonl")


def read(place: Path, split: str) -> Iterator[dict]:
    """All rows: such a file is one split."""
    for number, row in enumerate(read_rows(place), start=1):
        yield conversation(row, f"{place}:{number}")


def read_rows(file: Path) -> list[dict]:
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: a list of objects is expected")
    return rows


def conversation(row: dict, source: str, folder: str = "") -> dict:
    """Turns are human and gpt by position, as upstream takes them."""
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str)
               for turn in row.get("conversations") or [None]):
        raise ValueError(f'{source}: "conversations" must be a list of {{"from", "value"}}')
    texts = [turn["value"] for turn in row["conversations"]]
    if len(texts) % 2:
        raise ValueError(f"{source}: {len(texts)} turns; human and gpt must come in pairs")
    names = row.get("image") or []
    names = [names] if isinstance(names, str) else names
    questions = [" ".join(text.replace("<image>", " ").split()) for text in texts[::2]]
    return {"images": [folder + name for name in names], "task": "conversation", "source": source,
            "turns": tuple(zip(questions, texts[1::2], strict=True)), "kind": row.get("type", "")}
