"""Where a value lies on an axis, and the round numbers beside it."""
import math
from dataclasses import dataclass, replace


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
