"""Frozen weights in 8 or 4 bits: how they are stored, multiplied with, and made as they are loaded.

    W = scale * q    8 bits: q in -128 .. 127, a scale for each row
                             or each 128 neighbors in it
                     4 bits: q in -128, -112, .. 112, a scale for each 32 neighbors

A group's number farthest from zero becomes -128, so that a scale has a sign (as in llama.cpp's
Q4_0). Of Gaussian numbers 8 bits lose 0.9 %, 4 bits 8.6 %; a scale and a minimum for each 64, in as
much memory, would lose 9.0 %.

At 4 bits a byte holds two q without their low four bits, which are 0: one of the row's left half
and one of its right half, so that both come back by a shift and a mask.

Sources: LLM.int8(), arXiv 2208.07339 section 2; QLoRA, arXiv 2305.14314 section 3.

Shapes: a weight is float[m, n], G groups a row.
"""
import re

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from support.checkpoints.files import CAST_BLOCK, LazyTensor

aten = torch.ops.aten


class OpaqueWeight(Tensor):
    """Looks like float[m, n], and its numbers are stored in another form. F.linear multiplies with
    it by `linear`; all else that reads it gets `dense()`.

    ValueError: it has no views and is not written to, as that would change a copy.
    """

    def dense(self) -> Tensor:
        """-> float[m, n]"""
        raise NotImplementedError

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[.., n] -> [.., m]"""
        raise NotImplementedError

    def moved(self, device: torch.device | None, dtype: torch.dtype | None) -> "OpaqueWeight":
        """What detach() and to() give."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear:
                return args[1].linear(args[0], *args[2:], **kwargs or {})
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        own, kwargs = args[0], kwargs or {}
        if torch.is_inference_mode_enabled():       # there to() and reshape() come in one piece
            result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in (aten.detach.default, aten._to_copy.default):
            return own.moved(kwargs.get("device"), kwargs.get("dtype"))
        if isinstance(own, cls) and any(result.alias_info for result in func._schema.returns):
            raise ValueError(f"{func}: a quantized or packed weight has no views and cannot be "
                             "written to")
        dense = tree_map(lambda a: a.dense() if isinstance(a, cls) else a, args)
        return func(*dense, **kwargs)


class QuantizedTensor(OpaqueWeight):
    @staticmethod
    def __new__(cls, q: Tensor, scale: Tensor, n: int):
        return Tensor._make_wrapper_subclass(cls, (len(q), n), dtype=scale.dtype, device=q.device)

    def __init__(self, q: Tensor, scale: Tensor, n: int):
        self.q, self.scale = q, scale   # int8[m, n or 128 G], uint8[m, 16 G]; float[m, G, 1]

    def __repr__(self) -> str:
        return f"QuantizedTensor({list(self.shape)}, {self.q.dtype}, {self.dtype})"

    def dequantize(self, rows: slice = slice(None)) -> Tensor:
        """-> float[m, n], or some of its rows"""
        q, scale = self.q[rows], self.scale[rows]
        if q.dtype == torch.uint8:
            q = torch.cat([q << 4, q & 0xF0], dim=1).view(torch.int8)         # [m, 32 G]
        w = q.to(self.dtype).unflatten(1, (scale.shape[1], -1)).mul_(scale)   # [m, G, 32 or n]
        return w.flatten(1)[:, :self.shape[1]]                                # [m, n]

    def dense(self) -> Tensor:
        return self.dequantize()

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return QuantizedLinear.apply(x, self, bias)

    def moved(self, device: torch.device | None, dtype: torch.dtype | None) -> "QuantizedTensor":
        return QuantizedTensor(self.q.to(device), self.scale.to(device, dtype), self.shape[1])

    @property
    def is_per_row(self) -> bool:
        """8 bits and one scale a row, so that a product with integers can be scaled afterwards."""
        return self.q.shape == self.shape and self.scale.shape[1] == 1


# ---- the product ---------------------------------------------------------------------------------

DEQUANTIZED_NUMEL = 1 << 21     # numbers that are floats at once on a CPU, where its cache has room
ROW_BLOCK = 64          # a CPU multiplies with so many rows of a weight in the time of fewer
FEW_TOKENS = 8          # up to so many, reading the weight costs more than the product


class QuantizedLinear(torch.autograd.Function):
    """x: float[.., n], weight: QuantizedTensor[m, n] -> float[.., m]; no float weight is kept for
    the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: QuantizedTensor, bias: Tensor | None = None) -> Tensor:
        ctx.weight = weight
        y = quantized_linear(x, weight)
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        return grad @ ctx.weight.dequantize().to(grad.dtype), None, None


def quantized_linear(x: Tensor, weight: QuantizedTensor) -> Tensor:
    m, n = weight.shape
    if x.device.type != "cpu":
        return F.linear(x, weight.dequantize())
    if x.dtype == weight.dtype == torch.bfloat16 and weight.is_per_row \
            and x.numel() <= FEW_TOKENS * n:        # 3 times as fast, for bf16 alone
        y = torch._weight_int8pack_mm(x.reshape(-1, n), weight.q, weight.scale.flatten())
        return y.unflatten(0, x.shape[:-1])
    size = max(1, DEQUANTIZED_NUMEL // (ROW_BLOCK * n)) * ROW_BLOCK
    parts = [F.linear(x, weight.dequantize(slice(i, i + size))) for i in range(0, m, size)]
    return torch.cat(parts, dim=-1)


# ---- float weights to fewer bits -----------------------------------------------------------------

GROUP_SIZE = 32         # weights that share a scale at 4 bits

# Which weights of SkyEyeGPT get fewer bits: those of the linear layers, almost all of the numbers.
# The language model's get `bits`, its head 8. The vision encoder's get 8, with a scale for each 128
# neighbors: some of its activations are a hundred times the others, so they must not be rounded (as
# Int8Weight rounds them), and 4 bits would blur what all answers are made of. Embeddings, norms and
# all that is trained stay floats.
LLM_LINEAR = r"\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$"
LM_HEAD = r"^llama_model\.lm_head\.weight$"
VIT_LINEAR = r"^visual_encoder\.blocks\.\d+\.(attn|mlp)\.\w+\.weight$"


def quantize_checkpoint(tensors: dict[str, LazyTensor], bits: int, device: str, dtype: torch.dtype
                        ) -> dict[str, LazyTensor]:
    """The tensors of SkyEyeGPT, quantized one by one as they are read; bits 16: as they are."""
    if bits == 16:
        return tensors
    policy = ((LLM_LINEAR, bits, 0), (LM_HEAD, 8, 0), (VIT_LINEAR, 8, 128))    # name, bits, group
    quantized = {}
    for name, lazy in tensors.items():
        for pattern, own_bits, group in policy:
            if re.search(pattern, name):
                quantized[name] = lazy.map(lazy.shape, lambda w, own_bits=own_bits, group=group:
                                           quantize(w.to(device), own_bits, dtype, group))
    return tensors | quantized


def quantize(weight: Tensor, bits: int, dtype: torch.dtype | None = None, group: int = 0
             ) -> QuantizedTensor:
    """float[m, n] -> the same in 8 or 4 bits with scales in `dtype`, by default the weight's own.

    group: how many neighbors share a scale; 0: at 8 bits a row, at 4 bits 32. ValueError: other
    bits."""
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
