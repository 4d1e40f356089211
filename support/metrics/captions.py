"""Caption metrics: BLEU, ROUGE-L, CIDEr-D, METEOR and SPICE, equal to pycocoevalcap's.

    caption_scores(["a river"], [["a river", "a green river"]]) -> {"bleu1": .., "cider": ..}

Texts are tokenized as the Penn Treebank is, without Java. METEOR and SPICE come from the Java
programs of pycocoevalcap and from nothing else: a different METEOR under the same name could not be
compared. Without Java, the package, or the parser that its SPICE downloads when it is first used,
there is no such figure but a note on what is missing.

hyps: one caption for each picture; refs: its reference captions.
"""
import importlib.util
import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support.common import without_surrogates
from support.metrics.statistics import (
    Score,
    ScoringOptions,
    empty_answers,
    mean_score,
    missing_score,
)


def caption_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]
                   ) -> dict[str, float]:
    """bleu1 .. bleu4, rouge_l (0 to 1) and cider of raw captions."""
    return {name: float(value) for score in caption_metrics(hypotheses, references)
            for name, value in zip(score.names, score.values(), strict=True)}


def score_captions(rows: Sequence[dict], options: ScoringOptions) -> list[Score]:
    """The scores of the tasks caption and video."""
    return [*caption_metrics([row["answer"] for row in rows], [row["references"] for row in rows],
                             options.java), empty_answers(rows)]


def caption_metrics(hypotheses: Sequence[str], references: Sequence[Sequence[str]],
                    java: bool = False) -> list[Score]:
    """All metrics of raw captions, in the papers' order; java: METEOR and SPICE too."""
    texts = set(hypotheses).union(*references)      # references repeat: tokenize each text once
    tokens = {text: ptb_tokenize(text) for text in texts}
    hyps = [tokens[text] for text in hypotheses]
    refs = [[tokens[text] for text in item] for item in references]
    scores = [bleu(hyps, refs), mean_score("rouge_l", rouge_l_items(hyps, refs)),
              mean_score("cider", cider_items(hyps, refs))]
    if java:
        scores.insert(1, java_score("meteor", hyps, refs))
        scores.append(java_score("spice", hyps, refs))
    return scores


# ---- Penn Treebank tokens ------------------------------------------------------------------------

# Abbreviations that keep their period: those that Stanford CoreNLP 3.4.1 knows.
ABBREVIATIONS = r"""jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs fri calif
conn fla mich penn va ariz tenn mo md wis minn ind okla kan ga colo ky ala nev neb vt wyo mont dak
inc cos? corp ltd plc rt bancorp bhd assn univ intl sys [js]r bros blvd rd esq etc al seq est sq ct
bldg ext tel dept ph ph\.d mrs? ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev
maj sgt cpl pvt capt ste? ave pres lieut hon brig comdr cmdr pfc spc supts? det invt elec natl mfg
mtg vs alex wm jos cie cf treas mt ft mme mlle assoc""".split()

# After a single letter these open a new sentence: "the form of V. There is" has a full stop.
STARTERS = """A About According Additionally After An As At But Earlier He Her Here However If In
It Last Many More Now Once One Other Our She Since So Some Such That The Their Then There These
They This We What When While Yet You""".split()

L = r"[^\W\d_²³]"              # a letter
W = r"[^\W_²³]"                # a letter or digit

TOKEN = re.compile(rf"""
    https?://\S+ | www\.[\w./-]+ | [\w.+-]+@\w[\w-]*(?:\.\w+)* | </?[a-z][^<>\s]*> | -[lr][rsc]b-
  | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b) | 't(?=(?:is|was)\b)
  | [a-z]+(?=n't\b) | n't\b | '(?:s|m|d|ll|re|ve)\b               # do n't, it 's
  | (?:[dol]'|n?e'(?=er)){L}{{2,}} | ma'am\b | '(?:em|til|cause)\b | 'n\b'? | '\d\ds?\b
  | (?-i:[A-Z]+(?:[&+][A-Z]+)+ | (?:US|HK|[AC])\$) | c(?:\+\+|\#) # R&B, US$
  | [a-z](?:\.[a-z])+\.(?![\w-])                                  # u.s.
  | [a-z]\.(?!{L}|-{W}|\s+(?-i:{"|".join(STARTERS)})\b)           # plan b.
  | (?:{"|".join(ABBREVIATIONS)})\.(?![\w-])
  | (?:nos?|figs?|art|pp|op|sec|vol|eds?|prop|ca)\.(?=\s?\d)      # no. 5 but "no . of"
  | (?:{W}+(?:-{L}+){{0,2}}(?:/{W}+(?:-{L}+){{0,2}}){{1,2}}       # and/or, 24/7
    | {W}(?:{W}|[.,])*(?:-{W}+)+                                  # fan-shaped
    | {W}+(?:_{W}+)+ | [+-]?(?:\d*(?:[.:,]\d+)+|\d+(?!{W}))       # a_b, 1,000
    | {L}{W}*(?:[.!?]{L}{W}*)* | {W}+                             # road, road.the, 20m
    )(?:\.(?=[,;:]))?                                             # "trees.," keeps its period
  | [@\#]{L}\w* | [?!]+ | [*]+ | _+ | @+ | \#+
  | \.{{3,}} | --+ | << | >> | ``|'' | [^\s\U00010000-\U0010ffff]
""", re.I | re.X)

REPLACEMENTS = str.maketrans({
    "(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ", "}": " -rcb- ",
    "’": "'", "‘": "`", "“": "``", "”": "''", "–": "--", "—": "--", "…": " ... ", "€": "$",
    "£": "#", "¢": " cents", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 ",
    "\u200b": " ", "\ufeff": " ", "\xad": "", "«": "``", "»": "''", "‹": "`", "›": "'"})

PUNCTUATION = re.compile(r"""''?|``?|"|[.?!,:;]|\.{3,}|-+""")


def ptb_tokenize(text: str) -> str:
    """Lower-cased tokens without punctuation, as pycocoevalcap's PTBTokenizer (CoreNLP 3.4.1).

    Brackets become "-lrb-" etc. and stay: the reference drops only their upper-case names.
    """
    tokens = (match[0].lower() for match in TOKEN.finditer(text.translate(REPLACEMENTS)))
    return " ".join(token for token in tokens if not PUNCTUATION.fullmatch(token))


# ---- BLEU ----------------------------------------------------------------------------------------

def bleu(hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> Score:
    """BLEU-1 .. BLEU-4 of tokenized captions (Papineni et al. 2002).

    The BLEU of a corpus comes from summed counts; it is not a mean over captions.
    """
    stats = [bleu_counts(hyp, item) for hyp, item in zip(hyps, refs, strict=True)]
    return Score(("bleu1", "bleu2", "bleu3", "bleu4"), np.array(stats, dtype=float), bleu_value)


def bleu_counts(hyp: str, refs: Sequence[str]) -> list[int]:
    """[length, closest reference length, clipped matches of 1..4-grams, totals of 1..4-grams]."""
    length, ceiling, matches = len(hyp.split()), Counter(), [0] * 4
    for ref in refs:
        ceiling |= ngrams(ref)                  # the largest count in any one reference
    for gram, count in ngrams(hyp).items():
        matches[len(gram) - 1] += min(count, ceiling[gram])
    closest = min((len(ref.split()) for ref in refs), key=lambda n: (abs(n - length), n))
    return [length, closest, *matches, *(max(0, length - n) for n in range(4))]


def bleu_value(sums: np.ndarray) -> np.ndarray:
    """float[.., 10] -> float[.., 4]: BP * (p_1 ... p_n)^(1/n), BP = min(1, exp(1 - r / c)).

    Section 2.3; 1e-15 and 1e-9 keep empty counts finite, as in the COCO code.
    """
    length, closest = sums[..., :1], sums[..., 1:2]
    precisions = np.cumprod((sums[..., 2:6] + 1e-15) / (sums[..., 6:10] + 1e-9), axis=-1)
    brevity = (length + 1e-15) / (closest + 1e-9)
    return np.exp(np.minimum(0, 1 - 1 / brevity)) * precisions ** (1 / np.arange(1, 5))


def ngrams(text: str) -> Counter:
    """Counts of the 1- to 4-grams of a tokenized text."""
    tokens = text.split()
    return Counter(tuple(tokens[i:i + n]) for n in (1, 2, 3, 4) for i in range(len(tokens) + 1 - n))


# ---- ROUGE-L -------------------------------------------------------------------------------------

def rouge_l_items(hyps: Sequence[str], refs: Sequence[Sequence[str]], beta: float = 1.2
                  ) -> list[float]:
    """(1 + b^2) P R / (R + b^2 P) of each tokenized caption (Lin 2004, section 3.1).

    P = LCS / |hyp| and R = LCS / |ref| are each the best over the references, as in COCO.
    """
    scores = []
    for hyp, item in zip(hyps, refs, strict=True):
        tokens, distinct = hyp.split(" "), {tuple(ref.split(" ")) for ref in item}
        common = [(lcs(tokens, ref), len(ref)) for ref in distinct]
        p = max(same / len(tokens) for same, _ in common)
        r = max(same / length for same, length in common)
        scores.append((1 + beta**2) * p * r / (r + beta**2 * p) if p else 0.0)
    return scores


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the dynamic program at a time."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


# ---- CIDEr-D -------------------------------------------------------------------------------------

def cider_items(hyps: Sequence[str], refs: Sequence[Sequence[str]], sigma: float = 6.0
                ) -> list[float]:
    """CIDEr-D of each tokenized caption (Vedantam et al. 2015, sections 4 and 6).

    10 * mean over references of exp(-(length difference)^2 / (2 sigma^2)) * clipped cosine of the
    tf-idf vectors; the idf is that of `refs` as a corpus.
    """
    grams = [[ngrams(ref) for ref in item] for item in refs]
    frequency = Counter(gram for item in grams for gram in set().union(*item))
    scores = []
    for hyp, item, counts in zip(hyps, refs, grams, strict=True):
        vector, score = tf_idf(ngrams(hyp), frequency, len(refs)), 0.0
        for ref, ref_counts in zip(item, counts, strict=True):
            gap = max(1, len(hyp.split())) - max(1, len(ref.split()))
            penalty = math.exp(-(gap**2) / (2 * sigma**2))
            score += penalty * clipped_cosine(vector, tf_idf(ref_counts, frequency, len(refs)))
        scores.append(10 * score / len(item))
    return scores


def tf_idf(counts: Counter, frequency: Counter, items: int) -> list[dict]:
    """Count * log(items / document frequency) of each n-gram, a dictionary for each n = 1..4."""
    vectors: list[dict] = [{} for _ in range(4)]
    for gram, count in counts.items():
        vectors[len(gram) - 1][gram] = count * math.log(items / max(1, frequency[gram]))
    return vectors


def clipped_cosine(hyp: list[dict], ref: list[dict]) -> float:
    """Mean over n of sum min(h, r) * r / (|h| |r|), 0 where a vector is empty."""
    total = 0.0
    for h, r in zip(hyp, ref, strict=True):
        norm = math.hypot(*h.values()) * math.hypot(*r.values())
        if norm:
            total += sum(min(x, r[g]) * r[g] for g, x in h.items() if g in r) / norm
    return total / len(hyp)


# ---- METEOR and SPICE ----------------------------------------------------------------------------

SPICE_PARSER = "spice/lib/stanford-corenlp-3.6.0-models.jar"

CaptionTexts = dict[int, list[str]]             # as pycocoevalcap takes them: row -> captions


def java_score(name: str, hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> Score:
    """name: meteor or spice.

    The figure is the corpus score that the program prints; its interval is that of the captions'
    own scores, shifted so that their mean is the corpus score.
    """
    if missing := missing_requirement(name):
        return missing_score(name, len(hyps), missing)
    run = {"meteor": run_meteor, "spice": run_spice}[name]
    try:
        total, items = run(java_texts(refs), java_texts([[hyp] for hyp in hyps]))
    except (ImportError, OSError, ValueError, subprocess.SubprocessError) as error:
        return missing_score(name, len(hyps), f"{type(error).__name__}: {error}"[:200])
    if not math.isfinite(total + sum(items)):
        return missing_score(name, len(hyps), "no number for some of the captions")
    return mean_score(name, [item + total - sum(items) / len(items) for item in items])


def missing_requirement(name: str) -> str:
    """What must be installed for METEOR or SPICE; empty where nothing is missing."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        return "needs pip install pycocoevalcap"
    if shutil.which("java") is None:
        return "needs Java"
    folders = package.submodule_search_locations
    if name == "spice" and not any(Path(folder, SPICE_PARSER).exists() for folder in folders):
        return f"needs pycocoevalcap/{SPICE_PARSER}"
    return ""


def java_texts(captions: Sequence[Sequence[str]]) -> CaptionTexts:
    """Without |||, which separates captions in the programs' input, and without lone surrogates."""
    return {i: [without_surrogates(text.replace("|||", "")) for text in item]
            for i, item in enumerate(captions)}


def run_meteor(refs: CaptionTexts, hyps: CaptionTexts) -> tuple[float, list[float]]:
    """-> the corpus score and each caption's."""
    scorer = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
    try:
        return scorer.compute_score(refs, hyps)
    finally:
        if scorer.lock.locked():
            scorer.lock.release()       # an error leaves it locked, and __del__ would wait for it


def run_spice(refs: CaptionTexts, hyps: CaptionTexts) -> tuple[float, list[float]]:
    """-> the corpus score and each caption's F1."""
    scorer = importlib.import_module("pycocoevalcap.spice.spice").Spice()
    total, items = scorer.compute_score(refs, hyps)
    return total, [item["All"]["f"] for item in items]
