"""Caption scores equal pycocoevalcap's, and a metric that is missing costs no other."""
import importlib.util
import json
import math
import shutil
import sys

import pytest

import tiny
from prediction_rows import QUICK, row, values
from support.evaluation.report import markdown_cell
from support.metrics.captions import (
    SPICE_PARSER,
    bleu,
    caption_scores,
    cider_items,
    missing_requirement,
    ptb_tokenize,
    rouge_l_items,
)
from support.metrics.figures import Figure, task_figures
from support.metrics.statistics import ScoringOptions

ORACLE = tiny.DATA / "caption_metric_oracle.json"
NAMES = {"Bleu_1": "bleu1", "Bleu_2": "bleu2", "Bleu_3": "bleu3", "Bleu_4": "bleu4",
         "ROUGE_L": "rouge_l", "CIDEr": "cider"}
SETS = ["ucm_test/loo", "ucm_test/shifted", "sydney_test/loo", "sydney_test/shifted"]
needs_data = pytest.mark.skipif(not ORACLE.exists(), reason="needs the data beside the repository")


# ---- BLEU, ROUGE-L, CIDEr ------------------------------------------------------------------------

@needs_data
@pytest.mark.parametrize("name", SETS)
def test_caption_scores_and_tokens_equal_pycocoevalcap(name):
    oracle = json.loads(ORACLE.read_text())[name]
    hyps = [item["hyp_raw"] for item in oracle["items"]]
    refs = [item["refs_raw"] for item in oracle["items"]]
    for item in oracle["items"]:
        assert ptb_tokenize(item["hyp_raw"]) == item["hyp_tok"]
        assert [ptb_tokenize(ref) for ref in item["refs_raw"]] == item["refs_tok"]
    scores = caption_scores(hyps, refs)
    rows = [row("caption", *pair) for pair in zip(hyps, refs, strict=True)]
    shown = values("caption", rows)
    for theirs, ours in NAMES.items():
        assert scores[ours] == shown[ours] == pytest.approx(oracle["scores"][theirs], abs=1e-6)


@pytest.mark.parametrize(("text", "tokens"), [
    ("A boat's wake, isn't it?", "a boat 's wake is n't it"),
    ("It cannot be 3.5km away...", "it can not be 3.5 km away"),
    ("and/or 24/7 (see) 1,000", "and/or 24/7 -lrb- see -rrb- 1,000"),
    ("U.S. planes - well-kept -- here!", "u.s. planes well-kept here"),
    ("", ""), (" . ", ""),
])
def test_tokens_are_penn_treebanks_without_punctuation(text, tokens):
    assert ptb_tokenize(text) == tokens


def bleus(hyps, refs):
    score = bleu(hyps, refs)
    return score.values().tolist()


def test_bleu_by_hand():
    # the cat sat: 3 of 3 words, 2 of 2 pairs; of the references one is longer, one as long
    assert bleus(["the cat sat"], [["the cat sat down", "a cat sat"]])[:2] == pytest.approx([1, 1])
    # 1 of 2 words, clipped: "the the" meets one "the"; as long as the reference
    assert bleus(["the the"], [["the cat"]])[0] == pytest.approx(0.5)
    # a short answer pays exp(1 - 4/2)
    assert bleus(["a b"], [["a b c d"]])[0] == pytest.approx(math.exp(-1), rel=1e-6)


def test_bleu_of_a_corpus_adds_counts_not_scores():
    hyps, refs = ["a b c d", "a x"], [["a b c d"], ["a b"]]
    assert bleu(hyps, refs).stats[:, 2].tolist() == [4, 1]
    assert bleus(hyps, refs)[0] == pytest.approx(5 / 6)


def test_rouge_takes_the_best_precision_and_the_best_recall():
    # "a b c": of "a c" 2 words are common, so P 2/3 and R 2/2; of "a b c d e" 3, so P 3/3 and R 3/5
    p, r, beta = 1.0, 1.0, 1.2
    assert rouge_l_items(["a b c"], [["a c", "a b c d e"]])[0] == pytest.approx(1)
    p = 2 / 3
    assert rouge_l_items(["a b c"], [["a c"]])[0] == pytest.approx(
        (1 + beta ** 2) * p * r / (r + beta ** 2 * p))


def test_cider_is_ten_for_the_only_reference_and_zero_for_other_words():
    refs = [["one two three four five"], ["six seven eight nine ten"]]
    assert cider_items([refs[0][0], "a b c d e"], refs) == pytest.approx([10, 0])


def test_an_empty_caption_scores_zero_and_is_counted():
    rows = [row("caption", text, ["a green ship at sea"]) for text in ("", " . ", "a green ship")]
    found = values("caption", rows[:2])
    assert found["empty"] == 2 and max(found.values()) == 2
    assert sum(value for name, value in found.items() if name != "empty") < 1e-6
    assert values("video", rows)["empty"] == 2


# ---- METEOR and SPICE ----------------------------------------------------------------------------

@needs_data
@pytest.mark.skipif(missing_requirement("meteor") != "", reason="needs pycocoevalcap and Java")
def test_meteor_equals_pycocoevalcap():
    oracle = json.loads(ORACLE.read_text())["sydney_test/loo"]
    rows = [row("caption", item["hyp_raw"], item["refs_raw"]) for item in oracle["items"]]
    meteor = task_figures("caption", rows, ScoringOptions(samples=2))["meteor"]
    assert meteor.value == pytest.approx(oracle["scores"]["METEOR"], abs=1e-6)
    texts = ("", "\ud800 |||", "a b")
    task_figures("caption", [row("caption", text, ["a ||| b"]) for text in texts])

STAND_IN = """
import threading

class {name}:
    def __init__(self):
        self.lock = threading.Lock()

    def compute_score(self, gts, res):
        self.lock.acquire()
        {body}
        self.lock.release()
        return 0.5, items
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """-> install(name, body): a pycocoevalcap whose METEOR or SPICE computes that."""
    def install(name, body, java=True):
        folder = tmp_path / "pycocoevalcap" / name
        folder.mkdir(parents=True)
        for init in (folder, folder.parent):
            (init / "__init__.py").touch()
        (folder / f"{name}.py").write_text(STAND_IN.format(name=name.capitalize(), body=body))
        if name == "spice":
            (folder / "lib").mkdir()
            (tmp_path / "pycocoevalcap" / SPICE_PARSER).touch()
        (tmp_path / "java").touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path) if java else "")
        monkeypatch.syspath_prepend(tmp_path)
        for module in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
            monkeypatch.delitem(sys.modules, module)
    yield install
    for module in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        del sys.modules[module]

CAPTIONS = [row("caption", "A ship.", ["a ship", "Ships!"], image="1"),
            row("caption", "a http://b|||c", ["the ||| road"], image="2")]


def test_without_java_meteor_and_spice_are_dashes_with_a_note_of_what_they_need(package):
    package("meteor", "items = [1.0]", java=False)
    found = task_figures("caption", CAPTIONS)
    for name in ("meteor", "spice"):
        assert found[name] == Figure(None, n=2, note="needs Java")
        assert markdown_cell(found[name]) == "–"
    assert "meteor" not in task_figures("caption", CAPTIONS, QUICK)


def test_without_the_package_meteor_is_a_dash(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in task_figures("caption", CAPTIONS)["meteor"].note


def test_spice_is_never_made_to_download_its_parser(package, tmp_path):
    package("spice", "raise SystemExit")
    (tmp_path / "pycocoevalcap" / SPICE_PARSER).unlink()
    assert SPICE_PARSER in task_figures("caption", CAPTIONS)["spice"].note


def test_meteor_is_given_tokens_and_its_corpus_score_is_the_figure(package):
    package("meteor", 'assert gts == {0: ["a ship", "ships"], 1: ["the | | | road"]} and '
            'res == {0: ["a ship"], 1: ["a http://bc"]}, (gts, res); items = [0.2, 0.4]')
    found = task_figures("caption", CAPTIONS)
    assert list(found)[4:] == ["meteor", "rouge_l", "cider", "spice", "empty"]
    assert found["meteor"].value == pytest.approx(0.5)  # not 0.3, the mean of the captions' own
    assert (found["meteor"].low, found["meteor"].high) == pytest.approx((0.4, 0.6))


def test_the_spice_of_a_caption_is_the_f1_of_all_tuples(package):
    package("spice", 'items = [{"All": {"f": 0.1}}, {"All": {"f": 0.9}}]')
    assert task_figures("caption", CAPTIONS)["spice"].value == pytest.approx(0.5)
    assert task_figures("identify", CAPTIONS)["spice"].value == pytest.approx(0.5)


@pytest.mark.parametrize("body", ["raise BrokenPipeError", "items = [float('died')]",
                                  "items = [0.1, float('nan')]"])
def test_a_java_program_that_dies_costs_only_its_own_figure(package, body):
    package("meteor", body)
    found = task_figures("caption", CAPTIONS)
    assert found["meteor"].value is None and found["meteor"].note
    assert found["bleu1"].value > 0


def test_a_meteor_that_died_is_left_unlocked_as_its_deletion_waits_for_the_lock(package):
    package("meteor", "type(self).last = self; raise BrokenPipeError")
    task_figures("caption", CAPTIONS)
    assert not sys.modules["pycocoevalcap.meteor.meteor"].Meteor.last.lock.locked()


def test_meteor_is_missing_just_where_java_or_the_package_is():
    assert bool(missing_requirement("meteor")) == (shutil.which("java") is None or
                                                  importlib.util.find_spec("pycocoevalcap") is None)
