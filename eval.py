"""Evaluation: answers for a benchmark, the papers' metrics, and a table.

    python eval.py                              the shipped model on the miniature world
    python eval.py --model FOLDER --data ../shared/data/rsicd --split val

Writes predictions.jsonl (one line a row, so several questions about one picture never collide),
metrics.json and table.md. Scores are pure functions of texts and boxes; caption scores equal
pycocoevalcap's, without Java.
"""
import argparse
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import (
    PROMPTS,
    Box,
    DataError,
    Sample,
    Tokenizer,
    encode_box,
    load_pictures,
    parse_boxes,
    preprocess,
    read_data,
    render,
    turns_of,
)
from examples.miniworld import WORLD, ensure_world
from formats.pictures.bands import parse_bands
from projector import DTYPES, ModelError, SkyEyeGPT

# ---- captions: BLEU, ROUGE-L, CIDEr --------------------------------------------------------------

# Abbreviations that keep their period: those that Stanford CoreNLP 3.4.1 knows.
_ABBREVIATIONS = r"""jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs fri calif
conn fla mich penn va ariz tenn mo md wis minn ind okla kan ga colo ky ala nev neb vt wyo mont dak
inc cos? corp ltd plc rt bancorp bhd assn univ intl sys [js]r bros blvd rd esq etc al seq est sq ct
bldg ext tel dept ph ph\.d mrs? ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev
maj sgt cpl pvt capt ste? ave pres lieut hon brig comdr cmdr pfc spc supts? det invt elec natl mfg
mtg vs alex wm jos cie cf treas mt ft mme mlle assoc""".split()
# After a lone letter these open a new sentence: "the form of V. There is" has a full stop.
_STARTERS = """A About According Additionally After An As At But Earlier He Her Here However If In
It Last Many More Now Once One Other Our She Since So Some Such That The Their Then There These
They This We What When While Yet You""".split()
_L, _W = r"[^\W\d_²³]", r"[^\W_²³]"  # a letter; a letter or digit
_TOKEN = re.compile(rf"""
    https?://\S+ | www\.[\w./-]+ | [\w.+-]+@\w[\w-]*(?:\.\w+)* | </?[a-z][^<>\s]*> | -[lr][rsc]b-
  | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b) | 't(?=(?:is|was)\b)
  | [a-z]+(?=n't\b) | n't\b | '(?:s|m|d|ll|re|ve)\b             # do n't, it 's
  | (?:[dol]'|n?e'(?=er)){_L}{{2,}} | ma'am\b | '(?:em|til|cause)\b | 'n\b'? | '\d\ds?\b
  | (?-i:[A-Z]+(?:[&+][A-Z]+)+ | (?:US|HK|[AC])\$) | c(?:\+\+|\#)         # R&B, US$
  | [a-z](?:\.[a-z])+\.(?![\w-])                                # u.s.
  | [a-z]\.(?!{_L}|-{_W}|\s+(?-i:{"|".join(_STARTERS)})\b)      # plan b.
  | (?:{"|".join(_ABBREVIATIONS)})\.(?![\w-])
  | (?:nos?|figs?|art|pp|op|sec|vol|eds?|prop|ca)\.(?=\s?\d)    # no. 5 but "no . of"
  | (?:{_W}+(?:-{_L}+){{0,2}}(?:/{_W}+(?:-{_L}+){{0,2}}){{1,2}}  # and/or, 24/7
    | {_W}(?:{_W}|[.,])*(?:-{_W}+)+                             # fan-shaped
    | {_W}+(?:_{_W}+)+ | [+-]?(?:\d*(?:[.:,]\d+)+|\d+(?!{_W}))  # a_b, 1,000
    | {_L}{_W}*(?:[.!?]{_L}{_W}*)* | {_W}+                      # road, road.the, 20m
    )(?:\.(?=[,;:]))?                                           # "trees.," keeps its period
  | [@\#]{_L}\w* | [?!]+ | [*]+ | _+ | @+ | \#+
  | \.{{3,}} | --+ | << | >> | ``|'' | [^\s\U00010000-\U0010ffff]
""", re.I | re.X)
_CHARACTERS = str.maketrans({
    "(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ", "}": " -rcb- ",
    "’": "'", "‘": "`", "“": "``", "”": "''", "–": "--", "—": "--", "…": " ... ", "€": "$",
    "£": "#", "¢": " cents", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 ",
    "\u200b": " ", "\ufeff": " ", "\xad": "", "«": "``", "»": "''", "‹": "`", "›": "'"})
_DROPPED = re.compile(r"""''?|``?|"|[.?!,:;]|\.{3,}|-+""")


def ptb_tokenize(text: str) -> str:
    """Lower-cased Penn-Treebank tokens, punctuation dropped, as pycocoevalcap's PTBTokenizer.

    Brackets become "-lrb-" etc. and stay: the reference drops only their upper-case names.
    """
    tokens = (match[0].lower() for match in _TOKEN.finditer(text.translate(_CHARACTERS)))
    return " ".join(t for t in tokens if not _DROPPED.fullmatch(t))


def _ngrams(text: str) -> Counter:
    """Counts of the 1- to 4-grams of a tokenised text."""
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(words) + 1 - n))


def _bleu_item(hyp: str, refs: list[str]) -> list[int]:
    """[length, closest reference length, clipped matches of 1..4-grams, totals of 1..4-grams]."""
    length, ceiling, matches = len(hyp.split()), Counter(), [0] * 4
    for ref in refs:
        ceiling |= _ngrams(ref)  # the largest count in any one reference
    for gram, count in _ngrams(hyp).items():
        matches[len(gram) - 1] += min(count, ceiling[gram])
    closest = min((len(ref.split()) for ref in refs), key=lambda n: (abs(n - length), n))
    return [length, closest, *matches, *(max(0, length - n) for n in range(4))]


def bleu_stats(hyps: list[str], refs: list[list[str]]) -> np.ndarray:
    """One row of ten counts an item; sums of rows are all BLEU needs (so resample the rows)."""
    return np.array([_bleu_item(h, r) for h, r in zip(hyps, refs, strict=True)]).reshape(-1, 10)


def bleu_from_stats(total: np.ndarray) -> list[float]:
    """BLEU-1..4 from summed rows: BP * (p_1 ... p_n)^(1/n), BP = min(1, exp(1 - r/c)).

    Papineni et al. 2002, section 2.3; 1e-15 and 1e-9 keep empty counts finite as in the COCO code.
    """
    length, closest = total[:2]
    precisions = np.cumprod((total[2:6] + 1e-15) / (total[6:10] + 1e-9))
    ratio = (length + 1e-15) / (closest + 1e-9)
    penalty = math.exp(min(0.0, 1 - 1 / ratio))
    return [float(penalty * p ** (1 / n)) for n, p in enumerate(precisions, start=1)]


def bleu(hyps: list[str], refs: list[list[str]]) -> list[float]:
    """Corpus BLEU-1..4 with the closest reference length of each item."""
    return bleu_from_stats(bleu_stats(hyps, refs).sum(axis=0))


def _lcs(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, one row of the dynamic program at a time."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge_l_items(hyps: list[str], refs: list[list[str]], beta: float = 1.2) -> np.ndarray:
    """Each item's ROUGE-L, (1 + b^2) P R / (R + b^2 P) (Lin 2004, section 3.1).

    P = LCS / |hyp| and R = LCS / |ref| are each the best over the references, as in COCO.
    """
    scores = []
    for hyp, item_refs in zip(hyps, refs, strict=True):
        words, options = hyp.split(" "), [ref.split(" ") for ref in item_refs]
        p = max(_lcs(words, option) / len(words) for option in options)
        r = max(_lcs(words, option) / len(option) for option in options)
        scores.append((1 + beta**2) * p * r / (r + beta**2 * p) if p else 0.0)
    return np.array(scores)


def rouge_l(hyps: list[str], refs: list[list[str]]) -> float:
    """Mean ROUGE-L over the items."""
    return float(rouge_l_items(hyps, refs).mean())


def _tf_idf(counts: Counter, frequency: Counter, items: int) -> list[dict]:
    """Count * log(items / document frequency) of each n-gram, a dictionary for each n = 1..4."""
    vectors: list[dict] = [{} for _ in range(4)]
    for gram, count in counts.items():
        vectors[len(gram) - 1][gram] = count * math.log(items / max(1, frequency[gram]))
    return vectors


def _cider_pair(hyp: list[dict], ref: list[dict]) -> float:
    """Mean over n of sum min(h, r) * r / (|h| |r|), 0 where a vector is empty."""
    total = 0.0
    for h, r in zip(hyp, ref, strict=True):
        norm = math.hypot(*h.values()) * math.hypot(*r.values())
        if norm:
            total += sum(min(x, r[g]) * r[g] for g, x in h.items() if g in r) / norm
    return total / len(hyp)


def cider_items(hyps: list[str], refs: list[list[str]], sigma: float = 6.0) -> np.ndarray:
    """Each item's CIDEr-D (Vedantam et al. 2015, sections 4 and 6), idf from `refs` as a corpus.

    10 * mean over references of exp(-(length difference)^2 / (2 sigma^2)) * clipped cosine.
    """
    grams = [[_ngrams(ref) for ref in item_refs] for item_refs in refs]
    frequency = Counter(gram for item in grams for gram in set().union(*item))
    scores = []
    for hyp, item_refs, item_grams in zip(hyps, refs, grams, strict=True):
        vector, score = _tf_idf(_ngrams(hyp), frequency, len(refs)), 0.0
        for ref, counts in zip(item_refs, item_grams, strict=True):
            gap = max(1, len(hyp.split())) - max(1, len(ref.split()))
            penalty = math.exp(-(gap**2) / (2 * sigma**2))
            score += penalty * _cider_pair(vector, _tf_idf(counts, frequency, len(refs)))
        scores.append(10 * score / len(item_refs))
    return np.array(scores)


def cider(hyps: list[str], refs: list[list[str]], sigma: float = 6.0) -> float:
    """Mean CIDEr-D over the items."""
    return float(cider_items(hyps, refs, sigma).mean())


def caption_scores(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    """BLEU-1..4, ROUGE-L (0..1) and CIDEr-D of raw captions, both sides tokenised here."""
    hyps = [ptb_tokenize(text) for text in hypotheses]
    refs = [[ptb_tokenize(text) for text in item] for item in references]
    scores = {f"bleu{n}": score for n, score in enumerate(bleu(hyps, refs), start=1)}
    return {**scores, "rouge_l": rouge_l(hyps, refs), "cider": cider(hyps, refs)}


# ---- words and boxes -----------------------------------------------------------------------------

def same_answer(answer: str, truth: str) -> bool:
    """Equal but for case, spaces and a full stop at the end."""
    return answer.lower().strip(" .") == truth.lower().strip(" .")


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes in pixels, sides without upstream's extra pixel."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def match_boxes(found: list[Box], truth: list[Box], at: float = 0.5) -> int:
    """How many boxes find a partner with IoU >= `at`, each box used once, best pairs first."""
    pairs = sorted(((iou(f, t), i, j) for i, f in enumerate(found) for j, t in enumerate(truth)),
                   reverse=True)
    left, right = set(), set()
    for value, i, j in pairs:
        if value >= at and i not in left and j not in right:
            left.add(i)
            right.add(j)
    return len(left)


def boxes_in(text: str, row: dict) -> list[tuple[str, Box]]:
    return parse_boxes(text, *row["size"], row.get("corner", False), row.get("pad", False))


def grid_ceiling(rows: list[dict]) -> float:
    """The part of the true boxes that a perfect model can hit: hundredths are coarse for small
    things, so a box written as text and read again may miss itself."""
    again = [(boxes_in(encode_box(box, *row["size"], row.get("pad", False)), row)[0][1], box)
             for row in rows for box in row["boxes"]]
    return float(np.mean([iou(read, box) >= 0.5 for read, box in again]))


# ---- scores: a task's predictions -> its figures -------------------------------------------------

def score_captions(rows: list[dict]) -> dict[str, float]:
    return caption_scores([row["answer"] for row in rows], [row["references"] for row in rows])


def score_answers(rows: list[dict]) -> dict[str, float]:
    """Accuracy of each question type, their plain mean (the papers' average), and of all rows."""
    right = defaultdict(list)
    for row in rows:
        right[row["type"] or "untyped"].append(same_answer(row["answer"], row["references"][0]))
    types = {kind: float(np.mean(marks)) for kind, marks in sorted(right.items())}
    overall = float(np.mean([mark for marks in right.values() for mark in marks]))
    return types | {"mean of types": float(np.mean(list(types.values()))), "overall": overall}


def score_accuracy(rows: list[dict]) -> dict[str, float]:
    right = [same_answer(row["answer"], row["references"][0]) for row in rows]
    return {"accuracy": float(np.mean(right))}


def score_boxes(rows: list[dict]) -> dict[str, float]:
    """Pr@0.5 and mean IoU of the first box of each answer; an answer without a box counts as 0."""
    found = [boxes_in(row["answer"], row) for row in rows]
    ious = np.array([iou(boxes[0][1], row["boxes"][0]) if boxes else 0.0
                     for boxes, row in zip(found, rows, strict=True)])
    return {"Pr@0.5": float((ious >= 0.5).mean()), "mean IoU": float(ious.mean()),
            "grid ceiling": grid_ceiling(rows), "unparseable": sum(not boxes for boxes in found)}


def score_detection(rows: list[dict]) -> dict[str, float]:
    """Precision, recall and F1 over all boxes of all rows, matched one to one at IoU 0.5."""
    answers = [[box for _, box in boxes_in(row["answer"], row)] for row in rows]
    hits = sum(match_boxes(boxes, row["boxes"]) for boxes, row in zip(answers, rows, strict=True))
    found, wanted = sum(map(len, answers)), sum(len(row["boxes"]) for row in rows)
    return {"precision@0.5": hits / max(found, 1), "recall@0.5": hits / max(wanted, 1),
            "F1@0.5": 2 * hits / max(found + wanted, 1), "grid ceiling": grid_ceiling(rows),
            "unparseable": sum(not boxes for boxes in answers)}


SCORES = {      # task -> its score, and how many tokens its answer may have
    "caption":   (score_captions, 60),
    "video":     (score_captions, 60),
    "vqa":       (score_answers, 20),
    "scene":     (score_accuracy, 20),
    "identify":  (score_accuracy, 30),
    "refer":     (score_boxes, 30),
    "detection": (score_detection, 300),
}
COUNTS = ("unparseable",)       # figures that are no fractions


# ---- answers -------------------------------------------------------------------------------------

def batches(samples: list[Sample], size: int) -> Iterator[list[int]]:
    """Row numbers, one task a batch, like lengths together."""
    kinds = sorted({(list(SCORES).index(s.task), len(s.images)) for s in samples})
    for kind in kinds:
        rows = [i for i, s in enumerate(samples)
                if (list(SCORES).index(s.task), len(s.images)) == kind]
        rows.sort(key=lambda i: (len(samples[i].turns[0][0]), i))
        yield from (rows[i:i + size] for i in range(0, len(rows), size))


def predict(model: SkyEyeGPT, tokenizer: Tokenizer, samples: list[Sample], numbers: list[int],
            device: str, bands: Sequence[int] = (), frames: int = 8, corner: bool = False
            ) -> Iterator[dict]:
    """Ask a batch of samples of one task, greedily -> one row for predictions.jsonl each."""
    style, prompts, pictures, questions, sizes = model.config.prompt, [], [], [], []
    for sample in (samples[i] for i in numbers):
        images = load_pictures(sample.images, bands, frames)
        sizes.append(images[0].size)
        questions.append(turns_of(sample, sizes[-1], style=style)[0][0])
        ids, _, shared = render(tokenizer, [(questions[-1], None)], model.config.visual_tokens,
                                len(images), style)
        prompts.append([torch.tensor(ids, device=device)])
        pictures += [preprocess(image.image, model.config.vit.image_size, style=style)
                     for image in images]
    _, tokens = SCORES[samples[numbers[0]].task]
    answers = model.answer(prompts, torch.stack(pictures).to(device), shared, tokens,
                           tokenizer.eos)
    for number, question, size, answer in zip(numbers, questions, sizes, answers, strict=True):
        sample = samples[number]
        yield {"row": number, "source": sample.source, "image": list(sample.images),
               "task": sample.task, "type": sample.kind, "size": size, "question": question,
               "pad": PROMPTS[style].pad, "corner": corner,
               "answer": tokenizer.decode(answer), "boxes": sample.boxes,
               "references": list(sample.references or (sample.turns[0][1],))}


def score(rows: list[dict]) -> dict[str, dict]:
    """-> {task: {"n": rows, figure: value}}"""
    tasks = {task: [row for row in rows if row["task"] == task] for task in SCORES}
    return {task: {"n": len(own)} | SCORES[task][0](own) for task, own in tasks.items() if own}


def table(metrics: dict[str, dict]) -> str:
    """Markdown; fractions times 100, as the papers print them."""
    lines = ["| task | n | figures (x 100) |", "|---|---|---|"]
    for task, figures in metrics.items():
        texts = [f"{name} {value if name in COUNTS else format(100 * value, '.2f')}"
                 for name, value in figures.items() if name != "n"]
        lines.append(f"| {task} | {figures['n']} | {', '.join(texts)} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/nano", help="folder (default %(default)s)")
    parser.add_argument("--data", nargs="+", default=[WORLD], help="folders (default %(default)s)")
    parser.add_argument("--split", default="test", help="default %(default)s")
    parser.add_argument("--format", default="", help="layout of the data (default: seen)")
    parser.add_argument("--bands", type=parse_bands, default=(), help="shown of more: 4,3,2")
    parser.add_argument("--frames", type=int, default=8, help="of a clip (default %(default)s)")
    parser.add_argument("--corner", action="store_true", help="read a box number as upstream does, "
                        "as the lower edge of its bin and not as the middle")
    parser.add_argument("--tasks", nargs="+", choices=tuple(SCORES), default=list(SCORES))
    parser.add_argument("--limit", type=int, default=0, help="rows of each task; 0: all")
    parser.add_argument("--batch_size", "--batch-size", type=int, default=32)
    parser.add_argument("--output_dir", "--output-dir", type=Path, default=Path("out/eval"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    model = SkyEyeGPT.from_pretrained(args.model, args.device, DTYPES[args.dtype])
    tokenizer = Tokenizer(Path(args.model) / "tokenizer.model", model.config.llama.vocab_size)
    ensure_world(args.data)
    samples = [sample for place in args.data for sample in read_data(place, args.split,
                                                                   form=args.format)]
    chosen = [i for task in args.tasks
              for i in [i for i, s in enumerate(samples) if s.task == task][:args.limit or None]]
    samples = [samples[i] for i in chosen]
    if not samples:
        raise DataError(f"{' '.join(args.data)}: split {args.split!r} has no {args.tasks} to score")

    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    with open(args.output_dir / "predictions.jsonl", "w", encoding="utf-8") as file, \
            tqdm(total=len(samples), unit="row", disable=None) as bar:
        for numbers in batches(samples, args.batch_size):
            for row in predict(model, tokenizer, samples, numbers, args.device,
                               args.bands, args.frames, args.corner):
                print(json.dumps(row), file=file, flush=True)
                rows.append(row)
            bar.update(len(numbers))

    metrics = score(rows)
    text = table(metrics)
    (args.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (args.output_dir / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (DataError, ModelError) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        sys.exit(2)
