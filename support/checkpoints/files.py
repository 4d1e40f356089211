"""support/checkpoints/files.py"""
import json
import math
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

from support.common import UserError, write_atomic

# ---- kept ----------------------------------------------------------------------------------------
# How a weight is kept: in which type, and the copy of it in that type.

CAST_BLOCK = 1 << 17     # numbers that are float32 at once; more glibc gives back each time, and faults


def storage_dtype(name: str, dtype: torch.dtype | None) -> torch.dtype | None:
    """LoRA stays in float32: the steps of training are too small for 16 bits."""
    return torch.float32 if ".lora_" in name else dtype


def cast_copy(x: Tensor, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    """x.to(device, dtype, copy=True), on a CPU by way of float32: torch has no other fast way from
    float16 to bfloat16. No number changes by it."""
    if x.dtype != torch.float16 or dtype != torch.bfloat16 or torch.device(device).type != "cpu":
        return x.to(device, dtype, copy=True)
    y = torch.empty(x.shape, dtype=dtype)
    for part, own in zip(y.view(-1).split(CAST_BLOCK), x.flatten().split(CAST_BLOCK), strict=True):
        part.copy_(own.float())
    return y


# ---- tensors -------------------------------------------------------------------------------------
# Tensors that still lie in a file, and a model filled with them, strictly.

class ModelError(UserError):
    """Weights that cannot be used: a line that names the file and what to do."""


@dataclass(frozen=True)
class LazyTensor:
    """`read` fetches the tensor at every call, and nobody keeps it."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def then(self, shape: Iterable[int], change: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """The tensor that `change` makes of this one."""
        return LazyTensor(tuple(shape), lambda: change(self.read()))


def in_memory(tensors: dict[str, Tensor]) -> dict[str, LazyTensor]:
    """Tensors that are in memory already."""
    return {name: LazyTensor(tuple(tensor.shape), lambda tensor=tensor: tensor)
            for name, tensor in tensors.items()}


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_names_and_shapes(place: str | Path, wanted: dict[str, tuple[int, ...]], found: dict[str, LazyTensor]) -> None:
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


def load_strict(model: nn.Module, found: dict[str, LazyTensor], place: str | Path, device: str,
         dtype: torch.dtype) -> nn.Module:
    """Give a model on the meta device its weights, one after the other: each is in memory once."""
    check_names_and_shapes(place, tensor_shapes(model), found)
    state = {name: cast_copy(stored.read(), device, storage_dtype(name, dtype))
             for name, stored in found.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


# ---- checks --------------------------------------------------------------------------------------
# What can be wrong with a downloaded file, told before a tensor is read.

def check_download(file: Path) -> None:
    """Missing, empty, a git-lfs pointer, a web page: what a failed download leaves behind."""
    if not file.is_file():
        raise ModelError(f"{file}: no such file; the download is not complete")
    with open(file, "rb") as opened:
        head = opened.read(200)
    if not head:
        raise ModelError(f"{file}: empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"{file}: a git-lfs pointer and not the weights; run git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise ModelError(f"{file}: a web page and not the weights; download it again")


def check_safetensors(file: Path) -> None:
    """A safetensors file is there, and as long as its header says."""
    check_download(file)
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size, 100 << 20):
            raise ModelError(f"{file}: not a safetensors file, or cut off; download it again")
        try:
            entries = json.loads(opened.read(length)).items()
            told = max((e["data_offsets"][1] for name, e in entries if name != "__metadata__"),
                       default=0)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ModelError(f"{file}: not a safetensors file; download it again") from None
    if size != 8 + length + told:
        raise ModelError(f"{file}: {size:,} bytes, it should have {8 + length + told:,}; "
                         "the download was interrupted, do it again")


def read_json(file: Path) -> dict:
    if not file.is_file():
        raise ModelError(f"{file}: no such file; the download is not complete")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: a JSON object is expected")
    return content


def require_empty(folder: Path) -> None:
    """A model is written where nothing is."""
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ModelError(f"{folder}: there is something already; name another folder with --out")


# ---- pickled -------------------------------------------------------------------------------------
# Files of torch.save, .pth and .bin: mapped, and nothing in them unpickled but tensors.

class PickledFile:
    """A file of torch.save. Its mapping is renewed after each GiB read."""

    def __init__(self, file: Path):
        check_download(file)
        self.file, self.read_bytes = file, 0
        self.tensors = self.load()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def load(self) -> dict[str, Tensor]:
        content = load_pickled(self.file)
        content = content.get("model", content)     # of a training: the optimizer's state beside it
        if not all(isinstance(tensor, Tensor) for tensor in content.values()):
            raise ModelError(f"{self.file}: holds {', '.join(map(str, content))[:80]}; tensors are "
                             "expected, by name or under 'model'")
        return content

    def read(self, name: str) -> Tensor:
        if self.read_bytes > 1 << 30:
            self.tensors, self.read_bytes = self.load(), 0
        self.read_bytes += self.tensors[name].nbytes
        return self.tensors[name]


def load_pickled(file: Path) -> dict:
    """What torch.save wrote, mapped; ModelError where there is more in it than tensors."""
    check_download(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True,
                             mmap=zipfile.is_zipfile(file))
    except Exception as error:                          # what is no pickle can fail in any way
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would run {code[1]}" if code else "damaged, or cut off"
        raise ModelError(f"{file}: not loaded, {reason}; a file of tensors is expected") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: a dict of tensors is expected, not {type(content).__name__}")
    return content


# ---- files ---------------------------------------------------------------------------------------
# Weight files as they are published: .safetensors, .pth and .bin, alone or in shards.
#
# A tensor is read when its turn comes, from a mapping that is closed again: pages that were read
# stay in memory as long as their mapping.

WEIGHT_FILES = {"*.safetensors": "model.safetensors.index.json",
         "pytorch_model*.bin": "pytorch_model.bin.index.json", "consolidated.*.pth": "none"}


def open_checkpoint(place: str | Path) -> dict[str, LazyTensor]:
    """A weight file, or all of a folder's -> its tensors by name. Raises ModelError."""
    files = [(SafetensorsFile if path.suffix == ".safetensors" else PickledFile)(path)
             for path in weight_files(Path(place))]
    return {name: LazyTensor(shape, lambda file=file, name=name: file.read(name))
            for file in files for name, shape in file.shapes.items()}


def weight_files(place: Path) -> list[Path]:
    """All that an index names, or else what is there: safetensors before pickles."""
    for pattern, index in WEIGHT_FILES.items():
        if (place / index).is_file():
            shards = sorted(set(read_json(place / index).get("weight_map", {}).values()))
            return [place / Path(shard).name for shard in shards]
        if found := sorted(place.glob(pattern)):
            return found
    return [place]


class SafetensorsFile:
    def __init__(self, file: Path):
        check_safetensors(file)
        self.file = file
        try:
            with safe_open(file, "pt") as f:
                self.shapes = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}
        except SafetensorError as error:
            raise ModelError(f"{file}: not a safetensors file ({error})") from None

    def read(self, name: str) -> Tensor:
        with safe_open(self.file, "pt") as f:
            return f.get_tensor(name)


# ---- shards --------------------------------------------------------------------------------------
# Tensors -> .safetensors files of at most 2 GiB in 16 bits, written one after the other.

SHARD_NUMEL = 1 << 30             # numbers in a file


def write_shards(folder: Path, stem: str, tensors: dict[str, LazyTensor],
                 dtype: torch.dtype | None = None) -> None:
    """STEM.safetensors; or shards, and the index that names the shard of each tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, size, place = list(split_into_shards(tensors)), 0, {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        file = file if len(shards) > 1 else f"{stem}.safetensors"
        own = {name: tensors[name].read().to("cpu", storage_dtype(name, dtype)).contiguous()
               for name in names}
        if low := [name for name, t in own.items() if type(t) not in (Tensor, nn.Parameter)]:
            raise ModelError(f"{folder}: {low[0]} is in 8 or 4 bits, or packed for inference; save "
                             "the model as it is loaded without --bits")
        need, free = sum(t.nbytes for t in own.values()), shutil.disk_usage(folder).free
        if need > free:
            raise ModelError(f"{folder / file}: {need:,} bytes to write, {free:,} free")
        write_atomic(folder / file, lambda path, own=own: save_file(own, path, {"format": "pt"}))
        size, place = size + need, place | dict.fromkeys(names, file)
    if len(shards) == 1:
        return
    write_json(folder / f"{stem}.safetensors.index.json",
               {"metadata": {"total_size": size}, "weight_map": place})


def split_into_shards(tensors: dict[str, LazyTensor]) -> Iterator[list[str]]:
    """The names, in runs of at most SHARD numbers."""
    run, size = [], 0
    for name, stored in tensors.items():
        if run and size + math.prod(stored.shape) > SHARD_NUMEL:
            yield run
            run, size = [], 0
        run.append(name)
        size += math.prod(stored.shape)
    yield run


def write_json(file: Path, told: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, lambda path: path.write_text(json.dumps(told, indent=2) + "\n"))
