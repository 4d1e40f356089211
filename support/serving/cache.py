"""Keys and values of many conversations: those in the batch, and those that are kept for later.

`Slots` holds the rows that are being answered. A row is written in place, so that one can join or
leave without the others being copied. `PrefixStore` keeps what has been computed, within a limit of
memory: a conversation that goes on, or another question about the same pictures, begins behind the
longest beginning it shares with what is kept.

Shapes: L layers, R rows, H heads, S slots of a row, T tokens, d width of a head.
"""
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from llama import KVCache, Llama

Pair = tuple[Tensor, Tensor]            # keys and values, [L, H, T, d] each
CAPACITY_STEP = 64                      # slots by which a row's capacity grows


class Slots:
    """Rows of keys and values, [L, R, H, S, d] each; the first ones are in use."""

    def __init__(self, llama: Llama):
        self.llama = llama
        self.clear()

    def clear(self) -> None:
        """Free the memory."""
        self.buffer = self.llama.new_cache(0, 0)
        self.rows = self.capacity = 0

    @property
    def nbytes(self) -> int:
        return self.buffer.k.nbytes + self.buffer.v.nbytes

    def size_for(self, rows: int, capacity: int) -> tuple[int, int, int]:
        """-> rows and slots to be allocated where so many are needed, and the bytes of both."""
        rows = max(self.rows, 1 << (rows - 1).bit_length())
        capacity = max(self.capacity, -(-capacity // CAPACITY_STEP) * CAPACITY_STEP)
        return rows, capacity, 2 * rows * capacity * self.slot_bytes

    @property
    def slot_bytes(self) -> int:
        """Of the keys, or of the values, of one token."""
        config = self.llama.config
        return config.depth * config.width * self.buffer.k.element_size()

    def reserve(self, rows: int, capacity: int, used: int) -> None:
        """Make room for so many rows of so many slots; the first `used` rows stay."""
        rows, capacity, _ = self.size_for(rows, capacity)
        if (rows, capacity) == (self.rows, self.capacity):
            return
        old, device = self.buffer, self.buffer.k.device
        self.buffer = KVCache(self.llama.config, rows, capacity, device, old.k.dtype)
        if used:
            self.buffer.k[:, :used, :, :self.capacity] = old.k[:, :used]
            self.buffer.v[:, :used, :, :self.capacity] = old.v[:, :used]
        self.rows, self.capacity = rows, capacity

    def view(self, first: int, count: int, length: int) -> KVCache:
        """`count` rows as a cache whose longest row holds `length` tokens."""
        cache = KVCache(self.llama.config, 0, 0)
        cache.k = self.buffer.k[:, first:first + count]
        cache.v = self.buffer.v[:, first:first + count]
        cache.rows = self.buffer.rows[:count]
        cache.capacity, cache.length = self.capacity, length
        return cache

    def write(self, row: int, pair: Pair, length: int) -> None:
        """Begin a row with the first `length` tokens of kept keys and values."""
        self.buffer.k[:, row, :, :length] = pair[0][:, :, :length]
        self.buffer.v[:, row, :, :length] = pair[1][:, :, :length]

    def read(self, row: int, length: int) -> Pair:
        """A copy of a row's first `length` tokens."""
        return (self.buffer.k[:, row, :, :length].clone(),
                self.buffer.v[:, row, :, :length].clone())

    def move(self, row: int, to: int, length: int) -> None:
        """Copy a row's first `length` tokens to another row."""
        for x in (self.buffer.k, self.buffer.v):
            x[:, to, :, :length] = x[:, row, :, :length]


class PrefixStore:
    """Keys and values by pictures and ids; the one not used for longest goes first.

    The ids of the same pictures are kept sorted: what shares most with a text stands beside the
    place where the text itself would stand.
    """

    def __init__(self, limit: int):
        """limit: bytes."""
        self.limit, self.nbytes = limit, 0
        self.pairs: OrderedDict[tuple[Hashable, tuple[int, ...]], Pair] = OrderedDict()
        self.sorted_ids: dict[Hashable, list[tuple[int, ...]]] = {}

    def find(self, pictures: Hashable, ids: Sequence[int]) -> tuple[Pair | None, int]:
        """What shares most with these ids, and how many: never all, the last one's logits are
        needed."""
        own, ids = self.sorted_ids.get(pictures, []), tuple(ids)
        place, best, most = bisect_left(own, ids), None, 0
        for other in own[max(place - 1, 0):place + 1]:
            shared = shared_length(other, ids)
            if shared > most:
                best, most = other, shared
        if best is None:
            return None, 0
        self.pairs.move_to_end((pictures, best))
        return self.pairs[pictures, best], min(most, len(ids) - 1)

    def add(self, pictures: Hashable, ids: Sequence[int], pair: Pair) -> None:
        """Keep them; what they continue is left out."""
        ids, size = tuple(ids), pair[0].nbytes + pair[1].nbytes
        if size > self.limit or not ids:
            return
        own = self.sorted_ids.setdefault(pictures, [])
        place = bisect_left(own, ids)
        if place < len(own) and own[place][:len(ids)] == ids:   # it is there, or more than it
            self.pairs.move_to_end((pictures, own[place]))
            return
        if place and own[place - 1] == ids[:len(own[place - 1])]:
            self.remove(pictures, own[place - 1])
            own = self.sorted_ids.setdefault(pictures, [])
        own.insert(bisect_left(own, ids), ids)
        self.pairs[pictures, ids] = pair
        self.nbytes += size
        self.shrink(self.limit)

    def shrink(self, limit: int) -> None:
        """Remove the oldest until no more than `limit` bytes are held."""
        while self.pairs and self.nbytes > limit:
            self.remove(*next(iter(self.pairs)))

    def remove(self, pictures: Hashable, ids: tuple[int, ...]) -> None:
        pair = self.pairs.pop((pictures, ids))
        self.nbytes -= pair[0].nbytes + pair[1].nbytes
        own = self.sorted_ids[pictures]
        own.pop(bisect_left(own, ids))
        if not own:
            del self.sorted_ids[pictures]

    def clear(self) -> None:
        self.shrink(-1)


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two texts begin with in common."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))


def pairs_of(cache: KVCache) -> list[Pair]:
    """Keys and values of each row of a cache that is full."""
    return [(cache.k[:, row].clone(), cache.v[:, row].clone()) for row in range(cache.k.shape[1])]


def token_ids(ids: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=device)
