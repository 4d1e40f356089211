"""A process of a training or an evaluation that is killed ends the others within seconds."""
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import tiny

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_two(*flags):
    """Without torchrun, which looks after its processes itself."""
    port = str(free_port())
    command = [sys.executable, *map(str, flags), "--device", "cpu"]
    return [subprocess.Popen(command, cwd=tiny.ROOT, text=True, stderr=subprocess.PIPE,
                             stdout=subprocess.DEVNULL,
                             env=ENVIRONMENT | {"RANK": str(rank), "MASTER_PORT": port})
            for rank in range(2)]


def wait_until_there(file, processes, seconds=120):
    end = time.time() + seconds
    while not (file.is_file() and file.stat().st_size):
        assert time.time() < end and all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The data are so many that no process comes to their end before it is killed."""
    folder = tmp_path_factory.mktemp("place")
    tiny.model_folder(folder / "model")
    tiny.conversations(folder / "data", 300)
    return folder


@pytest.mark.parametrize("script, killed", [("train.py", 1), ("eval.py", 0)])
def test_the_others_end_in_one_line_within_seconds_of_a_kill(place, tmp_path, script, killed):
    data, out = place / "data" / "conversations.json", tmp_path / "out"
    flags = ["--model", place / "model", "--data", data, "--output_dir", out]
    if script == "train.py":
        flags += ["--stage", 2, "--max_steps", 100_000, "--batch_size", 2, "--log_steps", 1]
        sign = out / "log.jsonl"
    else:
        flags += ["--benchmark", "rsvqa-lr", "--batch_size", 1]
        sign = out / ("predictions.jsonl", "predictions.rank1.jsonl")[killed]
    processes = start_two(script, *flags)
    wait_until_there(sign, processes)
    processes[killed].send_signal(signal.SIGKILL)
    start = time.time()
    _, errors = processes[1 - killed].communicate(timeout=60)
    processes[killed].communicate()
    assert processes[1 - killed].returncode == 2 and time.time() - start < 30, errors
    line = errors.strip().splitlines()[-1]
    assert "Traceback" not in errors and line.startswith(f"{script}: ")
    assert "process" in line and "of the run has ended" in line
