"""Float weights -> 8 or 4 bits, a tensor at a time, as they are loaded.

A group's number farthest from zero becomes -128, so that a scale has a sign (as in llama.cpp's
Q4_0). Of Gaussian numbers 8 bits lose 0.9 %, 4 bits 8.6 %; a scale and a minimum for each 64, in as
much memory, would lose 9.0 %.

Sources: LLM.int8(), arXiv 2208.07339 section 2; QLoRA, arXiv 2305.14314 section 3.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from formats.released.kept import BLOCK
from formats.released.lowbit import LowBit

GROUP = 32      # weights that share a scale


def quantize(weight: Tensor, bits: int, dtype: torch.dtype | None = None, group: int = 0) -> LowBit:
    """float[m, n] -> the same in 8 or 4 bits with scales in `dtype`, the weight's own without.

    group: as many neighbors share a scale; 0: at 8 bits a row, at 4 bits 32."""
    if bits not in (8, 4):
        raise ValueError(f"{bits} bits: there are 16, 8 and 4")
    m, n = weight.shape
    group = group or (n if bits == 8 else GROUP)
    if extra := -n % (group * 8 // bits):
        weight = F.pad(weight, (0, extra))
    width, size = n + extra, max(1, BLOCK // n)
    q = weight.new_empty(m, width * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8)
    scale = weight.new_empty(m, width // group, 1, dtype=dtype)
    for rows in (slice(i, i + size) for i in range(0, m, size)):
        q[rows], scale[rows] = quantize_rows(weight[rows], bits, scale.dtype, group)
    return LowBit(q, scale, n)


def quantize_rows(weight: Tensor, bits: int, dtype: torch.dtype, group: int
                  ) -> tuple[Tensor, Tensor]:
    """float[m, N] -> int8[m, N] or uint8[m, N / 2], and float[m, G, 1], G = N / group"""
    step = 1 << 8 - bits                                                      # 1 or 16
    x = weight.float().unflatten(1, (-1, group))                              # [m, G, group]
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)            # [m, G, 1]
    scale = (high.where(high > -low, low) / -128).to(dtype)
    scale = scale.where(scale != 0, torch.ones_like(scale))
    q = (x / (scale * step)).round_().clamp_(-128 // step, 127 // step)
    q = q.to(torch.int8).flatten(1)                                           # [m, N]
    if bits == 4:
        left, right = q.chunk(2, dim=1)                                       # [m, N / 2]
        q = (left & 15 | right << 4).view(torch.uint8)
    return q, scale
