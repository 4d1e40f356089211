"""Weights arranged for a CPU's fastest products, for inference. Delete this file and everything
still works, more slowly: generation.pack_if_possible looks whether it is there.

It stands on operators of PyTorch that are not documented. Where PyTorch has them not, or the
processor lacks what they need, or a shape does not suit, a weight stays as it is.

Shapes: a weight is float[m, n]; x is float[.., n], M rows of it.
"""
import ctypes
import functools
import math
import platform
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.inference.quantization import DEQUANTIZED_NUMEL, OpaqueWeight, QuantizedTensor

aten, mkldnn, quantized_ops = torch.ops.aten, torch.ops.mkldnn, torch.ops.quantized

FUSED_GROUPS = (    # layers that read the same x: their names, the method that computes them
    (("q_proj", "k_proj", "v_proj"), "qkv"),
    (("gate_proj", "up_proj"), "gate_up"),
)
NARROW_SIDE = 768   # up to so many rows or columns float32 is read faster in strips than in blocks;
#                     by several rows of x at once, up to half as many
MIN_NUMEL = 1 << 15     # numbers, below which a product takes less time than oneDNN's call
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3         # as mallopt names them
PACKED_ROWS = 64    # rows of a 4-bit weight that lie together; rows of x that count as few


# ---- a whole model -------------------------------------------------------------------------------

def pack_for_cpu(model: nn.Module, rows: int = 1) -> nn.Module:
    """The same model, for inference: its linear layers on a CPU are packed, a few at a time.

    rows: answers that are generated at once, mostly."""
    with warnings.catch_warnings(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        warnings.simplefilter("ignore", UserWarning)        # torch.qint8 is going to be removed
        list(pool.map(partial(fuse, rows=rows), model.modules()))
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        list(pool.map(partial(pack_linear, rows=rows), linear))
    settle_heap()
    return model


@torch.no_grad()
def fuse(module: nn.Module, rows: int) -> None:
    """Make one product of q, k and v, and of gate and up. A large weight is read faster than three
    small ones, and each call costs some 20 us. Names in files stay what they are."""
    plain = {name: child for name, child in module.named_children() if is_plain_linear(child)}
    for names, method in FUSED_GROUPS:
        layers = [plain[name] for name in names if name in plain]
        if len(layers) < len(names):
            continue
        kernel = find_kernel(concatenate_weights([layer.weight for layer in layers]), rows)
        if kernel:
            fused = FusedLinear(kernel, layers)
            setattr(module, method, fused)
            if method == "qkv":
                module.qkv_at = fused.at


@torch.no_grad()
def pack_linear(layer: nn.Linear, rows: int) -> None:
    on_cpu = layer.weight.device.type == "cpu"
    if not on_cpu or isinstance(layer.weight, PackedWeight):
        return
    kernel = find_kernel(layer.weight, rows)
    if kernel:
        plain = is_plain_linear(layer)
        layer.weight = packed(kernel, layer.weight)
        if plain:                       # past the subclass of Tensor, which costs some us
            layer.forward = partial(packed_linear, kernel=kernel, bias=layer.bias)


def is_plain_linear(layer: nn.Module) -> bool:
    """Neither a LoRA nor something else that does more; on a CPU."""
    return type(layer).forward is nn.Linear.forward and layer.weight.device.type == "cpu"


def settle_heap() -> None:
    """Give back what glibc keeps of freed memory, blocks under 32 MiB between those in use; from
    now on keep up to 64 MiB of it. A step frees as much as it is going to need again, and pages
    that were given back are cleared when they come again, which can take as long as the step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim(0)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)


# ---- a packed weight -----------------------------------------------------------------------------

class Kernel(Protocol):
    """A weight in the form that some product reads."""

    def dense(self) -> Tensor: ...                                            # float[m, n]
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor: ...           # [.., n] -> [.., m]


def packed_linear(x: Tensor, kernel: Kernel, bias: Tensor | None = None) -> Tensor:
    """F.linear, but ValueError where a gradient is wanted."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("packed weights are for inference; train the model as it is loaded")
    return kernel.linear(x, bias)


class PackedWeight(OpaqueWeight):
    @staticmethod
    def __new__(cls, kernel: Kernel, like: Tensor):
        return Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    def __init__(self, kernel: Kernel, like: Tensor):
        self.kernel = kernel

    def dense(self) -> Tensor:
        return self.kernel.dense()

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return packed_linear(x, self.kernel, bias)

    def moved(self, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
        unchanged = device in (None, self.device) and dtype in (None, self.dtype)
        return PackedWeight(self.kernel, self) if unchanged else self.dense().to(device, dtype)


def packed(kernel: Kernel, like: Tensor) -> nn.Parameter:
    return nn.Parameter(PackedWeight(kernel, like), requires_grad=False)


# ---- several layers as one -----------------------------------------------------------------------

@dataclass
class RowSlice:
    """Some rows of a fused weight, for whoever wants the layer alone."""
    kernel: Kernel
    rows: slice

    def dense(self) -> Tensor:
        return self.kernel.dense()[self.rows]

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.dense(), bias)


class FusedLinear:
    """In the place of llama.Attention.qkv or llama.MLP.gate_up."""

    def __init__(self, kernel: Kernel, layers: list[nn.Linear]):
        self.kernel, self.sizes = kernel, [len(layer.weight) for layer in layers]
        start = 0
        for layer, size in zip(layers, self.sizes, strict=True):
            layer.weight = packed(RowSlice(kernel, slice(start, start + size)), layer.weight)
            start += size

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, T, D] -> the products, [B, T, ..] each"""
        return packed_linear(x, self.kernel).split(self.sizes, dim=-1)

    def at(self, x: Tensor, at: Tensor) -> tuple[Tensor, ...]:
        """The first product only at the places at: long[B, W] (llama.LastAttention.qkv_at)."""
        first, *others = self(x)
        return first.gather(1, at[..., None].expand(-1, -1, first.shape[-1])), *others


def concatenate_weights(weights: list[Tensor]) -> Tensor:
    """float[m, n] or QuantizedTensor each -> all rows."""
    if not isinstance(weights[0], QuantizedTensor):
        return torch.cat(weights)
    q, scale = torch.cat([w.q for w in weights]), torch.cat([w.scale for w in weights])
    return QuantizedTensor(q, scale, weights[0].shape[1])


# ---- which product suits a weight ----------------------------------------------------------------

def find_kernel(weight: Tensor, rows: int = 1) -> Kernel | None:
    """float[m, n] or QuantizedTensor, on the CPU; rows: of x, for most products -> None where
    nothing is gained, or the processor cannot."""
    try:
        kernel = choose_kernel(weight, NARROW_SIDE if rows == 1 else NARROW_SIDE // 2)
        if kernel:
            kernel.linear(torch.zeros(1, weight.shape[1], dtype=weight.dtype), None)
        return kernel
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def choose_kernel(weight: Tensor, narrow: int) -> Kernel | None:
    if isinstance(weight, QuantizedTensor):
        if weight.q.dtype == torch.uint8:
            return Int4Weight(weight)
        return Int8Weight(weight) if torch.cpu._is_vnni_supported() else None
    divides = len(weight) % torch.get_num_threads() == 0
    if weight.dtype == torch.float32 and min(weight.shape) <= narrow and divides:
        return ThreadSplitWeight(weight)
    suits = weight.dtype in (torch.float32, torch.bfloat16) and weight.numel() >= MIN_NUMEL
    return OneDNNWeight(weight) if suits else None


# ---- kernels: floats -----------------------------------------------------------------------------

class OneDNNWeight:
    """float[m, n] in the order in which oneDNN reads it, with the same numbers to the bit."""

    def __init__(self, weight: Tensor):
        self.weight = mkldnn._reorder_linear_weight(weight.detach(), 1)

    def dense(self) -> Tensor:
        return self.weight.to_dense()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")


class ThreadSplitWeight:
    """float[m, n] in strips, a thread each: torch gives F.linear of one x to one thread.

    Where there are more rows than columns, an x's product is a sum of columns, so they lie
    together: [threads, n, m / threads]."""

    def __init__(self, weight: Tensor):
        self.m, self.n = weight.shape
        strips = weight.detach().view(torch.get_num_threads(), -1, self.n).mT
        self.weight = strips.contiguous() if self.m > self.n else strips

    def dense(self) -> Tensor:
        return self.weight.mT.reshape(self.m, self.n)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(1, -1, self.n).expand(len(self.weight), -1, -1)      # [threads, M, n]
        y = torch.bmm(rows, self.weight).transpose(0, 1)                      # [M, threads, ..]
        y = y.reshape(*x.shape[:-1], self.m)                                  # [.., m]
        return y if bias is None else y + bias


# ---- kernels: 8 bits -----------------------------------------------------------------------------

class Int8Weight:
    """8 bits by 8 bits (VNNI): each row of x is rounded too, in steps of its largest number.

    torch takes the largest of all rows, so each is divided by its own, and one more row, 1 -1 0 ..,
    keeps the steps the same whatever rows come together."""

    def __init__(self, weight: QuantizedTensor):
        if not weight.is_per_row:                                   # the vision encoder's
            raise NotImplementedError("where neighbors share a scale, x is not to be rounded")
        per_channel = torch._make_per_channel_quantized_tensor(
            weight.q, weight.scale.double().flatten(), torch.zeros(len(weight)).long(), 0)
        self.weight = quantized_ops.linear_prepack(per_channel, None)
        self.dtype = weight.dtype
        self.ends = F.pad(torch.tensor([[1.0, -1.0]]), (0, weight.shape[1] - 2))  # [1, n]

    def dense(self) -> Tensor:
        weight = quantized_ops.linear_unpack(self.weight)[0]
        scale = weight.q_per_channel_scales().to(self.dtype)[:, None]         # [m, 1]
        return weight.int_repr().to(self.dtype).mul_(scale)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])                                     # [M, n]
        top = torch.linalg.vector_norm(rows, math.inf, -1, True, dtype=torch.float32)     # [M, 1]
        top = top.clamp_(min=1e-30)
        rows = torch.cat([rows / top, self.ends])                             # [M + 1, n]
        y = quantized_ops.linear_dynamic.default(rows, self.weight)[:-1]      # [M, m]
        y = y.mul_(top).to(x.dtype).view(*x.shape[:-1], -1)                   # [.., m]
        return y if bias is None else y + bias


# ---- kernels: 4 bits -----------------------------------------------------------------------------

class Int4Weight:
    """In bfloat16: few rows of x as they are, for the many of a prompt parts become floats.

    With AVX-512 a byte holds two numbers of a column, 32 rows apart, and 64 rows lie together:
    [m / 64, n, 2, 16]. NotImplementedError where a processor has another order.
    """

    def __init__(self, weight: QuantizedTensor):
        if not int4_order_is_known():
            raise NotImplementedError("an unknown order of 4-bit weights")
        (self.m, self.n), self.dtype = weight.shape, weight.dtype
        extra = -self.m % PACKED_ROWS                                         # to whole blocks
        q, scale = (F.pad(part, (0, 0, 0, extra)) if extra else part
                    for part in (weight.q, weight.scale[:, :self.n // 32, 0]))
        self.weight = pack_int4(q, self.n)                                    # [m, n/2]
        scale = (16 * scale).t().bfloat16()                                   # [n / 32, m]
        self.scale = torch.stack([scale, torch.zeros_like(scale)], -1)        # and the zero points

    def floats(self, start: int, end: int) -> Tensor:
        """Of some blocks of rows -> bfloat16[64 blocks, n]"""
        q = unpack_int4(self.weight, self.n, start, end).bfloat16().unflatten(1, (-1, 32))
        scale = self.scale[:, PACKED_ROWS * start:PACKED_ROWS * end, 0].t()   # [64 b, n / 32]
        return q.mul_(scale[..., None]).flatten(1)                            # [64 b, n]

    def dense(self) -> Tensor:
        return self.floats(0, len(self.weight))[:self.m].to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.flatten(0, -2).bfloat16()                                    # [M, n]
        size = max(1, DEQUANTIZED_NUMEL // (PACKED_ROWS * self.n))            # blocks
        if len(rows) <= PACKED_ROWS:
            y = aten._weight_int4pack_mm_for_cpu(rows, self.weight, 32, self.scale)
        else:
            y = torch.cat([F.linear(rows, self.floats(i, i + size))
                           for i in range(0, self.scale.shape[1] // PACKED_ROWS, size)], dim=1)
        y = y[:, :self.m].to(x.dtype).reshape(*x.shape[:-1], -1)              # [.., m]
        return y if bias is None else y + bias


def pack_int4(q: Tensor, n: int) -> Tensor:
    """A QuantizedTensor's q, uint8[m, N/2] with N >= n -> uint8[m, n/2] in the kernel's order."""
    blocks = []
    for a, b in q.unflatten(0, (-1, 2, 32)):                                  # [32, N/2] each
        left, right = a & 15 | b << 4, a >> 4 | b & 0xF0
        blocks.append(torch.cat([left, right], dim=1)[:, :n].t().contiguous() ^ 0x88)     # [n, 32]
    return torch.stack(blocks).view(len(q), -1)


def unpack_int4(packed: Tensor, n: int, start: int, end: int) -> Tensor:
    """Some blocks of 64 rows of what pack_int4 gives -> int8[64 blocks, n], -8 .. 7"""
    blocks = packed.view(-1, n, 2, 16)[start:end]                             # [b, n, 2, 16]
    q = torch.stack([blocks & 15, blocks >> 4], dim=1)                        # [b, 2, n, 2, 16]
    return q.permute(0, 1, 3, 4, 2).reshape(-1, n).view(torch.int8) - 8


@functools.cache
def int4_order_is_known() -> bool:
    """Whether pack_int4 gives what PyTorch's own packing gives on this processor."""
    packed = pack_int4((torch.arange(64 * 32) * 37 % 251).view(64, 32).byte(), 64)
    numbers = (unpack_int4(packed, 64, 0, 1) + 8).int()                       # [64, 64], 0 .. 15
    return torch.equal(aten._convert_weight_to_int4pack_for_cpu(numbers, 1), packed)
