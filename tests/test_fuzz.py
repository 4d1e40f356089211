"""A round of the fuzzer, and that it finds what it is there to find."""
import random
import subprocess
import time
from pathlib import Path

import pytest

import fuzz
import fuzz_inputs
from fuzz_mutations import OF_FORMAT, mutate
from support.common import UserError

COUNT = 2000                    # about 35 seconds of one core


@pytest.fixture(scope="module")
def targets():
    return fuzz_inputs.all_targets()


def test_every_sound_input_is_read(targets, tmp_path):
    """Otherwise no mutation of it would say anything."""
    for target in targets:
        folder = tmp_path / target.name
        fuzz.write_files(folder, target.files)
        errors = []
        for step in target.steps:
            try:
                step(folder)
            except UserError as error:          # a split or bands that it has not
                errors.append(str(error))
        assert len(errors) < len(target.steps) or "rasterio" in errors[-1] or \
            "--bands" in errors[-1], errors


def test_thousands_of_damaged_files_end_in_one_line_at_most(tmp_path):
    read, faults = fuzz.run(COUNT, seed=1, out=tmp_path)
    assert read == COUNT and not faults, "\n".join(faults)


def test_a_mutation_is_the_same_again_and_changes_the_file(targets):
    for number in range(0, 400, 7):
        target = targets[number % len(targets)]
        files, name = fuzz.damaged_files(target, 42, number)
        again, _ = fuzz.damaged_files(target, 42, number)
        assert files == again and files.keys() == target.files.keys()
    changed = [fuzz.damaged_files(targets[0], 42, number)[0] != targets[0].files
               for number in range(50)]
    assert sum(changed) > 40


@pytest.mark.parametrize("kind", OF_FORMAT)
def test_whatever_the_bytes_are_they_can_be_damaged(kind):
    rng = random.Random(0)
    for number in range(200):
        data = rng.randbytes(number) if number % 2 else b"[" * number
        assert isinstance(mutate(rng, data, kind), bytes)


def raising(error):
    def step(folder):
        raise error
    return step


def computing(folder):
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass


@pytest.mark.parametrize("step, fault", [
    (raising(ValueError("x")), "ValueError"), (raising(RecursionError()), "RecursionError"),
    (raising(UserError("one line")), ""), (raising(UserError("")), "UserError"),
    (lambda folder: None, "GB"), (computing, "seconds"), (lambda folder: None, "")])
def test_what_may_not_happen_is_a_fault(step, fault, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    monkeypatch.setattr(fuzz, "MEMORY", 10**8)
    target = fuzz.Target("a", {}, {}, (lambda folder: None, step))
    if fault == "GB":           # what a test takes may be less than the peak of those before it
        peaks = iter([0, 0, 0, 10**9])
        monkeypatch.setattr(fuzz, "peak_memory", lambda: next(peaks))
    found = fuzz.fault_of(target, Path("."))
    assert (fault in found) if fault else found == ""


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import fuzz
def step(folder):
    os.kill(os.getpid(), signal.SIGKILL)
fuzz.all_targets = lambda: [fuzz.Target("a", {{"f": b"x"}}, {{"f": "bytes"}}, (step,))]
fuzz.work(*map(int, sys.argv[2:5]), sys.argv[5])
"""


def test_a_process_that_ends_is_a_fault_and_is_replaced(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(KILLED.format(tests=str(Path(fuzz_inputs.__file__).parent)))
    monkeypatch.setattr(fuzz, "__file__", str(worker))
    found = list(fuzz.watch(1, 4, 6, ""))
    assert [(number, name) for number, name, _ in found] == [(4, "a"), (5, "a")]
    assert all("the process ended (-9)" in fault for _, _, fault in found)


def test_a_process_that_says_nothing_is_ended(monkeypatch):
    monkeypatch.setattr(fuzz, "HANG", 0.2)
    with subprocess.Popen(["sleep", "600"], stdout=subprocess.PIPE) as process:
        assert list(fuzz.answers(process)) == []
        assert process.wait(timeout=60) == -9
