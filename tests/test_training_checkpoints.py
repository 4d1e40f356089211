"""Checkpoints: complete or absent, the newest found, nothing lost on a full disk, resumed alike."""
import dataclasses
import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import support.training.checkpoints as checkpoints
import tiny
from lora import LoRAConfig
from projector import SkyEyeGPT, read_config
from support.checkpoints.files import ModelError
from support.common import UserError
from support.training.checkpoints import (
    TrainState,
    begin,
    complete_checkpoints,
    new_checkpoint,
    newest_checkpoint,
    remove_oldest,
    resume,
    save,
    why_incomplete,
)
from support.training.runs import lock_folder, refuse_other_run
from train import TrainConfig, build_model, make_optimizer


def write(folder, value=0.0, size=2000):
    folder.mkdir(exist_ok=True)
    torch.save({"step": 1, "weights": torch.full((size,), value)}, folder / "trainer.pt")
    save_file({"weights": torch.full((size,), value)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def write_checkpoint(out, step, value=0.0, size=0, limit=0):
    """As `save` does, with small files."""
    with new_checkpoint(out, step, size) as folder:
        write(folder, value)
    remove_oldest(out, out / f"checkpoint-{step}", limit)


def make(out, *steps):
    for step in steps:
        write(out / f"checkpoint-{step}", float(len(str(step))))
    return [out / f"checkpoint-{step}" for step in steps]


def names(out):
    return sorted(path.name for path in out.iterdir())


def cut(file, part=0.5):
    content = file.read_bytes()
    file.write_bytes(content[:int(len(content) * part)])


# ---- which are complete --------------------------------------------------------------------------

DAMAGES = {
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


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_checkpoint_is_skipped_in_one_line_that_names_file_and_folder(
        damage, tmp_path):
    complete, damaged = make(tmp_path, 20, 40)
    DAMAGES[damage](damaged)
    found, lines = newest_checkpoint(tmp_path)
    assert found == complete and complete_checkpoints(tmp_path) == [complete]
    assert len(lines) == 1 and "\n" not in lines[0] and str(tmp_path) not in lines[0]
    assert lines[0].startswith("checkpoint-40 is incomplete (")
    assert lines[0].endswith("), skipping it")
    assert damage.split()[0] in lines[0] and "download" not in lines[0]


def test_checkpoints_are_ordered_by_number_and_nothing_else_counts(tmp_path):
    make(tmp_path, 100, 20, 9)
    make(tmp_path, "120.tmp", "130.old.tmp", "x", "")
    (tmp_path / "checkpoint-500").write_text("a file")
    assert [path.name for path in complete_checkpoints(tmp_path)] == [
        "checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-100", [])


def test_where_there_is_none_none_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) == newest_checkpoint(tmp_path / "none") == (None, [])
    (tmp_path / "checkpoint-1").mkdir()
    assert newest_checkpoint(tmp_path)[0] is None and len(newest_checkpoint(tmp_path)[1]) == 1


def test_every_shard_that_an_index_names_must_be_there(tmp_path):
    folder, = make(tmp_path, 1)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "b.safetensors"}}')
    assert why_incomplete(folder) == "b.safetensors: no such file"
    shutil.copy(folder / "model.safetensors", folder / "b.safetensors")
    assert why_incomplete(folder) == ""


# ---- written completely or not at all ------------------------------------------------------------

def test_a_new_checkpoint_is_complete_and_leaves_nothing_else(tmp_path):
    out = tmp_path / "new" / "out"
    write_checkpoint(out, 7, size=100, limit=2)
    assert names(out) == ["checkpoint-7"] and complete_checkpoints(out) == [out / "checkpoint-7"]


@pytest.mark.parametrize("limit, kept", [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (3, [2, 3, 4]),
                                         (4, [1, 2, 3, 4]), (5, [1, 2, 3, 4]), (6, [1, 2, 3, 4])])
def test_the_oldest_beyond_the_limit_are_removed(limit, kept, tmp_path):
    make(tmp_path, 1, 2, 3)
    write_checkpoint(tmp_path, 4, limit=limit)
    assert names(tmp_path) == [f"checkpoint-{n}" for n in kept]


def test_the_one_just_written_stays_even_beside_newer_ones(tmp_path):
    make(tmp_path, 60, 80)
    write_checkpoint(tmp_path, 50, limit=1)
    assert names(tmp_path) == ["checkpoint-50"]


def test_an_incomplete_one_does_not_count_toward_the_limit(tmp_path):
    cut(make(tmp_path, 1, 2, 3)[2] / "trainer.pt")
    write_checkpoint(tmp_path, 4, limit=2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_leftovers_of_the_same_and_older_steps_are_removed_first(tmp_path):
    make(tmp_path, "3.tmp", "4.tmp", "4.old.tmp", "5.tmp")
    with new_checkpoint(tmp_path, 4, 0) as folder:
        assert names(tmp_path) == ["checkpoint-4.tmp", "checkpoint-5.tmp"]
        assert not list(folder.iterdir())
        write(folder)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5.tmp"]


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path):
    make(tmp_path, 4)
    write_checkpoint(tmp_path, 4, 9.0, limit=1)
    state = torch.load(tmp_path / "checkpoint-4" / "trainer.pt", weights_only=True)
    assert state["weights"][0] == 9.0 and names(tmp_path) == ["checkpoint-4"]


def write_half(out, step, error):
    with new_checkpoint(out, step, 0) as folder:
        write(folder)
        cut(folder / "trainer.pt")
        raise error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   RuntimeError("PytorchStreamWriter failed\nwriting file")])
def test_a_write_that_fails_leaves_the_earlier_ones_and_no_folder(error, tmp_path):
    make(tmp_path, 1, 2)
    with pytest.raises(UserError) as caught:
        write_half(tmp_path, 3, error)
    assert str(caught.value).startswith(str(tmp_path / "checkpoint-3"))
    assert "\n" not in str(caught.value) and "--output_dir" in str(caught.value)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert len(complete_checkpoints(tmp_path)) == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), TypeError("x"),
                                   KeyboardInterrupt()])
def test_another_error_passes_through_and_leaves_no_folder_either(error, tmp_path):
    make(tmp_path, 1)
    with pytest.raises(type(error)):
        write_half(tmp_path, 3, error)
    assert names(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("step", [2, 3])
def test_no_old_one_is_removed_before_the_new_one_is_there(step, tmp_path, monkeypatch):
    make(tmp_path, 1, 2)
    rename = Path.rename

    def crash(path, target):
        if path.name == f"checkpoint-{step}.tmp":
            raise OSError(errno.EIO, "crash")
        return rename(path, target)
    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(UserError, match="crash"):
        write_checkpoint(tmp_path, step, 9.0, limit=1)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert len(complete_checkpoints(tmp_path)) == 2


def test_files_are_flushed_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    calls, fsync, rename = [], os.fsync, Path.rename
    make(tmp_path, 1)

    def record_flush(file):
        calls.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)
    monkeypatch.setattr(os, "fsync", record_flush)
    monkeypatch.setattr(Path, "rename", lambda path, to: calls.append(f"{path.name} -> {to.name}")
                        or rename(path, to))
    write_checkpoint(tmp_path, 2, limit=1)
    assert set(calls[:3]) == {"trainer.pt", "model.safetensors", "config.json"}
    assert calls[3:] == ["checkpoint-2.tmp", "checkpoint-2.tmp -> checkpoint-2", tmp_path.name,
                         "checkpoint-1 -> checkpoint-1.tmp"]


# ---- a full disk ---------------------------------------------------------------------------------

@pytest.mark.parametrize("free, enough", [(1049, False), (1050, True)])
def test_five_percent_more_than_needed_must_be_free(free, enough, tmp_path, monkeypatch):
    make(tmp_path, 1)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    if enough:
        write_checkpoint(tmp_path, 2, size=1000)
        return
    with pytest.raises(UserError, match=f"checkpoint-2: 1,050 bytes to write, {free:,} free"):
        with new_checkpoint(tmp_path, 2, 1000):
            pytest.fail("writing has begun")
    assert names(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("broken", ["trainer.pt", "model.safetensors"])
def test_a_disk_that_takes_no_more_is_one_line(broken, tmp_path):
    """A file-size limit stands for a full disk: the kernel itself refuses the bytes."""
    make(tmp_path, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        with pytest.raises(UserError, match="checkpoint-2: not written"):
            with new_checkpoint(tmp_path, 2, 0) as folder:
                if broken == "trainer.pt":
                    torch.save(torch.zeros(500_000), folder / broken)
                save_file({"x": torch.zeros(500_000)}, folder / broken)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert names(tmp_path) == ["checkpoint-1"] and len(complete_checkpoints(tmp_path)) == 1


SMALL_DISK = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_training_checkpoints import *
out = Path(sys.argv[3])
make(out, 1)
for size, text in (200_000, "bytes to write"), (0, "not written"):      # 0: less than it takes
    try:
        with new_checkpoint(out, 2, size) as folder:
            write(folder, size=50_000)
    except UserError as error:
        assert text in str(error), error
        print("refused")
    assert complete_checkpoints(out) == [out / "checkpoint-1"] and names(out) == ["checkpoint-1"]
"""


def test_a_small_disk_is_refused_before_and_while_it_is_written(tmp_path):
    """On a disk of 100 kB that only this process sees, and that goes with it."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
             'mount -t tmpfs -o size=100k tmpfs "$0" && echo mounted && exec "$@"', str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"],
                                                     capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    done = subprocess.run([*alone, sys.executable, "-c", SMALL_DISK, str(tiny.ROOT),
                           str(tiny.ROOT / "tests"), str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "mounted\nrefused\nrefused\n", done.stderr


def test_resuming_is_advised_only_where_there_is_a_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").touch()
    for found, advised in (([], False), ([tmp_path / "checkpoint-4"], True)):
        with pytest.raises(UserError, match="--overwrite") as error:
            refuse_other_run(tmp_path, found, None, overwrite=False)
        assert ("--resume auto" in str(error.value)) == advised
        assert (f"--model {tmp_path}" in str(error.value)) != advised


def test_an_output_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "f").write_text("mine")
    for place in (tmp_path / "f", tmp_path / "f" / "x", Path("/proc/x")):
        with pytest.raises(UserError, match=f"^--output_dir {place}: cannot be written to"), (
                lock_folder(place, 0)):
            pass
    assert (tmp_path / "f").read_text() == "mine"


# ---- save and resume -----------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    return tiny.model_folder(tmp_path / "model", dataclasses.replace(tiny.SKYEYE, lora=None))


def new_state(folder, out, **settings):
    """Of a run that has taken one step of gradient 1."""
    config = TrainConfig(**dict(model=str(folder), output_dir=str(out), tune="lora") | settings)
    torch.manual_seed(0)
    model, _ = build_model(config, "cpu")
    optimizer = make_optimizer(model, config)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step()
    return TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False),
                      dataclasses.asdict(config))


def begun(state):
    """The steps done, after the checkpoint is restored."""
    resume(state)
    return state.step


def edit_settings(checkpoint, **settings):
    """As an older version may have written them."""
    trainer = torch.load(checkpoint / "trainer.pt", weights_only=True)
    torch.save(trainer | {"config": trainer["config"] | settings}, checkpoint / "trainer.pt")
    (checkpoint / "checksums.json").unlink()


def test_a_checkpoint_holds_what_it_says_and_restores_it(folder, tmp_path):
    state = new_state(folder, tmp_path / "out")
    checkpoint = save(state, 7)
    trainer = torch.load(checkpoint / "trainer.pt", weights_only=True)
    assert set(trainer) == {"step", "config", "where", "optimizer", "scaler", "parameters"}
    names = {"model": folder.name, "output_dir": "out"}         # of whole paths the last parts
    assert trainer["config"] == state.settings | names and trainer["where"]["torch"]
    again = new_state(folder, tmp_path / "out", resume="auto", lr=1e-5)
    with torch.no_grad():
        for p in again.model.parameters():
            p.mul_(1.5 if p.requires_grad else 1.0)
    assert begun(again) == 7
    for (name, p), q in zip(state.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    before, after = state.optimizer.state_dict(), again.optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"] and len(before["state"]) > 4
    assert all(torch.equal(before["state"][i][key], after["state"][i][key])
               for i in before["state"] for key in before["state"][i])


def test_what_is_no_checkpoint_is_refused_by_name(folder, tmp_path):
    with pytest.raises(ModelError, match=f"{folder}: not a checkpoint"):
        resume(new_state(folder, tmp_path / "out", resume=str(folder)))


@pytest.mark.parametrize("tune", ["lora", "moe-lora"])
def test_another_lora_is_refused_by_its_flag_and_the_same_one_resumes(folder, tmp_path, tune):
    save(new_state(folder, tmp_path, tune=tune, lora_alpha=5.0), 3)
    again = dict(tune=tune, resume="auto")
    with pytest.raises(ModelError, match=r"settings \(lora_alpha 5.0 -> (16|64).0\)"):
        resume(new_state(folder, tmp_path, **again))
    assert begun(new_state(folder, tmp_path, lora_alpha=5.0, **again)) == 3
    default = LoRAConfig.r if tune == "lora" else 32
    assert begun(new_state(folder, tmp_path, lora_alpha=5.0, lora_r=default, **again)) == 3


@pytest.mark.parametrize("tune", ["lora", "moe-lora", "full", "projector"])
def test_a_checkpoint_with_the_flags_of_an_older_version_resumes(folder, tmp_path, tune):
    """Which always saved LoRA's own defaults, and did not use them for moe-lora."""
    checkpoint = save(new_state(folder, tmp_path, tune=tune), 3)
    edit_settings(checkpoint, lora_r=64, lora_alpha=16.0, lora_targets=("q_proj", "v_proj"))
    assert begun(new_state(folder, tmp_path, tune=tune, resume="auto")) == 3


def test_a_changed_setting_is_refused_by_name_unless_forced_or_free(folder, tmp_path):
    save(new_state(folder, tmp_path, clip=1.0), 3)
    again = dict(clip=0.5, resume="auto", num_workers=2, log_steps=1, save_steps=7)
    with pytest.raises(ModelError, match=r"other settings \(clip 1.0 -> 0.5\); --force"):
        resume(new_state(folder, tmp_path, **again))
    assert begun(new_state(folder, tmp_path, force=True, **again)) == 3


@pytest.mark.parametrize("file", ["trainer.pt", "adapter.safetensors"])
def test_a_flipped_bit_is_found_before_anything_is_resumed(folder, tmp_path, file, capsys):
    first = save(new_state(folder, tmp_path), 3)
    second = save(new_state(folder, tmp_path), 5)
    content = bytearray((second / file).read_bytes())
    content[len(content) // 2] ^= 64
    (second / file).write_bytes(content)
    assert newest_checkpoint(tmp_path)[0] == first
    assert begun(new_state(folder, tmp_path, resume="auto")) == 3
    assert f"{file}: its checksum differs" in capsys.readouterr().err
    with pytest.raises(ModelError, match=f"{second}: damaged"):
        resume(new_state(folder, tmp_path, resume=str(second)))


def test_a_run_whose_checkpoints_are_all_damaged_is_neither_continued_nor_replaced(
        folder, tmp_path):
    state = new_state(folder, tmp_path)
    begin(state)
    checkpoint = save(state, 3)
    cut(checkpoint / "trainer.pt", 0.99)
    with pytest.raises(UserError, match="none of its checkpoints is sound; .*--overwrite"):
        begin(new_state(folder, tmp_path, resume="auto"))
    assert begin(new_state(folder, tmp_path, resume="auto", overwrite=True)) == 0


def test_a_checkpoint_that_is_cut_off_is_refused_by_name(folder, tmp_path):
    checkpoint = save(new_state(folder, tmp_path), 3)
    cut(checkpoint / "trainer.pt", 0.99)
    with pytest.raises(ModelError, match="damaged .trainer.pt: cut off"):
        resume(new_state(folder, tmp_path, resume=str(checkpoint)))


@pytest.mark.parametrize("change", [
    lambda t: 5, lambda t: {}, lambda t: t | {"step": "7"}, lambda t: t | {"step": -1},
    lambda t: t | {"config": [1]}, lambda t: t | {"parameters": {"a": torch.ones(2)}},
    lambda t: t | {"optimizer": {"state": {99: {}}, "param_groups": []}},
    lambda t: t | {"parameters": dict.fromkeys(t["parameters"], torch.ones(2, 2, 2))}])
def test_a_trainer_pt_of_another_kind_is_refused_by_name(folder, tmp_path, change):
    """Where no checksum finds it: that of an earlier version, or of another program."""
    checkpoint = save(new_state(folder, tmp_path), 3)
    (checkpoint / "checksums.json").unlink()
    trainer = torch.load(checkpoint / "trainer.pt", weights_only=True)
    torch.save(change(trainer), checkpoint / "trainer.pt")
    with pytest.raises(ModelError, match=f"^{checkpoint}/trainer.pt: "):
        resume(new_state(folder, tmp_path, resume=str(checkpoint)))


def test_a_checkpoint_that_is_given_away_names_no_whole_path(folder, tmp_path):
    for tune in ("lora", "full"):
        checkpoint = save(new_state(folder, tmp_path / tune, tune=tune), 3)
        for file in checkpoint.iterdir():
            assert str(tmp_path).encode() not in file.read_bytes(), file
    config = read_config(tmp_path / "lora" / "checkpoint-3")
    assert config.base == "../../model"
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    SkyEyeGPT.from_pretrained(moved / "lora" / "checkpoint-3")


def test_the_room_a_checkpoint_asks_for_is_what_it_takes(folder, tmp_path, monkeypatch):
    asked = []
    check = checkpoints.check_free_space
    monkeypatch.setattr(checkpoints, "check_free_space",
                        lambda final, size: asked.append(size) or check(final, size))
    for tune in ("lora", "full", "projector"):
        checkpoint = save(new_state(folder, tmp_path / tune, tune=tune), 1)
        written = sum((checkpoint / name).stat().st_size for name in (
            "trainer.pt", "adapter.safetensors" if tune != "full" else "model.safetensors"))
        assert 0.75 * written < asked[-1] < 1.05 * written, tune


def test_a_save_that_fails_is_told_and_leaves_the_training_going(folder, tmp_path, monkeypatch,
                                                                 capsys):
    state = new_state(folder, tmp_path, save_steps=9)
    state.step = 2
    monkeypatch.setattr(checkpoints.torch, "save", lambda *_: (_ for _ in ()).throw(
        OSError(errno.EIO, "Input/output error")))
    assert checkpoints.try_save(state, Path("before")) == Path("before")
    told = capsys.readouterr().err
    assert "checkpoint-2: not written" in told and "tries again in 9 steps" in told
    monkeypatch.undo()
    assert checkpoints.try_save(state, None) == tmp_path / "checkpoint-2"


def test_files_are_written_with_the_users_umask(folder, tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint = save(new_state(folder, tmp_path), 1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in checkpoint.iterdir()} == {0o640}


SOURCES = {"processes": 1, "data": ["a"], "pictures": ["b"], "tokenizer": "c", "base": "d"}


@pytest.mark.parametrize("changed, words", [
    ({"data": ["x"]}, "the rows of"), ({"pictures": ["x"]}, "size or time of the pictures"),
    ({"tokenizer": "x"}, "tokenizer.model has changed"), ({"base": "x"}, "have changed"),
    ({"processes": 2}, "processes 1 -> 2")])
def test_what_has_changed_since_the_save_is_named_and_refused_unless_forced(
        folder, tmp_path, changed, words):
    state = new_state(folder, tmp_path)
    state.sources = SOURCES
    state.run = {"id": "1"} | SOURCES
    save(state, 3)
    again = new_state(folder, tmp_path, resume="auto")
    again.sources = SOURCES | changed
    with pytest.raises(ModelError, match=words):
        resume(again)
    forced = new_state(folder, tmp_path, resume="auto", force=True)
    forced.sources = SOURCES | changed
    assert begun(forced) == 3 and forced.run["id"] == "1"


def test_more_processes_may_go_on_with_as_many_rows_a_step(folder, tmp_path, capsys):
    state = new_state(folder, tmp_path, batch_size=4)
    state.run = {"id": "1"} | SOURCES
    save(state, 3)
    for batch_size, grad_accum in ((2, 1), (1, 2)):
        again = new_state(folder, tmp_path, resume="auto", batch_size=batch_size,
                          grad_accum=grad_accum)
        again.sources = SOURCES | {"processes": 2}
        assert begun(again) == 3
        told = capsys.readouterr().err
        assert "processes 1 -> 2; batch_size 4 -> " in told and "4 rows a step as before" in told
