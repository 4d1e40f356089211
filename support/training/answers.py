"""What a model in training answers: the questions of training rows asked again, word for word.

A row holds its questions as they are learned, so they are asked as they stand, later turns of a
conversation after the true earlier ones. An answer is right if it is exactly the true one; or,
where that holds one box, if the IoU of the answer's first box is at least 0.5 (Pr@0.5). Of several
boxes, those that are found count (F1@0.5). Boxes are compared in hundredths of the picture's sides,
which leaves their IoU as it is but for rounding.
"""
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import torch
from torch import Tensor

from data import Tokenizer, parse_boxes
from projector import SkyEyeGPT
from support.common import Box
from support.metrics.boxes import iou, match_boxes

Batch = dict[str, Tensor | None]            # a row of data.PackedDataset, or rows as collate joins
SPARE_TOKENS = 8                            # that an answer may have beyond the longest true one


class Question(NamedTuple):
    prompt: Tensor                          # long[T], to the end of the question
    truth: Tensor                           # long[t], the true answer, with its </s>


class Answered(NamedTuple):
    pictures: bytes                         # a hash of those that the question is about
    question: str
    truth: str
    answer: str

    @property
    def exact(self) -> bool:
        return self.answer == self.truth

    @property
    def right(self) -> bool:
        """Exact; or the one box that is asked for, overlapped by half."""
        true, predicted = self.boxes(self.truth), self.boxes(self.answer)
        return self.exact or len(true) == 1 and bool(predicted) and bool(
            iou(predicted[0][1], true[0][1]) >= 0.5)

    @staticmethod
    def boxes(text: str) -> list[tuple[str, Box]]:
        return parse_boxes(text, 100, 100)


# ---- rows to questions ---------------------------------------------------------------------------

def prefix_length(row: Batch) -> int:
    """How many ids, with all image slots, the questions of a row share."""
    return int((row["segments"] == 0).sum())


def split_row(row: Batch) -> list[Question]:
    """The questions of a row, every turn of a conversation as one of its own."""
    ids, labels, segments = row["ids"], row["labels"], row["segments"]        # long[T] each
    prefix, questions = ids[:prefix_length(row)], []
    for segment in range(1, int(segments.max()) + 1):
        own = segments == segment
        own_ids, taught = ids[own], labels[own] != -100
        changes = (taught[1:] != taught[:-1]).nonzero()[:, 0] + 1
        bounds = [*changes.tolist(), len(own_ids)]          # question | answer | question | answer
        for start, end in zip(bounds[::2], bounds[1::2], strict=True):
            questions.append(Question(torch.cat([prefix, own_ids[:start]]), own_ids[start:end]))
    return questions


# ---- questions to answers ------------------------------------------------------------------------

def answer_rows(model: SkyEyeGPT, tokenizer: Tokenizer, rows: Iterable[Batch], batch_size: int,
                encode: Callable[[Batch], Batch]) -> list[Answered]:
    """The model's answers to all questions of the rows, decoded greedily.

    batch_size: rows at once; encode: what is done to the pictures before the model gets them, as
    FeatureCache.encode.
    """
    device, answered = model.llama_model.lm_head.weight.device, []
    for prefix_len, alike in groupby(rows, prefix_length):
        for batch in batched(alike, batch_size):
            questions = [split_row(row) for row in batch]
            pictures = [row["images"] for row in batch if row["images"] is not None]
            images = encode({"images": torch.cat(pictures) if pictures else None})["images"]
            longest = max(len(question.truth) for group in questions for question in group)
            answers = model.answer_batch(
                [[question.prompt.to(device) for question in group] for group in questions],
                None if images is None else images.to(device), prefix_len,
                longest + SPARE_TOKENS, tokenizer.eos)
            flat = [question for group in questions for question in group]
            hashes = [hash_pictures(row) for row, group in zip(batch, questions, strict=True)
                      for _ in group]
            answered += [Answered(pictures, *map(tokenizer.decode, (
                question.prompt[prefix_len:].tolist(), question.truth.tolist(), answer)))
                for pictures, question, answer in zip(hashes, flat, answers, strict=True)]
    return answered


def hash_pictures(row: Batch) -> bytes:
    images = row["images"]
    return b"" if images is None else hashlib.blake2b(images.numpy(), digest_size=16).digest()


def batched(rows: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


# ---- scores --------------------------------------------------------------------------------------

COUNTS = ("exact", "texts", "right boxes", "boxes", "matched", "predicted", "true")


def count_right(answered: Sequence[Answered]) -> Tensor:
    """Sums over the answers, float[COUNTS], from which `rates` makes figures: each of a text, one
    box or several."""
    counts = torch.zeros(len(COUNTS), dtype=torch.float64)
    for found in answered:
        true, predicted = found.boxes(found.truth), found.boxes(found.answer)
        if not true:
            counts[:2] += torch.tensor([found.exact, 1])
        elif len(true) == 1:
            counts[2:4] += torch.tensor([found.right, 1])
        else:
            matched = len(true) if found.exact else len(match_boxes(predicted, true))
            counts[4:] += torch.tensor([matched, len(predicted), len(true)])
    return counts


def rates(counts: Tensor) -> dict[str, float]:
    """-> those there are of exact (match), pr_50 (one box: Pr@0.5), f1_50 (several: F1@0.5)."""
    exact, texts, right, boxes, matched, predicted, true = counts.tolist()
    figures = {"exact": (exact, texts), "pr_50": (right, boxes),
               "f1_50": (2 * matched, predicted + true if true else 0)}
    return {name: round(hits / count, 4) for name, (hits, count) in figures.items() if count}
