"""Which rows a process is fed at each step."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Feed:
    """The rows of a step are a function of the step alone: resumed, it is fed what it would have
    been, and all processes together get each row of an epoch once."""
    rows: Dataset               # data.Rows
    batch_size: int             # rows a process and micro-step
    grad_accum: int             # micro-steps a step
    max_steps: int
    rank: int = 0
    world: int = 1

    def keys(self, start: int) -> Iterator[list[tuple[int, int]]]:
        """(epoch, number) of the rows of each micro-step after step `start`."""
        for micro in range(start * self.grad_accum, self.max_steps * self.grad_accum):
            first = (micro * self.world + self.rank) * self.batch_size
            yield [divmod(i, len(self.rows)) for i in range(first, first + self.batch_size)]

    def batches(self, start: int, collate: Callable[[list], dict], num_workers: int
                ) -> Iterator[tuple[dict, ...]]:
        """-> the micro-batches of each step after step `start`."""
        loader = iter(DataLoader(self.rows, batch_sampler=self.keys(start), collate_fn=collate,
                                 num_workers=num_workers))
        return zip(*[loader] * self.grad_accum, strict=True)

    def sources(self, step: int) -> list[str]:
        """Where the samples of a step stand in the data."""
        return [self.rows.samples[i].source for micro in islice(self.keys(step - 1),
                self.grad_accum) for key in micro for i in self.rows.members(*key)]
