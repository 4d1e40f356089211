"""Which product suits a weight on this processor.

The operators behind it are not documented. Where torch has them not, or the processor not what they
need, or a shape does not suit, there is none.
"""
import torch
from torch import Tensor

from formats.released.integers import Int8
from formats.released.lowbit import LowBit
from formats.released.nibbles import Int4
from formats.released.packed import Kernel

mkldnn = torch.ops.mkldnn

# Smaller floating weights are multiplied with before oneDNN has looked up how: 20 us a call.
SMALLEST = {torch.float32: 1 << 17, torch.bfloat16: 1 << 15}                  # numbers


class Blocked:
    """float[m, n] in the order in which oneDNN reads it, with the same numbers to the bit."""

    def __init__(self, weight: Tensor):
        self.weight = mkldnn._reorder_linear_weight(weight.detach(), 1)

    def dense(self) -> Tensor:
        return self.weight.to_dense()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")


def kernel(weight: Tensor) -> Kernel | None:
    """float[m, n] or LowBit[m, n], on the CPU -> None where nothing is gained."""
    try:
        if isinstance(weight, LowBit) and weight.q.dtype == torch.uint8:
            made = Int4(weight)
        elif isinstance(weight, LowBit):
            made = Int8(weight) if torch.cpu._is_vnni_supported() else None
        else:
            big = weight.numel() >= SMALLEST.get(weight.dtype, torch.inf)
            made = Blocked(weight) if big else None
        if made:
            made.linear(torch.zeros(1, weight.shape[1], dtype=weight.dtype), None)
        return made
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
