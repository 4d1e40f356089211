"""support/training/checkpoints.py"""
import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn

from support.checkpoints.files import ModelError, check_safetensors, read_json
from support.common import UserError, environment, is_out_of_memory
from support.training.distributed import gather_full, restore

# ---- disk ----------------------------------------------------------------------------------------
# A folder put on the disk so that neither a crash nor a power cut leaves half of it.

def make_room(out: Path, step: int, need: int) -> None:
    """Remove what interrupted runs left up to `step`; then are `need` bytes and 5 % free?"""
    out.mkdir(parents=True, exist_ok=True)
    for path in out.glob("checkpoint-*.tmp"):
        told = path.name[11:].split(".")[0]
        if told.isdecimal() and int(told) <= step:
            shutil.rmtree(path, ignore_errors=True)
    need, free = need + need // 20, shutil.disk_usage(out).free
    if need > free:
        raise UserError(f"{out / f'checkpoint-{step}'}: {need:,} bytes to write, {free:,} free; "
                        "make room or name another --output_dir")


def fsync_tree(path: Path, deep: bool = True) -> None:
    """A file, or a folder and, if deep, all in it, onto the disk. Raises OSError."""
    for inner in path.iterdir() if deep and path.is_dir() else ():
        fsync_tree(inner)
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def rename_folder(aside: Path, final: Path) -> None:
    """Rename a folder; one of that name stands until then, and again if the renaming fails."""
    before = final.with_name(final.name + ".old.tmp")
    if final.exists():
        final.rename(before)
    try:
        aside.rename(final)
    except BaseException:
        if before.exists():
            before.rename(final)
        raise
    fsync_tree(final.parent, deep=False)
    shutil.rmtree(before, ignore_errors=True)


def remove_oldest(found: Sequence[Path], final: Path, limit: int) -> None:
    """The oldest, so that `limit` stay (0: all), `final` among them; half of one is never seen."""
    old = [path for path in found if path != final]
    for path in old[:len(old) + 1 - limit] if limit else ():
        aside = path.with_name(path.name + ".tmp")
        with contextlib.suppress(OSError):      # the new one stands, which is what counts
            path.rename(aside)
            shutil.rmtree(aside)


# ---- whole ---------------------------------------------------------------------------------------
# Is a checkpoint whole? Told from its files alone.

def checkpoint_step(path: Path) -> int:
    """N of a folder checkpoint-N; -1 of anything else."""
    found = re.fullmatch(r"checkpoint-([0-9]+)", path.name)
    return int(found[1]) if found and path.is_dir() else -1


def checkpoint_folders(out: Path) -> list[Path]:
    """Oldest first, torn ones too."""
    return sorted((path for path in out.glob("checkpoint-*") if checkpoint_step(path) >= 0), key=checkpoint_step)


def why_incomplete(folder: Path) -> str:
    """What makes a checkpoint torn, in a few words; "" of a whole one. Reads no tensor."""
    try:
        read_json(folder / "config.json")
        check_weights(folder)
    except (ModelError, OSError) as error:
        return " ".join(str(error).replace(f"{folder}{os.sep}", "").split(";")[0].split())
    return check_state(folder / "trainer.pt")


def check_weights(folder: Path) -> None:
    """Every *.safetensors, and each that an index names, is as long as its header says."""
    names = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{index}: no weight_map")
        names |= {Path(str(name)).name for name in places.values()}
    if not names:
        raise ModelError("no *.safetensors")
    for name in sorted(names):
        check_safetensors(folder / name)


def check_state(file: Path) -> str:
    if not file.is_file():
        return f"{file.name}: no such file"
    try:        # many kinds of error: of the zip file, of the pickle in it, of the storages
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        return f"{file.name}: cut off, or not written by torch.save ({type(error).__name__})"
    return ""


# ---- checkpoints ---------------------------------------------------------------------------------
# Folders checkpoint-N: found, written whole or not at all, and the oldest removed.

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, ModelError)   # how the writers tell a full disk


def complete_checkpoints(out: Path) -> list[Path]:
    """Those that are whole, oldest first."""
    return [path for path in checkpoint_folders(out) if not why_incomplete(path)]


def newest_checkpoint(out: Path) -> tuple[Path | None, list[str]]:
    """The newest whole one, and a line for each newer one that is torn."""
    lines = []
    for path in reversed(checkpoint_folders(out)):
        if not (what := why_incomplete(path)):
            return path, lines
        lines.append(f"{path.name} is torn ({what}), passed over")
    return None, lines


def save_checkpoint(out: Path, step: int, write: Callable[[Path], None], need: int, limit: int) -> Path:
    """checkpoint-STEP, of `need` bytes, that `write` puts into the folder it is given.

    Then the oldest go, so that `limit` stay (0: all). Raises UserError; all earlier ones are
    then as they were. An error of memory passes through."""
    final, aside = out / f"checkpoint-{step}", out / f"checkpoint-{step}.tmp"
    try:
        make_room(out, step, need)
        aside.mkdir()
        write(aside)
        fsync_tree(aside)
        rename_folder(aside, final)
    except WRITE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{final}: not written ({' '.join(str(error).split())}); make room or "
                        "name another --output_dir; earlier checkpoints are whole") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    remove_oldest(complete_checkpoints(out), final, limit)
    return final


# ---- settings ------------------------------------------------------------------------------------
# Is a run resumed with the settings it was begun with?

MAY_CHANGE = ("device", "compile", "shard", "num_workers", "save_steps", "save_total_limit", "log_steps",
        "log_to", "resume", "force", "output_dir")        # what a resumed run may have changed


def differences(saved: dict, now: dict, free: Collection[str]) -> list[str]:
    """"lr 0.001 -> 0.002" for each setting that differs and is not free to."""
    def told(settings: dict, key: str) -> str:
        value = settings.get(key, "(none)")
        listed = isinstance(value, list | tuple)
        return (" ".join(map(str, value)) if listed else str(value)) or "(empty)"
    pairs = ((key, told(saved, key), told(now, key)) for key in now | saved if key not in free)
    return [f"{key} {old} -> {new}" for key, old, new in pairs if old != new]


# ---- state ---------------------------------------------------------------------------------------
# What a training needs to go on: trainer.pt, beside the model in a checkpoint.

@dataclass
class TrainState:
    """There is no random state: every step draws from its own number."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: dict

    def save(self, out: Path, step: int, save_model: Callable, limit: int) -> Path | None:
        """All call it, rank 0 writes checkpoint-STEP: the model by `save_model`. UserError."""
        tensors, optimizer = gather_full(self.model.state_dict()), gather_full(self.optimizer.state_dict())
        if dist.is_initialized() and dist.get_rank():
            return None
        trained = {n: tensors[n] for n, p in self.model.named_parameters() if p.requires_grad}
        state = {"step": step, "config": self.settings, "where": environment(),
                 "optimizer": optimizer, "scaler": self.scaler.state_dict(), "parameters": trained}

        def write(folder: Path) -> None:
            save_model(folder, tensors)
            torch.save(state, folder / "trainer.pt")

        # In float32: the model, the trained parameters again, AdamW's two moments of each.
        need = sum(12 * p.numel() for p in trained.values())
        need += sum(4 * p.numel() for p in tensors.values())
        return save_checkpoint(out, step, write, need, limit)

    def load(self, out: Path, resume: str, force: bool) -> int:
        """resume: a checkpoint, or auto -> the step to go on with. Raises ModelError."""
        found, torn = newest_checkpoint(out) if resume == "auto" else (Path(resume), [])
        for line in torn:
            print(line, file=sys.stderr)
        if not found:
            return 0
        if not (found / "trainer.pt").is_file():
            raise ModelError(f"{found}: no checkpoint, it has no trainer.pt")
        state = torch.load(found / "trainer.pt", map_location="cpu", weights_only=True,
                           mmap=self.settings["shard"])         # each process reads its pieces
        changed = differences(state["config"], self.settings, MAY_CHANGE)
        if changed and not force:
            raise ModelError(f"{found}: trained otherwise ({'; '.join(changed)}); --force goes on")
        restore(self.model, self.optimizer, state["parameters"], state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return state["step"]
