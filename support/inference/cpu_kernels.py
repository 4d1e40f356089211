"""support/inference/cpu_kernels.py"""
import ctypes
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
from torch.utils._pytree import tree_map

from support.inference.quantization import DEQUANTIZED_NUMEL, QuantizedTensor, is_per_row

# ---- packed --------------------------------------------------------------------------------------
# A frozen weight in the form that the processor's fastest product reads, for inference.

aten = torch.ops.aten


class Kernel(Protocol):
    def dense(self) -> Tensor: ...                                            # float[m, n]
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor: ...           # [.., n] -> [.., m]


def packed_linear(x: Tensor, kernel: Kernel, bias: Tensor | None = None) -> Tensor:
    """F.linear, but ValueError where a gradient is wanted."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("packed weights are for inference; train the model as it is loaded")
    return kernel.linear(x, bias)


class PackedWeight(nn.Parameter):
    """Looks like float[m, n]. F.linear multiplies with its kernel, all else gets `dense()`.
    ValueError: it has no views and is not written to, as that would change a copy."""

    @staticmethod
    def __new__(cls, kernel: Kernel, like: Tensor):
        return Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    def __init__(self, kernel: Kernel, like: Tensor):
        self.kernel = kernel

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear:
                return packed_linear(args[0], args[1].kernel, *args[2:])
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        own = args[0]
        if func is aten.detach.default:
            return cls(own.kernel, own)
        if isinstance(own, cls) and any(result.alias_info for result in func._schema.returns):
            raise ValueError(f"{func}: a packed weight has no views and is not written to")
        dense = tree_map(lambda a: a.kernel.dense() if isinstance(a, cls) else a, args)
        return func(*dense, **kwargs or {})


# ---- floats --------------------------------------------------------------------------------------
# Products with weights as floats, in an order in which a CPU reads them faster.

mkldnn = torch.ops.mkldnn


class OneDNNWeight:
    """float[m, n] in the order in which oneDNN reads it, with the same numbers to the bit. Its
    operators are not documented: `kernels.kernel` alone builds one."""

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


# ---- integers ------------------------------------------------------------------------------------
# Products with weights in 8 bits that a CPU computes without making floats of them, by operators
# of torch that are not documented: `kernels.kernel` alone builds them.

quantized_ops, vector_norm = torch.ops.quantized, torch.linalg.vector_norm


class Int8Weight:
    """8 bits by 8 bits (VNNI): each row of x is rounded too, in steps of its largest number.

    torch takes the largest of all rows, so each is divided by its own, and one more row, 1 -1 0 ..,
    keeps the steps the same whatever rows come together."""

    def __init__(self, low: QuantizedTensor):
        if not is_per_row(low):                                        # the vision encoder's
            raise NotImplementedError("where neighbors share a scale, x is not to be rounded")
        weight = torch._make_per_channel_quantized_tensor(
            low.q, low.scale.double().flatten(), torch.zeros(len(low)).long(), 0)
        self.weight, self.dtype = quantized_ops.linear_prepack(weight, None), low.dtype
        self.ends = F.pad(torch.tensor([[1.0, -1.0]]), (0, low.shape[1] - 2))     # [1, n]

    def dense(self) -> Tensor:
        weight = quantized_ops.linear_unpack(self.weight)[0]
        scale = weight.q_per_channel_scales().to(self.dtype)[:, None]         # [m, 1]
        return weight.int_repr().to(self.dtype).mul_(scale)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])                                     # [M, n]
        top = vector_norm(rows, math.inf, -1, True, dtype=torch.float32).clamp_(min=1e-30)    # [M, 1]
        y = quantized_ops.linear_dynamic.default(torch.cat([rows / top, self.ends]), self.weight)[:-1]
        y = y.mul_(top).to(x.dtype).view(*x.shape[:-1], -1)                   # [.., m]
        return y if bias is None else y + bias


# ---- nibbles -------------------------------------------------------------------------------------
# Products with weights in 4 bits that a CPU computes without making floats of them, by operators
# of torch that are not documented: `kernels.kernel` alone builds them.

aten = torch.ops.aten


PACKED_ROWS = 64            # rows of x, also those of a weight that lie together


class Int4Weight:
    """In bfloat16: few rows of x as they are, for the many of a prompt parts become floats.

    With AVX-512 a byte holds two numbers of a column, 32 rows apart, and 64 rows lie together:
    [m / 64, n, 2, 16]. NotImplementedError where a processor has another order.
    """

    def __init__(self, low: QuantizedTensor):
        (self.m, self.n), self.dtype, more = low.shape, low.dtype, -len(low) % PACKED_ROWS
        q, scale = (F.pad(part, (0, 0, 0, more)) if more else part            # to whole blocks
                    for part in (low.q, low.scale[:, :self.n // 32, 0]))
        parts = [self.joined(*rows) for rows in q.unflatten(0, (-1, 2, 32))]  # [n, 32] each
        self.weight = torch.stack(parts).view(len(q), -1)                     # [m, n/2]
        scale = (16 * scale).t().bfloat16()                                   # [n / 32, m]
        self.scale = torch.stack([scale, torch.zeros_like(scale)], -1)        # and the zero points
        q = (self.numbers(0, 1) + 8).int()                                    # [64, n], 0 .. 15
        if not torch.equal(aten._convert_weight_to_int4pack_for_cpu(q, 1), self.weight[:PACKED_ROWS]):
            raise NotImplementedError("an unknown order of 4-bit weights")

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        """32 rows of a LowBit's q and the 32 below, uint8[32, n/2] each -> uint8[n, 32]"""
        left, right = a & 15 | b << 4, a >> 4 | b & 0xF0
        return torch.cat([left, right], dim=1)[:, :self.n].t().contiguous() ^ 0x88

    def numbers(self, start: int, end: int) -> Tensor:
        """Of some blocks of rows -> int8[64 blocks, n], -8 .. 7"""
        packed = self.weight.view(-1, self.n, 2, 16)[start:end]
        q = torch.stack([packed & 15, packed >> 4], dim=1)                    # [b, 2, n, 2, 16]
        return q.permute(0, 1, 3, 4, 2).reshape(-1, self.n).view(torch.int8) - 8

    def floats(self, start: int, end: int) -> Tensor:
        q = self.numbers(start, end).bfloat16().unflatten(1, (-1, 32))        # [64 b, n / 32, 32]
        scale = self.scale[:, PACKED_ROWS * start:PACKED_ROWS * end, 0].t()[..., None]        # [64 b, n / 32, 1]
        return q.mul_(scale).flatten(1)

    def dense(self) -> Tensor:
        return self.floats(0, len(self.weight))[:self.m].to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows, size = x.flatten(0, -2).bfloat16(), max(1, DEQUANTIZED_NUMEL // (PACKED_ROWS * self.n))     # [M, n]
        if len(rows) <= PACKED_ROWS:
            y = aten._weight_int4pack_mm_for_cpu(rows, self.weight, 32, self.scale)
        else:
            y = torch.cat([F.linear(rows, self.floats(i, i + size))
                           for i in range(0, self.scale.shape[1] // PACKED_ROWS, size)], dim=1)
        y = y[:, :self.m].to(x.dtype).reshape(*x.shape[:-1], -1)              # [.., m]
        return y if bias is None else y + bias


# ---- kernels -------------------------------------------------------------------------------------
# Which product suits a weight on this processor.
#
# Some operators behind it are not documented. Where torch has them not, or the processor not what
# they need, or a shape does not suit, there is none.

# Up to so many rows or columns float32 is read faster in strips than in blocks; by several rows of
# x at once, up to half as many.
NARROW_SIDE = 768


MIN_NUMEL = 1 << 15  # numbers, below which a product takes less time than oneDNN's call


def find_kernel(weight: Tensor, rows: int = 1) -> Kernel | None:
    """float[m, n] or LowBit[m, n], on the CPU; rows: of x, for most products -> None where nothing
    is gained."""
    try:
        made = choose_kernel(weight, NARROW_SIDE if rows == 1 else NARROW_SIDE // 2)
        if made:
            made.linear(torch.zeros(1, weight.shape[1], dtype=weight.dtype), None)
        return made
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def choose_kernel(weight: Tensor, narrow: int) -> Kernel | None:
    if isinstance(weight, QuantizedTensor) and weight.q.dtype == torch.uint8:
        return Int4Weight(weight)
    if isinstance(weight, QuantizedTensor):
        return Int8Weight(weight) if torch.cpu._is_vnni_supported() else None
    equal = len(weight) % torch.get_num_threads() == 0
    if weight.dtype == torch.float32 and min(weight.shape) <= narrow and equal:
        return ThreadSplitWeight(weight)
    known = weight.dtype in (torch.float32, torch.bfloat16) and weight.numel() >= MIN_NUMEL
    return OneDNNWeight(weight) if known else None


# ---- joint ---------------------------------------------------------------------------------------
# Linear layers that read the same x, multiplied with as one: q, k, v; gate, up.
#
# A large weight is read faster than three small ones, and each call costs some 20 us beside. Names in
# files stay what they are: only the model for inference is joined.

@dataclass
class RowSlice:
    """Some rows of a joint weight, for whoever wants the layer alone."""
    kernel: Kernel
    rows: slice

    def dense(self) -> Tensor:
        return self.kernel.dense()[self.rows]

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.dense(), bias)


class FusedLinear:
    """In the place of a module's `project`."""

    def __init__(self, kernel: Kernel, layers: list[nn.Linear]):
        self.kernel, self.sizes, end = kernel, [len(layer.weight) for layer in layers], 0
        for layer, size in zip(layers, self.sizes, strict=True):
            start, end = end, end + size
            layer.weight = PackedWeight(RowSlice(kernel, slice(start, end)), layer.weight)

    def __call__(self, x: Tensor, at: Tensor | None = None) -> tuple[Tensor, ...]:
        """x: [B, T, D] -> the products [B, T, ..]; at: long[B, W], where the first is wanted."""
        first, *others = packed_linear(x, self.kernel).split(self.sizes, dim=-1)
        if at is not None:
            first = first.gather(1, at[..., None].expand(-1, -1, first.shape[-1]))
        return first, *others


def concatenate_weights(weights: list[Tensor]) -> Tensor:
    """float[m, n] or LowBit each -> all rows."""
    if not isinstance(weights[0], QuantizedTensor):
        return torch.cat(weights)
    q, scale = torch.cat([w.q for w in weights]), torch.cat([w.scale for w in weights])
    return QuantizedTensor(q, scale, weights[0].shape[1])


# ---- faster --------------------------------------------------------------------------------------
# A model for inference on a CPU: its weights are packed in the order of the fastest product.

FUSED_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))         # read the same x


def pack_for_cpu(model: nn.Module, rows: int = 1) -> nn.Module:
    """The same model, for inference: its linear layers on a CPU are packed, a few at a time.

    rows: answers that are spoken at once, mostly."""
    with warnings.catch_warnings(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        warnings.simplefilter("ignore", UserWarning)                # torch.qint8 is to go one day
        list(pool.map(partial(fuse, rows=rows), model.modules()))
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        list(pool.map(partial(pack_linear, rows=rows), linear))
    trim_heap()
    return model


@torch.no_grad()
def fuse(module: nn.Module, rows: int) -> None:
    own = {name: child for name, child in module.named_children() if is_plain_linear(child)}
    for names in FUSED_GROUPS:
        layers = [own[name] for name in names if name in own]
        whole = len(layers) == len(names)
        if made := whole and find_kernel(concatenate_weights([layer.weight for layer in layers]), rows):
            module.project = FusedLinear(made, layers)


@torch.no_grad()
def pack_linear(layer: nn.Linear, rows: int) -> None:
    here = layer.weight.device.type == "cpu" and not isinstance(layer.weight, PackedWeight)
    made = find_kernel(layer.weight, rows) if here else None
    if made:
        layer.weight = PackedWeight(made, layer.weight)
    if made and is_plain_linear(layer):                # without a subclass of Tensor, which costs some us
        layer.forward = partial(packed_linear, kernel=made, bias=layer.bias)


def is_plain_linear(layer: nn.Module) -> bool:
    """Neither a LoRA nor else something that does more; on a CPU."""
    return type(layer).forward is nn.Linear.forward and layer.weight.device.type == "cpu"


# ---- heap ----------------------------------------------------------------------------------------
# What glibc keeps of freed memory, given back to the system.

def trim_heap() -> None:
    """glibc keeps freed blocks of less than 32 MiB between those in use; elsewhere do nothing."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
