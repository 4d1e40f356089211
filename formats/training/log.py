"""log.jsonl: a line every few steps, and one for each step that was skipped."""
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from formats.training.outside import Tell


class Log:
    """Rank 0 writes. `every`: steps between lines; speeds are those since the line before; loads:
    what MoE-LoRA's experts were given; flops: of a batch; rate: FLOPs a second of a product."""

    def __init__(self, file: Path, every: int, rank: int, loads: Callable[[], list[float]],
                 flops: Callable[[dict], float], rate: float, outside: Sequence[Tell] = ()):
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
