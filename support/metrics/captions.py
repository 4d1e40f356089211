"""support/metrics/captions.py"""
import importlib.util
import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support.metrics.statistics import Options, Score, empty_answers, mean_score, missing_score

# ---- ptb -----------------------------------------------------------------------------------------
# Penn-Treebank tokens as Stanford CoreNLP 3.4.1 makes them, without Java.

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


# ---- bleu ----------------------------------------------------------------------------------------
# BLEU-1..4 (Papineni et al. 2002) of tokenized captions, equal to pycocoevalcap's.

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


# ---- rouge ---------------------------------------------------------------------------------------
# ROUGE-L (Lin 2004, section 3.1) of tokenized captions, equal to pycocoevalcap's.

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


# ---- cider ---------------------------------------------------------------------------------------
# CIDEr-D (Vedantam et al. 2015, sections 4 and 6) of tokenized captions, as pycocoevalcap's.

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


# ---- coco ----------------------------------------------------------------------------------------
# METEOR and SPICE of tokenized captions, by pycocoevalcap's Java programs and by nothing else.
#
# Without Java, pycocoevalcap or the parser that its SPICE downloads when it is first used, there is
# no figure: another METEOR under that name could not be compared.

SPICE_PARSER = "spice/lib/stanford-corenlp-3.6.0-models.jar"


CaptionTexts = dict[int, list[str]]


def missing_requirement(name: str) -> str:
    """What there is not, so that `name` cannot be had; "" where it can."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None:
        return "needs pip install pycocoevalcap"
    if shutil.which("java") is None:
        return "needs Java"
    parser = any(Path(folder, SPICE_PARSER).exists() for folder in found.submodule_search_locations)
    return "" if parser or name != "spice" else f"needs pycocoevalcap/{SPICE_PARSER}"


def run_meteor(refs: CaptionTexts, hyps: CaptionTexts) -> tuple[float, list[float]]:
    scorer = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
    try:
        return scorer.compute_score(refs, hyps)
    finally:
        if scorer.lock.locked():
            scorer.lock.release()       # an error leaves it held, and its deletion would wait


def run_spice(refs: CaptionTexts, hyps: CaptionTexts) -> tuple[float, list[float]]:
    scorer = importlib.import_module("pycocoevalcap.spice.spice").Spice()
    total, items = scorer.compute_score(refs, hyps)
    return total, [item["All"]["f"] for item in items]


def java_score(name: str, hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> Score:
    """name: meteor or spice. The corpus's score as the program gives it; its interval is that of
    the captions' own scores, moved so that their mean is the corpus's."""
    if why := missing_requirement(name):
        return missing_score(name, len(hyps), why)
    texts = [{i: [text.replace("|||", "").encode("utf-8", "replace").decode() for text in item]
              for i, item in enumerate(side)} for side in (refs, [[hyp] for hyp in hyps])]
    try:
        total, items = {"meteor": run_meteor, "spice": run_spice}[name](*texts)
    except (ImportError, OSError, ValueError, subprocess.SubprocessError) as error:
        return missing_score(name, len(hyps), f"{type(error).__name__}: {error}"[:200])
    if not math.isfinite(total + sum(items)):
        return missing_score(name, len(hyps), "no number for some of the captions")
    return mean_score(name, [item + total - sum(items) / len(items) for item in items])


# ---- captions ------------------------------------------------------------------------------------
# Caption figures of raw texts: both sides are tokenized here.

def caption_figures(hypotheses: Sequence[str], references: Sequence[Sequence[str]],
                    java: bool = False) -> list[Score]:
    tokens = {text: ptb_tokenize(text)          # references repeat: five of RSICD's may be the same
              for text in set(hypotheses).union(*references)}
    hyps = [tokens[text] for text in hypotheses]
    refs = [[tokens[text] for text in item] for item in references]
    found = [bleu(hyps, refs), mean_score("rouge_l", rouge_l_items(hyps, refs)),
             mean_score("cider", cider_items(hyps, refs))]
    if java:
        found[1:1] = [java_score("meteor", hyps, refs)]
        found += [java_score("spice", hyps, refs)]
    return found


def caption_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]
                   ) -> dict[str, float]:
    """bleu1..bleu4, rouge_l (0..1) and cider of raw captions."""
    return {name: float(value) for score in caption_figures(hypotheses, references)
            for name, value in zip(score.names, score.value(score.stats.sum(axis=0)), strict=True)}


def score_captions(rows: Sequence[dict], options: Options) -> list[Score]:
    return [*caption_figures([row["answer"] for row in rows], [row["references"] for row in rows],
                             options.java), empty_answers(rows)]
