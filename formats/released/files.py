"""Weight files as they are published: .safetensors, .pth and .bin, alone or in shards.

A tensor is read when its turn comes, from a mapping that is closed again: pages that were read
stay in memory as long as their mapping."""
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from formats.released.checks import check_size, read_json
from formats.released.pickled import Pickled
from formats.released.tensors import ModelError, Stored

KINDS = {"*.safetensors": "model.safetensors.index.json",
         "pytorch_model*.bin": "pytorch_model.bin.index.json", "consolidated.*.pth": "none"}


def open_checkpoint(place: str | Path) -> dict[str, Stored]:
    """A weight file, or all of a folder's -> its tensors by name. Raises ModelError."""
    files = [(Safetensors if path.suffix == ".safetensors" else Pickled)(path)
             for path in weight_files(Path(place))]
    return {name: Stored(shape, lambda file=file, name=name: file.read(name))
            for file in files for name, shape in file.shapes.items()}


def weight_files(place: Path) -> list[Path]:
    """All that an index names, or else what is there: safetensors before pickles."""
    for pattern, index in KINDS.items():
        if (place / index).is_file():
            shards = sorted(set(read_json(place / index).get("weight_map", {}).values()))
            return [place / Path(shard).name for shard in shards]
        if found := sorted(place.glob(pattern)):
            return found
    return [place]


class Safetensors:
    def __init__(self, file: Path):
        check_size(file)
        self.file = file
        try:
            with safe_open(file, "pt") as f:
                self.shapes = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}
        except SafetensorError as error:
            raise ModelError(f"{file}: not a safetensors file ({error})") from None

    def read(self, name: str) -> Tensor:
        with safe_open(self.file, "pt") as f:
            return f.get_tensor(name)


def write_safely(path: Path, write: Callable[[Path], object]) -> None:
    """Write aside, flush, rename: a reader sees the old file or the new one."""
    aside = path.with_name(path.name + ".tmp")
    write(aside)
    with open(aside, "rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
