"""Whole scenes: how well, how fast, and in how much memory.

    python tests/bench_scenes.py --quality      detection on a scene, and on single pictures of it
    python tests/bench_scenes.py                tiles a second and memory against the scene's size

--quality draws a scene of the miniature world and asks for the boxes of each kind of thing in it,
in tiles that overlap; then of its windows side by side, each as a picture of its own, whose truth
are the things of which at least half lies in it, cut off at its edge. Printed is the F1 at an IoU
of 0.5, over all kinds.

Without it, 16-bit scenes of growing sides (the same piece of ground, repeated) are asked one
question by chat.py, in a process each, whose seconds of a processor and peak of memory are
printed. rasterio writes and reads them.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import Tokenizer  # noqa: E402
from examples.miniworld import render_scene, write_scene  # noqa: E402
from projector import SkyEyeGPT  # noqa: E402
from support.common import commit  # noqa: E402
from support.inference.generation import pack_if_possible  # noqa: E402
from support.metrics.boxes import match_boxes, precision_recall_f1  # noqa: E402
from support.scenes.answers import TiledScene, TileSettings, scene_question  # noqa: E402
from support.scenes.raster import open_scene  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
LEAST_INSIDE = 0.5


# ---- how well ------------------------------------------------------------------------------------

def clip(box, window):
    """The part of a box in a window, or None where less than half of it is there."""
    x1, y1, x2, y2 = (max(box[0], window[0]), max(box[1], window[1]), min(box[2], window[2]),
                      min(box[3], window[3]))
    whole = (box[2] - box[0]) * (box[3] - box[1])
    inside = max(x2 - x1, 0) * max(y2 - y1, 0)
    return (x1, y1, x2, y2) if inside >= LEAST_INSIDE * whole else None


def count_matches(predicted, true) -> np.ndarray:
    """-> matches, predicted boxes, true boxes."""
    pairs = match_boxes([("", box) for box in predicted], [("", box) for box in true])
    return np.array([len(pairs), len(predicted), len(true)])


def measure_quality(args: argparse.Namespace) -> None:
    with TemporaryDirectory() as folder:
        root = write_scene(Path(folder) / "scene", args.side, args.seed)
        truth = json.loads((root / "scene.json").read_text())["objects"]
        model = pack_if_possible(SkyEyeGPT.from_pretrained(args.model), 16)
        tokenizer = Tokenizer(Path(args.model) / "tokenizer.model", model.config.llama.vocab_size)
        scene = open_scene(str(root / "scene.tif"))
        names = sorted({thing["name"] for thing in truth})
        questions = [scene_question(f"[detection] {name}s") for name in names]
        sampling = {"max_new_tokens": 300, "stop": tokenizer.eos, "temperature": 0.0, "top_p": 1.0,
                    "top_k": 0, "repetition_penalty": 1.0}
        print(f"{args.side} x {args.side} pixels, {len(truth)} things, tiles of {args.tiles}, "
              f"{args.overlap} in common; commit {commit()}")
        totals = {}
        for label, overlap in (("scene", args.overlap), ("single pictures", 0)):
            tiled = TiledScene(model, tokenizer, [scene], TileSettings(args.tiles, overlap),
                               sampling)
            answers = tiled.ask(questions, {}, lambda answers: None)
            total = np.zeros(3)
            for number, (name, answer) in enumerate(zip(
                    names, tiled.put_together(questions, answers), strict=True)):
                true = [tuple(thing["box"]) for thing in truth if thing["name"] == name]
                if label == "scene":
                    own = count_matches([found.box for found in answer.boxes], true)
                else:
                    own = np.zeros(3)
                    for tile in tiled.tiles:
                        parts = [part for box in true if (part := clip(box, tile.window))]
                        boxes = [row[1:5] for row in answers[tile.number][number]["boxes"]]
                        own += count_matches(boxes, parts)
                total += own
                print_scores(f"{label}, {name}", own)
            totals[label] = precision_recall_f1(total)[2]
            print_scores(f"{label}, all", total)
        print(f"F1 of the scene over F1 of single pictures: "
              f"{totals['scene'] / totals['single pictures']:.3f}")


def print_scores(label: str, sums: np.ndarray) -> None:
    precision, recall, f1 = 100 * precision_recall_f1(sums)
    print(f"{label}: precision {precision:.1f}, recall {recall:.1f}, F1 {f1:.1f} "
          f"({sums[0]:.0f} of {sums[2]:.0f} things, {sums[1]:.0f} boxes)", flush=True)


# ---- how fast ------------------------------------------------------------------------------------

PIECE = 2048                    # pixels a side of the ground that is repeated


def write_large(file: Path, side: int, piece: np.ndarray) -> None:
    """A GeoTIFF of 16 bits and three bands, in tiles, compressed."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window
    with rasterio.open(file, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint16",
                       crs="EPSG:32633", transform=from_origin(5e5, 5.4e6, 0.25, 0.25), tiled=True,
                       blockxsize=512, blockysize=512, compress="deflate", zlevel=1,
                       photometric="rgb") as out:
        for top in range(0, side, PIECE):
            for left in range(0, side, PIECE):
                height, width = min(PIECE, side - top), min(PIECE, side - left)
                out.write(piece[:, :height, :width], window=Window(left, top, width, height))


# Runs a command, and prints the seconds it took, those of a processor, which other programs change
# less, and its peak of memory in MB.
MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:]).returncode
seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, seconds, used.ru_utime + used.ru_stime,
      used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3))
"""


def measure_speed(args: argparse.Namespace) -> None:
    picture, _ = render_scene(PIECE, args.seed)
    piece = np.moveaxis(np.asarray(picture), -1, 0).astype(np.uint16) * 12 + 300
    print(f"tiles of {args.tiles}, {args.overlap} in common, {torch.get_num_threads()} threads; "
          f"commit {commit()}")
    for side in args.sides:
        with TemporaryDirectory() as folder:
            file, layer = Path(folder) / "scene.tif", Path(folder) / "ships.geojson"
            write_large(file, side, piece)
            command = [sys.executable, "chat.py", str(file), "--model", args.model, "--tiles",
                       str(args.tiles), "--overlap", str(args.overlap), "--prompt",
                       "[detection] ships", "--geojson", str(layer)]
            done = subprocess.run([sys.executable, "-c", MEASURE, *command], cwd=ROOT, text=True,
                                  capture_output=True, env=dict(os.environ))
            code, seconds, processor, megabytes = map(float, done.stdout.splitlines()[-1].split())
            assert code == 0, done.stderr
            tiles = int(re.search(r"in ([\d,]+) tiles of", done.stderr)[1].replace(",", ""))
            print(f"{side} x {side}: {file.stat().st_size / 1e6:,.0f} MB, {tiles:,} tiles, "
                  f"{seconds:.0f} s, {processor:.0f} s of a processor, {tiles / processor:.1f} "
                  f"tiles in one of these, at most {megabytes:,.0f} MB", flush=True)
            time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", action="store_true", help="detection against the truth")
    parser.add_argument("--model", default="weights/nano", help="model folder")
    parser.add_argument("--side", type=int, default=4096,
                        help="of the scene of --quality (default: %(default)s)")
    parser.add_argument("--sides", type=int, nargs="+", default=[4000, 8000, 16000, 20000],
                        help="of the other scenes (default: %(default)s)")
    parser.add_argument("--tiles", type=int, help="pixels a side (default: 256, which is how large "
                        "things are in the miniature world; else 512)")
    parser.add_argument("--overlap", type=int, help="pixels (default: a quarter of a tile, else an "
                        "eighth)")
    parser.add_argument("--seed", type=int, default=0, help="of the ground (default: %(default)s)")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    args.tiles = args.tiles or (256 if args.quality else 512)
    if args.overlap is None:
        args.overlap = args.tiles // (4 if args.quality else 8)
    if args.quality:
        measure_quality(args)
    else:
        measure_speed(args)


if __name__ == "__main__":
    main()
