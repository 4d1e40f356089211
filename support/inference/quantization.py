"""support/inference/quantization.py"""
import re

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from support.checkpoints.files import CAST_BLOCK, LazyTensor

# ---- product -------------------------------------------------------------------------------------
# F.linear with a weight in 8 or 4 bits, which keeps no float weight for the backward pass.

DEQUANTIZED_NUMEL = 1 << 21     # numbers that are floats at once on a CPU, where they stay in its cache


DEQUANTIZED_ROWS = 64           # a CPU multiplies with so many rows of a weight in the time of fewer


FEW_TOKENS = 8             # tokens, at which reading the weight costs more than the product


class QuantizedLinear(torch.autograd.Function):
    """x: float[.., n], weight: LowBit[m, n] -> float[.., m]"""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.weight = weight
        y = quantized_linear(x, weight)
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        return grad @ ctx.weight.dequantize().to(grad.dtype), None, None


def is_per_row(weight: Tensor) -> bool:
    """8 bits and one scale a row, so that a product with integers can be scaled afterwards."""
    return weight.q.shape == weight.shape and weight.scale.shape[1] == 1


def quantized_linear(x: Tensor, weight: Tensor) -> Tensor:
    m, n = weight.shape
    if x.device.type != "cpu":
        return F.linear(x, weight.dequantize())
    if x.dtype == weight.dtype == torch.bfloat16 and is_per_row(weight) \
            and x.numel() <= FEW_TOKENS * n:               # 3 times as fast, for bf16 alone
        y = torch._weight_int8pack_mm(x.reshape(-1, n), weight.q, weight.scale.flatten())
        return y.unflatten(0, x.shape[:-1])
    size = max(1, DEQUANTIZED_NUMEL // (DEQUANTIZED_ROWS * n)) * DEQUANTIZED_ROWS
    parts = [F.linear(x, weight.dequantize(slice(i, i + size))) for i in range(0, m, size)]
    return torch.cat(parts, dim=-1)


# ---- lowbit --------------------------------------------------------------------------------------
# A frozen weight that looks like float[m, n] and is kept as integers and scales.
#
#     W = scale * q    8 bits: q in -128 .. 127, a scale for each row
#                              or each 128 neighbors in it
#                      4 bits: q in -128, -112, .. 112, a scale for each 32 neighbors
#
# At 4 bits a byte holds two q without their low four bits, which are 0: one of the row's left half
# and one of its right half, so that both come back by a shift and a mask.

aten = torch.ops.aten


class QuantizedTensor(Tensor):
    """F.linear multiplies with it, .to() moves it, all else that reads it gets `dequantize()`.

    ValueError: it has no views and is not written to, as that would change a copy.
    """

    @staticmethod
    def __new__(cls, q: Tensor, scale: Tensor, n: int):
        return Tensor._make_wrapper_subclass(cls, (len(q), n), dtype=scale.dtype, device=q.device)

    def __init__(self, q: Tensor, scale: Tensor, n: int):
        self.q, self.scale = q, scale   # int8[m, n or 128 G], uint8[m, 16 G]; float[m, G, 1]

    def __repr__(self) -> str:
        return f"LowBit({list(self.shape)}, {self.q.dtype}, {self.dtype})"

    def dequantize(self, rows: slice = slice(None)) -> Tensor:
        """-> float[m, n], or some of its rows"""
        q, scale = self.q[rows], self.scale[rows]
        if q.dtype == torch.uint8:
            q = torch.cat([q << 4, q & 0xF0], dim=1).view(torch.int8)         # [m, 32 G]
        w = q.to(self.dtype).unflatten(1, (scale.shape[1], -1)).mul_(scale)   # [m, G, 32 or n]
        return w.flatten(1)[:, :self.shape[1]]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return (QuantizedLinear.apply if func is F.linear else func)(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        own, kwargs = args[0], kwargs or {}
        if func in (aten.detach.default, aten._to_copy.default):
            device, dtype = kwargs.get("device"), kwargs.get("dtype")
            return cls(own.q.to(device), own.scale.to(device, dtype), own.shape[1])
        if isinstance(own, cls) and any(result.alias_info for result in func._schema.returns):
            raise ValueError(f"{func}: a weight of 8 or 4 bits has no views and is not written to")
        dense = tree_map(lambda a: a.dequantize() if isinstance(a, cls) else a, args)
        return func(*dense, **kwargs)


# ---- quantize ------------------------------------------------------------------------------------
# Float weights -> 8 or 4 bits, a tensor at a time, as they are loaded.
#
# A group's number farthest from zero becomes -128, so that a scale has a sign (as in llama.cpp's
# Q4_0). Of Gaussian numbers 8 bits lose 0.9 %, 4 bits 8.6 %; a scale and a minimum for each 64, in as
# much memory, would lose 9.0 %.
#
# Sources: LLM.int8(), arXiv 2208.07339 section 2; QLoRA, arXiv 2305.14314 section 3.

GROUP_SIZE = 32      # weights that share a scale


def quantize(weight: Tensor, bits: int, dtype: torch.dtype | None = None, group: int = 0) -> QuantizedTensor:
    """float[m, n] -> the same in 8 or 4 bits with scales in `dtype`, the weight's own without.

    group: as many neighbors share a scale; 0: at 8 bits a row, at 4 bits 32."""
    if bits not in (8, 4):
        raise ValueError(f"{bits} bits: there are 16, 8 and 4")
    m, n = weight.shape
    group = group or (n if bits == 8 else GROUP_SIZE)
    if extra := -n % (group * 8 // bits):
        weight = F.pad(weight, (0, extra))
    width, size = n + extra, max(1, CAST_BLOCK // n)
    q = weight.new_empty(m, width * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8)
    scale = weight.new_empty(m, width // group, 1, dtype=dtype)
    for rows in (slice(i, i + size) for i in range(0, m, size)):
        q[rows], scale[rows] = quantize_rows(weight[rows], bits, scale.dtype, group)
    return QuantizedTensor(q, scale, n)


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


# ---- lowered -------------------------------------------------------------------------------------
# Which weights have fewer bits: those of the linear layers, frozen, which are almost all of them.
#
# The language model's in `bits`, its head in 8. The vision encoder's in 8, and 128 neighbors share a
# scale: some of its activations are a hundred times the others, so that they must not be rounded
# (integers.py does), and 4 bits would blur what all answers are made of. Embeddings, norms and all
# that is trained stay floats.

LLM_LINEAR = r"\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$"


LM_HEAD = r"^llama_model\.lm_head\.weight$"


VIT_LINEAR = r"^visual_encoder\.blocks\.\d+\.(attn|mlp)\.\w+\.weight$"


def quantize_checkpoint(tensors: dict[str, LazyTensor], bits: int, device: str, dtype: torch.dtype
            ) -> dict[str, LazyTensor]:
    """16: as they are."""
    if bits == 16:
        return tensors
    kinds = ((LLM_LINEAR, bits, 0), (LM_HEAD, 8, 0), (VIT_LINEAR, 8, 128))
    low = {name: stored.then(stored.shape, lambda w, own=own, group=group: quantize(
               w.to(device), own, dtype, group))
           for pattern, own, group in kinds for name, stored in tensors.items()
           if re.search(pattern, name)}
    return tensors | low
