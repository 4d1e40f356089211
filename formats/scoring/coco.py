"""METEOR and SPICE of tokenized captions, by pycocoevalcap's Java programs and by nothing else.

Without Java, pycocoevalcap or the parser that its SPICE downloads when it is first used, there is
no figure: another METEOR under that name could not be compared.
"""
import importlib
import importlib.util
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from formats.scoring.score import Score, mean, missing

PARSER = "spice/lib/stanford-corenlp-3.6.0-models.jar"
Texts = dict[int, list[str]]


def lacking(name: str) -> str:
    """What there is not, so that `name` cannot be had; "" where it can."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None:
        return "needs pip install pycocoevalcap"
    if shutil.which("java") is None:
        return "needs Java"
    parser = any(Path(folder, PARSER).exists() for folder in found.submodule_search_locations)
    return "" if parser or name != "spice" else f"needs pycocoevalcap/{PARSER}"


def meteor(refs: Texts, hyps: Texts) -> tuple[float, list[float]]:
    scorer = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
    try:
        return scorer.compute_score(refs, hyps)
    finally:
        if scorer.lock.locked():
            scorer.lock.release()       # an error leaves it held, and its deletion would wait


def spice(refs: Texts, hyps: Texts) -> tuple[float, list[float]]:
    scorer = importlib.import_module("pycocoevalcap.spice.spice").Spice()
    total, items = scorer.compute_score(refs, hyps)
    return total, [item["All"]["f"] for item in items]


def java_score(name: str, hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> Score:
    """name: meteor or spice. The corpus's score as the program gives it; its interval is that of
    the captions' own scores, moved so that their mean is the corpus's."""
    if why := lacking(name):
        return missing(name, len(hyps), why)
    texts = [{i: [text.replace("|||", "").encode("utf-8", "replace").decode() for text in item]
              for i, item in enumerate(side)} for side in (refs, [[hyp] for hyp in hyps])]
    try:
        total, items = {"meteor": meteor, "spice": spice}[name](*texts)
    except (ImportError, OSError, ValueError, subprocess.SubprocessError) as error:
        return missing(name, len(hyps), f"{type(error).__name__}: {error}"[:200])
    if not math.isfinite(total + sum(items)):
        return missing(name, len(hyps), "no number for some of the captions")
    return mean(name, [item + total - sum(items) / len(items) for item in items])
