"""Turns of conversations are scored by what their truth is: words, a sentence, a box, boxes."""
import math

import pytest

from prediction_rows import QUICK, row, values
from support.evaluation.report import TaskResult, format_report
from support.metrics.captions import caption_scores
from support.metrics.conversations import answer_form
from support.metrics.figures import error_score, task_details, task_figures
from support.metrics.statistics import ScoringOptions

LONG = "a harbor with six ships"


def turn(kind, answer, truth, **more):
    return row("conversation", answer, [truth], kind=kind, size=(100, 100), **more)


ROWS = [
    turn("[vqa]", "Yes.", "yes"),
    turn("[vqa]", "two", "three"),
    turn("[caption]", LONG, LONG, image="b.png"),
    # The bin 10 to 11 is read as its middle: 10.5 .. 30.5 of the true 10 .. 30.
    turn("[refer]", "{<10><10><30><30>}", "<bbox>", boxes=[(10, 10, 30, 30)]),
    turn("[refer]", "{<60><60><80><80>}", "<bbox>", boxes=[(10, 10, 30, 30)]),
    turn("[refer]", "{<1><1><9><9>}", "there is none"),
    turn("[detection]", "<p>cars</p> {<0><0><9><9>}", "<p>cars</p> {<0><0><9><9>}<delim>"
         "{<50><50><59><59>}"),
    turn("", "a sea", "a lake"),
]


def test_each_kind_of_turn_and_all_together_have_the_figures_that_one_computes_by_hand():
    found = values("conversation", ROWS)
    overlap = 19.5 ** 2
    iou = overlap / (2 * 20 ** 2 - overlap)
    wanted = {
        "[vqa]: exact match": 1 / 2, "[caption]: exact match": 1, "[caption]: bleu4": 1,
        "[caption]: rouge_l": 1, "[refer]: exact match": 0, "[refer]: false boxes": 1,
        "[refer]: Pr@0.5": 1 / 2, "[refer]: mean IoU": iou / 2, "[refer]: F1@0.5": 1 / 2,
        "[detection]: precision@0.5": 1, "[detection]: recall@0.5": 1 / 2,
        "[detection]: F1@0.5": 2 / 3, "no identifier: exact match": 0,
        "total: exact match": 2 / 5, "total: Pr@0.5": 1 / 2, "total: F1@0.5": 2 * 2 / (3 + 4),
        "total: unparseable": 0, "empty": 0}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert "[vqa]: bleu4" not in found and "[detection]: Pr@0.5" not in found
    assert found["total: cider"] == caption_scores([LONG], [[LONG]])["cider"]


def test_a_figure_names_the_rows_that_it_rests_on_and_lies_in_its_interval():
    rows = [turn("[vqa]", "yes", ("yes", "no")[i % 3 == 0], image=f"{i}.png") for i in range(30)]
    rows += [turn("[caption]", LONG, LONG, image=f"{i}.png") for i in range(9)]
    found = task_figures("conversation", rows, QUICK)
    assert [found[f"{kind}: exact match"].n for kind in ("[vqa]", "[caption]", "total")] == [
        30, 9, 39]
    assert found["total: bleu4"].n == 9 and found["total: exact match"].value == 29 / 39
    for figure in found.values():
        assert figure.low <= figure.value <= figure.high


def test_the_form_of_an_answer_is_that_of_its_truth():
    forms = [answer_form(one) for one in ROWS]
    assert forms == ["words", "words", "sentence", "box", "box", "words", "boxes", "words"]


def test_the_vqa_evaluations_rules_are_used_where_they_are_asked_for():
    rows = [turn("", "the two cars", "2 cars"), turn("", "", "a")]
    assert values("conversation", rows)["total: exact match"] == 0
    options = ScoringOptions(samples=0, normalize=True)
    assert values("conversation", rows, options)["total: exact match"] == 0.5      # "" is no "a"


def test_the_table_has_a_line_for_each_kind_and_says_where_a_figure_rests_on_fewer_rows():
    figures = task_figures("conversation", ROWS, ScoringOptions(samples=0))
    lines = format_report("mine", [TaskResult("", "test", "conversation", 8, figures,
                                              task_details("conversation", ROWS))], "").splitlines()
    head, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines
                      if line.startswith("|")][:8]
    table = {cells[0]: dict(zip(head, cells, strict=True)) for cells in body}
    assert head[:3] == ["**mine**", "rows", "exact match"] and "bleu4" in head
    assert list(table) == ["[vqa]", "[caption]", "[refer]", "[detection]", "no identifier", "total"]
    assert [row["rows"] for row in table.values()] == ["2", "1", "3", "1", "1", "8"]
    assert table["[vqa]"]["exact match"] == "50.00" and table["[vqa]"]["F1@0.5"] == ""
    assert table["[refer]"]["Pr@0.5"] == "50.00, n 2"
    assert table["total"]["exact match"] == "40.00, n 5"
    assert "| three | two | 1 |" in lines


def test_how_wrong_a_turn_is_depends_on_its_form():
    errors = [error_score(one, QUICK) for one in ROWS]
    assert errors[:3] == [0, 1, 0] and errors[4:6] == [1, 1] and errors[7] == 1
    assert 0 < errors[3] < 0.2 and math.isclose(errors[6], 1 / 3)
