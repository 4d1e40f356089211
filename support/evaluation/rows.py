"""Which rows an evaluation asks about, and how it names their pictures in what it writes."""
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from data import IDENTIFIERS
from support.common import ABSENT, Box, UserError
from support.metrics.boxes import LOCATED_TASKS, has_true_box
from support.readers.common import Sample

# ---- a part of the rows --------------------------------------------------------------------------

def draw_rows(samples: Sequence[Sample], numbers: Sequence[int], limit: int, seed: int
              ) -> list[int]:
    """`limit` of the samples' numbers at random, in order: of each class or type of question its
    share, and at least one where there are no more of them than `limit`."""
    order = random.Random(seed).sample(numbers, len(numbers))
    kinds = {i: samples[i].turns[0][1] if samples[i].task == "scene" else samples[i].kind
             for i in numbers}
    sizes, place = Counter(kinds.values()), {}
    seen: dict[str, int] = defaultdict(int)             # of each kind so far
    for i in order:
        place[i] = seen[kinds[i]] / sizes[kinds[i]]     # 0 for the first one of each kind
        seen[kinds[i]] += 1
    return sorted(sorted(order, key=place.__getitem__)[:limit])


# ---- the turns of conversations ------------------------------------------------------------------

def conversation_questions(samples: Iterable[Sample]) -> list[Sample]:
    """Each turn of each conversation as a question: what stands before it, then the turn itself.

    Its kind is its identifier, "[vqa]", or else the conversation's. Several captions of the same
    pictures, asked for in the same words, are the references of one question.
    """
    questions: dict[tuple, Sample] = {}
    for sample in samples:
        for end, (question, answer) in enumerate(sample.turns, start=1):
            kind = identifier_of(question) or sample.kind
            boxes = sample.boxes[:count_boxes(sample.turns[:end])]
            key = (len(questions),)
            if kind == "[caption]" and not boxes:
                key = (sample.images, sample.turns[:end - 1], question)
            asked = questions.setdefault(key, replace(sample, turns=sample.turns[:end], kind=kind,
                                                      boxes=boxes, references=()))
            questions[key] = replace(asked, references=(*asked.references, answer))
    return list(questions.values())


def identifier_of(question: str) -> str:
    """"[vqa]" of "[vqa] is there a road ?"; "" where none of data.IDENTIFIERS begins it."""
    return next((f"[{name}]" for name in IDENTIFIERS if question.startswith(f"[{name}]")), "")


def count_boxes(turns: Iterable[Sequence[str]]) -> int:
    return sum(text.count("<bbox>") for turn in turns for text in turn)


def answer_boxes(sample: Sample) -> tuple[Box, ...]:
    """The boxes of the answer to the sample's last question."""
    return sample.boxes[count_boxes([*sample.turns[:-1], sample.turns[-1][:1]]):]


# ---- truth that cannot be scored -----------------------------------------------------------------

def unreadable_truth(task: str, boxes: Sequence, truth: str) -> str:
    """The truth of a row that is scored by boxes and has none; "" of any other row."""
    if task not in LOCATED_TASKS or has_true_box(boxes, truth) or truth == ABSENT:
        return ""
    return truth.strip() or "(empty)"


def scorable_samples(samples: Sequence[Sample], skip_bad: bool) -> tuple[list[int], int]:
    """-> the numbers of the samples whose truth can be scored, and how many others there are.
    UserError: as select_scorable."""
    truths = []
    for sample in samples:
        truths.append((sample.source, unreadable_truth(sample.task, answer_boxes(sample),
                                                       sample.turns[-1][1])))
    return select_scorable(range(len(samples)), truths, skip_bad)


def select_scorable(items: Sequence, truths: Sequence[tuple[str, str]], skip_bad: bool
                    ) -> tuple[list, int]:
    """-> the items with a truth that can be scored, and how many have none.

    truths: of each item where it is from, and what unreadable_truth says. UserError names the items
    that have none: without skip_bad, or if no item is left.
    """
    bad = [(source, truth) for source, truth in truths if truth]
    kept = [item for item, (_, truth) in zip(items, truths, strict=True) if not truth]
    if bad and not (skip_bad and kept):
        (source, truth), *others = bad
        more = ", ".join(source for source, _ in others[:10]) + (", .." if others[10:] else "")
        rest = f" (and in {len(others)} rows more: {more})" if others else ""
        advice = "--skip_bad leaves such rows out" if kept else "no row is left"
        raise UserError(f"{source}: no box can be read in the truth {truth[:60]!r}{rest}; a box is "
                        "{<x1><y1><x2><y2>} in hundredths, 0 to 100, or four numbers in pixels as "
                        f"the data's layout has them; {advice}")
    return kept, len(bad)


# ---- names of pictures ---------------------------------------------------------------------------

def names_base(places: Iterable[str]) -> str:
    """What the names of these data, where they are whole paths, begin with in front of the folder
    of the data: `/home/me/` of /home/me/rsicd."""
    folder = os.path.commonpath([Path(place).absolute().parent for place in places])
    return folder.rstrip("/") + "/"


def portable_row(row: dict, base: str) -> dict:
    """A row of predictions.jsonl that shows nothing of the machine but its data's folder: of
    /home/me/rsicd/1.jpg rsicd/1.jpg."""
    names = {"image": [name.removeprefix(base) for name in row["image"]]}
    if isinstance(row.get("source"), str):
        names["source"] = row["source"].removeprefix(base)
    return row | names


def find_pictures(names: Sequence[str], folders: Sequence[str | Path]) -> list[str]:
    """The files of a row's pictures, each in the first folder that has it; else the name itself."""
    return [next((str(Path(folder, name)) for folder in folders if Path(folder, name).exists()),
                 name) for name in names]
