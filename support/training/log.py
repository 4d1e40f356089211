"""What a run reports: log.jsonl, TensorBoard and W&B, the progress line, loss.png, warnings.

    {"step": 20, "loss": 2.31, "lr": 0.0002, "norm": 1.9, "samples_per_s": 61.0,
     "tokens_per_s": 9120.4, "tflops": 0.041, "mfu": 0.52, "pictures_per_step": 16.0}

is a line of log.jsonl, with "experts" for MoE-LoRA: the part of the tokens that each expert got.
tflops is what this process computes a second, mfu how large a part that is of what a matrix
product alone reaches. A step that was skipped has "skipped": true and "rows", where its samples
stand in the data. With --skip_bad, a step that met faulty rows has a line with "left_out", what is
wrong with each of them; those that were found before the first step stand at step 0. Lines about
held-out rows: support.training.validation.

Where stderr is no terminal, as in a log file, there is no progress bar, and the loss is printed in
lines of its own.
"""
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import PackedDataset
from lora import expert_load
from projector import SkyEyeGPT
from support.common import UserError, is_installed, parse_json, read_bytes, write_atomic
from support.training.distributed import get_rank, get_world_size
from support.training.flops import count_flops

# ---- TensorBoard and Weights & Biases ------------------------------------------------------------

LogFn = Callable[[int, dict[str, float]], None]      # step, numbers by name


def open_loggers(names: Sequence[str], out: Path, settings: dict) -> list[LogFn]:
    """names: keys of LOGGERS. UserError where a package is not installed, before any is opened."""
    for name in names:
        if not is_installed(name):
            raise UserError(f"--log_to {name}: the package {name} is not installed; "
                            f"pip install {name}")
    return [LOGGERS[name](out, settings) for name in dict.fromkeys(names)]


def open_tensorboard(out: Path, settings: dict) -> LogFn:
    """`tensorboard --logdir OUTPUT_DIR` shows it."""
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(out / "tensorboard"))

    def log(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()                                      # a killed run keeps its curves
    return log


def open_wandb(out: Path, settings: dict) -> LogFn:
    """Uses the network unless WANDB_MODE=offline. UserError where nobody is logged in."""
    import wandb
    out.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(dir=str(out), config=settings)
    except wandb.Error as error:
        raise UserError(f"--log_to wandb: {' '.join(str(error).split()).rstrip('.')}; or set "
                        "WANDB_MODE=offline") from None
    return lambda step, numbers: run.log(numbers, step=step)


LOGGERS = {"tensorboard": open_tensorboard, "wandb": open_wandb}


# ---- log.jsonl -----------------------------------------------------------------------------------

class Logger:
    """Counts every step, and writes a line every `every` steps and at the last, on rank 0.

    Speeds are those since the line before. tune, train_vit: as in train.TrainConfig, to count
    FLOPs; peak_flops: FLOPs a second of a matrix product alone (flops.matmul_rate); max_steps: for
    the lines that are printed where stderr is no terminal.
    """

    def __init__(self, file: Path, model: SkyEyeGPT, *, tune: str, train_vit: bool, every: int,
                 peak_flops: float, loggers: Sequence[LogFn] = (), max_steps: int = 0):
        self.model, self.tune, self.train_vit = model, tune, train_vit
        self.every, self.peak_flops, self.loggers = every, peak_flops, loggers
        self.max_steps = max_steps
        self.prints = get_rank() == 0 and not sys.stderr.isatty()
        self.file = None
        if get_rank() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(file, "ab", buffering=0)
        self.write_failed, self.left_out = False, 0
        self.counts: Counter = Counter()        # since the last line
        self.start_time = time.perf_counter()
        self.last_line = ""

    def add(self, step: int, *, loss: float, lr: float, norm: float, batches: Sequence[dict],
            skipped_rows: Sequence[str] = (), left_out: Sequence[str] = ()) -> str:
        """-> what the progress bar shows.

        batches: those of this process; skipped_rows: where their samples stand, if the step was
        skipped; left_out: what is wrong with the rows that were.
        """
        self.count(batches)
        self.left_out += len(left_out)
        self.add_left_out(step, left_out)
        if skipped_rows:
            self.write({"step": step, "skipped": True, "loss": loss, "norm": norm,
                        "rows": skipped_rows})
        elif step % self.every == 0 or step == self.max_steps or not self.last_line:
            speeds = self.speeds()
            row = {"step": step, "loss": loss, "lr": lr, "norm": norm} | speeds
            experts = [round(part, 3) for part in expert_load(self.model)]
            self.write(row | {"experts": experts} if experts else row)
            self.last_line = (f"loss {loss:.3f} lr {lr:.1e} "
                              f"{speeds['samples_per_s']:.1f} samples/s mfu {speeds['mfu']:.0%}")
            self.start_time, self.counts = time.perf_counter(), Counter()
            if self.prints:
                print(f"step {step:,} of {self.max_steps:,}: {self.last_line}", file=sys.stderr)
        return self.last_line

    def add_left_out(self, step: int, left_out: Sequence[str]) -> None:
        """A line that names faulty rows, if there are any; step 0: found before the first one."""
        if left_out:
            self.write({"step": step, "left_out": list(left_out)})

    def add_validation(self, step: int, measure: Callable[[], dict[str, float]]) -> None:
        """A line of what `measure` gives, whose time does not count in the speeds."""
        start = time.perf_counter()
        figures = measure()
        self.start_time += time.perf_counter() - start
        self.write({"step": step} | figures)
        if self.file:
            tqdm.write(f"step {step:,}: held out ({figures['val_rows']:,} rows): "
                       f"{describe_figures(figures)}", file=sys.stderr)

    def count(self, batches: Sequence[dict]) -> None:
        """Samples, tokens and pictures are taken to be as many on the other processes."""
        world_size = get_world_size()
        self.counts["steps"] += 1
        for batch in batches:
            pictures = 0 if batch["images"] is None else len(batch["images"])
            self.counts["samples"] += world_size * count_samples(batch)
            self.counts["tokens"] += world_size * batch["ids"].numel()
            self.counts["pictures"] += world_size * pictures
            self.counts["flops"] += count_flops(self.model.config, batch, self.tune, self.train_vit)

    def speeds(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.start_time
        flops = self.counts["flops"] / seconds              # of this process
        return {"samples_per_s": round(self.counts["samples"] / seconds, 1),
                "tokens_per_s": round(self.counts["tokens"] / seconds, 1),
                "tflops": float(f"{flops / 1e12:.4g}"),
                "mfu": round(flops / self.peak_flops, 4),
                "pictures_per_step": round(self.counts["pictures"] / self.counts["steps"], 1)}

    def write(self, row: dict) -> None:
        if self.file:
            self.write_line(json.dumps(row))
            numbers = {name: value for name, value in row.items() if isinstance(value, float)}
            for log in self.loggers:
                log(row["step"], numbers)

    def write_line(self, line: str) -> None:
        """The training goes on where it cannot be written, and says so once."""
        try:
            self.file.write(line.encode() + b"\n")
            self.write_failed = False
        except OSError as error:
            if not self.write_failed:
                tqdm.write(f"{self.file.name}: not written ({error.strerror}); the training goes "
                           "on", file=sys.stderr)
            self.write_failed = True


def count_samples(batch: dict[str, Tensor]) -> int:
    """Rows; or their questions, where several share a row."""
    if "segments" not in batch:
        return len(batch["ids"])
    return int(batch["segments"].amax(dim=1).clamp(min=1).sum())


def print_summary(model: SkyEyeGPT, dataset: PackedDataset, stage: int, tune: str, device: str,
                  dtype: torch.dtype) -> None:
    """What is going to be trained, in two lines on stderr."""
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"stage {stage}, --tune {tune}: {trained:,} of {count:,} parameters are trained, on "
          f"{device} in {str(dtype).removeprefix('torch.')}\n{len(dataset.samples):,} samples in "
          f"{len(dataset):,} rows an epoch, {dataset.bucket_size} rows a step", file=sys.stderr)


VALIDATION_NAMES = {"val_loss": "loss", "val_exact": "exact match", "val_pr_50": "Pr@0.5",
                    "val_f1_50": "F1@0.5"}


def describe_figures(figures: dict, earlier: dict | None = None) -> str:
    """A validation in words; with an earlier one what each figure was before."""
    def number(name: str, row: dict) -> str:
        return f"{row[name]:.3f}" if name == "val_loss" else f"{100 * row[name]:.1f} %"

    return ", ".join(
        f"{what} " + (f"{number(name, earlier)} -> " if name in (earlier or {}) else "")
        + number(name, figures) for name, what in VALIDATION_NAMES.items() if name in figures)


# ---- losses that warn ----------------------------------------------------------------------------

MAX_SKIPPED_STEPS = 3


class NaNGuard:
    """Ends a run after three steps in a row whose loss or gradient is NaN or infinite."""

    def __init__(self) -> None:
        self.skipped = 0            # in a row

    def check(self, step: int, skipped: bool, last_checkpoint: Path | None) -> None:
        """skipped: was this step? UserError, which names the checkpoint to resume from."""
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped < MAX_SKIPPED_STEPS:
            return
        resume = (f"resume from {last_checkpoint} with --resume {last_checkpoint}"
                  if last_checkpoint else "there is no checkpoint yet, start again")
        raise UserError(f"step {step}: {self.skipped} steps in a row without a finite loss and "
                        f"gradient; {resume} and a smaller --lr, --clip 1 or --dtype fp32")


def is_untrained_loss(loss: float, vocab_size: int) -> bool:
    """Is it that of a uniform guess among all tokens, to 2 %?"""
    uniform = math.log(vocab_size)
    return abs(loss - uniform) <= 0.02 * uniform


def warn_if_untrained(loss: float, model: SkyEyeGPT) -> None:
    """loss: the first one of a model that was loaded."""
    if is_untrained_loss(loss, model.config.llama.vocab_size):
        tqdm.write(f"the first loss, {loss:.2f}, is that of a uniform guess: is the model trained?",
                   file=sys.stderr)


# ---- loss.png ------------------------------------------------------------------------------------

def plot_loss(log: Path, file: Path) -> None:
    """Draw loss, its moving average and the learning rate, where matplotlib is installed.

    UserError where no line of the log has a loss.
    """
    if not is_installed("matplotlib"):
        print(f"pip install matplotlib to get {file.name}; the numbers are in {log}",
              file=sys.stderr)
        return
    steps, losses, rates = read_log(log)
    if not len(steps):
        raise UserError(f"{log}: no line with a step and a loss; nothing to draw")
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 5), dpi=100, layout="constrained")
    left, marker = figure.subplots(), "o" if len(steps) == 1 else None
    left.plot(steps, losses, marker=marker, color="#94bbe4", linewidth=1, label="loss")
    left.plot(steps, moving_average(losses), marker=marker, color="#1f5fa8", linewidth=2,
              label="moving average")
    if validations := read_validations(log):
        left.plot(*zip(*((step, row["val_loss"]) for step, row in validations), strict=True),
                  marker="o", color="#2e8b57", linewidth=1.5, label="held out")
    left.set(xlabel="step", ylabel="loss")
    left.grid(alpha=0.3)
    right = left.twinx()
    right.plot(steps, rates, color="#e8871e", linewidth=1.5, label="learning rate")
    right.set(ylabel="learning rate", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=3)
    try:
        write_atomic(file, lambda path: figure.savefig(path, format="png"))
    except OSError as error:                    # the model is saved: a plot is not worth its run
        print(f"{file} is not drawn ({error}); the numbers are in {log}", file=sys.stderr)


def read_log(log: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> steps in order, losses, learning rates; the last line of a step counts."""
    found: dict[float, tuple[float, float]] = {}
    for line in read_bytes(log).split(b"\n"):
        try:
            row = parse_json(line)
            found[float(row["step"])] = float(row["loss"]), float(row.get("lr", 0.0))
        except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError):
            continue                            # a line that is cut off, or about something else
    rows = sorted((step, loss, lr) for step, (loss, lr) in found.items()
                  if math.isfinite(step + loss + lr))
    steps, losses, rates = np.array(rows, float).reshape(-1, 3).T
    return steps, losses, rates


def read_validations(log: Path) -> list[tuple[int, dict]]:
    """-> (step, line) of the lines about held-out rows, in the order of the steps."""
    found: dict[int, dict] = {}
    for line in read_bytes(log).split(b"\n"):
        if b'"val_loss"' in line:
            try:
                row = parse_json(line)
                found[int(row["step"])] = row
            except (ValueError, LookupError, TypeError):
                continue                        # cut off
    return sorted(found.items())


def moving_average(values: np.ndarray) -> np.ndarray:
    """The mean over a thirtieth of the values around each one, over fewer at the ends."""
    reach = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
