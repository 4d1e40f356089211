"""What the terminal can do, and the lines that come from it."""
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping


def tell(text: str) -> None:
    """What is no answer goes beside the answers."""
    print(text, file=sys.stderr, flush=True)


def prepare() -> None:
    """What the terminal's encoding has no letter for becomes a replacement, not an error."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None:                          # None: closed
            stream.reconfigure(errors="replace")


def is_live() -> bool:
    """Whether a person sits there: questions come from a terminal, answers go to one."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def shows_color(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal says that it has 24-bit color and UTF-8."""
    told = [environment.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    locale = next(filter(None, told), "").lower().replace("-", "")
    return (sys.stdout is not None and sys.stdout.isatty()
            and sys.stdout.encoding.lower().replace("-", "") == "utf8" and "utf8" in locale
            and environment.get("COLORTERM") in ("truecolor", "24bit")
            and environment.get("TERM", "dumb") != "dumb")


def edit_lines() -> None:
    """Arrow keys, and the questions of this session again, where the platform has readline."""
    if importlib.util.find_spec("readline"):
        importlib.import_module("readline")


def piped() -> Iterator[str]:
    """The lines of a pipe or a file, none if the input is closed."""
    if sys.stdin is not None and sys.stdin.isatty():
        tell("a question a line, Ctrl-D at the end")
    for line in sys.stdin or ():
        if line.strip():
            yield line.strip()


def discard_output() -> None:
    """After the reader of a pipe has left: what is still to be written goes nowhere, silently."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
