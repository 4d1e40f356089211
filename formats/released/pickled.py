"""Files of torch.save, .pth and .bin: mapped, and nothing in them unpickled but tensors."""
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from formats.released.checks import check_download
from formats.released.tensors import ModelError


class Pickled:
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
