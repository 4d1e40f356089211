"""Losses that tell that a run goes wrong."""
import math
from pathlib import Path

MOST = 3                # steps in a row without a number


class Diverged(Exception):
    """A run that learns nothing any more: a line that says where to go on from."""


class Watch:
    """Counts the steps in a row whose loss or gradient is NaN or infinite."""
    def __init__(self) -> None:
        self.bad = 0

    def look(self, loss: float, norm: float) -> bool:
        """Must the step be skipped?"""
        wrong = not (math.isfinite(loss) and math.isfinite(norm))
        self.bad = self.bad + 1 if wrong else 0
        return wrong

    def check(self, step: int, good: Path | None) -> None:
        """Raises Diverged after MOST bad ones in a row; `good` is the last good checkpoint."""
        if self.bad < MOST:
            return
        way = f"go on from {good} with --resume {good}" if good else "no checkpoint yet, begin anew"
        raise Diverged(f"step {step}: {self.bad} steps in a row without a finite loss and "
                       f"gradient; {way} and a smaller --lr, --clip 1 or --dtype fp32")


def untrained(loss: float, pieces: int) -> bool:
    """Is it that of guessing among `pieces` pieces, to 2 %?"""
    return abs(loss - math.log(pieces)) <= 0.02 * math.log(pieces)
