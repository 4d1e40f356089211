"""The turns of a conversation, by LLaVA's keys or ms-swift's, and ms-swift's objects.

    {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ..]}
    {"messages": [{"role": "user", "content"}, {"role": "assistant", "content"}, ..],
     "objects": {"ref": ["the ship", ..], "bbox": [[x1, y1, x2, y2], ..]}}      in pixels

`<ref-object>` in a text stands for the next of ref, `<bbox>` for the next of bbox.
"""
import re

KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
ROLES = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}
REF = "<ref-object>"


def turns_of(row: dict) -> list[str]:
    """Questions and answers by turns; who speaks may be left out. An empty system text is none."""
    kind = "messages" if "messages" in row else "conversations"
    turns, (who, what) = row.get(kind), KEYS[kind]
    if not turns or not isinstance(turns, list) or not all(
            isinstance(turn, dict) and isinstance(turn.get(what), str) for turn in turns):
        raise ValueError(f'"{kind}" must be a list of {{"{who}", "{what}"}}')
    turns = [turn for turn in turns if turn.get(who) != "system" or turn[what].strip()]
    for number, turn in enumerate(turns):
        if who in turn and ROLES.get(turn[who]) != number % 2:
            raise ValueError(f"turn {number + 1} is by {turn[who]!r}; human and gpt take turns")
        if not turn[what].strip():
            raise ValueError(f"turn {number + 1} is empty")
    if not turns or len(turns) % 2:
        raise ValueError(f"{len(turns)} turns; human and gpt must come in pairs")
    return [turn[what] for turn in turns]


def fill(texts: list[str], objects: dict) -> tuple[list[str], tuple]:
    """Write the refs at their marks -> texts, and the boxes of the marks that stay."""
    if objects.get("bbox_type", "real") != "real":
        raise ValueError(f"bbox_type {objects['bbox_type']!r}: boxes must be pixels (\"real\")")
    if any(objects.get("image_id") or ()):
        raise ValueError("a box in a later picture than the first (image_id) is not read")
    refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if not all(isinstance(ref, str) for ref in refs):
        raise ValueError('"ref" must be a list of texts')
    for mark, given in ((REF, refs), ("<bbox>", boxes)):
        marks = sum(text.count(mark) for text in texts)
        if marks != len(given):
            raise ValueError(f"{marks} {mark} marks for {len(given)} given")
    coming = iter(refs)
    texts = [re.sub(REF, lambda _: next(coming), text) for text in texts]
    return texts, tuple(numbers(box) for box in boxes)


def numbers(box: list) -> tuple[float, ...]:
    if not isinstance(box, list) or [type(side) in (int, float) for side in box] != [True] * 4:
        raise ValueError(f"a box must be four numbers, not {repr(box)[:60]}")
    return tuple(box)
