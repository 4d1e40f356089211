"""What a training needs to go on: trainer.pt, beside the model in a checkpoint."""
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from formats.released.tensors import ModelError
from formats.training import checkpoints
from formats.training.pieces import restore, whole
from formats.training.settings import FREE, differences
from formats.training.telling import environment


@dataclass
class Parts:
    """There is no random state: every step draws from its own number."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: dict

    def save(self, out: Path, step: int, save_model: Callable, limit: int) -> Path | None:
        """All call it, rank 0 writes checkpoint-STEP: the model by `save_model`. SaveError."""
        tensors, optimizer = whole(self.model.state_dict()), whole(self.optimizer.state_dict())
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
        return checkpoints.save(out, step, write, need, limit)

    def load(self, out: Path, resume: str, force: bool) -> int:
        """resume: a checkpoint, or auto -> the step to go on with. Raises ModelError."""
        found, torn = checkpoints.newest(out) if resume == "auto" else (Path(resume), [])
        for line in torn:
            print(line, file=sys.stderr)
        if not found:
            return 0
        if not (found / "trainer.pt").is_file():
            raise ModelError(f"{found}: no checkpoint, it has no trainer.pt")
        state = torch.load(found / "trainer.pt", map_location="cpu", weights_only=True,
                           mmap=self.settings["shard"])         # each process reads its pieces
        changed = differences(state["config"], self.settings, FREE)
        if changed and not force:
            raise ModelError(f"{found}: trained otherwise ({'; '.join(changed)}); --force goes on")
        restore(self.model, self.optimizer, state["parameters"], state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return state["step"]
