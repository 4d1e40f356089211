"""Short answers are right or wrong, and counts may be compared in ranges."""
import pytest

from prediction_rows import QUICK, row, values
from support.metrics.answers import answer_candidates, to_count_range, vqa_normalize
from support.metrics.figures import task_figures
from support.metrics.statistics import ScoringOptions
from support.readers.common import Sample
from support.readers.questions import CLASS_QUESTION


def test_accuracy_is_per_type_their_mean_and_overall():
    rows = [row("vqa", answer, ["yes"], kind="presence") for answer in ("yes", "Yes.", "no")]
    rows += [row("vqa", "3", ["4"], kind="count"), row("vqa", "4", ["4"])]
    assert values("vqa", rows) == pytest.approx(
        {"presence": 2 / 3, "count": 0, "untyped": 1, "mean of types": 5 / 9, "overall": 0.6,
         "empty": 0})
    assert values("vqa", rows, ScoringOptions(types=("presence", "count", "absent")))[
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
    assert to_count_range("more than 1000") == "more than 1000" != to_count_range("1000")
    assert to_count_range("urban") == "urban" and to_count_range("9" * 5000) == "9" * 5000


def test_counts_are_compared_in_ranges_only_where_the_option_is_on():
    rows = [row("vqa", "12", ["99"], kind="count"), row("vqa", "10", ["11"], kind="count")]
    assert values("vqa", rows)["count"] == 0
    assert values("vqa", rows, ScoringOptions(count_ranges=True))["count"] == 0.5


def test_an_identified_object_is_scored_as_a_caption_and_as_the_exact_phrase():
    rows = [row("identify", "a large ship", ["a ship"]), row("identify", "A ship.", ["a ship"])]
    found = values("identify", rows)
    assert found["accuracy"] == 0.5
    assert found["bleu1"] == pytest.approx(4 / 5) and found["rouge_l"] > 0.5 and "cider" in found


def test_candidates_are_all_listed_classes_and_the_two_answers_of_a_type():
    question = CLASS_QUESTION.format("pond, dense residential")
    samples = [Sample(("a",), ((question, "pond"),), "scene", "", kind="scene"),
               Sample(("a",), (("is it?", "Yes"),), "vqa", "", kind="presence"),
               Sample(("b",), (("is it?", "no."),), "vqa", "", kind="presence"),
               *(Sample(("b",), (("how many?", n),), "vqa", "", kind="count") for n in "123")]
    assert answer_candidates(samples) == {
        ("scene", "scene"): ("dense residential", "pond"), ("vqa", "presence"): ("no", "yes")}


@pytest.mark.parametrize(("text", "wanted"), [
    ("The road.", "road"), ("Two cars", "2 cars"),
    ("a  ship, and an airplane!", "ship and airplane"), ("none", "0"), ("1,000", "1000"),
    ("3.5 m", "3.5 m"), ("dont know", "don't know"),
    ("yes/no", "yes no"), ("rural-urban", "rural urban"), ("its", "its"), ("the", "")])
def test_answers_are_normalized_as_the_vqa_v2_evaluation_does(text, wanted):
    assert vqa_normalize(text) == wanted


def test_strict_comparison_is_the_default_and_only_questions_are_normalized():
    loose = ScoringOptions(normalize=True, samples=0)
    one = row("vqa", "the road", ["Road."])
    assert values("vqa", [one])["overall"] == 0 and values("vqa", [one], loose)["overall"] == 1
    assert values("scene", [row("scene", "the pond", ["pond"])], loose)["accuracy"] == 0
