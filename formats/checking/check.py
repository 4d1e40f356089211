"""A data set looked through, every split of it: rows, pictures, boxes, classes, lengths."""
from collections import Counter
from collections.abc import Callable, Sequence

from tqdm import tqdm

from formats.checking.headers import look_at_all
from formats.checking.report import Report
from formats.checking.rows import check_sample

MEASURED = 5000             # samples of a split whose tokens are counted for the histogram
SAFE, STRIP = 200, 4        # tokens a template takes at most; long side to short side


def check(splits: dict[str, tuple[Sequence, list[str]]], tokens: Callable, longest: int,
          slots: int) -> Report:
    """splits: name -> samples, and what is wrong with rows that make none. tokens(sample) is to
    be at most `longest`; `slots`: tokens of a picture."""
    report = Report()
    looked = check_pictures(report, splits)
    for name, (samples, bad) in splits.items():
        for what in bad:
            report.add("row", what)
        said, each = Counter(), len(samples) // MEASURED + 1
        for i, sample in enumerate(tqdm(samples, desc=name, unit="sample", disable=None)):
            report.samples[f"{name} {sample.task}"] += 1
            sizes = [looked[path][:2] for path in sample.images]
            for kind, what in check_sample(sample, sizes):
                report.add(kind, sample.source, what)
            said[hash((sample.images, sample.turns, sample.boxes))] += 1
            letters = 4 * sum(len(text) for turn in sample.turns for text in turn)
            if i % each == 0 or letters > longest - SAFE - slots * len(sizes):
                count = tokens(sample)
                report.lengths[count // 64 * 64] += i % each == 0
                if count > longest:
                    report.add("too long", sample.source, f"{count} tokens, over {longest}")
        report.count["said twice"] += sum(n - 1 for n in said.values())
    check_splits(report, splits)
    return report


def check_pictures(report: Report, splits: dict) -> dict[str, tuple[int, int, str]]:
    paths = dict.fromkeys(path for samples, _ in splits.values() for names in samples.images
                          for path in names)
    looked = look_at_all(paths)
    report.pictures = len(paths)
    for path, (width, height, fault) in looked.items():
        if fault:
            report.add("picture", fault)
        elif max(width, height) > STRIP * min(width, height):
            report.add("long strip", path, f"{width} x {height}, squashed to a square")
    return looked


def check_splits(report: Report, splits: dict) -> None:
    sets = {name: {path for names in samples.images for path in names}
            for name, (samples, _) in splits.items()}
    for name in sets.keys() - {"train"}:
        for path in sorted(sets[name] & sets.get("train", set())):
            report.add("picture in two splits", path, f"train and {name}")
