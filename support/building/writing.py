"""Which of the rows that are made are written, and their files.

Rows wait in one file, the spool, a line each, while their labels are counted. Then as many of each
label as are chosen are drawn while the spool is read once more.
"""
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TextIO

from tqdm import tqdm

from support.building.output import RowWriter, make_folders
from support.building.samples import CLOSED, Built, Plan
from support.common import UserError

Stratum = tuple[int, str, str]          # data set, task, kind


def spool_row(file: TextIO, row: Built, found: dict[Stratum, Counter]) -> None:
    """Write the line of one row and count its label."""
    label = " ".join(row.label.split())
    found.setdefault((row.data_set, row.task, row.kind), Counter())[label] += 1
    head = json.dumps([row.file, row.data_set, row.task, row.kind, label, row.links])
    file.write(f"{head}\t{row.text}\n")


def choose(found: dict[Stratum, Counter], balance: bool) -> dict[Stratum, Counter]:
    """How many rows of each label are written, with --balance; --limit comes later."""
    if not balance:
        return {stratum: Counter(counts) for stratum, counts in found.items()}
    return {stratum: Counter({label: min(count, most_of(label, counts))
                              for label, count in counts.items()})
            for stratum, counts in found.items()}


def most_of(label: str, counts: Counter) -> int:
    """As many yes as no, no class over twice the median; rows without a label stay."""
    if not label:
        return counts[label]
    if label in CLOSED:
        return min(counts[answer] for answer in CLOSED) or counts[label]
    return max(1, int(2 * median(counts[other] for other in counts
                                 if other and other not in CLOSED)))


class Sampler:
    """Draws exactly `wanted` of `total` items, one after another, each with the same chance."""

    def __init__(self, total: int, wanted: int, seed: str):
        self.total, self.wanted, self.rng = total, wanted, random.Random(seed)

    def take(self) -> bool:
        taken = self.rng.random() * self.total < self.wanted
        self.total -= 1
        self.wanted -= taken
        return taken


def write_all(folder: Path, spool: Path, found: dict[Stratum, Counter],
              chosen: dict[Stratum, Counter], plan: Plan, limit: int, copy: bool, dry_run: bool
              ) -> tuple[dict[str, Counter], dict[tuple[str, str, str], Counter]]:
    """limit: rows at most; 0: all. copy: the pictures; else link them. dry_run: only count.

    -> how many rows are written by data set and task, and by data set's name, task, kind and label.
    """
    samplers = {(stratum, label): Sampler(count, chosen[stratum][label],
                                          f"{plan.seed} {stratum} {label}")
                for stratum, counts in found.items() for label, count in counts.items()}
    total = sum(map(Counter.total, chosen.values()))
    limited = Sampler(total, min(limit or total, total), f"{plan.seed} limit")
    counts: dict[str, Counter] = {own.name: Counter() for own in plan.sets}
    labels: dict[tuple[str, str, str], Counter] = {}
    if not dry_run:
        make_folders(folder, plan.layout)
    writer = RowWriter(folder)
    with spool.open(encoding="utf-8") as file:
        for line in tqdm(file, total=sum(map(Counter.total, found.values())), desc="writing",
                         unit="sample", disable=None):
            head, text = line.rstrip("\n").split("\t", 1)
            name, data_set, task, kind, label, links = json.loads(head)
            stratum = data_set, task, kind
            if not (samplers[stratum, label].take() and limited.take()):
                continue
            own = plan.sets[data_set]
            counts[own.name][task] += 1
            if label:
                labels.setdefault((own.name, task, kind), Counter())[label] += 1
            if not dry_run:
                writer.add(name, text)
                for path, link in links:
                    put_picture(path, folder / "images" / link, copy)
    writer.close()
    return counts, labels


def put_picture(path: str, target: Path, copy: bool) -> None:
    """A hard link, or a copy; of a clip's folder, of each of its files. UserError: no link can be
    made, as on another disk."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(path):
        for name in sorted(os.listdir(path)):
            put_picture(os.path.join(path, name), target / name, copy)
    elif copy:
        shutil.copyfile(path, target)
    else:
        try:
            os.link(os.path.realpath(path), target)
        except OSError as error:
            raise UserError(f"{path}: cannot be linked from --build ({error.strerror}); --copy "
                            "copies the pictures") from None
