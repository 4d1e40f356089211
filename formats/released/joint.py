"""Linear layers that read the same x, multiplied with as one: q, k, v; gate, up.

A large weight is read faster than three small ones, and each call costs some 20 us beside. Names in
files stay what they are: only the model for inference is joined.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formats.released.lowbit import LowBit
from formats.released.packed import Kernel, Packed, multiply


@dataclass
class Part:
    """Some rows of a joint weight, for whoever wants the layer alone."""
    kernel: Kernel
    rows: slice

    def dense(self) -> Tensor:
        return self.kernel.dense()[self.rows]

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.dense(), bias)


class Joint:
    """In the place of a module's `project`."""

    def __init__(self, kernel: Kernel, layers: list[nn.Linear]):
        self.kernel, self.sizes, end = kernel, [len(layer.weight) for layer in layers], 0
        for layer, size in zip(layers, self.sizes, strict=True):
            start, end = end, end + size
            layer.weight = Packed(Part(kernel, slice(start, end)), layer.weight)

    def __call__(self, x: Tensor, at: Tensor | None = None) -> tuple[Tensor, ...]:
        """x: [B, T, D] -> the products [B, T, ..]; at: long[B, W], where the first is wanted."""
        first, *others = multiply(x, self.kernel).split(self.sizes, dim=-1)
        if at is not None:
            first = first.gather(1, at[..., None].expand(-1, -1, first.shape[-1]))
        return first, *others


def join(weights: list[Tensor]) -> Tensor:
    """float[m, n] or LowBit each -> all rows."""
    if not isinstance(weights[0], LowBit):
        return torch.cat(weights)
    q, scale = torch.cat([w.q for w in weights]), torch.cat([w.scale for w in weights])
    return LowBit(q, scale, weights[0].shape[1])
