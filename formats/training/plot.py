"""log.jsonl -> a picture of how the loss and the learning rate went."""
import json
import math
from pathlib import Path

import numpy as np

from formats.released.files import write_safely
from formats.training.axis import Axis
from formats.training.chart import BOX, Chart

LOSS, MEAN, RATE = "#94bbe4", "#1f5fa8", "#e8871e"


def plot(log: Path, file: Path) -> None:
    """A PNG of 1000 x 500 pixels. Raises ValueError where no line of the log has a loss."""
    steps, losses, rates = read_log(log)
    if not len(steps):
        raise ValueError(f"{log}: no line with a step and a loss; nothing to draw")
    left, top, right, bottom = BOX
    across = Axis(*spread(steps), left, right)
    loss_up = Axis(*spread(losses), bottom, top).rounded()
    rate_up = Axis(0.0, float(rates.max()) or 1.0, bottom, top).rounded()
    chart = Chart()
    chart.frame(across, loss_up, rate_up, ("loss", "step", "learning rate"))
    chart.curve(across.at(steps), loss_up.at(losses), LOSS, 1.2)
    chart.curve(across.at(steps), rate_up.at(rates), RATE, 1.6)
    chart.curve(across.at(steps), loss_up.at(average(losses)), MEAN, 2.4)
    chart.legend([("loss", LOSS), ("moving average", MEAN), ("learning rate", RATE)])
    write_safely(file, lambda path: chart.picture().save(path, "PNG"))


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


def average(values: np.ndarray) -> np.ndarray:
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
