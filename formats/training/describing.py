"""What is about to be trained, in two lines."""
import sys

import torch
from torch import nn
from torch.utils.data import Dataset


def describe(model: nn.Module, rows: Dataset, stage: int, tune: str, device: str, dtype: torch.dtype
             ) -> None:
    """rows: data.Rows."""
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"stage {stage}, {tune}: {trained:,} of {count:,} parameters learn, on "
          f"{device} in {str(dtype).removeprefix('torch.')}\n{len(rows.samples):,} samples in "
          f"{len(rows):,} rows an epoch, {rows.block} rows a step", file=sys.stderr)
