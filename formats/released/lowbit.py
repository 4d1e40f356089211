"""A frozen weight that looks like float[m, n] and is kept as integers and scales.

    W = scale * q    8 bits: q in -128 .. 127, a scale for each row
                             or each 128 neighbors in it
                     4 bits: q in -128, -112, .. 112, a scale for each 32 neighbors

At 4 bits a byte holds two q without their low four bits, which are 0: one of the row's left half
and one of its right half, so that both come back by a shift and a mask.
"""
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from formats.released.product import Product

aten = torch.ops.aten


class LowBit(Tensor):
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
            return (Product.apply if func is F.linear else func)(*args, **kwargs or {})

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
