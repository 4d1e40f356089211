"""Is a checkpoint whole? Told from its files alone."""
import os
import re
from pathlib import Path

import torch

from formats.released.checks import check_size, read_json
from formats.released.tensors import ModelError


def number(path: Path) -> int:
    """N of a folder checkpoint-N; -1 of anything else."""
    found = re.fullmatch(r"checkpoint-([0-9]+)", path.name)
    return int(found[1]) if found and path.is_dir() else -1


def numbered(out: Path) -> list[Path]:
    """Oldest first, torn ones too."""
    return sorted((path for path in out.glob("checkpoint-*") if number(path) >= 0), key=number)


def fault(folder: Path) -> str:
    """What makes a checkpoint torn, in a few words; "" of a whole one. Reads no tensor."""
    try:
        read_json(folder / "config.json")
        check_weights(folder)
    except (ModelError, OSError) as error:
        return " ".join(str(error).replace(f"{folder}{os.sep}", "").split(";")[0].split())
    return check_state(folder / "trainer.pt")


def check_weights(folder: Path) -> None:
    """Every *.safetensors, and each that an index names, is as long as its header says."""
    names = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{index}: no weight_map")
        names |= {Path(str(name)).name for name in places.values()}
    if not names:
        raise ModelError("no *.safetensors")
    for name in sorted(names):
        check_size(folder / name)


def check_state(file: Path) -> str:
    if not file.is_file():
        return f"{file.name}: no such file"
    try:        # many kinds of error: of the zip file, of the pickle in it, of the storages
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        return f"{file.name}: cut off, or not written by torch.save ({type(error).__name__})"
    return ""
