"""Of `data.py --build --writer`: the facts of each picture that a model writes about, and its rows.
"""
import random
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from support.building.expressions import absent_names
from support.building.passages import Facts
from support.building.samples import (
    Built,
    Plan,
    Rejections,
    find_layouts,
    fullest_layout,
    known_words,
    texts_of,
    write_rows,
)
from support.building.store import Group, Store
from support.building.writer import WriterSettings, as_samples, write_dialogues


def facts_of(group: Group, plan: Plan) -> Facts | None:
    """What is known of the picture, boxes in fractions of its sides; None: a clip, no picture, or
    nothing is known that a text could be checked against."""
    if len(group.picture.paths) != 1:
        return None
    layout, labels = fullest_layout(find_layouts(group, plan, Rejections()), plan)
    texts = texts_of(group)
    objects = tuple((thing.name, thing.box) for thing in layout.things
                    if thing.name not in layout.unclear)
    if not (objects or texts["caption"]):
        return None
    absent = absent_names(layout, labels, known_words(group))
    return Facts(group.picture.paths[0], (1, 1), objects, next(iter(texts["scene"]), ""),
                 tuple(dict.fromkeys(texts["caption"])), tuple(absent))


def write_about(store: Store, plan: Plan, settings: WriterSettings, kept: Path,
                rejections: Rejections) -> Iterator[Built]:
    """The rows that the model's texts give, in the order of the pictures."""
    waiting: deque[tuple[Group, Facts]] = deque()

    def pictures() -> Iterator[Facts]:
        for group in store.groups():
            if facts := facts_of(group, plan):
                waiting.append((group, facts))
                yield facts

    with (closing(write_dialogues(pictures(), settings, kept)) as texts,
          tqdm(desc="writer", unit="picture", disable=None) as bar):
        for written in texts:
            group, facts = waiting.popleft()
            bar.update()
            if written.reason:
                kind = f"writer: {written.reason.split(':')[0]}"
                rejections.add(kind, f"{written.image}: {written.reason}")
                continue
            made = [(group.picture.data_set, row) for row in as_samples(written, facts)]
            rng = random.Random(f"{plan.seed} writer {written.image}")
            yield from write_rows(made, group, plan, rng, rejections)
