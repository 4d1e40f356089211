"""Figures are what the papers' tools print, and intervals what a bootstrap of pictures says."""
import importlib.util
import json
import math
import random
import shutil
import sys

import numpy as np
import pytest

import tiny
from support.evaluation.report import details_markdown, markdown_cell
from support.metrics.answers import to_count_range
from support.metrics.boxes import iou, match_boxes, size_class
from support.metrics.captions import (
    SPICE_PARSER,
    bleu,
    caption_scores,
    cider_items,
    missing_requirement,
    ptb_tokenize,
    rouge_l_items,
)
from support.metrics.figures import Figure, task_details, task_figures
from support.metrics.statistics import (
    BOOTSTRAP_CHUNK,
    Options,
    interval,
    intervals,
    mean_score,
    resample_sums,
)

ORACLE = tiny.DATA / "caption_metric_oracle.json"
NAMES = {"Bleu_1": "bleu1", "Bleu_2": "bleu2", "Bleu_3": "bleu3", "Bleu_4": "bleu4",
         "ROUGE_L": "rouge_l", "CIDEr": "cider"}
SETS = ["ucm_test/loo", "ucm_test/shifted", "sydney_test/loo", "sydney_test/shifted"]
needs_data = pytest.mark.skipif(not ORACLE.exists(), reason="needs the data beside the repository")
QUICK = Options(samples=50, java=False)


def row(task, answer, references=(), boxes=(), kind="", image="same.png", size=(100, 200)):
    return {"task": task, "answer": answer, "references": list(references), "boxes": list(boxes),
            "type": kind, "size": size, "image": [image]}


def values(task, rows, options=QUICK):
    return {name: figure.value for name, figure in task_figures(task, rows, options).items()}


# ---- captions ------------------------------------------------------------------------------------

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


@needs_data
@pytest.mark.skipif(missing_requirement("meteor") != "", reason="needs pycocoevalcap and Java")
def test_meteor_equals_pycocoevalcap():
    oracle = json.loads(ORACLE.read_text())["sydney_test/loo"]
    rows = [row("caption", item["hyp_raw"], item["refs_raw"]) for item in oracle["items"]]
    meteor = task_figures("caption", rows, Options(samples=2))["meteor"]
    assert meteor.value == pytest.approx(oracle["scores"]["METEOR"], abs=1e-6)
    task_figures("caption", [row("caption", text, ["a ||| b"]) for text in ("", "\ud800 |||", "a b")])


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
    return score.value(score.stats.sum(axis=0)).tolist()


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


def test_cider_is_ten_for_the_one_reference_and_zero_for_strangers():
    refs = [["one two three four five"], ["six seven eight nine ten"]]
    assert cider_items([refs[0][0], "a b c d e"], refs) == pytest.approx([10, 0])


def test_an_empty_caption_is_worth_nothing_and_counted():
    rows = [row("caption", text, ["a green ship at sea"]) for text in ("", " . ", "a green ship")]
    found = values("caption", rows[:2])
    assert found["empty"] == 2 and max(found.values()) == 2
    assert sum(value for name, value in found.items() if name != "empty") < 1e-6
    assert values("video", rows)["empty"] == 2


# ---- METEOR and SPICE ----------------------------------------------------------------------------

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
    """-> put(name, body): a pycocoevalcap with a METEOR or SPICE whose compute_score does that."""
    def put(name, body, java=True):
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
    yield put
    for module in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        del sys.modules[module]


CAPTIONS = [row("caption", "A ship.", ["a ship", "Ships!"], image="1"),
            row("caption", "a http://b|||c", ["the ||| road"], image="2")]


def test_without_java_meteor_and_spice_are_dashes_and_say_what_they_need(package):
    package("meteor", "items = [1.0]", java=False)
    found = task_figures("caption", CAPTIONS)
    for name in ("meteor", "spice"):
        assert found[name] == Figure(None, n=2, note="needs Java") and markdown_cell(found[name]) == "–"
    assert "meteor" not in task_figures("caption", CAPTIONS, QUICK)


def test_without_the_package_meteor_is_a_dash(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in task_figures("caption", CAPTIONS)["meteor"].note


def test_spice_is_never_made_to_download_its_parser(package, tmp_path):
    package("spice", "raise SystemExit")
    (tmp_path / "pycocoevalcap" / SPICE_PARSER).unlink()
    assert SPICE_PARSER in task_figures("caption", CAPTIONS)["spice"].note


def test_meteor_is_asked_with_tokens_and_its_corpus_score_is_the_figure(package):
    package("meteor", 'assert gts == {0: ["a ship", "ships"], 1: ["the | | | road"]} and '
            'res == {0: ["a ship"], 1: ["a http://bc"]}, (gts, res); items = [0.2, 0.4]')
    found = task_figures("caption", CAPTIONS)
    assert list(found)[4:] == ["meteor", "rouge_l", "cider", "spice", "empty"]
    assert found["meteor"].value == pytest.approx(0.5)  # not 0.3, the mean of the captions' own
    assert (found["meteor"].low, found["meteor"].high) == pytest.approx((0.4, 0.6))


def test_spice_reads_the_f_of_all_tuples(package):
    package("spice", 'items = [{"All": {"f": 0.1}}, {"All": {"f": 0.9}}]')
    assert task_figures("caption", CAPTIONS)["spice"].value == pytest.approx(0.5)
    assert task_figures("identify", CAPTIONS)["spice"].value == pytest.approx(0.5)


@pytest.mark.parametrize("body", ["raise BrokenPipeError", "items = [float('died')]",
                                  "items = [0.1, float('nan')]"])
def test_a_java_program_that_dies_costs_its_own_figure_alone(package, body):
    package("meteor", body)
    found = task_figures("caption", CAPTIONS)
    assert found["meteor"].value is None and found["meteor"].note
    assert found["bleu1"].value > 0


def test_a_meteor_that_died_is_left_unlocked_as_its_deletion_waits_for_the_lock(package):
    package("meteor", "type(self).last = self; raise BrokenPipeError")
    task_figures("caption", CAPTIONS)
    assert not sys.modules["pycocoevalcap.meteor.meteor"].Meteor.last.lock.locked()


# ---- short answers -------------------------------------------------------------------------------

def test_accuracy_is_per_type_their_mean_and_overall():
    rows = [row("vqa", answer, ["yes"], kind="presence") for answer in ("yes", "Yes.", "no")]
    rows += [row("vqa", "3", ["4"], kind="count"), row("vqa", "4", ["4"])]
    assert values("vqa", rows) == pytest.approx(
        {"presence": 2 / 3, "count": 0, "untyped": 1, "mean of types": 5 / 9, "overall": 0.6,
         "empty": 0})
    assert values("vqa", rows, Options(types=("presence", "count", "absent")))[
        "mean of types"] == pytest.approx(1 / 3)
    assert {name: figure.n for name, figure in task_figures("vqa", rows, QUICK).items()} == {
        "presence": 3, "count": 1, "untyped": 1, "mean of types": 5, "overall": 5, "empty": 5}


def test_an_empty_answer_is_wrong_whatever_the_truth_and_counted():
    rows = [row("vqa", text, ["."]) for text in ("", " . ", ".")] + [row("vqa", "no", ["no"])]
    assert values("vqa", rows)["overall"] == 0.25 and values("vqa", rows)["empty"] == 3
    assert values("scene", rows) == {"accuracy": 0.25, "empty": 3}


@pytest.mark.parametrize(("number", "name"), [
    (0, "0"), (1, "between 1 and 10"), (10, "between 1 and 10"), (11, "between 11 and 100"),
    (100, "between 11 and 100"), (101, "between 101 and 1000"), (1000, "between 101 and 1000"),
    (1001, "more than 1000"), (23456, "more than 1000")])
def test_a_count_falls_in_rsvqas_range(number, name):
    assert to_count_range(str(number)) == to_count_range(f" {number}. ") == name
    assert to_count_range(f"{number}m2") == f"{name}m2" != to_count_range(str(number))


def test_a_range_is_its_own_range_in_either_spelling():
    for text in ("between 0 and 10", "Between 1 and 10", "7"):
        assert to_count_range(text) == "between 1 and 10"
    assert to_count_range("between 10m2 and 100m2") == "between 11 and 100m2"
    assert to_count_range("more than 1000") == "more than 1000" and to_count_range("1000") != "more than 1000"
    assert to_count_range("urban") == "urban" and to_count_range("9" * 5000) == "9" * 5000


def test_counts_are_compared_in_ranges_only_where_that_is_asked_for():
    rows = [row("vqa", "12", ["99"], kind="count"), row("vqa", "10", ["11"], kind="count")]
    assert values("vqa", rows)["count"] == 0
    assert values("vqa", rows, Options(count_ranges=True))["count"] == 0.5


def test_an_identified_object_is_scored_as_a_caption_and_as_the_very_phrase():
    rows = [row("identify", "a large ship", ["a ship"]), row("identify", "A ship.", ["a ship"])]
    found = values("identify", rows)
    assert found["accuracy"] == 0.5
    assert found["bleu1"] == pytest.approx(4 / 5) and found["rouge_l"] > 0.5 and "cider" in found


# ---- boxes ---------------------------------------------------------------------------------------

def test_iou_by_hand():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 1, 2, 2)) == iou((0, 0, 5, 5), (0, 8, 5, 9)) == 0
    assert iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0
    # the other convention's boxes have 3 x 3 pixels, of which 2 x 3 are common
    assert iou((0, 0, 2, 2), (1, 0, 3, 2), extra=1) == pytest.approx(6 / 12)
    assert iou((0, 0, 1, 1), (1, 1, 2, 2), extra=1) == pytest.approx(1 / 7)
    assert iou((0, 0, 1, 1), (2, 2, 3, 3), extra=1) == 0


def refer(found, true, **others):
    """A row whose answer is exactly a box in pixels: read from corners, in a picture of 100."""
    answer = "{" + "".join(f"<{v}>" for v in found) + "}" if found else "no idea"
    return row("refer", answer, boxes=[true], size=(100, 100), **others) | {"corner": True}


@pytest.mark.parametrize(("found", "true", "standard", "upstream"), [
    ((0, 0, 10, 10), (0, 0, 10, 20), 1, 1),             # 0.5; with the pixel 121/231 > 0.5
    ((0, 0, 10, 9), (0, 0, 10, 19), 0, 0),              # 90/190; 110/220 is 0.5 and not above
    ((0, 0, 10, 10), (0, 0, 10, 21), 0, 1 if 121 / 242 > 0.5 else 0),
    ((0, 0, 0, 0), (0, 0, 0, 0), 0, 1),                 # a point is a pixel upstream
    ((10, 10, 20, 20), (14, 10, 24, 20), 0, 0),         # 0.43 and 0.47
])
def test_the_conventions_differ_where_they_should(found, true, standard, upstream):
    figures = values("refer", [refer(found, true)])
    assert (figures["Pr@0.5"], figures["Pr@0.5 upstream"]) == (standard, upstream)


def test_an_iou_of_exactly_a_threshold_counts_as_usual_and_not_upstream():
    for at in (5, 6, 7, 8, 9):
        usual = values("refer", [refer((0, 0, 50, at * 10), (0, 0, 50, 100))])
        assert usual[f"Pr@{at / 10}"] == 1 and usual.get(f"Pr@{(at + 1) / 10}", 0) == 0
        pixel = values("refer", [refer((0, 0, 9, at - 1), (0, 0, 9, 9))])
        assert pixel[f"Pr@{at / 10} upstream"] == 0 and pixel["mean IoU upstream"] == at / 10


def test_one_convention_alone_keeps_its_names():
    rows = [refer((0, 0, 10, 10), (0, 0, 10, 20))]
    both = values("refer", rows)
    standard = values("refer", rows, Options(convention="standard"))
    upstream = values("refer", rows, Options(convention="upstream"))
    assert standard | upstream == both and "Pr@0.5" not in upstream
    assert not any("upstream" in name for name in standard)


def test_cumulative_iou_is_all_intersections_over_all_unions():
    rows = [refer((0, 0, 10, 10), (0, 0, 10, 20)), refer((0, 0, 80, 80), (0, 0, 80, 80)),
            refer(None, (20, 30, 80, 80))]
    found = values("refer", rows)
    assert found["cumulative IoU"] == pytest.approx((100 + 6400) / (200 + 6400 + 3000))
    assert found["mean IoU"] == pytest.approx(1.5 / 3)
    assert found["cumulative IoU upstream"] == pytest.approx(
        (121 + 6561) / (231 + 6561 + 61 * 51))


def test_an_answer_without_a_box_is_wrong_and_counted_also_where_the_truth_is_at_the_corner():
    rows = [refer(None, (0, 0, 1, 1)), refer((0, 0, 50, 50), (0, 0, 50, 50)),
            row("refer", "{<1><2><3><4", boxes=[(0, 0, 50, 50)])]
    found = values("refer", rows)
    assert found["unparseable"] == 2
    assert found["Pr@0.5"] == found["Pr@0.5 upstream"] == pytest.approx(1 / 3)
    assert found["mean IoU"] == found["mean IoU upstream"] == pytest.approx(1 / 3)


def test_two_expressions_on_one_picture_are_two_rows():
    rows = [row("refer", "{<10><10><20><20>}", boxes=[(10, 20, 21, 42)]),
            row("refer", "{<50><50><60><60>}", boxes=[(10, 20, 21, 42)])]
    assert values("refer", rows)["Pr@0.5"] == 0.5
    assert task_figures("refer", rows, QUICK)["Pr@0.5"].n == 2


def test_a_true_box_may_be_text_and_a_row_without_one_is_not_scored():
    rows = [row("refer", "{<10><10><20><20>}", ["{<10><10><20><20>}"]),
            row("refer", "{<0><0><20><20>}", ["a box was forgotten"]) | {"corner": True}]
    found = values("refer", rows)
    assert found["Pr@0.9"] == found["cumulative IoU"] == found["cumulative IoU upstream"] == 1
    assert task_figures("refer", rows, QUICK)["Pr@0.5"].n == 1


def named(*boxes, name=""):
    return [(name, box) for box in boxes]


def test_a_box_is_matched_once():
    left, right = (0, 0, 10, 10), (20, 0, 30, 10)
    assert match_boxes(named(*[left] * 3), named(left, right)) == [(0, 0)]
    assert match_boxes(named(left), named(*[left] * 3)) == [(0, 0)]
    assert match_boxes(named((0, 0, 10, 9), right, left), named(left, right)) == [(1, 1), (2, 0)]
    assert match_boxes([], named(left)) == match_boxes(named(left), []) == []


def test_matches_are_one_to_one_and_no_pair_that_is_left_could_be_matched():
    rng = random.Random(0)
    for _ in range(50):
        found, true = ([("", (x := rng.randrange(6), y := rng.randrange(6), x + 9, y + 8))
                        for _ in range(rng.randrange(5))] for _ in "12")
        pairs = match_boxes(found, true)
        left, right = {i for i, _ in pairs}, {j for _, j in pairs}
        assert len(left) == len(right) == len(pairs)
        for i in set(range(len(found))) - left:
            assert all(iou(found[i][1], true[j][1]) < 0.5
                       for j in set(range(len(true))) - right)


def test_detection_is_precision_recall_and_f1_of_all_boxes():
    truth = [(0, 0, 10, 20), (50, 100, 60, 120), (80, 0, 90, 20)]
    rows = [row("detection", "<p>ships</p> {<0><0><10><10>}<delim>{<0><0><10><10>}", boxes=truth),
            row("detection", "none", boxes=truth[:1])]
    found = values("detection", rows)
    assert (found["precision@0.5"], found["recall@0.5"]) == (1 / 2, 1 / 4)
    assert found["F1@0.5"] == found["F1@0.5 upstream"] == pytest.approx(1 / 3)
    assert found["unparseable"] == 1 and found["grid ceiling"] == 1
    assert values("detection", rows[1:])["precision@0.5"] == 0


def test_grounding_counts_boxes_and_boxes_behind_the_same_phrase():
    text = "<p>A ship</p> <bbox> by <p>two cars</p> <bbox><delim><bbox>"
    boxes = [(0, 0, 10, 20), (50, 100, 60, 120), (80, 0, 90, 20)]
    said = "<p>a ship</p> {<0><0><10><10>} by <p>trees</p> {<50><50><60><60>}"
    found = values("grounding", [row("grounding", said, [text], boxes)])
    assert (found["precision@0.5"], found["recall@0.5"]) == (1, 2 / 3)
    assert (found["phrase precision@0.5"], found["phrase recall@0.5"]) == (1 / 2, 1 / 3)


# ---- intervals -----------------------------------------------------------------------------------

def test_an_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(400):
        low, high = interval(mean_score("", rng.normal(3, 2, size=60)), range(60), 300, seed=i)
        covered += low <= 3 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_an_interval_of_single_rows_is_as_wide_as_the_binomials():
    marks = np.arange(500) % 4 == 0
    low, high = interval(mean_score("", marks), range(500), 2000)
    wide = 2 * 1.96 * math.sqrt(0.25 * 0.75 / 500)
    assert high - low == pytest.approx(wide, rel=0.1) and low < 0.25 < high


def test_drawing_pictures_is_wider_than_drawing_rows_that_belong_together():
    marks = np.repeat(np.arange(40) % 2, 25)            # 40 pictures of 25 questions, all or none
    low, high = interval(mean_score("", marks), np.repeat(np.arange(40), 25).tolist())
    own_low, own_high = interval(mean_score("", marks), range(1000))
    assert (high - low) / (own_high - own_low) == pytest.approx(5, rel=0.2)     # sqrt(25)


def test_a_seed_says_what_is_drawn():
    rows = [row("scene", "ab"[i % 3 == 0], ["a"], image=str(i)) for i in range(50)]
    first, again, other = (task_figures("scene", rows, Options(seed=seed)) for seed in (1, 1, 2))
    assert first == again != other and first["accuracy"].value == other["accuracy"].value


def test_the_draws_are_whole_pictures_and_as_many_as_there_are(monkeypatch):
    stats = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 1]])     # n, in a, in b
    sums = resample_sums(stats, ["a", "b", "b"], 500, seed=0)
    assert set(map(tuple, sums)) == {(2, 2, 0), (3, 1, 2), (4, 0, 4)}
    assert sums[:, 1].mean() == pytest.approx(1, abs=0.1)
    monkeypatch.setattr("support.metrics.statistics.BOOTSTRAP_CHUNK", 7)
    assert BOOTSTRAP_CHUNK > 7 and (resample_sums(stats, ["a", "b", "b"], 500, seed=0) == sums).all()


def test_scores_share_their_draws():
    marks = np.arange(30) % 2
    one, two = intervals([mean_score("", marks), mean_score("", marks + 1)], range(30))
    assert np.allclose(two, one + 1) and (one == interval(mean_score("", marks), range(30))).all()


def test_every_figure_lies_in_its_interval():
    rng = random.Random(1)
    words = "a b c d e".split()
    captions = [row("caption", " ".join(rng.choices(words, k=4)), [" ".join(words[:4])],
                    image=str(i)) for i in range(30)]
    boxes = [refer((0, 0, 10, rng.randrange(100)), (0, 0, 10, 40), image=str(i))
             for i in range(30)]
    for task, rows in (("caption", captions), ("refer", boxes), ("detection", boxes)):
        for figure in task_figures(task, rows, Options(java=False)).values():
            assert figure.low <= figure.value <= figure.high


def test_one_picture_has_no_interval_nor_has_a_type_that_one_picture_asks_for():
    rows = [row("vqa", answer, ["yes"], kind="presence") for answer in ("yes", "no")]
    assert task_figures("vqa", rows)["presence"] == Figure(0.5, n=2)
    rows += [row("vqa", "2", ["2"], kind="count", image=name) for name in "abc"]
    with np.errstate(invalid="raise"):
        found = task_figures("vqa", rows)
    assert found["presence"].low is None and found["count"].low is not None
    assert task_figures("vqa", rows, Options(samples=0))["count"].low is None


def test_a_figure_is_shown_in_hundredths_a_count_as_it_is_and_nothing_as_a_dash():
    assert markdown_cell(Figure(0.125, 0.1, 0.2)) == "12.50 (10.0-20.0)"
    assert markdown_cell(Figure(0.125)) == "12.50" and markdown_cell(Figure(None)) == "–"
    assert markdown_cell(Figure(3, 1, 6.2, count=True)) == "3"


def test_no_rows_have_no_figures():
    assert task_figures("vqa", []) == task_details("vqa", []) == {}


# ---- beside the table ----------------------------------------------------------------------------

def test_classes_and_confusions_tell_what_is_taken_for_what():
    rows = [row("scene", *pair, image=str(i)) for i, pair in enumerate(
        [("Port.", ["port"]), ("beach", ["port"]), ("beach", ["port"]), ("", ["beach"])])]
    found = task_details("scene", rows)
    assert {name: (part["n"], part["value"]) for name, part in found["classes"].items()} == {
        "port": (3, pytest.approx(1 / 3)), "beach": (1, 0)}
    assert found["confusions"] == [{"truth": "port", "answer": "beach", "count": 2},
                                   {"truth": "beach", "answer": "", "count": 1}]
    assert json.loads(json.dumps(found)) == found
    text = details_markdown(found)
    assert "| port | 3 | 33.33 (" in text and "| beach | (nothing) | 1 |" in text


def test_a_questions_class_has_its_type_and_ranges_where_asked_for():
    rows = [row("vqa", "12", ["15"], kind="count")]
    assert list(task_details("vqa", rows)["classes"]) == ["count: 15"]
    found = task_details("vqa", rows, Options(count_ranges=True))
    assert found["classes"]["count: between 11 and 100"]["value"] == 1 and not found["confusions"]


def test_grounding_is_told_by_the_objects_part_of_the_picture():
    sizes = [size_class((0, 0, side, side), 640, 640) for side in (31, 32, 95, 96, 640)]
    assert [size.split()[0] for size in sizes] == ["small", "medium", "medium", "large", "large"]
    rows = [refer((0, 0, 4, 4), (0, 0, 4, 4)), refer((50, 50, 60, 60), (0, 0, 4, 4)),
            refer((0, 0, 50, 50), (0, 0, 50, 50))]
    found = task_details("refer", rows)["sizes"]
    assert [(name.split()[0], part["n"], part["value"]) for name, part in found.items()] == [
        ("small", 2, 0.5), ("large", 1, 1)]
    several = [row("detection", "{<0><0><10><10>}", boxes=[(0, 0, 10, 20), (50, 0, 60, 20)])]
    assert task_details("detection", several)["sizes"]["medium (< 15 %)"]["value"] == 0.5
    assert "| large | 1 | 100.00 |" in details_markdown({"sizes": found})


def test_captions_have_no_classes():
    assert task_details("caption", CAPTIONS) == {} and details_markdown({}) == ""


# ---- any answer ----------------------------------------------------------------------------------

def test_no_answer_of_a_model_raises():
    rng = random.Random(0)
    pieces = ["{<1><2><3><4>}", "{<999><0><1><1>}", "{<5><5><5><5>|<-90>}", "<p>", "</p>", "\n",
              "|||", "\x00", "\ud800", "²", "٣", "between 1 and ", "7" * 5000, "m2", "a.", "'",
              "{<", "<delim>", "😀", "http://", "-", " "]
    texts = ["", *pieces, *("".join(rng.choices(pieces, k=9)) for _ in range(100))]
    for task in ("caption", "video", "vqa", "scene", "identify", "refer", "detection",
                 "grounding"):
        rows = [row(task, text, ["a ship <bbox>"], [(1, 2, 30, 40)], image=str(i % 7))
                for i, text in enumerate(texts)]
        options = Options(count_ranges=True, samples=20, java=False)
        with np.errstate(invalid="raise", divide="raise"):
            found = task_figures(task, rows, options).values()
            json.dumps(task_details(task, rows, options), allow_nan=False)
        assert all(math.isfinite(figure.value) for figure in found)


def test_meteor_is_looked_for_where_java_is_found():
    assert bool(missing_requirement("meteor")) == (shutil.which("java") is None or
                                            importlib.util.find_spec("pycocoevalcap") is None)
