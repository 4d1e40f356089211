"""Scores are what the papers' tools print, and rows never collide."""
import json
from pathlib import Path

import pytest

from eval import (
    bleu,
    bleu_stats,
    caption_scores,
    cider_items,
    iou,
    match_boxes,
    ptb_tokenize,
    rouge_l_items,
    score,
    table,
)

ORACLE = Path(__file__).parents[2] / "shared/data/caption_metric_oracle.json"
NAMES = {"Bleu_1": "bleu1", "Bleu_2": "bleu2", "Bleu_3": "bleu3", "Bleu_4": "bleu4",
         "ROUGE_L": "rouge_l", "CIDEr": "cider"}


@pytest.mark.skipif(not ORACLE.exists(), reason="needs the data beside the repository")
@pytest.mark.parametrize("name", ["ucm_test/loo", "ucm_test/shifted", "sydney_test/loo",
                                  "sydney_test/shifted"])
def test_caption_scores_and_tokens_equal_pycocoevalcap(name):
    oracle = json.loads(ORACLE.read_text())[name]
    hyps = [item["hyp_raw"] for item in oracle["items"]]
    refs = [item["refs_raw"] for item in oracle["items"]]
    for item in oracle["items"]:
        assert ptb_tokenize(item["hyp_raw"]) == item["hyp_tok"]
        assert [ptb_tokenize(ref) for ref in item["refs_raw"]] == item["refs_tok"]
    scores = caption_scores(hyps, refs)
    for theirs, ours in NAMES.items():
        assert scores[ours] == pytest.approx(oracle["scores"][theirs], abs=1e-6)


@pytest.mark.parametrize(("text", "tokens"), [
    ("A boat's wake, isn't it?", "a boat 's wake is n't it"),
    ("It cannot be 3.5km away...", "it can not be 3.5 km away"),
    ("and/or 24/7 (see) 1,000", "and/or 24/7 -lrb- see -rrb- 1,000"),
    ("U.S. planes - well-kept -- here!", "u.s. planes well-kept here"),
    ("", ""), (" . ", ""),
])
def test_tokens_are_penn_treebanks_without_punctuation(text, tokens):
    assert ptb_tokenize(text) == tokens


def test_bleu_by_hand():
    # the cat sat: 3 of 3 words, 2 of 2 pairs; two of three references are longer, one as long
    assert bleu(["the cat sat"], [["the cat sat down", "a cat sat"]])[:2] == pytest.approx([1, 1])
    # 1 of 2 words, clipped: "the the" meets one "the"; as long as the reference
    assert bleu(["the the"], [["the cat"]])[0] == pytest.approx(0.5)
    # a short answer pays exp(1 - 4/2)
    assert bleu(["a b"], [["a b c d"]])[0] == pytest.approx(2.718281828 ** -1, rel=1e-6)


def test_bleu_of_a_corpus_adds_counts_not_scores():
    hyps, refs = ["a b c d", "a x y z"], [["a b c d"], ["a b c d"]]
    assert bleu_stats(hyps, refs)[:, 2].tolist() == [4, 1]
    assert bleu(hyps, refs)[0] == pytest.approx(5 / 8)


def test_rouge_takes_the_best_precision_and_the_best_recall():
    # "a b c" against "a c": common 2, P 2/3, R 2/2
    p, r, beta = 2 / 3, 1.0, 1.2
    assert rouge_l_items(["a b c"], [["a c"]])[0] == pytest.approx(
        (1 + beta ** 2) * p * r / (r + beta ** 2 * p))


def test_cider_is_ten_for_the_one_reference_and_zero_for_strangers():
    refs = [["one two three four five"], ["six seven eight nine ten"]]
    assert cider_items([refs[0][0], "a b c d e"], refs) == pytest.approx([10, 0])


def test_iou_by_hand():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 1, 2, 2)) == 0
    assert iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0


def test_a_box_is_matched_once():
    truth = [(0, 0, 10, 10), (20, 0, 30, 10)]
    assert match_boxes([(0, 0, 10, 10)] * 3, truth) == 1
    assert match_boxes([(0, 0, 10, 9), (20, 0, 30, 10), (0, 0, 10, 10)], truth) == 2
    assert match_boxes([], truth) == 0


def row(task, answer, references=(), boxes=(), kind=""):
    return {"task": task, "answer": answer, "references": list(references), "boxes": list(boxes),
            "type": kind, "size": (100, 200), "image": ["same.png"]}


def test_two_expressions_on_one_picture_are_two_rows():
    rows = [row("refer", "{<10><10><20><20>}", boxes=[(10, 20, 21, 42)]),
            row("refer", "{<50><50><60><60>}", boxes=[(10, 20, 21, 42)])]
    figures = score(rows)["refer"]
    assert figures["n"] == 2 and figures["Pr@0.5"] == 0.5


def test_an_answer_without_a_box_is_wrong_and_counted():
    rows = [row("refer", "no idea", boxes=[(0, 0, 50, 50)]),
            row("refer", "{<0><0><50><25>}", boxes=[(0, 0, 50, 50)])]
    figures = score(rows)["refer"]
    assert figures["unparseable"] == 1 and figures["Pr@0.5"] == 0.5
    assert figures["mean IoU"] < 0.5


def test_accuracy_is_per_type_their_mean_and_overall():
    rows = [row("vqa", answer, ["yes"], kind="presence") for answer in ("yes", "Yes.", "no")]
    rows.append(row("vqa", "3", ["4"], kind="count"))
    assert score(rows)["vqa"] == pytest.approx(
        {"n": 4, "presence": 2 / 3, "count": 0, "mean of types": 1 / 3, "overall": 0.5})


def test_detection_is_precision_recall_and_f1():
    truth = [(0, 0, 10, 20), (50, 100, 60, 120)]
    rows = [row("detection", "<p>ships</p> {<0><0><10><10>}<delim>{<80><80><99><99>}", boxes=truth)]
    figures = score(rows)["detection"]
    assert (figures["precision@0.5"], figures["recall@0.5"], figures["F1@0.5"]) == (0.5, 0.5, 0.5)


def test_the_table_has_a_line_a_task_in_hundredths():
    text = table({"scene": {"n": 8, "accuracy": 0.125}, "refer": {"n": 2, "unparseable": 1}})
    assert "| scene | 8 | accuracy 12.50 |" in text and "| refer | 2 | unparseable 1 |" in text
