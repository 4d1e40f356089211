"""Tensors -> .safetensors files of at most 2 GiB in 16 bits, written one after the other."""
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from formats.released.files import write_safely
from formats.released.lowbit import LowBit
from formats.released.packed import Packed
from formats.released.tensors import ModelError, Stored, kept_as

SHARD = 1 << 30             # numbers in a file


def write_shards(folder: Path, stem: str, tensors: dict[str, Stored],
                 dtype: torch.dtype | None = None) -> None:
    """STEM.safetensors; or shards, and the index that names the shard of each tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, size, place = list(cut(tensors)), 0, {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        file = file if len(shards) > 1 else f"{stem}.safetensors"
        own = {name: tensors[name].read().to("cpu", kept_as(name, dtype)).contiguous()
               for name in names}
        if low := [name for name, t in own.items() if isinstance(t, (LowBit, Packed))]:
            raise ModelError(f"{folder}: {low[0]} is in 8 or 4 bits, or packed for inference; save "
                             "the model as it is loaded without --bits")
        need, free = sum(t.nbytes for t in own.values()), shutil.disk_usage(folder).free
        if need > free:
            raise ModelError(f"{folder / file}: {need:,} bytes to write, {free:,} free")
        write_safely(folder / file, lambda path, own=own: save_file(own, path, {"format": "pt"}))
        size, place = size + need, place | dict.fromkeys(names, file)
    if len(shards) == 1:
        return
    write_json(folder / f"{stem}.safetensors.index.json",
               {"metadata": {"total_size": size}, "weight_map": place})


def cut(tensors: dict[str, Stored]) -> Iterator[list[str]]:
    """The names, in runs of at most SHARD numbers."""
    run, size = [], 0
    for name, stored in tensors.items():
        if run and size + math.prod(stored.shape) > SHARD:
            yield run
            run, size = [], 0
        run.append(name)
        size += math.prod(stored.shape)
    yield run


def write_json(file: Path, told: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_safely(file, lambda path: path.write_text(json.dumps(told, indent=2) + "\n"))
