"""What a training needs to go on: trainer.pt, beside the model in a checkpoint."""
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from formats.released.tensors import ModelError
from formats.training import checkpoints
from formats.training.telling import environment

FREE = ("device", "compile", "num_workers", "save_steps", "save_total_limit", "log_steps", "resume",
        "force", "output_dir")      # what a resumed run may have changed


@dataclass
class Parts:
    """There is no random state: every step draws from its own number."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: dict

    def save(self, out: Path, step: int, save_model: Callable[[Path], None], limit: int) -> Path:
        """checkpoint-STEP: the model as `save_model` writes it, and this. Raises SaveError."""
        trained = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        state = {"step": step, "config": self.settings, "where": environment(),
                 "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
                 "parameters": trained}

        def write(folder: Path) -> None:
            save_model(folder)
            torch.save(state, folder / "trainer.pt")

        # In float32: the model, the trained parameters again, AdamW's two moments of each.
        count = sum(p.numel() for p in self.model.parameters())
        need = 12 * sum(p.numel() for p in trained.values()) + 4 * count
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
        state = torch.load(found / "trainer.pt", map_location="cpu", weights_only=True)
        changed = checkpoints.differences(state["config"], self.settings, FREE)
        if changed and not force:
            raise ModelError(f"{found}: trained otherwise ({'; '.join(changed)}); --force goes on")
        with torch.no_grad():
            for name, value in state["parameters"].items():
                self.model.get_parameter(name).copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return state["step"]
