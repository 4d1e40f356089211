"""The rows of a training: which process gets which ones at each step, and faulty ones.

The rows of a step are a function of the step alone, so a resumed run gets those it would have got.
With --skip_bad, a faulty row (a picture that cannot be decoded, a box outside it, too many tokens)
is replaced by the next sound row of its epoch: a function of the step again, in which no batch is
empty and the schedule stays as it is.
"""
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data import PackedDataset, collate
from support.common import UserError
from support.readers.common import DataError
from support.training.distributed import gather_lists, get_world_size, sum_over_processes


class StepRows(NamedTuple):
    batches: tuple[dict[str, Tensor | None], ...]   # micro-batches, as data.collate makes them
    left_out: list[str]                 # a line for each faulty row, of all processes


class OtherProcessError(DataError):
    """Another process has ended the run and says why."""


# ---- faulty rows ---------------------------------------------------------------------------------

MAX_REPLACED = 1000             # faulty rows one after the other, after which the search ends
FREE_FAULTS, MAX_SHARE = 20, 0.1        # a run ends at over 20 faulty rows, if they are over 10 %


class SoundRows(Dataset):
    """The rows of a dataset; a faulty one is replaced by the next sound row of its epoch."""

    def __init__(self, dataset: PackedDataset):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor | list[str] | None]:
        """As the dataset's, with "left_out": what is wrong with the row that was asked for, or [].

        DataError: no sound row follows.
        """
        epoch, first = key
        left_out: list[str] = []
        for i in range(min(len(self.dataset), MAX_REPLACED)):
            row = (first + i) % len(self.dataset)
            try:
                return self.dataset[epoch, row] | {"left_out": left_out[:1]}
            except DataError as error:          # the others are left out when their own turn comes
                left_out.append(self.describe(epoch, row, error))
        raise DataError(f"{left_out[0]}; and so are all {len(left_out):,} rows after it")

    def describe(self, epoch: int, row: int, error: DataError) -> str:
        """What is wrong, with file and row."""
        source = self.dataset.samples[self.dataset.samples_of_row(epoch, row)[0]].source
        return str(error) if str(error).startswith(source) else f"{source}: {error}"


def collate_sound(rows: list[dict]) -> dict:
    left_out = [line for row in rows for line in row.pop("left_out")]
    return collate(rows) | {"left_out": left_out}


# ---- batches -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class BatchSchedule:
    """Which rows each process gets at each step: a function of the step alone.

    So a resumed run gets the rows it would have got, and the processes together get each row of an
    epoch once.
    """
    dataset: PackedDataset
    batch_size: int             # rows of a process and micro-step
    grad_accum: int             # micro-steps of a step
    max_steps: int
    rank: int = 0
    world_size: int = 1
    skip_bad: bool = False      # replace faulty rows
    device: str = "cpu"         # where the processes compare what they met
    one_batch: bool = False     # every step gets the rows of the first one

    def keys(self, start: int) -> Iterator[list[tuple[int, int]]]:
        """-> the keys (epoch, row) of each micro-batch after step `start`."""
        for micro in range(start * self.grad_accum, self.max_steps * self.grad_accum):
            micro = micro % self.grad_accum if self.one_batch else micro
            first = (micro * self.world_size + self.rank) * self.batch_size
            yield [divmod(i, len(self.dataset)) for i in range(first, first + self.batch_size)]

    def steps(self, start: int, num_workers: int) -> Iterator[StepRows]:
        """-> the rows of each step after step `start`.

        DataError, on all processes at once: a faulty row; with skip_bad, too many of them; a
        process that loads them has ended.
        """
        batches = self.batches(start, num_workers)
        faulty = 0
        for step in range(start, self.max_steps):
            rows, error = StepRows((), []), None
            try:
                rows = next(batches)
            except UserError as caught:
                error = caught
            rows = agree(rows, error, self.device)
            faulty += len(rows.left_out)
            seen = (step + 1 - start) * self.batch_size * self.grad_accum * self.world_size
            if faulty > FREE_FAULTS and faulty > MAX_SHARE * seen:
                raise DataError(f"{rows.left_out[-1]}; with it {faulty:,} of {seen:,} rows are "
                                f"faulty, over {MAX_SHARE:.0%}: python data.py --check finds them")
            yield rows

    def batches(self, start: int, num_workers: int) -> Iterator[StepRows]:
        """-> this process's rows of each step after step `start`. DataError."""
        dataset = SoundRows(self.dataset) if self.skip_bad else self.dataset
        loader = iter(DataLoader(dataset, batch_sampler=self.keys(start), num_workers=num_workers,
                                 collate_fn=collate_sound if self.skip_bad else collate))
        if num_workers and threading.current_thread() is threading.main_thread():
            # PyTorch raises an error wherever the main process is when a loader process ends, in
            # the middle of an optimizer step too. It also looks at them, every 5 seconds, while it
            # waits for a batch: that is where the run can end with its steps saved.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for batches in zip(*[loader] * self.grad_accum, strict=True):
                left_out = [line for batch in batches for line in batch.pop("left_out", ())]
                yield StepRows(batches, left_out)
        except UserError as error:
            if not num_workers:
                raise DataError(str(error)) from None
            # A loader process sends its traceback as text, which ends in "module.Error: message".
            last_line = error.args[0].splitlines()[-1]
            raise DataError(last_line.partition(": ")[2]) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(f"--num_workers {num_workers}: a process that loads pictures was ended "
                            "from outside; if memory was short, use fewer") from None

    def first_rows(self) -> list[dict[str, Tensor | None]]:
        """Those of this process's first step, each once; faulty ones replaced. DataError."""
        rows = SoundRows(self.dataset)
        return [rows[key] for keys in islice(self.keys(0), self.grad_accum) for key in keys]

    def sources(self, step: int) -> list[str]:
        """-> file and row of every sample that this process has at a step."""
        micro_batches = islice(self.keys(step - 1), self.grad_accum)
        return [self.dataset.samples[i].source for keys in micro_batches for key in keys
                for i in self.dataset.samples_of_row(*key)]


def agree(rows: StepRows, error: UserError | None, device: str) -> StepRows:
    """-> the rows, with what all processes left out. DataError on all where one met an error."""
    if get_world_size() == 1:
        if error:
            raise error
        return rows
    counts = torch.tensor([float(error is not None), float(len(rows.left_out))], device=device)
    errors, left_out = sum_over_processes(counts).tolist()
    if error:
        raise error
    if errors:
        raise OtherProcessError("")
    return rows._replace(left_out=gather_lists(rows.left_out)) if left_out else rows
