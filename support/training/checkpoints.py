"""Checkpoints of a run: written completely or not at all, found again, resumed.

    OUTPUT_DIR/checkpoint-2000/
        config.json, *.safetensors, tokenizer.model     a model folder, as chat.py and eval.py read
        trainer.pt      a dict: step, config (train.TrainConfig's fields), where (versions, commit),
                        optimizer, scaler, parameters (the trained ones, in float32)

A checkpoint is written to checkpoint-N.tmp, flushed to the disk and renamed, so neither a kill nor
a power cut leaves half of one under the final name. There is no random state in it: every step
seeds its own.
"""
import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from lora import LoRAConfig
from projector import SkyEyeGPT, read_config
from support.checkpoints.files import ModelError, check_safetensors, read_json
from support.checkpoints.names import is_adapter_name
from support.common import UserError, differences, environment, is_out_of_memory
from support.training.distributed import gather_full, get_rank, load_full

# What a resumed run may change. The LoRA is compared by itself, see lora_settings.
MAY_CHANGE = ("device", "compile", "shard", "num_workers", "save_steps", "save_total_limit",
              "log_steps", "log_to", "resume", "force", "output_dir")

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, ModelError)     # where a disk is full


# ---- save and resume -----------------------------------------------------------------------------

@dataclass
class TrainState:
    """What a checkpoint stores and a resumed run restores."""
    model: SkyEyeGPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: dict                      # the fields of train.TrainConfig

    @property
    def out(self) -> Path:
        return Path(self.settings["output_dir"])


def save(state: TrainState, step: int) -> Path:
    """Write checkpoint-STEP, remove the oldest -> its folder.

    All processes call it and rank 0 writes. UserError: it could not be written, and all earlier
    checkpoints are as they were.
    """
    model, final = state.model, state.out / f"checkpoint-{step}"
    tensors = gather_full(model.state_dict())
    optimizer = gather_full(state.optimizer.state_dict())
    if get_rank():
        return final
    trained = {name: tensors[name] for name, p in model.named_parameters() if p.requires_grad}
    trainer = {"step": step, "config": state.settings, "where": environment(),
               "optimizer": optimizer, "scaler": state.scaler.state_dict(), "parameters": trained}
    # In float32: the model, the trained parameters again, AdamW's two moments of each.
    size = 4 * sum(p.numel() for p in tensors.values())
    size += 12 * sum(p.numel() for p in trained.values())
    with new_checkpoint(state.out, step, size) as folder:
        write_model(folder, model, state.settings, tensors)
        torch.save(trainer, folder / "trainer.pt")
    remove_oldest(state.out, final, state.settings["save_total_limit"])
    return final


def save_result(state: TrainState) -> Path:
    """Write the trained model into the output folder itself -> that folder."""
    tensors = gather_full(state.model.state_dict())
    if get_rank() == 0:
        write_model(state.out, state.model, state.settings, tensors)
    return state.out


def write_model(folder: Path, model: SkyEyeGPT, settings: dict, tensors: dict[str, Tensor]) -> None:
    """A model folder: complete; or, where nothing but adapters was trained, those and the path of
    the model they belong to. tensors: the model's full state dict."""
    adapters_only = all(is_adapter_name(n) for n, p in model.named_parameters() if p.requires_grad)
    model.save_pretrained(folder, base=settings["model"] if adapters_only else "", state=tensors)
    tokenizer = Path(settings["model"]) / "tokenizer.model" if settings["model"] else Path(
        settings["tokenizer"])
    shutil.copyfile(tokenizer, folder / "tokenizer.model")


def resume(state: TrainState) -> int:
    """Restore the checkpoint that the setting `resume` names -> the steps done, 0 if there is none.

    "auto" is the newest complete one of the output folder. ModelError: no checkpoint, or one of a
    run with other settings, unless the setting `force` is on.
    """
    settings = state.settings
    found = Path(settings["resume"])
    if settings["resume"] == "auto":
        found, incomplete = newest_checkpoint(state.out)
        for line in incomplete:
            print(line, file=sys.stderr)
        if not found:
            return 0
    if not (found / "trainer.pt").is_file():
        raise ModelError(f"{found}: not a checkpoint, it has no trainer.pt")
    trainer = torch.load(found / "trainer.pt", map_location="cpu", weights_only=True,
                         mmap=settings["shard"])        # each process reads its part
    changed = differences(trainer["config"] | lora_settings(read_config(found).lora),
                          settings | lora_settings(state.model.config.lora), MAY_CHANGE)
    if changed and not settings["force"]:
        raise ModelError(f"{found}: trained with other settings ({'; '.join(changed)}); --force "
                         "resumes all the same")
    load_full(state.model, state.optimizer, trainer["parameters"], trainer["optimizer"])
    state.scaler.load_state_dict(trainer["scaler"])
    return trainer["step"]


def lora_settings(lora: LoRAConfig | None) -> dict:
    """The LoRA that a model has, as settings. The flags alone do not say: a model that comes with
    a LoRA keeps it, and 0 stands for the default of --tune."""
    names = ("r", "alpha", "dropout", "targets")
    return {f"lora_{name}": getattr(lora, name) if lora else "(none)" for name in names}


# ---- find ----------------------------------------------------------------------------------------

def newest_checkpoint(out: Path) -> tuple[Path | None, list[str]]:
    """-> the newest complete one, and a line for each newer one that is incomplete."""
    lines = []
    for path in reversed(checkpoint_folders(out)):
        reason = why_incomplete(path)
        if not reason:
            return path, lines
        lines.append(f"{path.name} is incomplete ({reason}), skipping it")
    return None, lines


def complete_checkpoints(out: Path) -> list[Path]:
    """Oldest first."""
    return [path for path in checkpoint_folders(out) if not why_incomplete(path)]


def checkpoint_folders(out: Path) -> list[Path]:
    """All, complete or not, oldest first."""
    folders = [path for path in out.glob("checkpoint-*") if checkpoint_step(path) >= 0]
    return sorted(folders, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """N of a folder checkpoint-N; -1 for anything else."""
    match = re.fullmatch(r"checkpoint-([0-9]+)", path.name)
    return int(match[1]) if match and path.is_dir() else -1


def why_incomplete(folder: Path) -> str:
    """What a checkpoint lacks, in a few words; "" if it is complete. Reads no tensor."""
    try:
        read_json(folder / "config.json")
        check_weights(folder)
    except (ModelError, OSError) as error:
        return " ".join(str(error).replace(f"{folder}{os.sep}", "").split(";")[0].split())
    return why_unreadable(folder / "trainer.pt")


def check_weights(folder: Path) -> None:
    """ModelError unless every *.safetensors, and each that an index names, has the length that its
    header says."""
    names = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise ModelError(f"{index}: no weight_map")
        names |= {Path(str(name)).name for name in files.values()}
    if not names:
        raise ModelError("no *.safetensors")
    for name in sorted(names):
        check_safetensors(folder / name)


def why_unreadable(file: Path) -> str:
    if not file.is_file():
        return f"{file.name}: no such file"
    try:        # many kinds of error: of the zip file, of the pickle in it, of the storages
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        return f"{file.name}: cut off, or not written by torch.save ({type(error).__name__})"
    return ""


# ---- write, rename, remove -----------------------------------------------------------------------

@contextlib.contextmanager
def new_checkpoint(out: Path, step: int, size: int) -> Iterator[Path]:
    """Yield a temporary folder that becomes checkpoint-STEP when the block ends without an error.

    size: bytes that are going to be written. UserError: the disk does not take them. An error of
    memory passes through.
    """
    final, temporary = out / f"checkpoint-{step}", out / f"checkpoint-{step}.tmp"
    try:
        remove_leftovers(out, step)
        check_free_space(final, size)
        temporary.mkdir()
        yield temporary
        flush(temporary)
        rename_folder(temporary, final)
    except WRITE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{final}: not written ({' '.join(str(error).split())}); make room or "
                        "name another --output_dir; earlier checkpoints are complete") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(out: Path, step: int) -> None:
    """Temporary folders of interrupted runs, up to this step."""
    out.mkdir(parents=True, exist_ok=True)
    for path in out.glob("checkpoint-*.tmp"):
        match = re.match(r"checkpoint-([0-9]+)\.", path.name)
        if match and int(match[1]) <= step:
            shutil.rmtree(path, ignore_errors=True)


def check_free_space(final: Path, size: int) -> None:
    """UserError unless `size` bytes and 5 % are free."""
    needed, free = size + size // 20, shutil.disk_usage(final.parent).free
    if needed > free:
        raise UserError(f"{final}: {needed:,} bytes to write, {free:,} free; make room or name "
                        "another --output_dir")


def flush(path: Path) -> None:
    """A file, or a folder with all in it, onto the disk. OSError."""
    if path.is_dir():
        for inner in path.iterdir():
            flush(inner)
    flush_entry(path)


def flush_entry(path: Path) -> None:
    """A file; or of a folder the names it holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_folder(source: Path, target: Path) -> None:
    """A folder that has the target's name steps aside, and comes back if the renaming fails."""
    previous = target.with_name(target.name + ".old.tmp")
    if target.exists():
        target.rename(previous)
    try:
        source.rename(target)
    except BaseException:
        if previous.exists():
            previous.rename(target)
        raise
    flush_entry(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def remove_oldest(out: Path, newest: Path, limit: int) -> None:
    """Remove the oldest complete checkpoints, so that `limit` stay (0: all), `newest` among them.

    Each is renamed first: a removal that is interrupted leaves no half under a final name.
    """
    if not limit:
        return
    older = [path for path in complete_checkpoints(out) if path != newest]
    for path in older[:max(0, len(older) + 1 - limit)]:
        temporary = path.with_name(path.name + ".tmp")
        with contextlib.suppress(OSError):      # the new checkpoint is there, which is what counts
            path.rename(temporary)
            shutil.rmtree(temporary)
