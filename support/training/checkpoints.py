"""Checkpoints of a run: written completely or not at all, found again, resumed.

    OUTPUT_DIR/checkpoint-2000/
        config.json, *.safetensors, tokenizer.model     a model folder, as chat.py and eval.py read
        trainer.pt      a dict: step, config (train.TrainConfig's fields), where (versions, commit),
                        optimizer, scaler, parameters (the trained ones, in float32)
        run.json        the identity of the run, see support.training.runs
        checksums.json  SHA-256 of every file, written last and compared before resuming

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
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from lora import LoRAConfig
from projector import SkyEyeGPT, read_config
from support.checkpoints.files import (
    ModelError,
    check_safetensors,
    index_files,
    read_json,
    visible_files,
    write_json,
)
from support.checkpoints.names import is_adapter_name
from support.common import (
    UserError,
    differences,
    environment,
    hash_file,
    is_out_of_memory,
    write_atomic,
)
from support.readers.common import DataError
from support.training.distributed import (
    from_rank_0,
    gather_full,
    get_rank,
    get_world_size,
    load_full,
    wait_for_all,
)
from support.training.runs import (
    changed_processes,
    changed_sources,
    is_of_run,
    new_run,
    read_run,
    refuse_other_run,
    rows_a_step,
    write_run,
)

# What a resumed run may change. The LoRA is compared by itself, see lora_settings.
MAY_CHANGE = ("device", "compile", "shard", "num_workers", "feature_cache", "save_steps",
              "save_total_limit", "log_steps", "log_to", "resume", "force", "overwrite",
              "output_dir", "skip_bad", "image_folder", "val_data", "val_steps",
              # These decide about the rows, which are compared by themselves.
              "val_part", "limit", "overfit_one_batch")

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, ModelError)     # where a disk is full


# ---- save and resume -----------------------------------------------------------------------------

@dataclass
class TrainState:
    """What a checkpoint stores and a resumed run restores."""
    model: SkyEyeGPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: dict                      # the fields of train.TrainConfig
    sources: dict = field(default_factory=dict)     # runs.describe_sources of this run
    run: dict = field(default_factory=dict)         # the identity, once it is known
    step: int = 0                       # steps done
    saved_step: int = 0                 # those in the newest checkpoint

    @property
    def out(self) -> Path:
        return Path(self.settings["output_dir"])

    @property
    def adapters_only(self) -> bool:
        """Whether nothing but adapters is trained: a checkpoint leaves the base out."""
        return all(is_adapter_name(name) for name, p in self.model.named_parameters()
                   if p.requires_grad)


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
    trainer = {"step": step, "config": portable(state.settings), "where": environment(),
               "optimizer": optimizer, "scaler": state.scaler.state_dict(), "parameters": trained}
    # In float32: what is written of the model, the trained parameters again, AdamW's two moments.
    size = 4 * sum(p.numel() for name, p in tensors.items()
                   if not state.adapters_only or is_adapter_name(name))
    size += 12 * sum(p.numel() for p in trained.values())
    with new_checkpoint(state.out, step, size) as folder:
        write_model(folder, state, tensors)
        torch.save(trainer, folder / "trainer.pt")
        write_run(folder, state.run)
        write_json(folder / CHECKSUMS, {path.name: hash_file(path) for path in folder.iterdir()})
    state.saved_step = step
    remove_oldest(state.out, final, state.settings["save_total_limit"], state.run.get("id", ""),
                  state.settings["overwrite"])
    return final


def try_save(state: TrainState, previous: Path | None) -> Path | None:
    """Save the steps done -> the newest checkpoint. Where it cannot be written, say so: the
    training goes on and tries again at the next step that is saved."""
    try:
        return save(state, state.step)
    except UserError as error:
        tqdm.write(f"{error}; the training goes on and tries again in "
                   f"{state.settings['save_steps']} steps", file=sys.stderr)
        return previous


@contextlib.contextmanager
def saved_on_error(state: TrainState) -> Iterator[None]:
    """Where data end the run, on all processes at once, save the steps done, and say so."""
    try:
        yield
    except DataError:
        try:
            if state.step > state.saved_step:
                saved = save(state, state.step)
                if get_rank() == 0:
                    print(f"saved {saved}: --resume auto goes on from there", file=sys.stderr)
        except UserError as error:
            print(error, file=sys.stderr)
        finally:
            wait_for_all()                      # a process that ends first would end the others
        raise


def save_result(state: TrainState) -> Path:
    """Write the trained model into the output folder itself -> that folder. UserError."""
    tensors = gather_full(state.model.state_dict())
    if get_rank():
        return state.out
    try:
        write_model(state.out, state, tensors)
    except WRITE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{state.out}: the trained model is not written "
                        f"({' '.join(str(error).split())}); make room, then --resume auto goes on "
                        "from the newest checkpoint") from error
    remove_other_weights(state.out)
    return state.out


def remove_other_weights(folder: Path) -> None:
    """Those of an earlier result, which the run was told to replace."""
    files = read_json(folder / "config.json")["files"]
    index = f"{Path(files[0]).stem.partition('-')[0]}.safetensors.index.json"
    keep = {*files, index} if len(files) > 1 else {*files}
    for pattern in ("model*.safetensors", "adapter*.safetensors", "*.safetensors.index.json"):
        for path in folder.glob(pattern):
            if path.name not in keep:
                path.unlink()


def write_model(folder: Path, state: TrainState, tensors: dict[str, Tensor]) -> None:
    """A model folder: complete; or, where nothing but adapters was trained, those and the path of
    the model they belong to. tensors: the model's full state dict."""
    settings = state.settings
    state.model.save_pretrained(folder, base=settings["model"] if state.adapters_only else "",
                                state=tensors)
    tokenizer = tokenizer_file(settings).read_bytes()
    write_atomic(folder / "tokenizer.model", lambda path: path.write_bytes(tokenizer))


def tokenizer_file(settings: dict) -> Path:
    """That of the model the run starts from, or of a new one."""
    if settings["model"]:
        return Path(settings["model"]) / "tokenizer.model"
    return Path(settings["tokenizer"])


# ---- begin and resume ----------------------------------------------------------------------------

def begin(state: TrainState) -> int:
    """Resume, or start a new run in the output folder -> the steps done.

    UserError: as resume; or another run's checkpoints or result lie in the folder.
    """
    settings, out = state.settings, state.out
    found = resume(state) if settings["resume"] else None
    if not found or found.parent.resolve() != out.resolve():
        run_id = state.run["id"] if found else None
        if settings["resume"] and not found and not settings["overwrite"]:
            from_rank_0(lambda: refuse_damaged_run(out))
        from_rank_0(lambda: refuse_other_run(out, checkpoint_folders(out), run_id,
                                             settings["overwrite"]))
    if not found:
        state.run = from_rank_0(lambda: new_run(state.sources))
    if get_rank() == 0:
        log = out / "log.jsonl"
        if not found and log.is_file():         # of a run that has left nothing else, or that
            log.replace(out / "log.old.jsonl")          # --overwrite replaces
        write_run(out, state.run)
    return state.step


def refuse_damaged_run(out: Path) -> None:
    """UserError where the run that is to go on has checkpoints, and none of them is sound."""
    run = read_run(out).get("id", "")
    if run and any(is_of_run(path, run) for path in checkpoint_folders(out)):
        raise UserError(f"{out}: none of its checkpoints is sound; begin anew with --overwrite, or "
                        "name another --output_dir")


def resume(state: TrainState) -> Path | None:
    """Restore the checkpoint that the setting `resume` names -> its folder; None: there is none.

    "auto" is the newest complete one of the output folder's run. ModelError: no checkpoint, a
    damaged one, or one of a run with other settings or data, unless the setting `force` is on.
    """
    found = from_rank_0(lambda: choose_checkpoint(state.settings["resume"], state.out))
    if found:
        restore(state, found)
    return found


def choose_checkpoint(name: str, out: Path) -> Path | None:
    if name == "auto":
        found, skipped = newest_checkpoint(out)
        for line in skipped:
            print(line, file=sys.stderr)
        return found
    found = Path(name)
    if not (found / "trainer.pt").is_file():
        raise ModelError(f"{found}: not a checkpoint, it has no trainer.pt")
    if reason := why_damaged(found):
        raise ModelError(f"{found}: damaged ({reason}); name an earlier checkpoint, or --resume "
                         "auto")
    return found


def restore(state: TrainState, found: Path) -> None:
    """Fill the state from a checkpoint. ModelError: one of other settings, data or weights."""
    settings, saved_run = state.settings, read_run(found)
    trainer = read_trainer(found / "trainer.pt", mmap=settings["shard"])    # each reads its part
    saved = portable(trainer["config"])
    sources = state.sources or {"processes": get_world_size()}
    processes, same_rows = changed_processes(saved_run, sources, saved, settings)
    batch = ("batch_size", "grad_accum")
    changed = differences(saved | lora_settings(read_config(found).lora),
                          portable(settings) | lora_settings(state.model.config.lora),
                          MAY_CHANGE + (batch if same_rows else ()))
    changed += [] if same_rows else processes
    changed += changed_sources(saved_run, sources, settings) if state.sources else []
    if changed and not settings["force"]:
        raise ModelError(f"{found}: trained with other settings ({'; '.join(changed)}); --force "
                         "resumes all the same")
    if same_rows and get_rank() == 0:
        processes += differences({name: saved[name] for name in batch},
                                 {name: settings[name] for name in batch})
        if processes:
            print(f"{'; '.join(processes)}: {rows_a_step(settings, sources['processes'])} rows a "
                  "step as before; dropout and rounding differ", file=sys.stderr)
    try:
        load_full(state.model, state.optimizer, trainer["parameters"], trainer["optimizer"])
        state.scaler.load_state_dict(trainer["scaler"])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{found}/trainer.pt: does not fit the model ({error}); name an earlier "
                         "checkpoint") from None
    state.run = {"id": saved_run.get("id", "")} | state.sources
    state.step = state.saved_step = trainer["step"]


TRAINER_TYPES = {"step": int, "config": dict, "optimizer": dict, "scaler": dict,
                 "parameters": dict}


def read_trainer(file: Path, mmap: bool) -> dict:
    """ModelError where it is not what `save` writes."""
    try:        # many kinds of error: of the zip file, of the pickle in it, of the storages
        trainer = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{file}: damaged ({type(error).__name__}); name an earlier checkpoint"
                         ) from None
    wrong = [name for name, kind in TRAINER_TYPES.items()
             if not isinstance(trainer, dict) or not isinstance(trainer.get(name), kind)]
    if wrong or trainer["step"] < 0:
        raise ModelError(f"{file}: no {' or '.join(wrong or ['step'])} as train.py writes it; name "
                         "an earlier checkpoint")
    return trainer


PATH_SETTINGS = ("model", "data", "val_data", "tokenizer", "output_dir", "resume")


def portable(settings: dict) -> dict:
    """The settings as a checkpoint names them: of a whole path the last part, since a checkpoint
    may be given away. What lies there is compared by its hash, see runs.describe_sources."""
    def last_part(value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(map(last_part, value))
        return os.path.basename(value.rstrip("/")) if str(value).startswith("/") else value

    return settings | {name: last_part(settings[name]) for name in PATH_SETTINGS
                       if name in settings}


def lora_settings(lora: LoRAConfig | None) -> dict:
    """The LoRA that a model has, as settings. The flags alone do not say: a model that comes with
    a LoRA keeps it, and 0 stands for the default of --tune."""
    names = ("r", "alpha", "dropout", "targets")
    return {f"lora_{name}": getattr(lora, name) if lora else "(none)" for name in names}


# ---- find ----------------------------------------------------------------------------------------

def newest_checkpoint(out: Path) -> tuple[Path | None, list[str]]:
    """-> the newest sound one of the folder's run, and a line for each newer one that is not."""
    lines, run = [], read_run(out)
    for path in reversed(checkpoint_folders(out)):
        if run and not is_of_run(path, run.get("id", "")):
            lines.append(f"{path.name} is of another run, skipping it")
            continue
        reason = why_damaged(path)
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
    names = {path.name for path in visible_files(folder, "*.safetensors")}
    for index in visible_files(folder, "*.safetensors.index.json"):
        names.update(index_files(index))
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


# ---- checksums -----------------------------------------------------------------------------------

CHECKSUMS = "checksums.json"


def why_damaged(folder: Path) -> str:
    """Why a checkpoint cannot be resumed from, in a few words; "" if it can. Reads every byte."""
    if reason := why_incomplete(folder):
        return reason
    if not (folder / CHECKSUMS).is_file():      # of an earlier version
        return ""
    try:
        for name, expected in read_json(folder / CHECKSUMS).items():
            if hash_file(folder / Path(name).name) != expected:
                return f"{name}: its checksum differs, it has changed since it was written"
    except (ModelError, OSError) as error:
        return " ".join(str(error).replace(f"{folder}{os.sep}", "").split())
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


def remove_oldest(out: Path, newest: Path, limit: int, run_id: str = "",
                  overwrite: bool = False) -> None:
    """Remove the oldest complete checkpoints of the run, so that `limit` stay (0: all), `newest`
    among them; with `overwrite` those of other runs too, as the run has one of its own now.

    Each is renamed first: a removal that is interrupted leaves no half under a final name.
    """
    own = [path for path in complete_checkpoints(out)
           if path != newest and is_of_run(path, run_id)]
    removed = own[:max(0, len(own) + 1 - limit)] if limit else []
    if overwrite:
        removed += [path for path in checkpoint_folders(out) if not is_of_run(path, run_id)]
    for path in removed:
        temporary = path.with_name(path.name + ".tmp")
        with contextlib.suppress(OSError):      # the new checkpoint is there, which is what counts
            path.rename(temporary)
            shutil.rmtree(temporary)
