"""A frozen weight in the form that the processor's fastest product reads, for inference."""
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

aten = torch.ops.aten


class Kernel(Protocol):
    def dense(self) -> Tensor: ...                                            # float[m, n]
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor: ...           # [.., n] -> [.., m]


def multiply(x: Tensor, kernel: Kernel, bias: Tensor | None = None) -> Tensor:
    """F.linear, but ValueError where a gradient is wanted."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("packed weights are for inference; train the model as it is loaded")
    return kernel.linear(x, bias)


class Packed(nn.Parameter):
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
                return multiply(args[0], args[1].kernel, *args[2:])
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
