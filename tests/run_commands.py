"""Runs commands of this repository one after the other, each in a process of its own.

    python tests/run_commands.py FOLDER < commands.jsonl

A line is {"command": "python eval.py --data x > y"}, run in FOLDER, which holds the scripts; the
answer is a line too, {"code": 0, "output": .., "seconds": of CPU time}. PyTorch is imported once:
every process is a fork of this one, and begins as `python SCRIPT` does.

The environment's SKYEYE_SHORTER shortens what takes long: {"train.py": "--max_steps 2"} puts these
flags behind those of every such script; those of "torchrun" go in front of its script. The encoder
of a released model has the size of the tests' own.
"""
import importlib
import json
import os
import runpy
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny  # noqa: E402
import vit  # noqa: E402

SHORTER = {name: flags.split()
           for name, flags in json.loads(os.environ.get("SKYEYE_SHORTER", "{}")).items()}
REDIRECTIONS = {"<": (0, os.O_RDONLY), ">": (1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)}


def start(command: str) -> None:
    """Become the process of this command."""
    words = shlex.split(command, comments=True)
    while "=" in words[0]:                              # variables before the program
        name, _, value = words.pop(0).partition("=")
        os.environ[name] = value
    while len(words) > 2 and words[-2] in REDIRECTIONS:
        number, flags = REDIRECTIONS[words[-2]]
        os.dup2(os.open(words[-1], flags, 0o666), number)
        words = words[:-2]
    sys.stdin = open(0, closefd=False)                  # this process has read from its own
    program, *words = words
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, arguments = words[at], words[at + 1:] + SHORTER.get(words[at], [])
    if program == "torchrun":
        from torch.distributed.run import main
        main([*words[:at], *SHORTER.get("torchrun", []), script, *arguments])
    elif program == "python" and not at:
        sys.argv = [script, *arguments]
        sys.path[0] = str(Path(script).resolve().parent)
        runpy.run_path(script, run_name="__main__")
    else:
        raise SystemExit(f"{program}: neither python nor torchrun")


def run(command: str, folder: str) -> dict:
    """-> exit code, what it wrote to the terminal, and its CPU time."""
    with tempfile.TemporaryFile() as screen:
        child = os.fork()
        if not child:
            code = 1
            try:
                os.chdir(folder)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(screen.fileno(), 1)
                os.dup2(screen.fileno(), 2)
                start(command)
                code = 0
            except SystemExit as leave:
                code = leave.code if isinstance(leave.code, int) else int(bool(leave.code))
                if isinstance(leave.code, str):
                    print(leave.code, file=sys.stderr)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status, used = os.wait4(child, 0)
        screen.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "seconds": used.ru_utime + used.ru_stime,
                "output": screen.read().decode("utf-8", "replace")}


def main() -> None:
    for name in ("train", "eval", "chat", "support.tools.check_data", "support.tools.convert"):
        importlib.import_module(name)
    vit.PRESETS["eva_vit_g"] = tiny.VIT
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line)["command"], sys.argv[1])), flush=True)


if __name__ == "__main__":
    main()
