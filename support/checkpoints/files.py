"""Weight files: opened one tensor at a time, loaded strictly, written in shards.

Read are .safetensors and what torch.save wrote (.pth, .bin; only tensors are unpickled), alone or
in shards. `open_checkpoint` gives the names and shapes at once; a tensor's values are read when its
turn comes, from a mapping of the file that is closed again: pages that were read stay in memory as
long as their mapping. So a model of 14 GB is loaded, converted or written in little more memory
than it takes itself.
"""
import errno
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from support import common
from support.common import UserError, failed_download, write_atomic


class ModelError(UserError):
    """Weights that cannot be used: one line that names the file and says what to do."""


# ---- lazy tensors --------------------------------------------------------------------------------

@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose shape is known; `read` fetches its values anew at every call."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def map(self, shape: Iterable[int], function: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """function(this tensor), which has that shape, computed when it is read."""
        return LazyTensor(tuple(shape), lambda: function(self.read()))


def in_memory(tensors: dict[str, Tensor]) -> dict[str, LazyTensor]:
    """Tensors that are in memory already, as lazy ones."""
    return {name: LazyTensor(tuple(tensor.shape), lambda tensor=tensor: tensor)
            for name, tensor in tensors.items()}


# ---- opening files -------------------------------------------------------------------------------

# Weights of a folder -> the index that names their shards.
WEIGHT_FILES = {"*.safetensors": "model.safetensors.index.json",
                "pytorch_model*.bin": "pytorch_model.bin.index.json",
                "consolidated.*.pth": "none"}


def open_checkpoint(place: str | Path) -> dict[str, LazyTensor]:
    """A weight file, or all of a folder's -> its tensors by name. ModelError."""
    tensors = {}
    for path in weight_files(Path(place)):
        file = SafetensorsFile(path) if path.suffix == ".safetensors" else PickledFile(path)
        for name, shape in file.shapes.items():
            tensors[name] = LazyTensor(shape, lambda file=file, name=name: file.read(name))
    return tensors


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """The sorted files whose names fit a pattern; not ._NAME, which a Mac leaves beside a NAME."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def weight_files(place: Path) -> list[Path]:
    """Those that a folder's index names, or else those there are: safetensors before pickles."""
    for pattern, index in WEIGHT_FILES.items():
        if (place / index).is_file():
            return [place / name for name in index_files(place / index)]
        found = visible_files(place, pattern)
        if found:
            return found
    return [place]


def index_files(index: Path) -> list[str]:
    """The shards that an index names, without folders: never outside its own. ModelError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(
            isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{index}: no weight_map of names to files")
    for name in filter(unusable_name, weight_map.values()):
        raise ModelError(f"{index}: names {name[:80]}, which is no file's name")
    return sorted({Path(name).name for name in weight_map.values()})


def unusable_name(name: str) -> bool:
    """Whether the system cannot even look for a file or folder of this name."""
    if not name:
        return True
    try:
        os.stat(name)
    except (ValueError, OSError) as error:      # a NUL, a lone surrogate; too long
        return isinstance(error, ValueError) or error.errno in (errno.ENAMETOOLONG, errno.EINVAL)
    return False


def path_between(folder: Path, place: str | Path) -> str:
    """The path of `place` from a folder: what is given away names no folder of this machine that
    both are in."""
    return os.path.relpath(Path(place).resolve(), folder.resolve())


class SafetensorsFile:
    def __init__(self, path: Path):
        check_safetensors(path)
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                self.shapes = {name: tuple(file.get_slice(name).get_shape())
                               for name in file.keys()}
        except SafetensorError as error:
            raise ModelError(f"{path}: not a safetensors file ({error})") from None

    def read(self, name: str) -> Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)


class PickledFile:
    """What torch.save wrote: tensors by name, at the top or under "model"."""
    REMAP_AFTER = 1 << 30           # bytes read, after which the file is mapped anew: frees memory

    def __init__(self, path: Path):
        check_download(path)
        self.path, self.read_bytes = path, 0
        self.tensors = self.map_tensors()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def map_tensors(self) -> dict[str, Tensor]:
        content = load_pickled(self.path)
        content = content.get("model", content)     # a training run stores its optimizer beside it
        if not all(isinstance(tensor, Tensor) for tensor in content.values()):
            raise ModelError(f"{self.path}: holds {', '.join(map(str, content))[:80]}; tensors are "
                             "expected, by name or under 'model'")
        return content

    def read(self, name: str) -> Tensor:
        if self.read_bytes > self.REMAP_AFTER:
            self.tensors, self.read_bytes = self.map_tensors(), 0
        self.read_bytes += self.tensors[name].nbytes
        return self.tensors[name]


def load_pickled(path: Path) -> dict:
    """The dict that torch.save wrote, mapped. ModelError where it holds more than plain data."""
    check_download(path)
    check_inflation(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=can_map(path))
    except Exception as error:                          # what is no pickle can fail in any way
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would run {code[1]}" if code else "damaged, or cut off"
        raise ModelError(f"{path}: not loaded, {reason}; a file of tensors is expected") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a dict of tensors is expected, not {type(content).__name__}")
    return content


MAX_INFLATION = 20              # how much more than the file what is in it may be, beyond
HARMLESS_BYTES = 1e9            # so much


def check_inflation(path: Path) -> None:
    """ModelError for a zip file that was compressed again and unpacks to far more than its size, or
    is damaged."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as file:
                unpacked = sum(entry.file_size for entry in file.infolist())
        except zipfile.BadZipFile:
            raise ModelError(f"{path}: not loaded, damaged, or cut off; a file of tensors is "
                             "expected") from None
        if unpacked > max(HARMLESS_BYTES, MAX_INFLATION * path.stat().st_size):
            raise ModelError(f"{path}: not loaded, it would unpack to {unpacked / 1e9:,.1f} GB, "
                             f"{unpacked / path.stat().st_size:,.0f} times its size")


def can_map(path: Path) -> bool:
    """Whether the tensors lie in a zip file as they are; in one that was compressed again, a
    mapping would show the compressed bytes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())


# ---- incomplete downloads ------------------------------------------------------------------------

def require_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; the download is not complete")


def check_download(path: Path) -> None:
    """ModelError for what a failed download leaves behind: nothing, a pointer, a web page."""
    require_file(path)
    with open(path, "rb") as file:
        if reason := failed_download(file.read(200)):
            raise ModelError(f"{path}: no weights in it ({reason})")


def check_safetensors(path: Path) -> None:
    """ModelError unless the file is there and as long as its header says."""
    check_download(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > min(size, 100 << 20):
            raise ModelError(f"{path}: not a safetensors file, or cut off; download it again")
        header = file.read(header_size)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items()
                if name != "__metadata__"]
        expected = 8 + header_size + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ModelError(f"{path}: not a safetensors file; download it again") from None
    if size != expected:
        raise ModelError(f"{path}: {size:,} bytes, it should have {expected:,}; "
                         "the download was interrupted, do it again")


def read_json(path: Path) -> dict:
    """A JSON object that came with weights. ModelError."""
    require_file(path)
    try:
        content = common.read_json(path)
    except UserError as error:
        raise ModelError(f"{error}; download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: a JSON object is expected")
    return content


# ---- strict loading ------------------------------------------------------------------------------

def load_strict(model: nn.Module, tensors: dict[str, LazyTensor], place: str | Path, device: str,
                dtype: torch.dtype) -> nn.Module:
    """Fill a model that was built on the meta device: each weight is in memory once.

    place: where the tensors are from, for the ModelError where they do not fit.
    """
    check_names_and_shapes(place, tensor_shapes(model), tensors)
    state = {name: cast_copy(lazy.read(), device, storage_dtype(name, dtype))
             for name, lazy in tensors.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_names_and_shapes(place: str | Path, wanted: dict[str, tuple[int, ...]],
                           found: dict[str, LazyTensor]) -> None:
    """ModelError unless every wanted tensor is there, in its shape, and no other."""
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "mis-shaped": [f"{name} is {list(found[name].shape)}, not {list(shape)}"
                       for name, shape in wanted.items()
                       if name in found and found[name].shape != shape],
    }
    lines = [f"{len(names)} {kind}: {list_some(names)}"
             for kind, names in problems.items() if names]
    if lines:
        raise ModelError(f"{place}: the weights do not fit the model; {'; '.join(lines)}")


def list_some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", .." if len(names) > most else "")


# ---- storage types -------------------------------------------------------------------------------

# Numbers that are converted at once. The memory of larger blocks goes back to the system each time,
# and every page of the next block faults anew.
CAST_BLOCK = 1 << 17


def storage_dtype(name: str, dtype: torch.dtype | None) -> torch.dtype | None:
    """LoRA stays in float32: the steps of training are too small for 16 bits."""
    return torch.float32 if ".lora_" in name else dtype


def cast_copy(x: Tensor, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    """x.to(device, dtype, copy=True); on a CPU from float16 to bfloat16 by way of float32.

    The values are the same, and PyTorch's direct conversion is slow.
    """
    if x.dtype != torch.float16 or dtype != torch.bfloat16 or torch.device(device).type != "cpu":
        return x.to(device, dtype, copy=True)
    y = torch.empty(x.shape, dtype=dtype)
    blocks = zip(y.view(-1).split(CAST_BLOCK), x.flatten().split(CAST_BLOCK), strict=True)
    for target, source in blocks:
        target.copy_(source.float())
    return y


# ---- writing -------------------------------------------------------------------------------------

SHARD_NUMEL = 1 << 30               # numbers in a shard: 2 GiB in 16 bits


def write_shards(folder: Path, stem: str, tensors: dict[str, LazyTensor],
                 dtype: torch.dtype | None = None) -> list[str]:
    """STEM.safetensors; of a large model shards, and the index that names each tensor's shard.

    dtype: of all but the LoRA; None: as they are. -> the names of the files with tensors.
    ModelError: no space, or weights in 8 or 4 bits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(split_into_shards(tensors))
    weight_map, total_size = {}, 0
    for number, names in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        if len(shards) == 1:
            file = f"{stem}.safetensors"
        shard = {name: tensors[name].read().to("cpu", storage_dtype(name, dtype)).contiguous()
                 for name in names}
        write_safetensors(folder / file, shard)
        total_size += sum(tensor.nbytes for tensor in shard.values())
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        write_json(folder / f"{stem}.safetensors.index.json",
                   {"metadata": {"total_size": total_size}, "weight_map": weight_map})
    return list(dict.fromkeys(weight_map.values()))


def split_into_shards(tensors: dict[str, LazyTensor]) -> Iterator[list[str]]:
    """The names in their order, in lists of at most SHARD_NUMEL numbers."""
    shard, numel = [], 0
    for name, lazy in tensors.items():
        if shard and numel + math.prod(lazy.shape) > SHARD_NUMEL:
            yield shard
            shard, numel = [], 0
        shard.append(name)
        numel += math.prod(lazy.shape)
    yield shard


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """ModelError before anything is written: not enough space, or no plain tensors."""
    for name, tensor in tensors.items():
        # Weights in 8 or 4 bits, or packed for a CPU kernel, are Tensor or Parameter subclasses.
        # They have a plain shape and dtype, but no such values in memory that could be written.
        if type(tensor) not in (Tensor, nn.Parameter):
            raise ModelError(f"{path.parent}: {name} is in 8 or 4 bits, or packed for inference; "
                             "save the model as it is loaded without --bits")
    size = sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ModelError(f"{path}: {size:,} bytes to write, {free:,} free")
    write_atomic(path, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def require_empty(folder: Path) -> None:
    """A model is written only where nothing is. ModelError."""
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ModelError(f"{folder}: there is something already; name another folder with --out")
