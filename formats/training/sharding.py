"""A model in pieces: of each tensor and its gradient, every process keeps its part of the rows.

A block's matrices are put together only while it computes, in the type that is computed with;
gradients are added up in float32. ZeRO, arXiv 1910.02054 section 5; PyTorch's FSDP2.
"""
import warnings

import torch
import torch.distributed as dist
from torch import nn

from formats.released.tensors import ModelError


def check(world: int, device: str, dtype: torch.dtype, bits: int) -> None:
    """Can a model be sharded so? Else ModelError."""
    if world == 1:
        raise ModelError("--shard spreads the model over several processes: start it with torchrun")
    if device not in ("cpu", "cuda"):
        raise ModelError(f"--shard on {device}: only on cpu and cuda")
    if dtype == torch.float16:
        raise ModelError("--shard with fp16, whose gradients are scaled: use --dtype bf16 or fp32")
    if bits < 16:
        raise ModelError(f"--shard with --bits {bits}, which are not cut in pieces: use one of the "
                         "two")


def shard(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    """A model that all processes have built alike, in their own memory, goes to the device."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # half a second's import
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* view")   # we add nothing in place
    mesh = dist.device_mesh.init_device_mesh(device, (dist.get_world_size(),))
    # Autocast would keep its copy of each matrix until the backward pass: the whole model again.
    computed = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for name, module in model.named_modules():
        if name.endswith(("attn", "mlp")):
            fully_shard(module, mesh=mesh, mp_policy=computed)
    fully_shard(model, mesh=mesh)           # what is left: embeddings, head, projector, norms
