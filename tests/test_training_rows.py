"""The rows of a training: which process gets which, and faulty ones left out, or told in a line."""
import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import get_worker_info

import tiny
from data import collate
from support.common import UserError
from support.readers.common import DataError
from support.training import rows as training_rows
from support.training.rows import BatchSchedule, SoundRows

# ---- which rows ----------------------------------------------------------------------------------

@pytest.mark.parametrize("world_size, accum", [(1, 1), (2, 1), (3, 2)])
def test_the_processes_together_get_every_row_once_an_epoch(world_size, accum):
    schedules = [BatchSchedule(range(7), 2, accum, 7, rank, world_size)
                 for rank in range(world_size)]
    keys = [list(schedule.keys(0)) for schedule in schedules]
    together = [key for micro in zip(*keys, strict=True) for batch in micro for key in batch]
    assert together == [divmod(i, 7) for i in range(7 * 2 * accum * world_size)]
    for rank, schedule in enumerate(schedules):
        assert list(schedule.keys(3)) == keys[rank][3 * accum:]


def test_the_sources_of_a_step_are_those_of_its_batches(tmp_path):
    rows = tiny.rows(tiny.captions(tmp_path, 6))
    schedule = BatchSchedule(rows, 1, 2, 3, rank=0, world_size=1)
    batches = [step.batches for step in schedule.steps(1, num_workers=0)]
    assert len(batches) == 2 and all(len(step) == 2 for step in batches)
    for step, micro_batches in enumerate(batches, start=2):
        sources = schedule.sources(step)
        assert len(sources) == 2
        for source, batch in zip(sources, micro_batches, strict=True):
            [row] = [i for i in range(6)
                     if rows.samples[rows.samples_of_row(0, i)[0]].source == source]
            assert torch.equal(batch["ids"], collate([rows[0, row]])["ids"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_loader_process_is_the_same_line(tmp_path, num_workers):
    rows = tiny.rows(tiny.captions(tmp_path, 2))
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(UserError) as caught:
        next(BatchSchedule(rows, 1, 1, 1).steps(0, num_workers))
    message = str(caught.value)
    assert message.startswith("row 0: " + str(tmp_path)) and "\n" not in message


# ---- faulty rows ---------------------------------------------------------------------------------

def with_faults(folder, count=12):
    """Of these rows, one has a picture that cannot be decoded, one a box outside its picture."""
    samples = tiny.captions(folder, count)
    damaged = Path(samples[3].images[0])
    damaged.write_bytes(damaged.read_bytes()[:60])
    samples[7] = dataclasses.replace(samples[7], task="refer", boxes=((900, 900, 950, 950),),
                                     turns=(("a road", "<bbox>"),))
    return tiny.rows(samples), {samples[3].source, samples[7].source}


def steps(rows, start=0, workers=0, **more):
    schedule = BatchSchedule(rows, 2, 2, 6, skip_bad=True, **more)
    return list(schedule.steps(start, workers))


def same(one, two):
    return all(a.left_out == b.left_out and all(torch.equal(x["ids"], y["ids"]) for x, y in
                                                zip(a.batches, b.batches, strict=True))
               for a, b in zip(one, two, strict=True))


def test_a_faulty_row_is_left_out_once_an_epoch_and_named(tmp_path):
    rows, faulty = with_faults(tmp_path)
    found = steps(rows)                                         # 24 rows: two epochs
    assert all(len(batch["ids"]) == 2 for step in found for batch in step.batches)
    lines = [line for step in found for line in step.left_out]
    assert len(lines) == 4 and {line.split(":")[0] for line in lines} == faulty
    assert any("cannot be read" in line or "picture" in line for line in lines)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_replaces_a_faulty_row_depends_on_the_step_alone(tmp_path, workers):
    rows, _ = with_faults(tmp_path)
    assert same(steps(rows)[2:], steps(rows, start=2, workers=workers))


def test_sound_rows_are_untouched(tmp_path):
    rows = tiny.rows(tiny.captions(tmp_path, 12))
    plain = list(BatchSchedule(rows, 2, 2, 6).steps(0, 0))
    assert same(plain, steps(rows)) and not any(step.left_out for step in plain)


def test_rows_that_are_all_faulty_are_one_line(tmp_path):
    samples = tiny.captions(tmp_path, 4)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="row .*and so are all 4 rows") as caught:
        SoundRows(tiny.rows(samples))[0, 1]
    assert "\n" not in str(caught.value)


def test_too_large_a_share_of_faulty_rows_ends_the_run(tmp_path, monkeypatch):
    rows, _ = with_faults(tmp_path)
    monkeypatch.setattr(training_rows, "FREE_FAULTS", 2)
    with pytest.raises(DataError, match=r"3 of \d+ rows are faulty, over 10%"):
        steps(rows)


class KilledLoader(torch.utils.data.Dataset):
    """Its second row kills the loader process, as the system does where memory is short."""

    def __init__(self, rows):
        self.rows, self.samples = rows, rows.samples

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        if key[1] == 1 and get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rows[key]


def test_a_loader_process_that_is_killed_ends_the_run_within_seconds(tmp_path):
    rows, begin = KilledLoader(tiny.rows(tiny.captions(tmp_path, 4))), time.time()
    with pytest.raises(DataError, match="--num_workers 1: .* ended from outside"):
        list(BatchSchedule(rows, 1, 1, 4).steps(0, 1))
    assert time.time() - begin < 20
