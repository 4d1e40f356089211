"""Boxes are compared by IoU in both conventions, and matched one to one."""
import random
import time

import pytest

from data import encode_box, parse_boxes
from prediction_rows import QUICK, refer_row, row, values
from support.common import ABSENT
from support.metrics.boxes import (
    grid_ceiling,
    iou,
    match_boxes,
    recall_by_size,
    true_boxes,
    upstream_box,
)
from support.metrics.figures import error_score, task_details, task_figures
from support.metrics.statistics import ScoringOptions

# ---- IoU -----------------------------------------------------------------------------------------

def test_iou_by_hand():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 1, 2, 2)) == iou((0, 0, 5, 5), (0, 8, 5, 9)) == 0
    assert iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0
    # the other convention's boxes have 3 x 3 pixels, of which 2 x 3 are common
    assert iou((0, 0, 2, 2), (1, 0, 3, 2), extra=1) == pytest.approx(6 / 12)
    assert iou((0, 0, 1, 1), (1, 1, 2, 2), extra=1) == pytest.approx(1 / 7)
    assert iou((0, 0, 1, 1), (2, 2, 3, 3), extra=1) == 0


def test_the_phrases_of_ten_thousand_true_boxes_take_no_second():
    texts = [f"<p>ship {i}</p> <bbox>" for i in range(10_000)]
    truth = row("grounding", "", ["\n".join(texts)], boxes=[[1, 2, 3, 4]] * 10_000, size=[53, 37])
    start = time.process_time()
    found = true_boxes(truth)
    assert time.process_time() - start < 1
    assert found == [(f"ship {i}", (1, 2, 3, 4)) for i in range(10_000)]


# ---- what is not there ---------------------------------------------------------------------------

BOX = "{<1><2><30><40>}"


@pytest.mark.parametrize(("task", "figure"), [("refer", "Pr@0.5"), ("detection", "F1@0.5")])
def test_a_box_for_what_is_not_there_is_a_false_box_and_changes_no_other_figure(task, figure):
    right = row(task, BOX, [BOX])
    absent = [row(task, answer, [ABSENT], image=answer) for answer in (ABSENT, BOX, "none", BOX)]
    found, alone = values(task, [right, *absent]), values(task, [right])
    assert found["false boxes"] == 0.5 and "false boxes" not in alone
    assert found[figure] == alone[figure] == 1 and found["unparseable"] == 0
    figures = task_figures(task, [right, *absent], QUICK)
    assert figures["false boxes"].n == 4
    only = values(task, absent)
    assert only["false boxes"] == 0.5 and not only[figure]
    assert task_details(task, absent, QUICK) == {"sizes": {}}
    missed = values(task, [row(task, ABSENT, [BOX])])
    assert missed[figure] == 0 and missed["unparseable"] == 1
    assert [error_score(one, QUICK) for one in absent] == [0, 1, 0, 1]


# ---- one box an answer ---------------------------------------------------------------------------

@pytest.mark.parametrize(("predicted", "true", "standard", "upstream"), [
    ((0, 0, 10, 10), (0, 0, 10, 20), 1, 1),             # 0.5; with the pixel 121/231 > 0.5
    ((0, 0, 10, 9), (0, 0, 10, 19), 0, 0),              # 90/190; 110/220 is 0.5 and not above
    ((0, 0, 10, 10), (0, 0, 10, 21), 0, 1 if 121 / 242 > 0.5 else 0),
    ((0, 0, 0, 0), (0, 0, 0, 0), 0, 1),                 # a point is a pixel upstream
    ((10, 10, 20, 20), (14, 10, 24, 20), 0, 0),         # 0.43 and 0.47
])
def test_the_conventions_differ_where_they_should(predicted, true, standard, upstream):
    figures = values("refer", [refer_row(predicted, true)])
    assert (figures["Pr@0.5"], figures["Pr@0.5 upstream"]) == (standard, upstream)


def test_an_iou_of_exactly_a_threshold_counts_but_not_upstream():
    for at in (5, 6, 7, 8, 9):
        usual = values("refer", [refer_row((0, 0, 50, at * 10), (0, 0, 50, 100))])
        assert usual[f"Pr@{at / 10}"] == 1 and usual.get(f"Pr@{(at + 1) / 10}", 0) == 0
        pixel = values("refer", [refer_row((0, 0, 9, at - 1), (0, 0, 9, 9))])
        assert pixel[f"Pr@{at / 10} upstream"] == 0 and pixel["mean IoU upstream"] == at / 10


def test_one_convention_alone_keeps_its_names():
    rows = [refer_row((0, 0, 10, 10), (0, 0, 10, 20))]
    both = values("refer", rows)
    standard = values("refer", rows, ScoringOptions(convention="standard"))
    upstream = values("refer", rows, ScoringOptions(convention="upstream"))
    assert standard | upstream == both and "Pr@0.5" not in upstream
    assert not any("upstream" in name for name in standard)


def test_cumulative_iou_is_all_intersections_over_all_unions():
    rows = [refer_row((0, 0, 10, 10), (0, 0, 10, 20)), refer_row((0, 0, 80, 80), (0, 0, 80, 80)),
            refer_row(None, (20, 30, 80, 80))]
    found = values("refer", rows)
    assert found["cumulative IoU"] == pytest.approx((100 + 6400) / (200 + 6400 + 3000))
    assert found["mean IoU"] == pytest.approx(1.5 / 3)
    assert found["cumulative IoU upstream"] == pytest.approx(
        (121 + 6561) / (231 + 6561 + 61 * 51))


def test_an_answer_without_a_box_is_wrong_and_counted_also_where_the_truth_is_at_the_corner():
    rows = [refer_row(None, (0, 0, 1, 1)), refer_row((0, 0, 50, 50), (0, 0, 50, 50)),
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


# ---- several boxes an answer ---------------------------------------------------------------------

def phrase_boxes(*boxes, name=""):
    return [(name, box) for box in boxes]


def test_a_box_is_matched_once():
    left, right = (0, 0, 10, 10), (20, 0, 30, 10)
    assert match_boxes(phrase_boxes(*[left] * 3), phrase_boxes(left, right)) == [(0, 0)]
    assert match_boxes(phrase_boxes(left), phrase_boxes(*[left] * 3)) == [(0, 0)]
    predicted = phrase_boxes((0, 0, 10, 9), right, left)
    assert match_boxes(predicted, phrase_boxes(left, right)) == [(1, 1), (2, 0)]
    assert match_boxes([], phrase_boxes(left)) == match_boxes(phrase_boxes(left), []) == []


def test_matches_are_one_to_one_and_no_pair_that_is_left_could_be_matched():
    rng = random.Random(0)
    for _ in range(50):
        predicted, true = ([("", (x := rng.randrange(6), y := rng.randrange(6), x + 9, y + 8))
                            for _ in range(rng.randrange(5))] for _ in "12")
        pairs = match_boxes(predicted, true)
        left, right = {i for i, _ in pairs}, {j for _, j in pairs}
        assert len(left) == len(right) == len(pairs)
        for i in set(range(len(predicted))) - left:
            assert all(iou(predicted[i][1], true[j][1]) < 0.5
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


def test_grounding_counts_all_boxes_and_boxes_with_the_same_phrase():
    text = "<p>A ship</p> <bbox> by <p>two cars</p> <bbox><delim><bbox>"
    boxes = [(0, 0, 10, 20), (50, 100, 60, 120), (80, 0, 90, 20)]
    answer = "<p>a ship</p> {<0><0><10><10>} by <p>trees</p> {<50><50><60><60>}"
    found = values("grounding", [row("grounding", answer, [text], boxes)])
    assert (found["precision@0.5"], found["recall@0.5"]) == (1, 2 / 3)
    assert (found["phrase precision@0.5"], found["phrase recall@0.5"]) == (1 / 2, 1 / 3)


# ---- the ceiling of the grid ---------------------------------------------------------------------

def test_the_ceiling_is_what_a_perfect_answer_scores():
    truths = [(100, 100, 103, 103)], [(100, 100, 500, 400), (7, 7, 300, 200)]   # one below a bin
    rows = [{"size": (1000, 1000), "boxes": boxes, "references": []} for boxes in truths]
    assert grid_ceiling(rows).values() == pytest.approx([2 / 3])
    again = parse_boxes(encode_box((100, 100, 103, 103), 1000, 1000), 1000, 1000)[0][1]
    assert iou(again, (100, 100, 103, 103)) < 0.5


# ---- truth as people store it --------------------------------------------------------------------

@pytest.mark.parametrize(("task", "box"), [
    (task, box) for task in ("refer", "detection", "grounding")
    for box in ((60, 80, 20, 30), (20, 80, 60, 30), (60, 30, 20, 80), (20, 30, 60, 240),
                (-30, 30, 60, 80))])
def test_a_perfect_answer_to_reversed_or_overhanging_truth_is_right(task, box):
    one = row(task, encode_box(box, 100, 200), ["<bbox>"], [box])
    found = values(task, [one])
    assert found["Pr@0.5" if task == "refer" else "F1@0.5"] == found["grid ceiling"] == 1
    assert [score.values().tolist() for score in recall_by_size([one])] == [[1.0]]


# ---- golden values of upstream's evaluation (MiniGPT-v2, eval_scripts) ---------------------------

UPSTREAM_BOXES = [          # an answer, and its corners in hundredths; None: it counts as wrong
    ("{<10><20><30><40>}", (10, 20, 30, 40)), (" { <10> <20><30> <40> } a ship", (10, 20, 30, 40)),
    ("<unk>{<10><20><30><40>}", (10, 20, 30, 40)), ("{<30><20><10><40>}", (30, 20, 10, 40)),
    ("{<10><20><30><140>}", (10, 20, 30, 140)), ("the ship {<10><20><30><40>}", None),
    ("<p>ship</p> {<10><20><30><40>}", None), ("{<10><20><30>}", None), ("", None),
    ("{<1000><20><30><40>}", None)]


@pytest.mark.parametrize(("answer", "corners"), UPSTREAM_BOXES)
def test_upstreams_reading_of_an_answer(answer, corners):
    wanted = corners and pytest.approx([corners[0], 2 * corners[1], corners[2], 2 * corners[3]])
    assert upstream_box(row("refer", answer, size=(100, 200))) == wanted


def test_upstreams_iou_and_reading_are_figures_of_their_own():
    assert iou((0, 0, 10, 10), (4, 0, 14, 10), extra=1) == pytest.approx(7 / 15)
    assert iou((0, 0, 10, 10), (4, 0, 14, 10)) == pytest.approx(6 / 14)
    one = row("refer", "there: {<10><10><20><20>}", boxes=[(10, 20, 20, 40)])
    found = values("refer", [one], ScoringOptions("all", samples=0))
    assert (found["Pr@0.5"], found["Pr@0.5 upstream"]) == (1, 1)
    assert found["Pr@0.5 upstream, read as upstream"] == 0
    assert len(values("refer", [one])) + 7 == len(found)
