"""A model for inference on a CPU: its weights are packed in the order of the fastest product."""
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import nn

from formats.released.heap import give_back
from formats.released.joint import Joint, join
from formats.released.kernels import kernel
from formats.released.packed import Packed, multiply

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))         # read the same x


def faster(model: nn.Module, rows: int = 1) -> nn.Module:
    """The same model, for inference: its linear layers on a CPU are packed, a few at a time.

    rows: answers that are spoken at once, mostly."""
    with warnings.catch_warnings(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        warnings.simplefilter("ignore", UserWarning)                # torch.qint8 is to go one day
        list(pool.map(partial(put_together, rows=rows), model.modules()))
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        list(pool.map(partial(pack, rows=rows), linear))
    give_back()
    return model


@torch.no_grad()
def put_together(module: nn.Module, rows: int) -> None:
    own = {name: child for name, child in module.named_children() if is_plain(child)}
    for names in TOGETHER:
        layers = [own[name] for name in names if name in own]
        whole = len(layers) == len(names)
        if made := whole and kernel(join([layer.weight for layer in layers]), rows):
            module.project = Joint(made, layers)


@torch.no_grad()
def pack(layer: nn.Linear, rows: int) -> None:
    here = layer.weight.device.type == "cpu" and not isinstance(layer.weight, Packed)
    made = kernel(layer.weight, rows) if here else None
    if made:
        layer.weight = Packed(made, layer.weight)
    if made and is_plain(layer):                # without a subclass of Tensor, which costs some us
        layer.forward = partial(multiply, kernel=made, bias=layer.bias)


def is_plain(layer: nn.Module) -> bool:
    """Neither a LoRA nor else something that does more; on a CPU."""
    return type(layer).forward is nn.Linear.forward and layer.weight.device.type == "cpu"
