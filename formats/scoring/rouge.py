"""ROUGE-L (Lin 2004, section 3.1) of tokenized captions, equal to pycocoevalcap's."""
from collections.abc import Sequence


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the dynamic program at a time."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge_l_items(hyps: Sequence[str], refs: Sequence[Sequence[str]], beta: float = 1.2
                  ) -> list[float]:
    """Each caption's (1 + b^2) P R / (R + b^2 P).

    P = LCS / |hyp| and R = LCS / |ref| are each the best over the references, as in COCO.
    """
    scores = []
    for hyp, item in zip(hyps, refs, strict=True):
        words, options = hyp.split(" "), {tuple(ref.split(" ")) for ref in item}
        common = [(lcs(words, option), len(option)) for option in options]
        p = max(same / len(words) for same, _ in common)
        r = max(same / length for same, length in common)
        scores.append((1 + beta**2) * p * r / (r + beta**2 * p) if p else 0.0)
    return scores
