"""support/training/log.py"""
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.utils.data import Dataset

from support.common import UserError, write_atomic

# ---- outside -------------------------------------------------------------------------------------
# The numbers of log.jsonl, also told to TensorBoard or Weights & Biases where asked for.

LogFn = Callable[[int, dict[str, float]], None]      # of a step, its numbers by name


def open_loggers(names: Sequence[str], out: Path, settings: dict) -> list[LogFn]:
    """names: of PLACES. Raises UserError where a package is not installed, before any is opened."""
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:           # a folder of that name is no package
            raise UserError(f"--log_to {name}: the package {name} is not installed; "
                            f"pip install {name}")
    return [LOGGERS[name](out, settings) for name in dict.fromkeys(names)]


def open_tensorboard(out: Path, settings: dict) -> LogFn:
    """tensorboard --logdir OUT shows it."""
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(out / "tensorboard"))

    def tell(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()                                      # a killed run keeps its curves
    return tell


def open_wandb(out: Path, settings: dict) -> LogFn:
    """Over the network, unless WANDB_MODE=offline says otherwise; a run that is not logged in is a
    UserError."""
    import wandb
    out.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(dir=str(out), config=settings)
    except wandb.Error as error:
        raise UserError(f"--log_to wandb: {' '.join(str(error).split()).rstrip('.')}; or set "
                        "WANDB_MODE=offline") from None
    return lambda step, numbers: run.log(numbers, step=step)


LOGGERS = {"tensorboard": open_tensorboard, "wandb": open_wandb}


# ---- log -----------------------------------------------------------------------------------------
# log.jsonl: a line every few steps, and one for each step that was skipped.

class TrainLog:
    """Rank 0 writes. `every`: steps between lines; speeds are those since the line before; loads:
    what MoE-LoRA's experts were given; flops: of a batch; rate: FLOPs a second of a product."""

    def __init__(self, file: Path, every: int, rank: int, loads: Callable[[], list[float]],
                 flops: Callable[[dict], float], rate: float, outside: Sequence[LogFn] = ()):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.loads = open(file, "a", encoding="utf-8") if rank == 0 else None, loads
        self.flops, self.rate, self.outside = flops, rate, outside
        self.every, self.clock, self.count, self.told = every, time.perf_counter(), Counter(), ""

    def add(self, step: int, loss: float, lr: float, norm: float, batches: Sequence[dict],
            world: int, bad: Sequence[str]) -> str:
        """batches: of this process; bad: where its rows stand, if the step was skipped -> what
        to show."""
        self.count["steps"] += 1
        for batch in batches:
            pictures = 0 if batch["images"] is None else len(batch["images"])
            self.count += Counter(tokens=world * batch["ids"].numel(), pictures=world * pictures,
                                  samples=world * count_samples(batch), flops=self.flops(batch))
        if bad:
            self.write({"step": step, "skipped": True, "loss": loss, "norm": norm, "rows": bad})
        elif step % self.every == 0 or not self.told:
            passed = time.perf_counter() - self.clock
            speeds = {f"{name}_per_s": round(self.count[name] / passed, 1)
                      for name in ("samples", "tokens")}
            pictures = round(self.count["pictures"] / self.count["steps"], 1)
            given = [round(part, 3) for part in self.loads()]
            reached = self.count["flops"] / passed              # of this process
            used = {"tflops": float(f"{reached / 1e12:.4g}"), "mfu": round(reached / self.rate, 4)}
            self.write({"step": step, "loss": loss, "lr": lr, "norm": norm, **speeds, **used,
                        "pictures_per_step": pictures} | ({"experts": given} if given else {}))
            self.told = (f"loss {loss:.3f} lr {lr:.1e} {speeds['samples_per_s']:.1f} samples/s "
                         f"mfu {used['mfu']:.0%}")
            self.clock, self.count = time.perf_counter(), Counter()
        return self.told

    def write(self, row: dict) -> None:
        if self.file:
            print(json.dumps(row), file=self.file, flush=True)
            for tell in self.outside:
                tell(row["step"], {name: value for name, value in row.items()
                                   if isinstance(value, float)})


def count_samples(batch: dict) -> int:
    """Questions, where several share a row."""
    if "segments" not in batch:
        return len(batch["ids"])
    return int(batch["segments"].amax(dim=1).clamp(min=1).sum())


# ---- describing ----------------------------------------------------------------------------------
# What is about to be trained, in two lines.

def print_summary(model: nn.Module, rows: Dataset, stage: int, tune: str, device: str, dtype: torch.dtype
             ) -> None:
    """rows: data.Rows."""
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"stage {stage}, {tune}: {trained:,} of {count:,} parameters learn, on "
          f"{device} in {str(dtype).removeprefix('torch.')}\n{len(rows.samples):,} samples in "
          f"{len(rows):,} rows an epoch, {rows.block} rows a step", file=sys.stderr)


# ---- watching ------------------------------------------------------------------------------------
# Losses that tell that a run goes wrong.

MAX_BAD_STEPS = 3                # steps in a row without a number


class NaNGuard:
    """Counts the steps in a row whose loss or gradient is NaN or infinite."""
    def __init__(self) -> None:
        self.bad = 0

    def look(self, loss: float, norm: float) -> bool:
        """Must the step be skipped?"""
        wrong = not (math.isfinite(loss) and math.isfinite(norm))
        self.bad = self.bad + 1 if wrong else 0
        return wrong

    def check(self, step: int, good: Path | None) -> None:
        """Raises UserError after MOST bad ones in a row; `good` is the last good checkpoint."""
        if self.bad < MAX_BAD_STEPS:
            return
        way = f"go on from {good} with --resume {good}" if good else "no checkpoint yet, begin anew"
        raise UserError(f"step {step}: {self.bad} steps in a row without a finite loss and "
                       f"gradient; {way} and a smaller --lr, --clip 1 or --dtype fp32")


def is_untrained_loss(loss: float, pieces: int) -> bool:
    """Is it that of guessing among `pieces` pieces, to 2 %?"""
    return abs(loss - math.log(pieces)) <= 0.02 * math.log(pieces)


# ---- axis ----------------------------------------------------------------------------------------
# Where a value lies on an axis, and the round numbers beside it.

@dataclass(frozen=True)
class Axis:
    """Values from low to high lie on the pixels from start to end."""
    low: float
    high: float
    start: float
    end: float

    def at(self, value):
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """At most eight round numbers: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 7
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [round(i * step, 12) for i in range(first, last + 1)]

    def rounded(self) -> "Axis":
        """The same axis, ending on ticks."""
        step = self.ticks()[1] - self.ticks()[0]
        return replace(self, low=math.floor(self.low / step + 1e-6) * step,
                       high=math.ceil(self.high / step - 1e-6) * step)


# ---- chart ---------------------------------------------------------------------------------------
# Axes, curves and a legend, drawn with Pillow at twice the size and then reduced: smooth.

CHART_SIZE, CHART_BOX, FINE = (1000, 500), (80, 50, 905, 435), 2    # box: left, top, right, bottom in pixels


INK, GRID = "#333333", "#e4e4e4"


class Chart:
    def __init__(self) -> None:
        self.image = Image.new("RGB", [side * FINE for side in CHART_SIZE], "white")
        self.draw, self.font = ImageDraw.Draw(self.image), ImageFont.load_default(14 * FINE)

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        self.draw.text((x * FINE, y * FINE), text, INK, self.font, anchor)

    def curve(self, x: np.ndarray, y: np.ndarray, color: str, width: float) -> None:
        """Through points in pixels; a point alone is a dot."""
        points = [(float(a) * FINE, float(b) * FINE) for a, b in zip(x, y, strict=True)]
        self.draw.line(points, color, round(width * FINE), joint="curve")
        if len(points) == 1:
            self.draw.circle(points[0], 3 * FINE, color)

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = INK) -> None:
        self.curve(np.array([x1, x2]), np.array([y1, y2]), color, 1)

    def frame(self, across: Axis, left: Axis, right: Axis, names: tuple[str, str, str]) -> None:
        """Axes with their numbers, and names: of the left, the lower and the right one."""
        x1, y1, x2, y2 = CHART_BOX
        for axis, x, anchor, side in (left, x1, "rm", -1), (right, x2, "lm", 1):
            for tick in axis.ticks():
                y = axis.at(tick)
                if side < 0:
                    self.line(x1, y, x2, y, GRID)
                self.line(x, y, x + 5 * side, y)
                self.text(x + 9 * side, y, f"{tick:g}", anchor)
        for tick in across.ticks():
            self.line(across.at(tick), y2, across.at(tick), y2 + 5)
            self.text(across.at(tick), y2 + 9, f"{tick:,.10g}", "mt")
        self.line(x1, y2, x2, y2)
        for x, y, name, anchor in zip((x1, (x1 + x2) / 2, x2), (y1 - 14, y2 + 34, y1 - 14), names,
                                      ("ms", "mt", "ms"), strict=True):
            self.text(x, y, name, anchor)
        self.line(x1, y1, x1, y2)
        self.line(x2, y1, x2, y2)

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """A stroke and a name each, above the box."""
        x, y = 250.0, CHART_BOX[1] - 19
        for name, color in entries:
            self.curve(np.array([x, x + 28]), np.array([y, y]), color, 3)
            self.text(x + 36, y, name, "lm")
            x += 70 + self.font.getlength(name) / FINE

    def picture(self) -> Image.Image:
        return self.image.resize(CHART_SIZE, Image.Resampling.LANCZOS)


# ---- plot ----------------------------------------------------------------------------------------
# log.jsonl -> a picture of how the loss and the learning rate went.

LOSS_COLOR, MEAN_COLOR, RATE_COLOR = "#94bbe4", "#1f5fa8", "#e8871e"


def plot_loss(log: Path, file: Path) -> None:
    """A PNG of 1000 x 500 pixels. Raises ValueError where no line of the log has a loss."""
    steps, losses, rates = read_log(log)
    if not len(steps):
        raise ValueError(f"{log}: no line with a step and a loss; nothing to draw")
    left, top, right, bottom = CHART_BOX
    across = Axis(*spread(steps), left, right)
    loss_up = Axis(*spread(losses), bottom, top).rounded()
    rate_up = Axis(0.0, float(rates.max()) or 1.0, bottom, top).rounded()
    chart = Chart()
    chart.frame(across, loss_up, rate_up, ("loss", "step", "learning rate"))
    chart.curve(across.at(steps), loss_up.at(losses), LOSS_COLOR, 1.2)
    chart.curve(across.at(steps), rate_up.at(rates), RATE_COLOR, 1.6)
    chart.curve(across.at(steps), loss_up.at(moving_average(losses)), MEAN_COLOR, 2.4)
    chart.legend([("loss", LOSS_COLOR), ("moving average", MEAN_COLOR), ("learning rate", RATE_COLOR)])
    write_atomic(file, lambda path: chart.picture().save(path, "PNG"))


def read_log(log: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> steps in order, losses, learning rates: the last line of a step counts, if it is whole."""
    found: dict[int, tuple[float, float]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            told = json.loads(line)
            found[int(told["step"])] = float(told["loss"]), float(told.get("lr", 0.0))
        except (ValueError, LookupError, TypeError, AttributeError):
            continue                            # a line that is broken, or about something else
    rows = [(step, *found[step]) for step in sorted(found)
            if all(map(math.isfinite, found[step]))]
    steps, losses, rates = np.array(rows, float).reshape(-1, 3).T
    return steps, losses, rates


def moving_average(values: np.ndarray) -> np.ndarray:
    """The mean of a thirtieth of the values around each one, of fewer at the ends."""
    reach = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def spread(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest, never the same."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)
