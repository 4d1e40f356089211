"""The files of a training set: its rows in one of two layouts, the manifest, the report.

    skyeye      SkyEye-968k's folders, a JSON list for each data set and task, boxes in pixels
    llava       train.json, LLaVA's list of conversations: templates and boxes are written out
"""
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from data import NO_AUGMENTATION, apply_templates, write_boxes
from support.building.expressions import single_article
from support.common import ABSENT, Box
from support.readers.common import Sample
from support.readers.conversations import SKYEYE_TASKS

LAYOUTS = ("skyeye", "llava")

# ---- rows ----------------------------------------------------------------------------------------

SKYEYE_OUTPUT = {       # by task; {} is the data set
    "caption": "caption/caption_{}_train.json", "video": "caption/clips_{}_train.json",
    "grounding": "caption/grounding_{}_train.json", "vqa": "vqa/{}_vqa_train.json",
    "scene": "vqa/{}_scene_train.json", "refer": "vg/{}_vg_train.json",
    "identify": "vg/{}_identify_train.json", "detection": "phrasegrounding/{}_pg_train.json",
    "conversation": "multitask_conversation/{}_Conversa_train.json"}
LLAVA_OUTPUT = "train.json"


def skyeye_row(sample: Sample, size: tuple[int, int]) -> dict:
    """sample.images: as the row shall name them. size: width and height in pixels."""
    row = {"image": sample.images[0] if len(sample.images) == 1 else list(sample.images)}
    if sample.task == "conversation":
        return conversation_row(sample)
    [(question, answer)] = sample.turns
    boxes = list(map(rounded, sample.boxes))
    if sample.task in ("caption", "video"):
        row |= {"caption": answer}
    elif sample.task == "grounding":
        row |= {"caption": answer, "bboxes": boxes}
    elif sample.task in ("vqa", "scene"):
        row |= {"question": question, "answer": answer}
        kind = "scene" if sample.task == "scene" else sample.kind
        row |= {"type": kind} if kind else {}
    elif sample.task == "identify":
        row |= {"phrase": answer, "bbox": boxes[0] if boxes else question}
    elif sample.task == "refer":
        row |= {"expression": question, "bbox": box_value(answer, boxes[:1])}
    else:
        as_read = f"<p>{question}</p> " + "<delim>".join(["<bbox>"] * len(boxes))
        text = write_boxes(answer, sample.boxes, *size, NO_AUGMENTATION)
        row |= {"phrase": question, "bboxes": boxes if answer == as_read else box_value(text, [])}
    return row | {"task": "vqa" if sample.task == "scene" else sample.task}


def box_value(answer: str, boxes: list) -> list | str:
    """A box, none, or boxes that are text already."""
    return [] if answer == ABSENT else boxes[0] if boxes else answer


def rounded(box: Box) -> list[float]:
    """To hundredths of a pixel, whole numbers as such."""
    return [int(side) if side == int(side) else round(side, 2) for side in box]


def conversation_row(sample: Sample) -> dict:
    """LLaVA's fields; boxes beside it, as ms-swift has them."""
    row: dict = {"id": sample.source}
    if sample.images:
        several = len(sample.images) > 1
        row |= {"images": list(sample.images)} if several else {"image": sample.images[0]}
    row["conversations"] = turns_of(sample.turns, len(sample.images))
    if sample.boxes:
        row["objects"] = {"ref": [], "bbox": list(map(rounded, sample.boxes))}
    return row | ({"type": sample.kind} if sample.kind else {})


def turns_of(turns: Iterable[tuple[str, str]], images: int) -> list[dict]:
    texts = [text for turn in turns for text in turn]
    texts[0] = "<image>\n" * images + texts[0]
    return [{"from": ("human", "gpt")[number % 2], "value": text}
            for number, text in enumerate(texts)]


def llava_row(sample: Sample, size: tuple[int, int], rng: random.Random) -> dict:
    """A conversation whatever the task is, the question in a template, boxes in hundredths."""
    turns = apply_templates(sample, size, rng=rng)
    if sample.task == "refer":
        turns = [(single_article(question), answer) for question, answer in turns]
    written = Sample(sample.images, tuple(turns), "conversation", sample.source, (), (),
                     sample.kind or sample.task)
    return conversation_row(written)


class RowWriter:
    """JSON lists, each written row by row and opened at its first one."""

    def __init__(self, folder: Path):
        self.folder, self.files = folder, {}

    def add(self, name: str, text: str) -> None:
        opened: IO[str] | None = self.files.get(name)
        if opened is None:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            opened = self.files[name] = (self.folder / name).open("w", encoding="utf-8")
            opened.write("[\n" + text)
        else:
            opened.write(",\n" + text)

    def close(self) -> None:
        for opened in self.files.values():
            opened.write("\n]\n")
            opened.close()


def make_folders(folder: Path, layout: str) -> None:
    """Those that the layout is recognized from, also where they stay empty."""
    for name in SKYEYE_TASKS if layout == "skyeye" else ():
        (folder / name).mkdir(parents=True, exist_ok=True)


# ---- the report ----------------------------------------------------------------------------------

PAPER = (       # SkyEye-968k's composition: task, data set, thousands of samples
    ("caption", "RSICD", 43.7), ("caption", "RSITMD", 21.5), ("caption", "UCM-Captions", 8.4),
    ("caption", "Sydney-Captions", 2.5), ("caption", "NWPU-Captions", 126.0),
    ("video", "CapERA", 7.4), ("vqa", "ERA-VQA", 1.5), ("vqa", "RSIVQA", 17.7),
    ("vqa", "RSVQA-LR", 57.2), ("vqa", "RSVQA-HR", 625.3), ("refer", "RSVG", 5.5),
    ("refer", "DIOR-RSVG", 27.0), ("detection", "RSPG", 6.8),
    ("conversation", "DOTA-Conversa", 1.4), ("conversation", "DIOR-Conversa", 14.7),
    ("conversation", "UCM-Conversa", 1.7), ("conversation", "Sydney-Conversa", 0.5))
TASK_TITLES = {"caption": "image captioning", "video": "video captioning", "vqa": "VQA",
               "scene": "scene classification", "refer": "visual grounding",
               "detection": "phrase grounding", "identify": "region naming",
               "grounding": "grounded description", "conversation": "multi-task conversation"}


def plain_name(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def composition_table(counts: dict[str, Counter], names: Sequence[str]) -> list[str]:
    """Markdown: samples by task and data set, beside the paper's. counts: data set -> by task."""
    lines = ["| task | here | share | SkyEye-968k | share |", "|---|---|---|---|---|"]
    total, of_paper = sum(map(Counter.total, counts.values())), sum(row[2] for row in PAPER)
    for task, title in TASK_TITLES.items():
        here = sum(count[task] for count in counts.values())
        paper = sum(number for name, _, number in PAPER if name == task)
        lines.append(f"| {title} | {here:,} | {percent(here, total)} | "
                     + (f"{paper:,.1f}k | {percent(paper, of_paper)} |" if paper else "| |"))
    lines += [f"| together | {total:,} | | {of_paper:,.1f}k | |", "",
              "| data set | task | here | SkyEye-968k |", "|---|---|---|---|"]
    of_set = {(task, plain_name(name)): number for task, name, number in PAPER}
    for name in names:
        for task, title in TASK_TITLES.items():
            if counts[name][task]:
                paper = of_set.pop((task, plain_name(name)), None)
                lines.append(f"| {name} | {title} | {counts[name][task]:,} | "
                             + (f"{paper:,.1f}k |" if paper else "|"))
    for task, name, number in PAPER:
        if (task, plain_name(name)) in of_set:
            lines.append(f"| {name} | {TASK_TITLES[task]} | | {number:,.1f}k |")
    return lines


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def balance_table(labels: dict[tuple[str, str, str], Counter], most: int = 8) -> list[str]:
    """Markdown: of the questions with few answers, and of classes, how often each one is there.

    labels: (data set, task, kind) -> how often each answer is there.
    """
    lines = ["| data set | task | type | answers or classes | the commonest | |",
             "|---|---|---|---|---|---|"]
    for (name, task, kind), counts in sorted(labels.items()):
        common = counts.most_common(most)
        share = percent(common[0][1], counts.total())
        shown = ", ".join(f"{label} {count:,}" for label, count in common)
        more = ", .." if len(counts) > most else ""
        lines.append(f"| {name} | {task} | {kind} | {len(counts)} | {share} | {shown}{more} |")
    return lines


def report_text(manifest: dict, labels: dict[tuple[str, str, str], Counter]) -> str:
    counts = {name: Counter(tasks) for name, tasks in manifest["samples"].items()}
    lines = ["# Composition", "", *composition_table(counts, list(counts)), "",
             "# Sources", "", "| data set | layout | rows read | pictures | license |",
             "|---|---|---|---|---|"]
    lines += [f"| {source['name']} | {source['format']} | {source['rows']:,} | "
              f"{source['pictures']:,} | {source['license'] or 'not given'} |"
              for source in manifest["sources"]]
    lines += ["", "# Left out", "", "| reason | rows |", "|---|---|"]
    lines += [f"| {reason} | {row['rows']:,} |" for reason, row in manifest["rejected"].items()]
    lines += ["", "# Pictures", ""]
    lines += [f"- {count:,} {what}" for what, count in manifest["pictures"].items()]
    lines += ["", "# Balance", "", *balance_table(labels), "",
              f"Seed {manifest['seed']}, commit {manifest['commit'] or 'unknown'}.", ""]
    return "\n".join(lines)


def write_manifest(folder: Path, manifest: dict) -> None:
    (folder / "manifest.json").write_text(
        json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
