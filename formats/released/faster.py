"""A model for inference on a CPU: which weights are packed, and how.

The operators behind it are not documented. Where torch has them not, or the processor not what they
need, or a shape does not suit, a weight stays as it is.
"""
import torch
from torch import Tensor, nn

from formats.released.integers import Int8
from formats.released.lowbit import LowBit
from formats.released.nibbles import Int4
from formats.released.packed import Blocked, Kernel, Packed

# Smaller floating weights are multiplied with before oneDNN has looked up how: 20 us a call.
SMALLEST = {torch.float32: 1 << 18, torch.bfloat16: 1 << 15}                  # numbers


def kernel(weight: Tensor) -> Kernel | None:
    """None where this processor or this torch gains nothing."""
    try:
        if isinstance(weight, LowBit) and weight.q.dtype == torch.uint8:
            made = Int4(weight)
        elif isinstance(weight, LowBit):
            made = Int8(weight) if torch.cpu._is_vnni_supported() else None
        else:
            big = weight.numel() >= SMALLEST.get(weight.dtype, torch.inf)
            made = Blocked(weight) if big else None
        if made:
            made.linear(torch.zeros(1, weight.shape[1], dtype=weight.dtype), None)
        return made
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


@torch.no_grad()
def faster(model: nn.Module) -> nn.Module:
    """The same model, for inference: on a CPU the linear layers' weights are packed, one by one."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.device.type == "cpu":
            made = kernel(module.weight)
            if made:
                packed = Packed(made, module.weight)
                module.weight = nn.Parameter(packed, requires_grad=False)
    return model
