"""support/training/distributed.py"""
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from support.checkpoints.files import ModelError

# ---- sharding ------------------------------------------------------------------------------------
# A model in pieces: of each tensor and its gradient, every process keeps its part of the rows.
#
# A block's matrices are put together only while it computes, in the type that is computed with;
# gradients are added up in float32. ZeRO, arXiv 1910.02054 section 5; PyTorch's FSDP2.

def check_shardable(world: int, device: str, dtype: torch.dtype, bits: int) -> None:
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


def shard_model(model: nn.Module, device: str, dtype: torch.dtype) -> None:
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


# ---- pieces --------------------------------------------------------------------------------------
# The tensors of a sharded model, whole and in pieces; all other tensors stay as they are.

def is_sharded(value) -> bool:
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # half a second's import
    return isinstance(value, DTensor)


def gather_full(value):
    """Pieces, in dicts too, put together in the memory of rank 0; None elsewhere.

    All processes take part; one tensor at a time is whole on the device."""
    if isinstance(value, dict):
        return {key: gather_full(inner) for key, inner in value.items()}
    if not is_sharded(value):
        return value
    full = value.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else None


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what this process keeps, as it does of the parameter `like`."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor
    value = distribute_tensor(value, like.device_mesh, like.placements,
                              src_data_rank=None) if value.shape == like.shape else value
    return value.clone()


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor],
            state: dict) -> None:
    """Whole parameters by their names, and the optimizer's whole state_dict()."""
    with torch.no_grad():
        for name, value in parameters.items():
            own = model.get_parameter(name)
            own.copy_(shard_like(value, own))
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {i: {key: shard_like(value, learning[i]) for key, value in entries.items()}
               for i, entries in state["state"].items()}
    optimizer.load_state_dict(state | {"state": moments})


# ---- blank ---------------------------------------------------------------------------------------
# A picture for batches without one: where several processes train, each computes with the eye.

def with_dummy_image(batch: dict[str, Tensor | None], side: int, tokens: int) -> dict[str, Tensor]:
    """A black picture of `side` pixels behind the first row of a batch that has none.

    Nothing looks at what comes later and nothing is learned there, so loss and gradients stay, and
    the eye's and the projector's gradients are zeros."""
    if batch["images"] is not None:
        return batch
    unused = {"ids": 0, "labels": -100, "segments": -1, "positions": 0}   # as collate pads
    longer = {name: F.pad(rows, (0, tokens), value=unused[name])          # [B, T + N]
              for name, rows in batch.items() if name != "images"}
    longer["ids"][0, -tokens:] = -1
    return longer | {"images": torch.zeros(1, 3, side, side)}


# ---- feeding -------------------------------------------------------------------------------------
# Which rows a process is fed at each step.

@dataclass(frozen=True)
class BatchSchedule:
    """The rows of a step are a function of the step alone: resumed, it is fed what it would have
    been, and all processes together get each row of an epoch once."""
    rows: Dataset               # data.Rows
    batch_size: int             # rows a process and micro-step
    grad_accum: int             # micro-steps a step
    max_steps: int
    rank: int = 0
    world: int = 1

    def keys(self, start: int) -> Iterator[list[tuple[int, int]]]:
        """(epoch, number) of the rows of each micro-step after step `start`."""
        for micro in range(start * self.grad_accum, self.max_steps * self.grad_accum):
            first = (micro * self.world + self.rank) * self.batch_size
            yield [divmod(i, len(self.rows)) for i in range(first, first + self.batch_size)]

    def batches(self, start: int, collate: Callable[[list], dict], num_workers: int
                ) -> Iterator[tuple[dict, ...]]:
        """-> the micro-batches of each step after step `start`."""
        loader = iter(DataLoader(self.rows, batch_sampler=self.keys(start), collate_fn=collate,
                                 num_workers=num_workers))
        return zip(*[loader] * self.grad_accum, strict=True)

    def sources(self, step: int) -> list[str]:
        """Where the samples of a step stand in the data."""
        return [self.rows.samples[i].source for micro in islice(self.keys(step - 1),
                self.grad_accum) for key in micro for i in self.rows.members(*key)]
