"""What every command uses: flags from a dataclass, atomic files, signals, the text about memory."""
import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest
import torch

import support.common as common
import tiny
from support.checkpoints.files import ModelError
from support.common import (
    GracefulStop,
    UserError,
    commit,
    differences,
    environment,
    explain_out_of_memory,
    failed_download,
    find_device,
    given_flags,
    in_range,
    is_out_of_memory,
    make_parser,
    option,
    parse_config,
    read_json,
    shipped,
    write_atomic,
)
from support.images.common import PictureError
from support.readers.common import DataError

# ---- flags ---------------------------------------------------------------------------------------

@dataclass
class Config:
    image: str = option("", "a picture", positional=True)
    max_steps: int = option(7, "how many")
    rate: float = option(0.5, "how fast, in % of a step")
    names: tuple[str, ...] = option((), "which", choices=("a", "b"))
    numbers: tuple[int, ...] = option((1, 2), "which numbers", type=int)
    pair: tuple[int, ...] = option((), "x,y", nargs=None,
                                   type=lambda text: tuple(map(int, text.split(","))))
    warm_up: bool = option(False, "begin slowly")
    size: str = option("s", "how large", choices=("s", "m"), default_text="small")


def test_every_field_becomes_a_flag_of_its_own_type():
    config = parse_config(Config, ["x.png", "--max_steps", "9", "--rate", "2", "--names", "b", "a",
                                   "--numbers", "3", "--pair", "4,5", "--warm_up"], "")
    assert config == Config("x.png", 9, 2.0, ("b", "a"), (3,), (4, 5), True, "s")
    assert type(config.rate) is float


@pytest.mark.parametrize("off", ["--no-warm_up", "--no-warm-up", "--no_warm_up", "--no_warm-up"])
def test_a_flag_may_be_written_with_either_dash_and_a_bool_can_be_switched_off(off):
    flags = ["x", "--max-steps", "9", "--warm-up", off]
    assert given_flags(Config, flags, "") == {"image": "x", "max_steps": 9, "warm_up": False}
    assert given_flags(Config, [*flags, "--warm_up"], "")["warm_up"] is True


def test_only_what_the_command_line_names_is_given():
    assert given_flags(Config, ["x"], "") == {"image": "x"}
    assert given_flags(Config, ["x", "--max_steps", "7"], "") == {"image": "x", "max_steps": 7}


@dataclass
class ShippedConfig:
    model: str = option("weights/nano", "a model", is_shipped=True)


def test_what_is_shipped_is_found_from_a_folder_that_has_none_of_its_own(tmp_path, monkeypatch):
    def default() -> str:
        return parse_config(ShippedConfig, [], "").model

    monkeypatch.chdir(tiny.ROOT)
    assert default() == shipped("weights/nano") == "weights/nano"
    monkeypatch.chdir(tmp_path)
    assert default() == shipped("weights/nano") == f"{tiny.ROOT}/weights/nano"
    assert parse_config(ShippedConfig, ["--model", "weights/nano"], "").model == "weights/nano"
    (tmp_path / "weights/nano").mkdir(parents=True)
    assert default() == "weights/nano"


@pytest.mark.parametrize("flags", [["--max_steps", "many"], ["--names", "c"], ["--size", "l"],
                                   ["--steps", "3"], ["--max", "3"]])
def test_a_wrong_flag_or_value_is_refused_by_name_with_code_2(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(Config, ["x", *flags], "")
    assert caught.value.code == 2 and flags[0] in capsys.readouterr().err.splitlines()[-1]


def test_the_help_shows_description_texts_and_defaults():
    text = " ".join(make_parser(Config, "about\n  it").format_help().split())
    for part in ("about it", "how many (default: 7)", "in % of a step (default: 0.5)",
                 "which numbers (default: 1 2)", "how large (default: small)", "--max-steps"):
        assert part in text
    assert "a picture (default" not in text


def test_a_number_out_of_range_is_refused_with_the_range():
    assert in_range(int, 1)("3") == 3 and in_range(float, 0, 1)("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError, match="0: must be at least 1"):
        in_range(int, 1)("0")
    with pytest.raises(argparse.ArgumentTypeError, match="2: must be from 0 to 1"):
        in_range(float, 0, 1)("2")


def test_settings_that_differ_are_listed_but_for_those_that_may():
    saved = {"lr": 0.001, "seed": 1, "data": ["a", "b"], "model": "", "steps": 5, "gone": 1}
    now = {"lr": 0.002, "seed": 1, "data": ("a", "b"), "model": "x", "steps": 6, "new": True}
    assert differences(saved, now, {"steps"}) == ["lr 0.001 -> 0.002", "model (empty) -> x",
                                                  "new (none) -> True", "gone 1 -> (none)"]
    assert differences(saved, saved) == []


# ---- files ---------------------------------------------------------------------------------------

def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.json"
    write_atomic(file, lambda path: path.write_text("1"))
    assert file.read_text() == "1"

    def half(path):
        path.write_text("2")
        raise RuntimeError("killed")
    with pytest.raises(RuntimeError):
        write_atomic(file, half)
    assert file.read_text() == "1"
    write_atomic(file, lambda path: path.write_text("3"))
    assert file.read_text() == "3" and [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["gone/x.png", "folder", "a" * 300 + ".png"])
def test_an_error_of_writing_names_the_file_and_not_its_temporary_name(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / name, lambda path: path.write_text("1"))
    assert caught.value.filename == str(tmp_path / name) and ".tmp" not in str(caught.value)


@pytest.mark.parametrize("kind", [UserError, DataError, ModelError, PictureError])
def test_an_error_is_one_line_that_can_be_written_whatever_foreign_text_is_in_it(kind):
    assert str(kind("a.json: 3 rows")) == "a.json: 3 rows"
    error = kind("a\nb\r\x85\u2028\x1b[31m\0 \ud800 " + "x" * 100_000 + " y")
    text = str(error)
    assert text.isprintable() and len(text) < 5000 and text.startswith("a\\nb\\r\\x85\\u2028")
    assert text.endswith("x y") and f"{error}" == text and text.encode()


def test_a_file_that_is_not_json_is_a_line_with_its_name(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
    file.write_text('{"a": ')
    with pytest.raises(UserError, match="a.json: not valid JSON") as caught:
        read_json(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head, reason", [
    (b"", "empty"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"\n <!DOCTYPE html>", "web page"), (b"\x89PNG\r\n", "")])
def test_an_unfinished_download_is_recognized_by_its_first_bytes(head, reason):
    assert reason in failed_download(head) and bool(failed_download(head)) == bool(reason)


# ---- signals -------------------------------------------------------------------------------------

RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from support.common import GracefulStop
with GracefulStop() as stop:
    print("ready", flush=True)
    if sys.argv[2] == "blocked":                # a lock taken twice: a C call that never ends
        import ctypes
        while not stop.signal: time.sleep(0.01)
        print("blocked", flush=True)
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
MESSAGE = "finishing the step, then saving; once more to quit without saving"


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
    output, errors = run.communicate(timeout=10)
    assert output == "stopping\nsaved\n" and run.returncode == code
    assert errors.strip() == MESSAGE


@pytest.mark.parametrize("kind, first, second", [
    ("slow", signal.SIGINT, signal.SIGINT), ("slow", signal.SIGINT, signal.SIGTERM),
    ("slow", signal.SIGTERM, signal.SIGINT), ("blocked", signal.SIGINT, signal.SIGINT),
    ("blocked", signal.SIGTERM, signal.SIGTERM)])
def test_the_second_signal_ends_a_run_at_once_whatever_it_waits_for(kind, first, second, start):
    """By the signal itself, also in a C call; a shell shows 128 + its number."""
    run = start(kind)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(first)
    assert run.stdout.readline() in ("stopping\n", "blocked\n")
    time.sleep(0.1)
    since = time.monotonic()
    run.send_signal(second)
    assert "saved" not in run.communicate(timeout=10)[0]
    assert run.returncode == -second and time.monotonic() - since < 2


def test_ctrl_c_in_a_terminal_reaches_loader_processes_too_and_counts_once(start):
    run = start("workers")
    assert run.stdout.readline() == "ready\n" and run.stdout.readline() == "forked\n"
    os.killpg(run.pid, signal.SIGINT)
    output, errors = run.communicate(timeout=10)
    assert output == "stopping\nworker 0\nsaved\n" and run.returncode == 130
    assert errors.count(MESSAGE) == 1


def test_handlers_are_as_before_on_exit_and_without_a_signal_the_code_is_0():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with GracefulStop() as stop:
        assert signal.getsignal(signal.SIGINT) == stop.handle
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert (stop.signal, stop.code) == (0, 0)


def test_outside_the_main_thread_it_does_nothing():
    found = []

    def work():
        with GracefulStop() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, before)]


# ---- where a run takes place ---------------------------------------------------------------------

def test_the_environment_names_commit_versions_and_device():
    found = environment()
    head = subprocess.run(["git", "-C", tiny.ROOT, "rev-parse", "HEAD"], capture_output=True,
                          text=True).stdout
    assert set(found) == {"commit", "python", "torch", "device"}
    assert head.startswith(found["commit"].split("+")[0]) and found["torch"] == torch.__version__
    assert found["device"] and environment("mps")["device"] == "mps"
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("error", [OSError("no git"), subprocess.TimeoutExpired("git", 5)])
def test_without_git_there_is_no_commit(error, monkeypatch):
    def run(*command, **more):
        raise error
    monkeypatch.setattr(common.subprocess, "run", run)
    assert commit() == ""


def test_a_device_that_is_not_there_is_one_line_with_the_flag():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(UserError, match=f"--device {name}: ") as caught:
            find_device(name)
        assert "\n" not in str(caught.value)


# ---- memory --------------------------------------------------------------------------------------

def test_running_out_of_memory_is_recognized_and_explained():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    line = explain_out_of_memory(error.value, "cpu")
    assert is_out_of_memory(error.value) and "\n" not in line
    assert "1152921504606846976 bytes more requested" in line and "the process used" in line
    for flag in "batch_size", "grad_accum", "grad_checkpoint", "questions_per_image", "dtype":
        assert f"--{flag}" in line
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
