"""How fast data are read: a million questions, and pictures for training at 448 px.

    python tests/bench_data.py [--rows 1000000] [--pictures 400]

Prints medians of three runs, interleaved. The million is RSVQA-HR as SkyEye-968k has it, with 60
questions a picture; the pictures are 800 x 800 JPEGs of miniature scenes.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from data import PackedDataset, Tokenizer, collate  # noqa: E402
from support.readers import read_split  # noqa: E402
from support.readers.common import Sample  # noqa: E402

QUESTIONS = ("Is a commercial building present?", "Are there more water areas than roads?",
             "What is the number of small residential buildings next to a road?")


def write_million(folder, count):
    (folder / "vqa").mkdir(parents=True)
    (folder / "caption").mkdir()
    rows = [{"image": f"{i // 60}.tif", "question": QUESTIONS[i % 3], "answer": "yes",
             "type": "presence"} for i in range(count)]
    (folder / "vqa" / "RSVQAHR_train.json").write_text(json.dumps(rows))


def time_opening(folder):
    """-> seconds, and the samples."""
    start = time.perf_counter()
    samples, _, errors = read_split(folder, "train")
    assert not errors
    return time.perf_counter() - start, samples


def write_pictures(folder, count):
    """Enlarged scenes with noise: as hard to decode as a photograph."""
    scenes = sorted((ROOT / "examples").glob("*.png"))
    rng = np.random.default_rng(0)
    for i in range(count):
        image = Image.open(scenes[i % len(scenes)]).convert("RGB").resize((800, 800))
        noise = rng.normal(0, 6, (800, 800, 1))
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)


def pictures_per_second(folder, count, workers, size):
    """Through PackedDataset and a loader with so many processes."""
    samples = [Sample((str(folder / f"{i}.jpg"),), ((QUESTIONS[0], "yes"),), "vqa", str(i))
               for i in range(count)]
    tokenizer = Tokenizer(ROOT / "weights" / "nano" / "tokenizer.model")
    rows = PackedDataset(samples, tokenizer, size, (size // 28) ** 2)
    keys = [[(0, i) for i in range(j, min(j + 16, count))] for j in range(0, count, 16)]
    start = time.perf_counter()
    for _ in torch.utils.data.DataLoader(rows, batch_sampler=keys, collate_fn=collate,
                                         num_workers=workers):
        pass
    return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="questions to open")
    parser.add_argument("--pictures", type=int, default=400, help="pictures to load")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_million(folder / "set", args.rows)
        write_pictures(folder, args.pictures)
        seconds, rates = [], {(workers, size): [] for workers in (0, 1, 2) for size in (128, 448)}
        for _ in range(3):
            took, samples = time_opening(folder / "set")
            seconds.append(took)
            for key, found in rates.items():
                found.append(pictures_per_second(folder, args.pictures, *key))
        arrays = (samples.ends, samples.image_set, samples.num_chars)
        used = len(samples.text) + sum(len(x) * x.itemsize for x in arrays)
        print(f"{args.rows:,} rows opened in {statistics.median(seconds):.1f} s, "
              f"{used / args.rows:.0f} bytes a row")
        for (workers, size), found in rates.items():
            print(f"{size} px, {workers} workers: {statistics.median(found):.0f} pictures/s")


if __name__ == "__main__":
    main()
