"""BLEU-1..4 (Papineni et al. 2002) of tokenized captions, equal to pycocoevalcap's."""
from collections import Counter
from collections.abc import Sequence

import numpy as np

from formats.scoring.score import Score


def ngrams(text: str) -> Counter:
    """Counts of the 1- to 4-grams of a tokenized text."""
    words = text.split()
    return Counter(tuple(words[i:i + n]) for n in (1, 2, 3, 4) for i in range(len(words) + 1 - n))


def bleu_item(hyp: str, refs: Sequence[str]) -> list[int]:
    """[length, closest reference length, clipped matches of 1..4-grams, totals of 1..4-grams]."""
    length, ceiling, matches = len(hyp.split()), Counter(), [0] * 4
    for ref in refs:
        ceiling |= ngrams(ref)                  # the largest count in any one reference
    for gram, number in ngrams(hyp).items():
        matches[len(gram) - 1] += min(number, ceiling[gram])
    closest = min((len(ref.split()) for ref in refs), key=lambda n: (abs(n - length), n))
    return [length, closest, *matches, *(max(0, length - n) for n in range(4))]


def bleu_value(sums: np.ndarray) -> np.ndarray:
    """float[.., 10] -> float[.., 4]: BP * (p_1 ... p_n)^(1/n), BP = min(1, exp(1 - r / c)).

    Section 2.3; 1e-15 and 1e-9 keep empty counts finite as in the COCO code.
    """
    length, closest = sums[..., :1], sums[..., 1:2]
    precisions = np.cumprod((sums[..., 2:6] + 1e-15) / (sums[..., 6:10] + 1e-9), axis=-1)
    brevity = (length + 1e-15) / (closest + 1e-9)
    return np.exp(np.minimum(0, 1 - 1 / brevity)) * precisions ** (1 / np.arange(1, 5))


def bleu(hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> Score:
    """A corpus's BLEU comes from summed counts; it is no mean of the captions' own."""
    stats = [bleu_item(hyp, item) for hyp, item in zip(hyps, refs, strict=True)]
    return Score(("bleu1", "bleu2", "bleu3", "bleu4"), np.array(stats, dtype=float), bleu_value)
