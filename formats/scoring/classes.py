"""Beside the table: accuracy by class, the commonest confusions, grounding by the object's size."""
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from formats.scoring.answers import compared
from formats.scoring.figures import DEFAULT, Figure, measured
from formats.scoring.markdown import cell
from formats.scoring.score import Options, Score, ratio
from formats.scoring.sizes import by_size

CLASSES, CONFUSIONS = 100, 20           # the most frequent ones
NOTHING = "(nothing)"                   # an empty answer


def by_class(rows: Sequence[dict], options: Options) -> list[Score]:
    """Accuracy of the rows whose truth is the class; a question's is "type: truth"."""
    pairs = [compared(row, options) for row in rows]
    names = np.array([f"{row['type']}: {truth}" if row["type"] else truth
                      for row, (_, truth) in zip(rows, pairs, strict=True)])
    right = np.array([answer == truth != "" for answer, truth in pairs])
    return [ratio(name, right & (names == name), names == name, number)
            for name, number in Counter(names.tolist()).most_common(CLASSES)]


def confusions(rows: Sequence[dict], options: Options) -> list[dict]:
    """Wrong answers, each with the truth in whose place it stands."""
    pairs = [compared(row, options) for row in rows]
    wrong = Counter((truth, answer[:80]) for answer, truth in pairs if answer != truth)
    return [{"truth": pair[0], "answer": pair[1], "count": number}
            for pair, number in wrong.most_common(CONFUSIONS)]


def details(task: str, rows: Sequence[dict], options: Options = DEFAULT) -> dict:
    """{"classes": {name: a Figure's fields}, "confusions": [{truth, answer, count}]}, of boxes
    {"sizes": {name: a Figure's fields}}, of captions {}."""
    named, boxes = ("vqa", "scene", "identify"), ("refer", "detection", "grounding")
    if not rows or task not in named + boxes:
        return {}
    scores = by_class(rows, options) if task in named else by_size(rows)
    found = {name: asdict(figure) for name, figure in measured(scores, rows, options).items()}
    return {"sizes": found} if task in boxes else {"classes": found,
                                                   "confusions": confusions(rows, options)}


def markdown(found: dict) -> str:
    """Of what `details` gives; "" of {}."""
    lines = []
    if parts := found.get("classes") or found.get("sizes"):
        lines += [f"| {'truth' if 'classes' in found else 'object'} | n | right (x 100) |",
                  "|---|---|---|"]
        lines += [f"| {cell(name) or NOTHING} | {part['n']} | {cell(Figure(**part))} |"
                  for name, part in parts.items()]
    if found.get("confusions"):
        lines += ["", "| truth | answered instead | rows |", "|---|---|---|"]
        lines += [f"| {' | '.join(cell(part) or NOTHING for part in row.values())} |"
                  for row in found["confusions"]]
    return "\n".join(lines)
