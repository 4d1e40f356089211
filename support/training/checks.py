"""What is found in the rows of a training before its first step, and by `data.py --check`.

    too long        over --max_tokens of text, or over the model's context with its pictures
    text boxes      boxes written in a text in other numbers than hundredths: a note
"""
import bisect
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data import (
    BOX,
    PROMPTS,
    TEMPLATES,
    Tokenizer,
    apply_templates,
    encode_conversation,
    length_fault,
)
from support.images.clips import is_clip
from support.images.read import read_header
from support.readers.common import DataError, Sample, SampleTable

# ---- lengths -------------------------------------------------------------------------------------

MEASURED_CHARACTERS = 50_000_000        # of rows that may be too long: at most so many are encoded,
                                        # which takes less than a minute; the longest come first


@dataclass(frozen=True)
class TokenCounter:
    """How many tokens rows take, and whether these are too many."""
    tokenizer: Tokenizer
    style: str                  # of the prompt
    visual_tokens: int          # of a picture
    max_tokens: int             # of text
    max_positions: int = 0      # of the model's context; 0: not known
    frames: int = 8             # of a clip

    def count(self, sample: Sample) -> tuple[int, int]:
        """-> tokens of text, and all tokens with those of its pictures, in the longest template."""
        header = read_header(sample.images[0]) if sample.images and sample.boxes else None
        size = (header.width, header.height) if header and header.width else (1, 1)
        try:
            turns = apply_templates(sample, size, rng=LongestTemplate(), style=self.style)
        except ValueError:                      # a box outside: another check's fault
            return 0, 0
        ids = encode_conversation(self.tokenizer, turns, self.visual_tokens,
                                  self.num_images(sample.images), self.style)[0]
        return len(ids) - ids.count(-1), len(ids)

    def num_images(self, paths: Sequence[str]) -> int:
        """How many images they are, clips with all their frames."""
        return sum(self.frames if is_clip(path) else 1 for path in paths)

    def fault(self, sample: Sample) -> tuple[int, str]:
        """-> tokens of text, and what is wrong with their number or ""."""
        text, whole = self.count(sample)
        return text, length_fault(text, whole, self.max_tokens, self.max_positions)

    def candidates(self, samples: SampleTable) -> np.ndarray:
        """The numbers of the samples that may be too long, the longest first: all others are not,
        even at a token a byte. Nothing is encoded."""
        prompt = PROMPTS[self.style]
        of_turn = len(prompt.user_prefix + prompt.user_suffix + prompt.answer_end) + 8
        of_start = len(prompt.user_prefix_first) + max(
            len(text.encode()) for texts in TEMPLATES.values() for text in texts)
        of_sets = np.array([self.num_images(paths) for paths in samples.image_sets], np.int64)
        images = of_sets[np.array(samples.image_set, np.int64)]
        of_images = images * len(prompt.image_start + prompt.image_end + "    ")
        text = np.frombuffer(samples.text, np.uint8)
        ends = np.array(samples.ends)
        separators = np.flatnonzero(text == 0x1e)       # between the texts of turns
        turns = np.diff(np.searchsorted(separators, ends)) // 2 + 1
        longest = np.diff(ends).astype(np.int64) + of_turn * turns + of_start + of_images
        limit = np.full(len(samples), self.max_tokens)
        if self.max_positions:
            limit = np.minimum(limit, self.max_positions - self.visual_tokens * images)
        order = np.argsort(-longest, kind="stable")
        return order[longest[order] > limit[order]]


class LongestTemplate(random.Random):
    """Chooses the longest of several texts."""

    def choice(self, texts: Sequence[str]) -> str:
        return max(texts, key=len)


def long_rows(samples: SampleTable, counter: TokenCounter
              ) -> tuple[dict[int, tuple[int, str]], int]:
    """-> {number: (tokens of text, what is wrong)} of the samples that are too long, and how many
    others were not measured for the time it takes."""
    found: dict[int, tuple[int, str]] = {}
    candidates = counter.candidates(samples).tolist()
    characters = 0
    for place, i in enumerate(candidates):
        if characters > MEASURED_CHARACTERS:
            return found, len(candidates) - place
        characters += samples.num_chars[i]
        tokens, fault = counter.fault(samples[i])
        if fault:
            found[i] = tokens, fault
    return found, 0


def drop_long_rows(samples: SampleTable, counter: TokenCounter, skipped: list[str] | None,
                   quiet: bool = False) -> SampleTable:
    """The samples that are not too long; a line for each of the others is appended to `skipped`.

    quiet: print nothing. DataError: some are too long and `skipped` is None, or all are.
    """
    found, unmeasured = long_rows(samples, counter)
    if unmeasured and not quiet:
        print(f"{unmeasured:,} long rows were not measured; data.py --check measures all",
              file=sys.stderr)
    if not found:
        return samples
    numbers = sorted(found)
    most = max(numbers, key=lambda i: found[i][0])
    text = (f"{samples[numbers[0]].source}: {found[numbers[0]][1]} ({len(numbers):,} such rows; "
            f"the longest, {samples[most].source}, has {found[most][0]:,})")
    if skipped is None or len(found) == len(samples):
        raise DataError(f"{text}; " + ("--skip_bad leaves them out" if len(found) < len(samples)
                                       else "no row is left"))
    skipped += [f"{samples[i].source}: {found[i][1]}" for i in numbers]
    if not quiet:
        print(f"left out {len(numbers):,}: {text}", file=sys.stderr)
    return SampleTable(vars(sample) for i, sample in enumerate(samples) if i not in found)


# ---- boxes in texts ------------------------------------------------------------------------------

NUMBER = r"<\s*-?\d{1,9}(?:\.\d{0,20})?\s*>\s*"
LOOSE_BOX = r"\{\s*" + NUMBER * 4 + r"(?:\||\})"
BOX_LENGTH = 200                # more than a box takes


def find_loose_boxes(text: str | bytes | bytearray) -> Iterator[re.Match]:
    """What looks like a box, with any numbers."""
    is_text = isinstance(text, str)
    return re.finditer(LOOSE_BOX if is_text else LOOSE_BOX.encode(), text, re.ASCII)


def describe_text_boxes(text: str) -> str:
    """What a text holds that looks like a box and is none, for a note; "" where there is none."""
    faults = (text_box_fault(text[match.start():match.start() + BOX_LENGTH])
              for match in find_loose_boxes(text))
    return next(filter(None, faults), "")


def text_box_fault(text: str) -> str:
    """text: from where something looks like a box. "" if it is one."""
    found = next(find_loose_boxes(text), None)
    if not found:                               # longer than any box
        return ""
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d*)?", found[0])][:4]
    if BOX.match(text) and max(numbers) <= 100:
        return ""
    thousandths = "." not in found[0] and 100 < max(numbers) <= 1000 and min(numbers) >= 0
    fractions = "." in found[0] and max(numbers) <= 1 and min(numbers) >= 0
    kind = "thousandths" if thousandths else "fractions" if fractions else "other numbers"
    return f"{found[0][:60]}: {kind}; a box has whole hundredths, 0 to 100"


def note_text_boxes(samples: SampleTable) -> str:
    """A line about boxes in texts that are none, which would be learned as they are; "" if there
    are none."""
    first, count = "", 0
    for match in find_loose_boxes(samples.text):
        start = match.start()
        fault = text_box_fault(samples.text[start:start + BOX_LENGTH].decode("utf-8", "replace"))
        if fault:
            count += 1
            if not first:
                number = bisect.bisect_right(samples.ends, start) - 1
                first = f"{samples[number].source}: {fault}"
    more = f" (and {count - 1:,} more)" if count > 1 else ""
    return f"{first}{more}; it is learned as it stands" if count else ""
