"""The blocks of README.md and of docs/ run as they are written, one after the other.

The pages come in the README's order, in one folder: what one command writes, the next ones find.
What a reader has to bring, data sets and downloads, is made in small in the same layouts. Long
commands are shortened by SKYEYE_SHORTER (tests/run_commands.py), and by nothing else. A server that
a page starts runs up to the page's end, at a port that is free. Recorded
replies and sessions are compared in test_readme.py.
"""
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

import tiny
from data_folders import write
from downloads import write_downloads
from examples.miniworld import write_world
from test_eval import rsvqa
from test_readme import ROOT, fenced_blocks

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *dict.fromkeys(re.findall(r"\]\((docs/\w+\.md)", README))]
NOT_RUN = {         # how a command begins: why it is not run here
    "pip install": "installs packages, from the network; .ci/run does it",
    "pytest": "these are the tests",
    "python tests/bench_decode.py": "minutes; needs llama.cpp and transformers",
    "python tests/bench_train.py": "minutes; needs transformers and peft",
    "python tests/bench_eval.py": "minutes; needs transformers",
    "python tests/bench_bits.py": "a minute: every example picture at every number of bits",
    "OMP_NUM_THREADS=1 python tests/bench_data.py": "opens a million rows",
    "python tests/bench_build.py": "two minutes",
    "OMP_NUM_THREADS=1 python tests/bench_scenes.py": "minutes; needs rasterio",
    "OMP_NUM_THREADS=1 python tests/bench_serve.py": "two minutes",
    "LMUData=out/vlmevalkit python -m vlmeval.run": "needs VLMEvalKit",
    "OPENAI_API_KEY=none python -m lmms_eval": "needs lmms-eval",
    "python data.py --build out/written": "asks a server; test_building_written.py has one",
    "python tests/full_size.py": "18.5 GB and a quarter of an hour",
    "python tests/gpu.py": "for a GPU; tests/test_gpu.py runs it at tiny sizes",
    "python projector.py --llama llava": "13 GB to download; test_tools_convert.py has small ones",
    "python projector.py --llama vicuna": "13 GB to download; test_tools_convert.py has small ones",
}
SHORTER = {
    "train.py": "--max_steps 2 --batch_size 2 --num_workers 0",
    "examples/teach_encoder.py": "--max_steps 2 --batch_size 2",
    "tests/bench_turns.py": "--pictures 1",
    "tests/measure_attention.py": "--pictures 1",
    "torchrun": "--nproc_per_node 2",
}


# ---- what a reader brings ------------------------------------------------------------------------

def make_checkout(folder: Path) -> None:
    """A clone, in which every command may write."""
    for path in ROOT.iterdir():
        if path.suffix == ".py" or path.name in ("weights", "tests", "support", "requirements.txt"):
            (folder / path.name).symlink_to(path)
    (folder / "examples").mkdir()
    for path in (ROOT / "examples").iterdir():
        if path.is_file():
            (folder / "examples" / path.name).symlink_to(path)


def small_picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(tiny.picture(path.with_suffix(".png"), seed=seed)).save(path)
    if path.suffix != ".png":
        path.with_suffix(".png").unlink()


def make_rsicd(folder: Path) -> None:
    """Captions, scenes and the picture that docs/evaluate.md shows."""
    names = [f"desert_{i}.jpg" for i in range(55)] + ["beach_93.jpg", "beach_94.jpg"]
    splits = ["train"] * 54 + ["test", "val", "val"]
    write(folder / "dataset_rsicd.json", {"images": [
        {"filename": name, "split": split, "sentences": [{"raw": "a sea of sand"}]}
        for name, split in zip(names, splits, strict=True)]})
    write(folder / "scene_classes.json", {name: name.split("_")[0] for name in names})
    for seed, name in enumerate(names):
        small_picture(folder / "RSICD_images" / name, seed)


def make_simd(folder: Path) -> None:
    for i in range(3):
        write(folder / f"Annotations/{i}.xml", f"<annotation><filename>{i}.jpg</filename><object>"
              "<name>car</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax>"
              f"</bndbox><description>the car {i}</description></object></annotation>")
        write(folder / f"{('train', 'val', 'test')[i]}.txt", f"{i}\n")
        small_picture(folder / f"JPEGImages/{i}.jpg", i)


def make_simd_coco(folder: Path) -> None:
    """All objects of the pictures of SIMD."""
    write(folder / "instances.json", {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48}
                   for i in range(3)],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"id": 2 * i + j, "image_id": i, "category_id": 1,
                         "bbox": [1 + 20 * j, 2, 9, 8]} for i in range(3) for j in range(2)]})
    for i in range(3):
        small_picture(folder / f"images/{i}.jpg", i)


def make_data(folder: Path) -> None:
    write_world(folder / "out/miniworld", train=12, val=2, test=4, clips=10, workers=1)
    make_rsicd(folder / "datasets/rsicd")
    make_simd(folder / "datasets/simd_rsvg")
    make_simd_coco(folder / "datasets/simd_coco")
    for i, name in enumerate(("aGrass", "bField")):
        small_picture(folder / f"datasets/rsscn7/{name}/1.jpg", i)
    rsvqa(folder / "datasets/rsvqa_lr")
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a sea"}]
    write(folder / "mine.json", [{"image": name, "conversations": turns}
                                 for name in ("a.jpg", "b.jpg", "c.jpg")])
    for name in ("a.jpg", "b.jpg", "c.jpg", "picture.png", "large.tif", "before.tif", "after.tif"):
        small_picture(folder / name)
    write(folder / "questions.txt", "[vqa] is there a ship ?\n")
    write_downloads(folder)
    (folder / "llama").rename(folder / "Llama-2-7b-chat-hf")


# ---- the commands --------------------------------------------------------------------------------

def block_commands(block: str) -> list[str]:
    """The commands of a block: all of its lines, or those behind `$ `, whose output is below."""
    lines = block.splitlines()
    recorded = [line[2:] for line in lines if line.startswith("$ ")]
    return recorded or [line for line in lines if not line.startswith("#")]


def write_files(block: str, folder: Path) -> None:
    """A block of files, one a line with what it holds."""
    for line in block.splitlines():
        name, _, content = line.partition(" ")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if content:
            with open(folder / name, "a", encoding="utf-8") as file:
                file.write(content.strip() + "\n")
        else:
            small_picture(folder / name)


class Runner:
    """tests/run_commands.py, which is given one command at a time."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/run_commands.py"), str(folder)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={
                **os.environ, "OMP_NUM_THREADS": "1", "SKYEYE_SHORTER": json.dumps(SHORTER)})

    def run(self, command: str) -> dict:
        self.process.stdin.write(json.dumps({"command": command}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class PageServer:
    """What `python chat.py --serve` in a page starts, for the programs below it."""
    ADDRESS = "127.0.0.1:8000"                          # as the pages say it

    def __init__(self, command: str, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, *shlex.split(command)[1:], "--no-open", "--port", str(self.port)],
            cwd=folder, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert any(line == "ready\n" for line in iter(self.process.stderr.readline, ""))

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)
        assert self.process.returncode == 143


def can_import(program: str) -> bool:
    """Whether the packages that a program of a page imports are installed."""
    names = re.findall(r"^(?:from|import) (\w+)", program, re.MULTILINE)
    return all(find_spec(name) for name in names)


COMMAND = re.compile(r"(\w+=\S+ )*(python|torchrun|pytest|pip)\b")
FILE = re.compile(r"[\w-]+(/\S+)?\.\w+( .*)?")


def test_every_block_runs_as_it_is_written_after_those_before_it(tmp_path):
    make_checkout(tmp_path)
    make_data(tmp_path)
    runner, failed, unused = Runner(tmp_path), [], set(NOT_RUN)
    for page in PAGES:
        server = None
        for block in fenced_blocks((ROOT / page).read_text(encoding="utf-8")):
            commands = block_commands(block)
            if block.startswith(">>> "):
                continue                                        # test_tour.py types it
            if all(FILE.fullmatch(line) for line in commands):
                write_files(block, tmp_path)
            elif any(map(COMMAND.match, commands)):
                for command in commands:
                    reason = next((begin for begin in NOT_RUN if command.startswith(begin)), "")
                    unused.discard(reason)
                    if reason:
                        continue
                    if "--serve" in command:
                        server = PageServer(command, tmp_path)
                        continue
                    done = runner.run(command)
                    print(f"{done['seconds']:5.1f} s  {page}: {command}")
                    if done["code"]:
                        failed.append(f"{page}: {command}\n{done['output'][-2000:]}")
            elif block.startswith(("from ", "import ")):
                if not can_import(block):
                    continue
                if server:
                    block = block.replace(PageServer.ADDRESS, f"127.0.0.1:{server.port}")
                subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)
            else:
                is_text = "-->" in block or block.startswith("Scene: ")     # a drawing; a prompt
                assert is_text, f"{page}: neither commands nor files nor a text: {block}"
        if server:
            server.stop()
    runner.process.stdin.close()
    assert not failed, "\n\n".join(failed)
    assert not unused and runner.process.wait(60) == 0
