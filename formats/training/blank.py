"""A picture for batches without one: where several processes train, each computes with the eye."""
import torch
import torch.nn.functional as F
from torch import Tensor


def with_picture(batch: dict[str, Tensor | None], side: int, tokens: int) -> dict[str, Tensor]:
    """A black picture of `side` pixels behind the first row of a batch that has none.

    Nothing looks at what comes later and nothing is learned there, so loss and gradients stay, and
    the eye's and the projector's gradients are zeros."""
    if batch["images"] is not None:
        return batch
    unused = {"ids": 0, "labels": -100, "segments": -1, "positions": 0}   # as collate pads
    longer = {name: F.pad(rows, (0, tokens), value=unused[name])          # [B, T + N]
              for name, rows in batch.items() if name != "images"}
    longer["ids"][0, -tokens:] = -1
    return longer | {"images": torch.zeros(1, 3, side, side)}
