"""CIDEr-D (Vedantam et al. 2015, sections 4 and 6) of tokenized captions, as pycocoevalcap's."""
import math
from collections import Counter
from collections.abc import Sequence

from formats.scoring.bleu import ngrams


def tf_idf(counts: Counter, frequency: Counter, items: int) -> list[dict]:
    """Count * log(items / document frequency) of each n-gram, a dictionary for each n = 1..4."""
    vectors: list[dict] = [{} for _ in range(4)]
    for gram, number in counts.items():
        vectors[len(gram) - 1][gram] = number * math.log(items / max(1, frequency[gram]))
    return vectors


def cosine(hyp: list[dict], ref: list[dict]) -> float:
    """Mean over n of sum min(h, r) * r / (|h| |r|), 0 where a vector is empty."""
    total = 0.0
    for h, r in zip(hyp, ref, strict=True):
        norm = math.hypot(*h.values()) * math.hypot(*r.values())
        if norm:
            total += sum(min(x, r[g]) * r[g] for g, x in h.items() if g in r) / norm
    return total / len(hyp)


def cider_items(hyps: Sequence[str], refs: Sequence[Sequence[str]], sigma: float = 6.0
                ) -> list[float]:
    """Each caption's 10 * mean over references of exp(-(length difference)^2 / (2 sigma^2)) *
    clipped cosine; the idf is that of `refs` as a corpus."""
    grams = [[ngrams(ref) for ref in item] for item in refs]
    frequency = Counter(gram for item in grams for gram in set().union(*item))
    scores = []
    for hyp, item, counts in zip(hyps, refs, grams, strict=True):
        vector, score = tf_idf(ngrams(hyp), frequency, len(refs)), 0.0
        for ref, own in zip(item, counts, strict=True):
            gap = max(1, len(hyp.split())) - max(1, len(ref.split()))
            penalty = math.exp(-(gap**2) / (2 * sigma**2))
            score += penalty * cosine(vector, tf_idf(own, frequency, len(refs)))
        scores.append(10 * score / len(item))
    return scores
