"""log.jsonl: a line every few steps, and one for each step that was skipped."""
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path


class Log:
    """Rank 0 writes. `every`: steps between lines; speeds are those since the line before; loads:
    what MoE-LoRA's experts were given."""

    def __init__(self, file: Path, every: int, rank: int, loads: Callable[[], list[float]]):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.loads = open(file, "a", encoding="utf-8") if rank == 0 else None, loads
        self.every, self.clock, self.count, self.told = every, time.perf_counter(), Counter(), ""

    def add(self, step: int, loss: float, lr: float, norm: float, batches: Sequence[dict],
            world: int, bad: Sequence[str]) -> str:
        """batches: of this process; bad: where its rows stand, if the step was skipped -> what
        to show."""
        self.count["steps"] += 1
        for batch in batches:
            pictures = 0 if batch["images"] is None else len(batch["images"])
            self.count += Counter(tokens=world * batch["ids"].numel(), pictures=world * pictures,
                                  samples=world * count_samples(batch))
        if bad:
            self.write({"step": step, "skipped": True, "loss": loss, "norm": norm, "rows": bad})
        elif step % self.every == 0 or not self.told:
            passed = time.perf_counter() - self.clock
            speeds = {f"{name}_per_s": round(self.count[name] / passed, 1)
                      for name in ("samples", "tokens")}
            pictures = round(self.count["pictures"] / self.count["steps"], 1)
            given = [round(part, 3) for part in self.loads()]
            self.write({"step": step, "loss": loss, "lr": lr, "norm": norm, **speeds,
                        "pictures_per_step": pictures} | ({"experts": given} if given else {}))
            self.told = f"loss {loss:.3f} lr {lr:.1e} {speeds['samples_per_s']:.1f} samples/s"
            self.clock, self.count = time.perf_counter(), Counter()
        return self.told

    def write(self, row: dict) -> None:
        if self.file:
            print(json.dumps(row), file=self.file, flush=True)


def count_samples(batch: dict) -> int:
    """Questions, where several share a row."""
    if "segments" not in batch:
        return len(batch["ids"])
    return int(batch["segments"].amax(dim=1).clamp(min=1).sum())
