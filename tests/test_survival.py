"""A training that is interrupted, killed or short of disk loses nothing that was saved."""
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import eval as evaluation
import tiny
from examples.miniworld import write_world
from projector import SkyEyeGPT
from support.training.checkpoints import complete_checkpoints

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model and six conversations."""
    folder = tmp_path_factory.mktemp("place")
    tiny.model_folder(folder / "model")
    tiny.conversations(folder / "data", 6, texts=2)
    return folder


def command(place, out, steps, *more):
    data = place / "data" / "conversations.json"
    return [sys.executable, "train.py", "--model", place / "model", "--data", data, "--stage", "2",
            "--tune", "lora", "--output_dir", out, "--max_steps", steps, "--batch_size", "2",
            "--lr", "1e-3", "--log_steps", "1", *more]


def start(place, out, steps, *more):
    return subprocess.Popen(list(map(str, command(place, out, steps, *more))), text=True,
                            cwd=tiny.ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE)


def run(place, out, steps, *more):
    process = start(place, out, steps, *more)
    _, errors = process.communicate()
    return process.returncode, errors


def logged(out):
    file = out / "log.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for(out, lines, seconds=60):
    """Until the log has so many lines, one a step."""
    end = time.time() + seconds
    while time.time() < end and len(logged(out)) < lines:
        time.sleep(0.02)


def weights(out):
    return load_file(out / "adapter.safetensors")


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def unbroken(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    assert run(place, out, 400)[0] == 0
    return weights(out)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_after_a_checkpoint_and_it_resumes_to_the_same_bits(
        place, unbroken, tmp_path, number, code):
    process = start(place, tmp_path, 400, "--save_steps", 1000)
    wait_for(tmp_path, 5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code and "Traceback" not in errors and "checkpoint-" in errors
    (checkpoint,) = complete_checkpoints(tmp_path)
    assert 5 <= int(checkpoint.name[11:]) < 400
    assert run(place, tmp_path, 400, "--resume", "auto", "--save_steps", 1000)[0] == 0
    assert equal(weights(tmp_path), unbroken)
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "loss.png").is_file()


def test_kills_at_random_moments_lose_at_most_the_steps_since_the_last_save(
        place, unbroken, tmp_path):
    """With a checkpoint every third step, killed without warning several times."""
    rng, steps = random.Random(0), 0
    for _ in range(int(os.environ.get("KILLS", 4))):
        process = start(place, tmp_path, 400, "--save_steps", 3, "--resume", "auto")
        wait_for(tmp_path, len(logged(tmp_path)) + 4)
        time.sleep(rng.uniform(0, 0.08))            # a step takes about 10 ms, a save about 30
        process.kill()
        process.communicate()
        before, steps = steps, int(complete_checkpoints(tmp_path)[-1].name[11:])
        assert steps >= logged(tmp_path)[-1]["step"] - 3 and steps > before
    assert run(place, tmp_path, 400, "--save_steps", 50, "--resume", "auto", "--force")[0] == 0
    assert equal(weights(tmp_path), unbroken)


def test_a_changed_setting_is_refused_by_name_unless_forced(place, tmp_path):
    assert run(place, tmp_path, 4, "--save_steps", 2)[0] == 0
    code, errors = run(place, tmp_path, 4, "--save_steps", 2, "--resume", "auto", "--clip", "0.5")
    assert code == 2 and "clip 1.0 -> 0.5" in errors and "--force" in errors
    assert run(place, tmp_path, 4, "--resume", "auto", "--clip", "0.5", "--force")[0] == 0
    assert run(place, tmp_path, 4, "--resume", "auto", "--num_workers", "1")[0] == 0


def test_an_incomplete_checkpoint_is_skipped_with_a_line(place, tmp_path):
    assert run(place, tmp_path, 6, "--save_steps", 2)[0] == 0
    newest = complete_checkpoints(tmp_path)[-1]
    state = newest / "trainer.pt"
    state.write_bytes(state.read_bytes()[:-100])
    code, errors = run(place, tmp_path, 6, "--save_steps", 2, "--resume", "auto")
    assert code == 0 and f"{newest.name} is incomplete" in errors


def test_the_number_of_loader_processes_changes_no_bit(place, tmp_path):
    for workers in (0, 2):
        assert run(place, tmp_path / str(workers), 12, "--num_workers", workers)[0] == 0
    assert equal(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_losses_that_are_not_finite_are_skipped_and_logged_and_end_the_run(place, tmp_path):
    """A learning rate that explodes: three steps in a row, then one line and exit code 2."""
    code, errors = run(place, tmp_path, 40, "--tune", "full", "--lr", "1e30", "--clip", "0",
                       "--warmup_steps", "0", "--save_steps", 1)
    line = errors.strip().splitlines()[-1]
    assert code == 2 and "3 steps in a row" in line and "checkpoint-" in line
    skipped = [row for row in logged(tmp_path) if row.get("skipped")]
    assert len(skipped) == 3 and all("conversations.json:" in name for row in skipped
                                     for name in row["rows"])
    state = torch.load(complete_checkpoints(tmp_path)[-1] / "trainer.pt", weights_only=True)
    assert state["where"]["torch"] == str(torch.__version__)


def test_on_a_full_disk_the_training_goes_on_and_keeps_the_last_checkpoint(place, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "none", disk],
                             capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("needs the right to mount a small file system")
    try:
        code, errors = run(place, disk, 40, "--save_steps", 2, "--save_total_limit", 0)
        assert code in (0, 2) and "Traceback" not in errors, errors[-3000:]
        assert "bytes to write" in errors and "the training goes on and tries again" in errors
        assert complete_checkpoints(disk) and logged(disk)[-1]["step"] > 30
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_picture_that_vanishes_ends_the_run_with_the_steps_so_far_saved(place, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    process = subprocess.Popen(
        list(map(str, command(place, tmp_path / "out", 4000, "--data", data / "conversations.json",
                              "--save_steps", 4000, "--num_workers", 1))),
        text=True, cwd=tiny.ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE)
    wait_for(tmp_path / "out", 5)
    (data / "1.png").unlink()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 2 and "Traceback" not in errors and "1.png" in errors
    (checkpoint,) = complete_checkpoints(tmp_path / "out")
    assert checkpoint.name == f"checkpoint-{logged(tmp_path / 'out')[-1]['step']}"


def test_another_runs_folder_is_left_alone_unless_it_is_to_be_replaced(place, tmp_path):
    assert run(place, tmp_path, 6, "--save_steps", 2, "--tune", "full")[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, errors = run(place, tmp_path, 6, "--save_steps", 4)
    assert code == 2 and "of another run is there" in errors and "--overwrite" in errors
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run(place, tmp_path, 6, "--save_steps", 4, "--overwrite")[0] == 0
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4"]
    fresh = tmp_path / "fresh"
    assert run(place, fresh, 6, "--save_steps", 4)[0] == 0
    assert equal(SkyEyeGPT.from_pretrained(tmp_path).state_dict(),
                 SkyEyeGPT.from_pretrained(fresh).state_dict())


def test_a_model_is_never_written_over_by_the_run_that_starts_from_it(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    for out in (tmp_path / "model", tmp_path / "link", tmp_path):
        code, errors = run(place, out, 2, "--model", tmp_path / "model", "--overwrite")
        assert code == 2 and "would write over" in errors, errors
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_two_runs_in_one_folder_are_refused_while_one_lives(place, tmp_path):
    process = start(place, tmp_path, 4000)
    wait_for(tmp_path, 3)
    code, errors = run(place, tmp_path, 4, "--resume", "auto")
    assert code == 2 and f"process {process.pid} on " in errors
    process.kill()
    process.communicate()
    code, errors = run(place, tmp_path, 4, "--resume", "auto")
    assert code == 0 and "has ended" in errors and not (tmp_path / "run.lock").exists()


# ---- two processes, two stages -------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny untrained model and a miniature world."""
    folder = tmp_path_factory.mktemp("world")
    tiny.model_folder(folder / "model")
    write_world(folder / "data", train=5, val=2, test=1, clips=1, size=64, workers=1)
    return folder


def start_two(world, stage, model, out):
    """torchrun with two processes on one stage; it saves every fourth step of 40."""
    flags = ("--stage", stage, "--model", model, "--data", world / "data", "--output_dir", out,
             "--tune", "full" if stage == 1 else "lora", "--max_steps", 40, "--save_steps", 4,
             "--batch_size", 2, "--questions_per_image", 2, "--lr", "1e-3", "--log_steps", 1,
             "--resume", "auto", "--device", "cpu")
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
               "train.py", *flags)
    return subprocess.Popen(list(map(str, command)), text=True, cwd=tiny.ROOT, env=ENVIRONMENT,
                            stderr=subprocess.PIPE)


def children(number):
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    pairs = [line.split() for line in table.stdout.splitlines()]
    return [int(pid) for pid, parent in pairs if int(parent) == number]


def train_twice(world, out, killed):
    """Stage 1, then stage 2 from it; if `killed`, each is killed once after a checkpoint."""
    for stage, model in ((1, world / "model"), (2, out / "stage1")):
        place = out / f"stage{stage}"
        process = start_two(world, stage, model, place)
        if killed:
            wait_for(place, 6)                  # past the first checkpoint
            group = [process.pid, *children(process.pid)]
            assert len(group) == 3
            for number in group:
                os.kill(number, signal.SIGKILL)
            process.communicate(timeout=600)
            assert complete_checkpoints(place) and logged(place)[-1]["step"] < 40
            assert not list(place.glob("*.safetensors"))
            process = start_two(world, stage, model, place)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors


def metrics(world, folder):
    """eval.py's figures, of a few questions."""
    evaluation.main(["--model", str(folder), "--data", str(world / "data"), "--split", "val",
                     "--tasks", "vqa", "--limit", "6", "--output_dir", str(folder / "eval")])
    return json.loads((folder / "eval" / "metrics.json").read_text())["results"]


def test_two_processes_killed_in_both_stages_end_with_the_files_of_unbroken_ones(world, tmp_path):
    train_twice(world, tmp_path / "unbroken", killed=False)
    train_twice(world, tmp_path / "killed", killed=True)
    for file in ("stage1/model.safetensors", "stage2/adapter.safetensors"):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("unbroken", "killed"))
        assert one == two, file
    figures, again = (metrics(world, tmp_path / name / "stage2") for name in ("unbroken", "killed"))
    assert figures == again and figures[0]["rows"] == 6 and figures[0]["figures"]["overall"]
