"""Which product suits a weight on this processor.

Some operators behind it are not documented. Where torch has them not, or the processor not what
they need, or a shape does not suit, there is none.
"""
import torch
from torch import Tensor

from formats.released.floats import Blocked, Strips
from formats.released.integers import Int8
from formats.released.lowbit import LowBit
from formats.released.nibbles import Int4
from formats.released.packed import Kernel

# Up to so many rows or columns float32 is read faster in strips than in blocks; by several rows of
# x at once, up to half as many.
NARROW = 768
SMALLEST = 1 << 15  # numbers, below which a product takes less time than oneDNN's call


def kernel(weight: Tensor, rows: int = 1) -> Kernel | None:
    """float[m, n] or LowBit[m, n], on the CPU; rows: of x, for most products -> None where nothing
    is gained."""
    try:
        made = choose(weight, NARROW if rows == 1 else NARROW // 2)
        if made:
            made.linear(torch.zeros(1, weight.shape[1], dtype=weight.dtype), None)
        return made
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def choose(weight: Tensor, narrow: int) -> Kernel | None:
    if isinstance(weight, LowBit) and weight.q.dtype == torch.uint8:
        return Int4(weight)
    if isinstance(weight, LowBit):
        return Int8(weight) if torch.cpu._is_vnni_supported() else None
    equal = len(weight) % torch.get_num_threads() == 0
    if weight.dtype == torch.float32 and min(weight.shape) <= narrow and equal:
        return Strips(weight)
    known = weight.dtype in (torch.float32, torch.bfloat16) and weight.numel() >= SMALLEST
    return Blocked(weight) if known else None
