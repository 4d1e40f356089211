"""What a long training rests on: whole checkpoints, signals, bad losses, memory, the plot."""
import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import support.common as common
import support.training.checkpoints as checkpoints
import tiny
from support.common import (
    GracefulStop,
    UserError,
    commit,
    environment,
    explain_out_of_memory,
    is_out_of_memory,
)
from support.readers import parse_ratios
from support.training.checkpoints import (
    complete_checkpoints,
    differences,
    newest_checkpoint,
    save_checkpoint,
    why_incomplete,
)
from support.training.log import (
    CHART_BOX,
    CHART_SIZE,
    MEAN_COLOR,
    RATE_COLOR,
    Axis,
    NaNGuard,
    is_untrained_loss,
    moving_average,
    plot_loss,
    read_log,
)


def write(folder, value=0.0, size=2000):
    folder.mkdir(exist_ok=True)
    torch.save({"step": 1, "weights": torch.full((size,), value)}, folder / "trainer.pt")
    save_file({"weights": torch.full((size,), value)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def make(out, *steps):
    for step in steps:
        write(out / f"checkpoint-{step}", float(len(str(step))))
    return [out / f"checkpoint-{step}" for step in steps]


def names(out):
    return sorted(path.name for path in out.iterdir())


def cut(file, part=0.5):
    content = file.read_bytes()
    file.write_bytes(content[:int(len(content) * part)])


# ---- what is whole -------------------------------------------------------------------------------

TEARS = {
    "trainer.pt cut": lambda f: cut(f / "trainer.pt"),
    "trainer.pt one byte short": lambda f: cut(f / "trainer.pt", 0.9999),
    "trainer.pt empty": lambda f: cut(f / "trainer.pt", 0),
    "trainer.pt missing": lambda f: (f / "trainer.pt").unlink(),
    "trainer.pt of zeros": lambda f: (f / "trainer.pt").write_bytes(bytes(5000)),
    "trainer.pt with a foreign object": lambda f: torch.save(SimpleNamespace(), f / "trainer.pt"),
    "model.safetensors cut": lambda f: cut(f / "model.safetensors", 0.9),
    "model.safetensors empty": lambda f: cut(f / "model.safetensors", 0),
    "no *.safetensors": lambda f: (f / "model.safetensors").unlink(),
    "config.json missing": lambda f: (f / "config.json").unlink(),
    "config.json cut": lambda f: (f / "config.json").write_text('{"llama": {'),
    "b.safetensors shard missing": lambda f: (f / "a.safetensors.index.json").write_text(
        '{"weight_map": {"x": "model.safetensors", "y": "b.safetensors"}}'),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_passed_over_in_one_line_that_names_file_and_folder(tear, tmp_path):
    whole, torn = make(tmp_path, 20, 40)
    TEARS[tear](torn)
    found, lines = newest_checkpoint(tmp_path)
    assert found == whole and complete_checkpoints(tmp_path) == [whole]
    assert len(lines) == 1 and "\n" not in lines[0] and str(tmp_path) not in lines[0]
    assert lines[0].startswith("checkpoint-40 is torn (") and lines[0].endswith("), passed over")
    assert tear.split()[0] in lines[0] and "download" not in lines[0]


def test_whole_ones_come_by_number_and_nothing_else_counts(tmp_path):
    make(tmp_path, 100, 20, 9)
    make(tmp_path, "120.tmp", "130.old.tmp", "x", "")
    (tmp_path / "checkpoint-500").write_text("a file")
    assert [path.name for path in complete_checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (9, 20, 100)]
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-100", [])


def test_where_nothing_is_nothing_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) == newest_checkpoint(tmp_path / "none") == (None, [])
    (tmp_path / "checkpoint-1").mkdir()
    assert newest_checkpoint(tmp_path)[0] is None and len(newest_checkpoint(tmp_path)[1]) == 1


def test_all_shards_of_an_index_make_a_whole_one(tmp_path):
    folder, = make(tmp_path, 1)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "b.safetensors"}}')
    assert why_incomplete(folder) == "b.safetensors: no such file"
    shutil.copy(folder / "model.safetensors", folder / "b.safetensors")
    assert why_incomplete(folder) == ""


# ---- saving --------------------------------------------------------------------------------------

def test_a_save_is_whole_and_leaves_nothing_else(tmp_path):
    out = tmp_path / "new" / "out"
    assert save_checkpoint(out, 7, write, 100, 2) == out / "checkpoint-7"
    assert names(out) == ["checkpoint-7"] and complete_checkpoints(out) == [out / "checkpoint-7"]


@pytest.mark.parametrize("limit, kept", [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (3, [2, 3, 4])])
def test_the_oldest_beyond_the_limit_go(limit, kept, tmp_path):
    make(tmp_path, 1, 2, 3)
    save_checkpoint(tmp_path, 4, write, 0, limit)
    assert names(tmp_path) == [f"checkpoint-{n}" for n in kept]


def test_the_one_just_written_stays_though_newer_ones_stand(tmp_path):
    make(tmp_path, 60, 80)
    save_checkpoint(tmp_path, 50, write, 0, 1)
    assert names(tmp_path) == ["checkpoint-50"]


def test_a_torn_one_takes_no_whole_ones_place(tmp_path):
    cut(make(tmp_path, 1, 2, 3)[2] / "trainer.pt")
    save_checkpoint(tmp_path, 4, write, 0, 2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_leftovers_of_the_same_and_older_steps_are_removed_before(tmp_path):
    make(tmp_path, "3.tmp", "4.tmp", "4.old.tmp", "5.tmp")

    def only_the_newer(folder):
        assert names(tmp_path) == ["checkpoint-4.tmp", "checkpoint-5.tmp"]
        assert not list(folder.iterdir())
        write(folder)
    save_checkpoint(tmp_path, 4, only_the_newer, 0, 0)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5.tmp"]


def test_a_step_saved_again_takes_the_place_of_the_old_one(tmp_path):
    make(tmp_path, 4)
    save_checkpoint(tmp_path, 4, lambda folder: write(folder, 9.0), 0, 1)
    state = torch.load(tmp_path / "checkpoint-4" / "trainer.pt", weights_only=True)
    assert state["weights"][0] == 9.0 and names(tmp_path) == ["checkpoint-4"]


def fails(error):
    def half(folder):
        write(folder)
        cut(folder / "trainer.pt")
        raise error
    return half


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   RuntimeError("PytorchStreamWriter failed\nwriting file")])
def test_a_write_that_fails_leaves_the_earlier_ones_and_no_folder(error, tmp_path):
    make(tmp_path, 1, 2)
    with pytest.raises(UserError) as told:
        save_checkpoint(tmp_path, 3, fails(error), 0, 1)
    assert str(told.value).startswith(str(tmp_path / "checkpoint-3"))
    assert "\n" not in str(told.value) and "--output_dir" in str(told.value)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"] and len(complete_checkpoints(tmp_path)) == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), TypeError("x"),
                                   KeyboardInterrupt()])
def test_another_error_passes_through_and_leaves_no_folder_either(error, tmp_path):
    make(tmp_path, 1)
    with pytest.raises(type(error)):
        save_checkpoint(tmp_path, 3, fails(error), 0, 1)
    assert names(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("step", [2, 3])
def test_before_the_new_one_stands_no_old_one_goes(step, tmp_path, monkeypatch):
    make(tmp_path, 1, 2)
    rename = Path.rename

    def crash(path, target):
        if path.name == f"checkpoint-{step}.tmp":
            raise OSError(errno.EIO, "crash")
        return rename(path, target)
    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(UserError, match="crash"):
        save_checkpoint(tmp_path, step, lambda folder: write(folder, 9.0), 0, 1)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"] and len(complete_checkpoints(tmp_path)) == 2


def test_files_are_flushed_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    made, fsync, rename = [], os.fsync, Path.rename
    make(tmp_path, 1)

    def note_flush(file):
        made.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)
    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "rename", lambda path, to: made.append(f"{path.name} -> {to.name}")
                        or rename(path, to))
    save_checkpoint(tmp_path, 2, write, 0, 1)
    assert set(made[:3]) == {"trainer.pt", "model.safetensors", "config.json"}
    assert made[3:] == ["checkpoint-2.tmp", "checkpoint-2.tmp -> checkpoint-2", tmp_path.name,
                        "checkpoint-1 -> checkpoint-1.tmp"]


@pytest.mark.parametrize("free, enough", [(1049, False), (1050, True)])
def test_five_percent_more_than_needed_must_be_free(free, enough, tmp_path, monkeypatch):
    make(tmp_path, 1)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    if enough:
        save_checkpoint(tmp_path, 2, write, 1000, 0)
        return
    with pytest.raises(UserError, match=f"checkpoint-2: 1,050 bytes to write, {free:,} free"):
        save_checkpoint(tmp_path, 2, lambda folder: pytest.fail("it was begun"), 1000, 0)
    assert names(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("broken", ["trainer.pt", "model.safetensors"])
def test_a_disk_that_takes_no_more_is_told_in_one_line(broken, tmp_path):
    """A file-size limit stands for a full disk: the kernel itself refuses the bytes."""
    def big(folder):
        if broken == "trainer.pt":
            torch.save(torch.zeros(500_000), folder / broken)
        save_file({"x": torch.zeros(500_000)}, folder / broken)
    make(tmp_path, 1)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, usual[1]))
    try:
        with pytest.raises(UserError, match="checkpoint-2: not written"):
            save_checkpoint(tmp_path, 2, big, 0, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert names(tmp_path) == ["checkpoint-1"] and len(complete_checkpoints(tmp_path)) == 1


SMALL_DISK = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_training_parts import UserError, Path, complete, make, names, save, write
place = Path(sys.argv[3])
make(place, 1)
for need, what in (200_000, "bytes to write"), (0, "not written"):      # 0: less than it takes
    try:
        save_checkpoint(place, 2, lambda folder: write(folder, size=50_000), need, 1)
    except UserError as error:
        assert what in str(error), error
    assert complete_checkpoints(place) == [place / "checkpoint-1"] and names(place) == ["checkpoint-1"]
print("told twice")
"""


def test_a_small_disk_that_is_full_is_told_before_and_while_it_is_written(tmp_path):
    """On a disk of 100 kB that only this process sees, and that goes with it."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
             'mount -t tmpfs -o size=100k tmpfs "$0" && echo mounted && exec "$@"', str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"],
                                                     capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    done = subprocess.run([*alone, sys.executable, "-c", SMALL_DISK, str(tiny.ROOT),
                           str(tiny.ROOT / "tests"), str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "mounted\ntold twice\n", done.stderr


def test_differences_are_told_but_for_the_free_ones():
    saved = {"lr": 0.001, "seed": 1, "data": ["a", "b"], "model": "", "steps": 5, "gone": 1}
    now = {"lr": 0.002, "seed": 1, "data": ("a", "b"), "model": "x", "steps": 6, "new": True}
    assert differences(saved, now, {"steps"}) == ["lr 0.001 -> 0.002", "model (empty) -> x",
                                                  "new (none) -> True", "gone 1 -> (none)"]
    assert differences(saved, saved, ()) == []


# ---- ratios --------------------------------------------------------------------------------------

PLACES = ("data/rsicd", "more/talks.json", "b/x.jsonl", "c/x", "v1.5/")


@pytest.mark.parametrize("given, ratios", [
    ((), ()), (("1", "0", "2.5", ".5", "3e0"), (1, 0, 2.5, 0.5, 3)),
    (("talks=0.5",), (1, 0.5, 1, 1, 1)), (("v1.5=2", "rsicd=0"), (0, 1, 1, 1, 2)),
    (("more/talks.json=3",), (1, 3, 1, 1, 1)), (("c/x=3", "b/x.jsonl=2"), (1, 1, 2, 3, 1))])
def test_ratios_are_of_the_data_sets_that_are_named_or_of_all_in_order(given, ratios):
    assert parse_ratios(given, PLACES) == ratios


@pytest.mark.parametrize("given, told", [
    (("1", "2"), "has 2 numbers for 5"), (("rsicd=1", "2"), "alone"),
    (("gone=1",), "gone: no such"), (("talks.json=1",), "talks.json: no such"),
    (("talks=1", "more/talks.json=2"), "the same"), (("rsicd=1", "rsicd=1"), "the same"),
    (("x=1",), "b/x.jsonl and c/x"), (("rsicd=-1",), "-1: not a number"),
    (("rsicd=many",), "many: not a number"), (("rsicd=",), "not a number"),
    (("1", "1", "1", "1", "nan"), "nan: not"), (("rsicd=inf",), "inf: not"),
    (("0",) * 5, "nothing")])
def test_a_ratio_that_fits_nothing_is_one_line(given, told):
    with pytest.raises(UserError, match=told) as error:
        parse_ratios(given, PLACES)
    assert "\n" not in str(error.value) and str(error.value).startswith("--ratio")


# ---- signals -------------------------------------------------------------------------------------

RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from support.training.checkpoints import differences
from support.common import GracefulStop as Stop
with Stop() as stop:
    print("ready", flush=True)
    if sys.argv[2] == "deaf":                   # a lock taken twice: a call that never ends
        import ctypes
        while not stop.signal: time.sleep(0.01)
        print("deaf", flush=True)
        lock = ctypes.create_string_buffer(64)
        for _ in range(2): ctypes.CDLL(None).pthread_mutex_lock(lock)
    if sys.argv[2] == "workers":
        import multiprocessing
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1,))
        worker.start()
        print("forked", flush=True)
    while not stop.signal: time.sleep(0.01)
    print("stopping", flush=True)
    if sys.argv[2] == "workers": worker.join(); print("worker", worker.exitcode, flush=True)
    time.sleep(0.1 if sys.argv[2] != "slow" else 20)
    print("saved", flush=True)
sys.exit(stop.code)
"""


@pytest.fixture
def start():
    runs = []

    def begin(kind):
        runs.append(subprocess.Popen(
            [sys.executable, "-c", RUN, str(tiny.ROOT), kind], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True))
        return runs[-1]
    yield begin
    for run in runs:
        run.kill()
        run.wait()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_after_the_first_signal_a_run_finishes(number, code, start):
    run = start("quick")
    assert run.stdout.readline() == "ready\n"
    run.send_signal(number)
    said, told = run.communicate(timeout=10)
    assert said == "stopping\nsaved\n" and run.returncode == code
    assert told.strip() == "finishing the step, then saving; again to leave at once"


@pytest.mark.parametrize("kind, second, code", [
    ("slow", signal.SIGINT, 130), ("slow", signal.SIGTERM, 143), ("deaf", signal.SIGINT, 130)])
def test_the_second_signal_ends_a_run_at_once_whatever_it_waits_for(kind, second, code, start):
    run = start(kind)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGINT)
    assert run.stdout.readline() in ("stopping\n", "deaf\n")
    time.sleep(0.1)
    since = time.monotonic()
    run.send_signal(second)
    assert "saved" not in run.communicate(timeout=10)[0]
    assert run.returncode == code and time.monotonic() - since < 2


def test_ctrl_c_in_a_terminal_reaches_loaders_too_and_counts_once(start):
    run = start("workers")
    assert run.stdout.readline() == "ready\n" and run.stdout.readline() == "forked\n"
    os.killpg(run.pid, signal.SIGINT)
    said, told = run.communicate(timeout=10)
    assert said == "stopping\nworker 0\nsaved\n" and run.returncode == 130
    assert told.count("again to leave at once") == 1


def test_handlers_are_as_before_on_exit_and_without_a_signal_the_code_is_0():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with GracefulStop() as stop:
        assert signal.getsignal(signal.SIGINT) == stop.note
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert (stop.signal, stop.code) == (0, 0)


def test_outside_the_main_thread_it_does_nothing():
    seen = []

    def work():
        with GracefulStop() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


# ---- losses --------------------------------------------------------------------------------------

def test_bad_losses_and_norms_are_skipped_and_counted_in_a_row():
    watch, nan, inf = NaNGuard(), math.nan, math.inf
    assert [watch.look(*pair) for pair in [(1, 1), (nan, 1), (1, inf)]] == [False, True, True]
    assert watch.bad == 2
    assert not watch.look(2.0, 1.0) and watch.bad == 0
    assert watch.look(-inf, nan) and watch.bad == 1


def test_three_in_a_row_end_the_run_in_a_line_that_names_the_last_good_checkpoint():
    watch = NaNGuard()
    for step in (1, 2):
        watch.look(math.nan, 0.0)
        watch.check(step, None)
    watch.look(math.nan, 0.0)
    with pytest.raises(UserError, match="step 3: 3 steps in a row.*out/checkpoint-40.*--lr"):
        watch.check(3, Path("out/checkpoint-40"))
    with pytest.raises(UserError, match="no checkpoint yet"):
        watch.check(3, None)


@pytest.mark.parametrize("part, guessing", [(0.97, 0), (0.99, 1), (1.019, 1), (1.03, 0)])
def test_guessing_is_a_loss_within_two_percent_of_the_logarithm(part, guessing):
    assert is_untrained_loss(math.log(32_000) * part, 32_000) == guessing


# ---- telling -------------------------------------------------------------------------------------

def test_the_environment_is_told():
    told = environment()
    head = subprocess.run(["git", "-C", tiny.ROOT, "rev-parse", "HEAD"], capture_output=True,
                          text=True).stdout
    assert set(told) == {"commit", "python", "torch", "device"}
    assert head.startswith(told["commit"].split("+")[0]) and told["torch"] == torch.__version__
    assert told["device"] and environment("mps")["device"] == "mps"
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("error", [OSError("no git"), subprocess.TimeoutExpired("git", 5)])
def test_without_git_there_is_no_commit(error, monkeypatch):
    def run(*given, **more):
        raise error
    monkeypatch.setattr(common.subprocess, "run", run)
    assert commit() == ""


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    line = explain_out_of_memory(error.value, "cpu")
    assert is_out_of_memory(error.value) and "\n" not in line
    assert "1152921504606846976 bytes more asked for" in line and "the process held" in line
    for flag in "batch_size", "grad_accum", "grad_checkpoint", "questions_per_image", "dtype":
        assert f"--{flag}" in line
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))


# ---- the plot ------------------------------------------------------------------------------------

def log(file, rows, end=""):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return file


def near(picture, color, x, y, reach=3):
    """Is there a pixel of about that color within `reach` pixels of the place?"""
    wanted = [int(color[i:i + 2], 16) for i in (1, 3, 5)]
    x, y = round(x), round(y)
    part = picture[y - reach:y + reach + 1, x - reach:x + reach + 1].astype(int)
    return bool((np.abs(part - wanted).max(-1) < 60).any())


def test_the_curves_lie_where_the_data_are(tmp_path):
    rows = [{"step": s, "loss": 8 - s / 200, "lr": 1e-3 * s / 1000} for s in range(0, 1001, 10)]
    plot_loss(log(tmp_path / "log.jsonl", rows), tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == CHART_SIZE and image.format == "PNG"
        picture = np.asarray(image.convert("RGB"))
    left, top, right, bottom = CHART_BOX
    across, up = Axis(0, 1000, left, right), Axis(3, 8, bottom, top)
    rate = Axis(0, 1e-3, bottom, top)
    for s in range(100, 1000, 100):
        assert near(picture, MEAN_COLOR, across.at(s), up.at(8 - s / 200))
        assert near(picture, RATE_COLOR, across.at(s), rate.at(1e-3 * s / 1000))
        assert not near(picture, MEAN_COLOR, across.at(s), up.at(8 - s / 200) - 25)
    assert (picture[:top - 5, 240:700].min(-1) < 200).any()         # the legend
    assert (picture[bottom + 8:bottom + 25].min(-1) < 120).any()    # the numbers
    assert names(tmp_path) == ["log.jsonl", "loss.png"]


def test_of_repeated_steps_the_last_counts_and_broken_lines_do_not(tmp_path):
    rows = [{"step": 1, "loss": 5, "lr": 1}, {"step": 2, "loss": 4, "lr": 1}, {"commit": "abc"},
            {"step": 3, "loss": math.nan, "lr": 1}, {"step": 2, "loss": 3, "lr": 2}]
    steps, losses, rates = read_log(log(tmp_path / "log.jsonl", rows, '7\n{"step": 4, "lo'))
    assert (steps.tolist(), losses.tolist(), rates.tolist()) == ([1, 2], [5, 3], [1, 2])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_lines_are_drawn_too(count, tmp_path):
    rows = [{"step": s, "loss": 2.0, "lr": 0.0} for s in range(count)]
    plot_loss(log(tmp_path / "log.jsonl", rows), tmp_path / "loss.png")
    assert near(np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")), MEAN_COLOR,
                (CHART_BOX[0] + CHART_BOX[2]) / 2, (CHART_BOX[1] + CHART_BOX[3]) / 2, 40)


def test_an_empty_log_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="log.jsonl: no line"):
        plot_loss(log(tmp_path / "log.jsonl", []), tmp_path / "loss.png")


def test_the_average_is_of_the_neighbors():
    assert moving_average(np.array([1.0, 2.0, 6.0, 1.0])).tolist() == [1.5, 3.0, 3.0, 3.5]


@pytest.mark.parametrize("low, high", [(0, 1), (0.31, 9.7), (1e-6, 1e-3), (40_000, 40_007)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = Axis(low, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 8 and low <= ticks[0] and ticks[-1] <= high * (1 + 1e-9)
    wide = Axis(low, high, 0, 100).rounded()
    assert wide.low <= low + 1e-12 and high <= wide.high + 1e-12
    assert wide.ticks()[0] == pytest.approx(wide.low)
