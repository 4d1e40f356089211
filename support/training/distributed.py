"""Training on several processes: what they tell each other, and who holds which part of the model.

torchrun starts the same train.py on every process. Each holds the whole model and
DistributedDataParallel (DDP) averages the gradients; or, with --shard, each holds a part of every
tensor (FSDP2). With a single process nothing here communicates.
"""
import warnings
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data import PADDING
from projector import SkyEyeGPT
from support.checkpoints.files import ModelError
from support.common import UserError
from support.training.watch import watch_processes

# ---- processes -----------------------------------------------------------------------------------

def start_processes(device: str, world_size: int, advice: str, hours: float = 2) -> None:
    """Connect the processes; so many hours they wait, as while rank 0 writes or renders.

    advice: what to do if one of them is killed, for the line with which the others end.
    """
    if world_size > 1:
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=hours))
        watch_processes(advice)


def finish_processes() -> None:
    """Wait until every process, rank 0 above all, has written what it had to write."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def get_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(x: Tensor) -> Tensor:
    """In place; -> x."""
    if get_world_size() > 1:
        dist.all_reduce(x)
    return x


def gather_lists(items: list) -> list:
    """-> the items of all processes, in the order of their ranks, on every process."""
    if get_world_size() == 1:
        return items
    lists: list = [None] * get_world_size()
    dist.all_gather_object(lists, items)
    return [item for own in lists for item in own]


def from_rank_0(function: Callable[[], object]):
    """-> on every process what the function gives on rank 0; its UserError on every process."""
    result: object = None
    failure = None
    if get_rank() == 0:
        try:
            result = function()
        except UserError as error:
            failure = error
    if get_world_size() > 1:
        box = [result, str(failure) if failure else ""]
        dist.broadcast_object_list(box)
        result, failure = box[0], failure or (ModelError(box[1]) if box[1] else None)
    if failure:
        raise failure
    return result


def any_process(flag: bool, device: str) -> bool:
    """Is the flag set on one process or more? All get the same answer."""
    if get_world_size() == 1:
        return flag
    return sum_over_processes(torch.tensor(float(flag), device=device)).item() > 0


# ---- the model on several processes --------------------------------------------------------------

def wrap(model: SkyEyeGPT, device: str, dtype: torch.dtype, *, shard: bool, compile: bool,
         init_sync: bool) -> nn.Module:
    """-> what the training loop calls: the model itself, compiled or sharded in place, or in DDP.

    init_sync: DDP copies rank 0's weights to all (quantized weights cannot be sent).
    """
    if shard:
        shard_model(model, device, dtype)
    if compile:
        for block in [*model.visual_encoder.blocks, *model.llama_model.model.layers]:
            block.compile(dynamic=True)
    if get_world_size() > 1 and not shard:
        return DistributedDataParallel(model, init_sync=init_sync)
    return model


def unwrap(model: nn.Module) -> SkyEyeGPT:
    """The model inside DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def check_shardable(world_size: int, device: str, dtype: torch.dtype, bits: int) -> None:
    """Raise ModelError where --shard cannot work."""
    if world_size == 1:
        raise ModelError("--shard spreads the model over several processes: start it with torchrun")
    if device not in ("cpu", "cuda"):
        raise ModelError(f"--shard on {device}: only on cpu and cuda")
    if dtype == torch.float16:
        raise ModelError("--shard with fp16, whose gradients are scaled: use --dtype bf16 or fp32")
    if bits < 16:
        raise ModelError(f"--shard with --bits {bits}: quantized weights cannot be sharded; use "
                         "one of the two flags")


def shard_model(model: SkyEyeGPT, device: str, dtype: torch.dtype) -> None:
    """Keep on every process only its part of each tensor's rows, of the gradients as well.

    The processes have built the same model in CPU memory; it moves to the device. A block's
    matrices are gathered only while the block computes, in `dtype`; gradients are summed in
    float32. ZeRO, arXiv 1910.02054 section 5; PyTorch's FSDP2.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # half a second's import
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* view")   # we add nothing in place
    mesh = dist.device_mesh.init_device_mesh(device, (dist.get_world_size(),))
    # Autocast would keep its copy of each matrix until the backward pass: the whole model again.
    precision = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for name, module in model.named_modules():
        if name.endswith(("attn", "mlp")):
            fully_shard(module, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh)           # the others: embeddings, head, projector, norms


# ---- sharded tensors -----------------------------------------------------------------------------

def is_sharded(value: object) -> bool:
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # half a second's import
    return isinstance(value, DTensor)


def full_tensor(x: Tensor) -> Tensor:
    """A sharded tensor put together, on every process; any other tensor as it is."""
    return x.full_tensor() if is_sharded(x) else x


def gather_full(value):
    """Replace the sharded tensors in a state dict, nested or not, by full ones in the CPU memory of
    rank 0 (None on other ranks). All processes take part; the device holds one at a time."""
    if isinstance(value, dict):
        return {key: gather_full(inner) for key, inner in value.items()}
    if not is_sharded(value):
        return value
    full = value.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else None


def shard_like(full: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a full tensor, sharded as the parameter is.

    AdamW's step counts, which are single numbers, are not sharded.
    """
    if not is_sharded(parameter):
        return full
    from torch.distributed.tensor import distribute_tensor
    if full.shape != parameter.shape:
        return full.clone()
    return distribute_tensor(full, parameter.device_mesh, parameter.placements,
                             src_data_rank=None).clone()


def load_full(model: nn.Module, optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor],
              optimizer_state: dict) -> None:
    """Load full parameters, by name, and the optimizer's full state_dict()."""
    with torch.no_grad():
        for name, full in parameters.items():
            parameter = model.get_parameter(name)
            parameter.copy_(shard_like(full, parameter))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {i: {key: shard_like(full, trained[i]) for key, full in entries.items()}
               for i, entries in optimizer_state["state"].items()}
    optimizer.load_state_dict(optimizer_state | {"state": moments})


# ---- a batch without a picture -------------------------------------------------------------------

def with_dummy_image(batch: dict[str, Tensor | None], image_size: int, visual_tokens: int
                     ) -> dict[str, Tensor]:
    """Append a black picture to the first row of a batch that has none.

    Gradients are exchanged among processes, so each must use the vision encoder at every step. The
    picture stands in the padding: no token attends to it and it has no label. Loss and gradients
    stay as they are, those of vision encoder and projector are zeros.
    """
    if batch["images"] is not None:
        return batch
    longer = {name: F.pad(rows, (0, visual_tokens), value=PADDING[name])      # [B, T + N]
              for name, rows in batch.items() if name != "images"}
    longer["ids"][0, -visual_tokens:] = -1
    return longer | {"images": torch.zeros(1, 3, image_size, image_size)}
