"""Float weights -> 8 or 4 bits, a tensor at a time, as they are loaded.

A group's number farthest from zero becomes -128, so that a scale has a sign (as in llama.cpp's
Q4_0). Of Gaussian numbers 8 bits lose 0.9 %, 4 bits 8.6 %; a scale and a minimum for each 64, in as
much memory, would lose 9.0 %. Embeddings, norms, the head and all that is trained stay floats.

Sources: LLM.int8(), arXiv 2208.07339 section 2; QLoRA, arXiv 2305.14314 section 3.
"""
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from formats.released.lowbit import LowBit
from formats.released.product import BLOCK
from formats.released.tensors import Stored

GROUP = 32      # weights that share a scale at 4 bits
LAYERS = r"\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$"


def quantize(weight: Tensor, bits: int) -> LowBit:
    """float[m, n] -> the same in 8 or 4 bits, some rows at a time: the steps are in float32."""
    if bits not in (8, 4):
        raise ValueError(f"{bits} bits: there are 16, 8 and 4")
    size = max(1, BLOCK // weight.shape[1])
    pairs = [quantize_rows(rows, bits) for rows in weight.split(size)]
    return LowBit(*(torch.cat(parts) for parts in zip(*pairs, strict=True)), weight.shape[1])


def quantize_rows(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """float[m, n] -> int8[m, n] or uint8[m, 16 G], and float[m, 1 or G, 1]"""
    step = 1 << 8 - bits                                                      # 1 or 16
    n, x = weight.shape[1], weight.float()
    x = x[:, None] if bits == 8 else F.pad(x, (0, -n % (2 * GROUP))).unflatten(1, (-1, GROUP))
    top = x.gather(-1, x.abs().argmax(-1, keepdim=True))                      # [m, G, 1]
    scale = (top / -128).to(weight.dtype)
    scale = scale.where(scale != 0, torch.ones_like(scale))
    q = (x / (scale * step)).round().clamp(-128 // step, 127 // step) * step
    q = q.to(torch.int8).flatten(1)                                           # [m, n or 32 G]
    if bits == 4:
        left, right = q.view(torch.uint8).chunk(2, dim=1)                     # [m, 16 G]
        q = left >> 4 | right
    return q, scale


def lowered(tensors: dict[str, Stored], bits: int, device: str, dtype: torch.dtype
            ) -> dict[str, Stored]:
    """The weights of the language model's linear layers in `bits`, 16: as they are."""
    if bits == 16:
        return tensors
    return {name: stored.then(stored.shape, lambda w: quantize(w.to(device, dtype), bits))
            if re.search(LAYERS, name) else stored for name, stored in tensors.items()}
