"""How a weight is kept: in which type, and the copy of it in that type."""
import torch
from torch import Tensor

BLOCK = 1 << 17     # numbers that are float32 at once; more glibc gives back each time, and faults


def kept_as(name: str, dtype: torch.dtype | None) -> torch.dtype | None:
    """LoRA stays in float32: the steps of training are too small for 16 bits."""
    return torch.float32 if ".lora_" in name else dtype


def copied(x: Tensor, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    """x.to(device, dtype, copy=True), on a CPU by way of float32: torch has no other fast way from
    float16 to bfloat16. No number changes by it."""
    if x.dtype != torch.float16 or dtype != torch.bfloat16 or torch.device(device).type != "cpu":
        return x.to(device, dtype, copy=True)
    y = torch.empty(x.shape, dtype=dtype)
    for part, own in zip(y.view(-1).split(BLOCK), x.flatten().split(BLOCK), strict=True):
        part.copy_(own.float())
    return y
