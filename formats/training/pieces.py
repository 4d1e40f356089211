"""The tensors of a sharded model, whole and in pieces; all other tensors stay as they are."""
import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_piece(value) -> bool:
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # half a second's import
    return isinstance(value, DTensor)


def whole(value):
    """Pieces, in dicts too, put together in the memory of rank 0; None elsewhere.

    All processes take part; one tensor at a time is whole on the device."""
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    if not is_piece(value):
        return value
    full = value.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else None


def piece(value: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what this process keeps, as it does of the parameter `like`."""
    if not is_piece(like):
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
            own.copy_(piece(value, own))
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {i: {key: piece(value, learning[i]) for key, value in entries.items()}
               for i, entries in state["state"].items()}
    optimizer.load_state_dict(state | {"state": moments})
