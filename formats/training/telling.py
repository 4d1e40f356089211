"""Where a run takes place, and what its memory did when it ran out."""
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

SMALLER = ("smaller: --batch_size, with more --grad_accum; --grad_checkpoint; fewer "
           "--questions_per_image; --dtype bf16; --bits 8")


def environment(device: str = "auto") -> dict:
    """-> commit, versions of python and torch, name of the device."""
    return {"commit": commit(), "python": platform.python_version(),
            "torch": str(torch.__version__), "device": device_name(device)}


def commit() -> str:
    """7d1560d, 7d1560d+changes where files differ, "" where there is no repository."""
    try:
        told = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always",
                               "--dirty=+changes"], capture_output=True, text=True, timeout=5)
        return told.stdout.strip() if told.returncode == 0 else ""
    except (OSError, subprocess.SubprocessError):       # no git, or a disk that does not answer
        return ""


def device_name(device: str) -> str:
    """The graphics card; or the processor, by what Linux calls it."""
    if device == "auto" or device.startswith("cuda"):
        if torch.cuda.is_available():
            return torch.cuda.get_device_name(None if device == "auto" else device)
    elif device != "cpu":
        return device
    table = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", table.read_text()) if table.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def is_out_of_memory(error: BaseException) -> bool:
    """Of a graphics card, or of the machine itself."""
    said = bool(re.search("out of memory|DefaultCPUAllocator: ", str(error)))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and said)


def explain_memory(error: BaseException, device: str) -> str:
    """One line: what was asked for, what was held, and the flags that help."""
    asked = re.search(r"tried to allocate ([\d.,]+ ?\w+)", str(error), re.IGNORECASE)
    if device.startswith("cuda") and torch.cuda.is_available():
        held = (f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB allocated, "
                f"{torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB reserved")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        held = f"the process held {peak / (1e9 if sys.platform == 'darwin' else 1e6):.1f} GB"
    wanted = f"{asked[1]} more asked for; " if asked else ""
    return f"out of memory on {device}: {wanted}{held} at most; {SMALLER}"
