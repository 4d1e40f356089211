"""Which rows of an evaluation to look at."""
import random
from collections.abc import Iterable, Sequence


def worst_and_random(rows: Sequence[dict], badness: Sequence[float], count: int, seed: int = 42
                     ) -> tuple[list[int], list[int]]:
    """-> numbers of rows, at most `count` of each, the worst first; no picture comes twice.

    Of rows equally bad the lot decides.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(rows)), len(rows))
    pictures: set[tuple] = set()
    worst = one_each(rows, sorted(order, key=lambda i: -badness[i]), count, pictures)
    return worst, one_each(rows, order, count, pictures)


def one_each(rows: Sequence[dict], order: Iterable[int], count: int, pictures: set[tuple]
             ) -> list[int]:
    """The first `count` in that order whose pictures are not in `pictures`, and puts them there."""
    chosen: list[int] = []
    for i in order:
        if len(chosen) < count and tuple(rows[i]["image"]) not in pictures:
            pictures.add(tuple(rows[i]["image"]))
            chosen.append(i)
    return chosen
