"""A frozen weight in the form that the processor's fastest product reads, for inference."""
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

aten, mkldnn = torch.ops.aten, torch.ops.mkldnn


class Kernel(Protocol):
    def dense(self) -> Tensor: ...                                            # float[m, n]
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor: ...           # [.., n] -> [.., m]


class Blocked:
    """float[m, n] in the order in which oneDNN reads it, with the same numbers to the bit."""

    def __init__(self, weight: Tensor):
        self.weight = mkldnn._reorder_linear_weight(weight.detach(), 1)

    def dense(self) -> Tensor:
        return self.weight.to_dense()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")


class Packed(Tensor):
    """Looks like float[m, n]. F.linear multiplies with its kernel, all else gets `dense()`.
    ValueError: it has no views and is not written to, as that would change a copy."""

    @staticmethod
    def __new__(cls, kernel: Kernel, like: Tensor):
        return Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    def __init__(self, kernel: Kernel, like: Tensor):
        self.kernel = kernel

    def __repr__(self) -> str:
        return f"Packed({list(self.shape)}, {type(self.kernel).__name__}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear and not (torch.is_grad_enabled() and args[0].requires_grad):
                return args[1].kernel.linear(args[0], args[2] if len(args) > 2 else None)
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
