"""Several trainings one after the other in the same processes, as their start takes seconds.

    torchrun --standalone --nproc_per_node 2 tests/processes.py '[["--model", ..], ..]'

Beside what train.py writes: rank-R.json, with how many numbers of the parameters this process
stores, how many there are, and how many are gathered at once at most.
"""
import json
import sys
from pathlib import Path

import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import train


def stored_numbers(parameter):
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return local.untyped_storage().nbytes() // local.element_size()


def largest_unit(model):
    """The numbers of the largest FSDP unit, whose own parameters are gathered at the same time."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)] or [model]
    inner = {p for unit in units if unit is not model for p in unit.parameters()}
    return max(sum(p.numel() for p in unit.parameters() if unit is not model or p not in inner)
               for unit in units)


def count_and_make_optimizer(model, config, make=train.make_optimizer):
    numbers = [sum(map(stored_numbers, model.parameters())),
               sum(p.numel() for p in model.parameters()), largest_unit(model)]
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    (Path(config.output_dir) / f"rank-{dist.get_rank()}.json").write_text(json.dumps(numbers))
    return make(model, config)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    destroy = dist.destroy_process_group
    dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None
    train.make_optimizer = count_and_make_optimizer
    for flags in json.loads(sys.argv[1]):
        train.train(train.parse_args(flags))
    destroy()
