"""RSIVQA's lines, a question each: `picture:question?answer`.

A picture's name has no colon and no space, the question ends at the last question mark.
"""
import re
from collections.abc import Iterator
from pathlib import Path

LINE = re.compile(r"([^:\s]+):(.*\S.*)\?(.*\S.*)")
KINDS = {       # the type of a question: the first that is found in it
    "theme": r"\btheme\b",
    "count": r"^how many\b|\bnumber of\b",
    "location": r"\blocation\b|^where\b",
    "color": r"\bcolou?r\b",
    "presence": r"^(does|do|is|are)\b",
}


def files(place: Path) -> list[Path]:
    """The texts in a folder that begin with such a line."""
    return [file for file in sorted(place.glob("*.txt")) if LINE.fullmatch(first_line(file))]


def first_line(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.readline(1000).strip()


def read(file: Path) -> Iterator[tuple[str, dict | ValueError]]:
    """-> picture, and the sample's fields without it; "" and the error for a wrong line."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        match = LINE.fullmatch(line.strip())
        if match:
            name, question, answer = (part.strip() for part in match.groups())
            yield name, {"turns": ((question + " ?", answer),), "task": "vqa",
                         "kind": kind(question), "source": f"{file}:{number}"}
        elif line.strip():
            yield "", ValueError(f"{file}:{number}: not picture:question?answer: {line[:60]!r}")


def kind(question: str) -> str:
    question = question.lower()
    return next((name for name, pattern in KINDS.items() if re.search(pattern, question)), "")
