"""Which rows a training has: those of its data sets, or so many of them, without those held out.

The rows held out, to measure the model on, are never trained on: those of --val_data, and with
--val_part a part of the training rows, drawn picture by picture. Two files of the same content
count as two pictures, two paths to one file as one.
"""
import os
import random
import sys
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from support.common import UserError
from support.readers.common import Sample, SampleTable
from support.training.checks import TokenCounter, drop_long_rows, note_text_boxes
from support.training.distributed import get_rank

Read = Callable[[str, str], Sequence[Sample]]       # as readers.read_data: place, split -> samples


def read_rows(read: Read, places: Sequence[str], val_places: Sequence[str], counter: TokenCounter,
              skipped: list[str] | None, *, limit: int, val_part: float, seed: int
              ) -> tuple[list[SampleTable], SampleTable]:
    """-> the samples of each data set to train on, and all that are held out.

    skipped: what is wrong with the rows left out is appended; None: such a row is a DataError.
    UserError: as hold_out.
    """
    data_sets, val_sets = [read(place, "train") for place in places], [
        SampleTable(map(vars, read(place, "val"))) for place in val_places]
    if skipped and get_rank() == 0:
        print(f"left out {len(skipped):,}: {skipped[0]}, ..", file=sys.stderr)
    data_sets, val_sets = ([drop_long_rows(samples, counter, skipped, quiet=get_rank() > 0)
                            for samples in sets] for sets in (data_sets, val_sets))
    data_sets = [limit_rows(samples, limit, seed) for samples in data_sets]
    data_sets, held_out = hold_out(data_sets, val_part, seed, places)
    held_out = join_tables([held_out, *val_sets])
    if get_rank() == 0:
        if note := note_text_boxes(join_tables(data_sets)):
            print(f"note: {note}", file=sys.stderr)
        if shared := count_shared_pictures(data_sets, val_sets):
            print(f"note: {shared:,} pictures of --val_data are trained on too; the figures say "
                  "nothing about new pictures then", file=sys.stderr)
    return data_sets, held_out


def join_tables(tables: Iterable[SampleTable]) -> SampleTable:
    joined = SampleTable()
    for samples in tables:
        joined.join(samples)
    return joined


# ---- a part of the rows --------------------------------------------------------------------------

def take_rows(samples: SampleTable, chosen: np.ndarray) -> SampleTable:
    """The samples for which chosen, bool[samples], is true."""
    if chosen.all():
        return samples
    return SampleTable(vars(samples[int(i)]) for i in np.flatnonzero(chosen))


def limit_rows(samples: SampleTable, limit: int, seed: int) -> SampleTable:
    """So many of them, drawn at random, in their order; 0: all."""
    chosen = np.ones(len(samples), dtype=bool)
    if 0 < limit < len(samples):
        chosen[random.Random(seed).sample(range(len(samples)), len(samples) - limit)] = False
    return take_rows(samples, chosen)


def hold_out(data_sets: Sequence[SampleTable], part: float, seed: int, places: Sequence[str]
             ) -> tuple[list[SampleTable], SampleTable]:
    """-> the rows to train on, and those held out: this part of all rows, drawn at random picture
    by picture, so that no picture has rows in both.

    places: the data sets' names. UserError: nothing would be left to train on.
    """
    if not part:
        return list(data_sets), SampleTable()
    groups = picture_groups(data_sets)
    sizes = np.bincount(np.concatenate(groups))             # rows of each group
    order = np.random.default_rng(seed).permutation(len(sizes))
    enough = np.searchsorted(np.cumsum(sizes[order]), part * sizes.sum() - 1e-6) + 1
    is_held = np.zeros(len(sizes), dtype=bool)
    is_held[order[:enough]] = True
    for place, group in zip(places, groups, strict=True):
        if is_held[group].all():
            raise UserError(f"--val_part {part:g}: all rows of {place} would be held out; it has "
                            f"{len(group):,} rows about {len(set(group.tolist())):,} pictures; "
                            "name other data with --val_data instead")
    held = SampleTable()
    for samples, group in zip(data_sets, groups, strict=True):
        if is_held[group].any():
            held.join(take_rows(samples, is_held[group]))
    return [take_rows(samples, ~is_held[group])
            for samples, group in zip(data_sets, groups, strict=True)], held


def picture_groups(data_sets: Sequence[SampleTable]) -> list[np.ndarray]:
    """A number for each sample of each data set, int[samples]: the same for those that share a
    picture, directly or through others. A sample without a picture has one of its own."""
    parents: dict[str, str] = {}

    def root(path: str) -> str:
        while parents.setdefault(path, path) != path:
            path = parents[path]
        return path

    first_path = []                                         # of each data set's image sets
    for samples in data_sets:
        real = [[os.path.realpath(path) for path in paths] for paths in samples.image_sets]
        first_path.append([paths[0] if paths else "" for paths in real])
        for paths in real:
            for path in paths[1:]:
                parents[root(path)] = root(paths[0])
    numbers: dict[str | tuple[int, int], int] = {}
    groups = []
    for which, (samples, paths) in enumerate(zip(data_sets, first_path, strict=True)):
        of_sets = [numbers.setdefault(root(path) if path else (which, i), len(numbers))
                   for i, path in enumerate(paths)]
        groups.append(np.array(of_sets)[np.array(samples.image_set)])
    return groups


def count_shared_pictures(some: Sequence[SampleTable], others: Sequence[SampleTable]) -> int:
    """How many pictures both are about."""
    files = [{os.path.realpath(path) for samples in tables for paths in samples.image_sets
              for path in paths} for tables in (some, others)] if others else [set(), set()]
    return len(files[0] & files[1])
