"""Which questions are asked together: all about one picture, of several pictures."""
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

Kind = Callable[[int], Hashable]            # of a sample's number: questions of a kind go together


def groups_of(samples: Sequence, numbers: Iterable[int], size: int, kind: Kind
              ) -> list[list[int]]:
    """Numbers of samples of a kind with the same pictures, short questions first, at most `size`.

    Groups of a kind follow one another, those with short questions first.
    """
    def length(i: int) -> int:
        return len(samples[i].turns[0][0])

    groups: dict[tuple, list[int]] = defaultdict(list)
    for i in numbers:
        groups[kind(i), samples[i].images].append(i)
    order = list(dict.fromkeys(key for key, _ in groups))
    whole = sorted((sorted(own, key=length) for own in groups.values()), key=lambda own: (
        order.index(kind(own[0])), len(samples[own[0]].images), length(own[-1])))
    return [own[k:k + size] for own in whole for k in range(0, len(own), size)]


def batches_of(groups: Iterable[list[int]], size: int, kind: Kind) -> Iterator[list[list[int]]]:
    """Groups of a kind that follow one another, with at most `size` questions in all."""
    batch: list[list[int]] = []
    for group in groups:
        count = sum(map(len, batch)) + len(group)
        if batch and (kind(batch[0][0]) != kind(group[0]) or count > size):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def ahead(load: Callable, batches: Iterable) -> Iterator:
    """load(batch) of each batch, in a thread: the next one while one is being used."""
    with ThreadPoolExecutor(1) as pool:
        coming = deque()
        for batch in batches:
            coming.append(pool.submit(load, batch))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
