"""What every script and support module may use: errors, flags, files, signals, work ahead, the
environment.

Nothing here imports another file of the project.
"""
import argparse
import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TextIO

Box = tuple[float, float, float, float]         # x1, y1, x2, y2 in pixels, y downwards
ABSENT = "there is none"        # the answer to a request for boxes of what is not in the picture


class UserError(Exception):
    """Something the user can mend: one line that names the file or flag and says what to do.

    Every script prints it and ends with exit code 2. Its text may hold parts of a foreign file: it
    is shown in one line of at most MAX_MESSAGE letters, all of which can be written.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), MAX_MESSAGE)


# ---- flags ---------------------------------------------------------------------------------------

def option(default, text: str, **more):
    """A field of a config dataclass that becomes a flag with the help `text`.

    more: `choices`, `nargs`, `metavar`, `type` and `action` as argparse takes them (`type=bool` for
    a bool whose default is None), `positional=True`, `aliases=("-n",)` for more names of the flag,
    `is_shipped=True` where the default names a file of this repository (see `shipped`), and
    `default_text` where the help should show something else than the default.
    """
    return dataclasses.field(default=default, metadata={"help": text, **more})


def make_parser(config: type, description: str) -> argparse.ArgumentParser:
    """A dataclass -> a parser with a flag for each field, accepted with `_` and with `-`.

    A bool becomes --x/--no-x, a tuple takes one value or more, other types are the default's own.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(config):
        more, default = dict(field.metadata), field.default
        more.pop("is_shipped", None)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        shown = more.pop("default_text", shown)
        text = more.pop("help") + (f" (default: {shown})" if shown not in ("", None) else "")
        names = dict.fromkeys([f"--{field.name}", f"--{field.name.replace('_', '-')}",
                               *more.pop("aliases", ())])
        if isinstance(default, bool) or more.get("type") is bool:
            more.pop("type", None)
            more["action"] = argparse.BooleanOptionalAction
        else:
            more.setdefault("type", str if isinstance(default, tuple | None) else type(default))
            if isinstance(default, tuple) and "action" not in more:
                more.setdefault("nargs", "+")
        if more.pop("positional", False):
            names = [field.name]
        parser.add_argument(*names, help=text.replace("%", "%%"), default=None, **more)
    return parser


def given_flags(config: type, argv: Sequence[str] | None, description: str) -> dict:
    """-> the fields that the command line names, and no defaults but those of shipped files that
    are not named so in the current folder."""
    argv = [re.sub("^--no_", "--no-", word) for word in (sys.argv[1:] if argv is None else argv)]
    flags = vars(make_parser(config, description).parse_args(argv))
    elsewhere = {field.name: shipped(field.default) for field in dataclasses.fields(config)
                 if field.metadata.get("is_shipped") and shipped(field.default) != field.default}
    return elsewhere | {name: tuple(value) if isinstance(value, list) else value
                        for name, value in flags.items() if value is not None}


def shipped(path: str) -> str:
    """A file or folder of this repository by its name there, as weights/nano; by its whole path
    where the current folder has none of this name, for a command that is run from elsewhere."""
    return path if Path(path).exists() else str(Path(__file__).resolve().parents[1] / path)


def parse_config(config: type, argv: Sequence[str] | None, description: str):
    """-> an instance of the dataclass `config`, filled from the command line."""
    return config(**given_flags(config, argv, description))


def in_range(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """A `type` for argparse: a number of this kind, int or float, from low to high."""
    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            limits = f"at least {low}" if high == math.inf else f"from {low} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text}: must be {limits}")
        return value

    number.__name__ = kind.__name__             # argparse names it: "invalid int value"
    return number


def differences(saved: dict, now: dict, ignored: Collection[str] = ()) -> list[str]:
    """-> "lr 0.001 -> 0.002" for each setting that differs; one that is missing is (none)."""
    lines = []
    for key in now | saved:
        old, new = (setting_text(settings.get(key, "(none)")) for settings in (saved, now))
        if key not in ignored and old != new:
            lines.append(f"{key} {old} -> {new}")
    return lines


def setting_text(value: object) -> str:
    """Lists and tuples alike, as on the command line."""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text or "(empty)"


# ---- files ---------------------------------------------------------------------------------------

MAX_JSON_DEPTH = 100            # lists and objects inside each other; real files have about five


def read_bytes(file: Path) -> bytes:
    """UserError, OSError: as require_regular_file."""
    require_regular_file(file)
    return file.read_bytes()


def hash_file(file: Path) -> str:
    """What `sha256sum` prints."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")     # the byte-order marks of UTF-16


def read_text(file: Path) -> str:
    """UTF-8, with a byte-order mark or without, line breaks as they are. UserError where it is in
    another encoding or no regular file; OSError where it cannot be opened."""
    content = read_bytes(file)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encodings = "UTF-16" if content.startswith(UTF_16_MARKS) else "WINDOWS-1252 or GBK"
        raise UserError(f"{file}: line {line} is not UTF-8; convert the file from what it was "
                        f"saved in ({encodings}?), as in: iconv -f {encodings.split()[0]} -t UTF-8"
                        ) from None


def split_lines(text: str) -> list[str]:
    """The lines of a text file, which end in \\n or \\r\\n and in nothing else: captions may hold
    U+2028, U+0085 or a form feed."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def parse_json(text: str | bytes):
    """ValueError, in one line: it is not JSON, or lists in it are too deep inside each other."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"over {MAX_JSON_DEPTH} lists or objects inside each other") from None
    except MemoryError:
        raise ValueError("too large for this machine's memory") from None
    check_depth(value)
    return value


def check_depth(value: object) -> None:
    """ValueError: over MAX_JSON_DEPTH lists or objects inside each other."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(MAX_JSON_DEPTH):
        level = [item for outer in level
                 for item in (outer.values() if isinstance(outer, dict) else outer)
                 if isinstance(item, list | dict)]
        if not level:
            return
    raise ValueError(f"over {MAX_JSON_DEPTH} lists or objects inside each other")


def read_json(file: Path):
    """UserError where it is not JSON, or no regular file; OSError where it cannot be opened."""
    try:
        return parse_json(read_text(file))
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None


NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
MAX_NAME_SHOWN = 1000               # letters of a name in a message
MAX_MESSAGE = 4000


def printable(name: object, most: int = MAX_NAME_SHOWN) -> str:
    """A file's name, or other foreign text, for a message: on one line, in letters that can be
    written. The middle of one of over `most` letters is left out."""
    text = NOT_PRINTABLE.sub(lambda match: repr(match[0])[1:-1], str(name))
    return text if len(text) <= most else f"{text[:most // 2]} .. {text[-most // 2:]}"


def without_surrogates(text: str) -> str:
    """With ? in place of lone surrogates, which no encoding can write."""
    return text.encode("utf-8", "replace").decode()


FILE_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
              stat.S_IFBLK: "a device"}


def require_regular_file(path: str | Path) -> None:
    """To be called before a file is opened: to open or read a FIFO, a device or a socket may never
    end. UserError: it is one of these, or no file can have this name. OSError: no such file, a
    folder, or not to be looked at."""
    try:
        mode = os.stat(path).st_mode
    except ValueError:                          # a NUL or a lone surrogate
        raise UserError(f"{printable(path)}: no file can have this name") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = FILE_KINDS.get(stat.S_IFMT(mode), "a special file")
        raise UserError(f"{printable(path)}: {kind}, not a file; it is not opened")


def failed_download(head: bytes) -> str:
    """From a file's first 200 bytes: what an unfinished download left instead of it, or ""."""
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer: run git lfs pull"
    if head.lstrip().startswith(b"<"):
        return "a web page: the download failed"
    return ""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary name, flush, rename: a reader sees the old file or the new one.

    Whatever writes it, the file gets the permissions of the user's umask. OSError names `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        permissions = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(stat.S_IMODE(permissions))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or str(error.filename) != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


# ---- one run a folder ----------------------------------------------------------------------------

class FolderLock:
    """`with FolderLock(folder):` no other run uses this folder. It is made if it is missing.

    The file run.lock in it names the process and its host. The kernel holds the lock as long as the
    process lives, however it ends; one that was left behind is told and taken over. UserError:
    another process holds it, or one of another machine may. OSError: the folder cannot be written.
    """
    def __init__(self, folder: Path):
        self.file, self.descriptor = Path(folder) / "run.lock", -1

    def __enter__(self) -> "FolderLock":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self.descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                self.take_over()
                if os.path.exists(self.file) and os.path.samestat(
                        os.fstat(self.descriptor), os.stat(self.file)):
                    return self
            except BaseException:
                os.close(self.descriptor)
                raise
            os.close(self.descriptor)           # its owner has just ended and removed the file

    def take_over(self) -> None:
        held = False
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:                # of a file system without locks the text must do
            held = error.errno in (errno.EACCES, errno.EAGAIN)
        owner = printable(os.read(self.descriptor, 500).decode("utf-8", "replace").strip())
        host = platform.node()
        if held:
            raise UserError(f"{self.file.parent}: another run uses it ({owner or 'just begun'}); "
                            "wait for its end, or name another --output_dir")
        if owner and not owner.endswith(f" on {host}"):
            raise UserError(f"{self.file}: a run on another machine may still use the folder "
                            f"({owner}); delete this file if that run has ended")
        if owner:
            print(f"{self.file}: left behind by a run that has ended ({owner}); taken over",
                  file=sys.stderr)
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"process {os.getpid()} on {host}\n".encode(), 0)

    def __exit__(self, *_) -> None:
        self.file.unlink(missing_ok=True)
        os.close(self.descriptor)


def lock_file(file: int | TextIO, name: Path, other: str) -> None:
    """While the file stays open no other process can lock it. UserError: another one has; `other`:
    what can be named instead."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{name}: another run is writing it; wait for its end, or name another "
                        f"{other}") from None


# ---- signals -------------------------------------------------------------------------------------

class GracefulStop:
    """`with GracefulStop() as stop:` the first SIGINT or SIGTERM sets `stop.signal`, and a second
    one ends the process at once. Outside the main thread it does nothing."""
    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    MESSAGE = b"\nfinishing the step, then saving; once more to quit without saving\n"

    def __init__(self, quiet: bool = False):
        self.signal, self.quiet, self.pid = 0, quiet, os.getpid()
        self.previous: dict = {}

    @property
    def code(self) -> int:
        """The exit code: 130 or 143; 0 where there was no signal."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self.handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:             # a loader process: its parent decides on Ctrl-C
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        self.signal = number
        for other in self.SIGNALS:              # from now on the kernel ends the process, even in
            signal.signal(other, signal.SIG_DFL)        # the middle of a long matrix product
        os.write(2, b"" if self.quiet else self.MESSAGE)


# ---- work ahead ----------------------------------------------------------------------------------

def load_ahead(items: Iterable) -> Iterator:
    """The same items; a thread makes the next one while one is used."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item


# ---- where a run takes place ---------------------------------------------------------------------

def environment(device: str = "auto", packages: Sequence[str] = ()) -> dict:
    """-> commit, versions of Python, PyTorch and the packages, name of the device."""
    import torch
    return {"commit": commit(), "python": platform.python_version(),
            "torch": str(torch.__version__), **{name: version(name) for name in packages},
            "device": device_name(device)}


def commit() -> str:
    """7d1560d; 7d1560d+changes where files differ; "" where there is no repository."""
    try:
        done = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always",
                               "--dirty=+changes"], capture_output=True, text=True, timeout=5)
        return done.stdout.strip() if done.returncode == 0 else ""
    except (OSError, subprocess.SubprocessError):       # no git, or a disk that does not answer
        return ""


def is_installed(package: str) -> bool:
    """A mere folder of that name, such as W&B leaves behind, is not a package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def find_device(name: str):
    """-> the torch.device; "auto": a GPU where there is one. UserError: no such device."""
    import torch
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None


def device_name(device: str) -> str:
    """The GPU's name; or the processor's, as Linux gives it."""
    import torch
    if device == "auto" or device.startswith("cuda"):
        if torch.cuda.is_available():
            return torch.cuda.get_device_name(None if device == "auto" else device)
    elif device != "cpu":
        return device
    table = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", table.read_text()) if table.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


MEMORY_ADVICE = ("what helps: a smaller --batch_size with more --grad_accum; --grad_checkpoint; "
                 "fewer --questions_per_image; --dtype bf16; --bits 8")


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU, or of the machine itself."""
    import torch
    message = bool(re.search("out of memory|DefaultCPUAllocator: ", str(error)))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and message)


def explain_out_of_memory(error: BaseException, device: str) -> str:
    """One line: what was requested, what was in use, and the flags that help."""
    import torch
    requested = re.search(r"tried to allocate ([\d.,]+ ?\w+)", str(error), re.IGNORECASE)
    if device.startswith("cuda") and torch.cuda.is_available():
        used = (f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB allocated, "
                f"{torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB reserved")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used = f"the process used {peak / (1e9 if sys.platform == 'darwin' else 1e6):.1f} GB"
    wanted = f"{requested[1]} more requested; " if requested else ""
    return f"out of memory on {device}: {wanted}{used} at most; {MEMORY_ADVICE}"
