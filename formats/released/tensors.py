"""Tensors that still lie in a file, and a model filled with them, strictly."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from formats.released.kept import copied, kept_as


class ModelError(Exception):
    """Weights that cannot be used: a line that names the file and what to do."""


@dataclass(frozen=True)
class Stored:
    """`read` fetches the tensor at every call, and nobody keeps it."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def then(self, shape: Iterable[int], change: Callable[[Tensor], Tensor]) -> "Stored":
        """The tensor that `change` makes of this one."""
        return Stored(tuple(shape), lambda: change(self.read()))


def held(tensors: dict[str, Tensor]) -> dict[str, Stored]:
    """Tensors that are in memory already."""
    return {name: Stored(tuple(tensor.shape), lambda tensor=tensor: tensor)
            for name, tensor in tensors.items()}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check(place: str | Path, wanted: dict[str, tuple[int, ...]], found: dict[str, Stored]) -> None:
    """Every tensor there, of the right shape, and none too many; else ModelError."""
    problems = {"missing": [name for name in wanted if name not in found],
                "unexpected": [name for name in found if name not in wanted],
                "mis-shaped": [f"{name} is {list(found[name].shape)}, not {list(shape)}"
                               for name, shape in wanted.items()
                               if name in found and found[name].shape != shape]}
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {kind}: {', '.join(names[:3])}{', ..' * (len(names) > 3)}"
                         for kind, names in problems.items() if names)
        raise ModelError(f"{place}: the weights do not fit the model; {told}")


def fill(model: nn.Module, found: dict[str, Stored], place: str | Path, device: str,
         dtype: torch.dtype) -> nn.Module:
    """Give a model on the meta device its weights, one after the other: each is in memory once."""
    check(place, shapes(model), found)
    state = {name: copied(stored.read(), device, kept_as(name, dtype))
             for name, stored in found.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)
