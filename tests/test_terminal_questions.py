"""Tasks and regions in a question are understood; boxes of an answer get pictures and names."""
import contextlib
import math
import time

import pytest
import torch

import tiny
from data import parse_boxes
from support.common import UserError
from support.inference.generation import BoxConstraint, BoxGrammar
from support.terminal.questions import (
    as_task_prompt,
    confidences,
    find_detections,
    referred_phrase,
    regions_to_text,
    sampling_for,
    task_of,
    write_task,
)

# ---- tasks ---------------------------------------------------------------------------------------

def test_only_known_tasks_may_begin_a_question():
    assert task_of("[refer] x") == "refer" and task_of("plain words") == task_of("[ open") == ""
    with pytest.raises(UserError, match=r"\[juggle\].*\[refer\]"):
        task_of("[juggle] x")


@pytest.mark.parametrize(("request_", "prompt"), [
    ("Where is the largest ship?", "[refer] where is the largest ship ?"),
    ("please locate the red car.", "[refer] where is the red car ?"),
    ("find all the ships", "[detection] ships"),
    ("Where are the storage tanks?", "[detection] storage tanks"),
    ("How many airplanes are there?", "[vqa] how many airplanes are there ?"),
    ("is there a road ?", "[vqa] is there a road ?"),
    ("what is in {<1><2><30><40>} ?", "[identify] what is it in {<1><2><30><40>}"),
    ("describe {<1><2><30><40>}", "[identify] what is it in {<1><2><30><40>}"),
    ("Describe the image", "[caption] briefly describe the image"),
    ("describe this picture in detail", "[grounding] describe this image in detail"),
    ("tell me about the harbor", "tell me about the harbor"),
    ("find cars", "[detection] cars"),
    ("Show me the tennis courts!", "[detection] tennis courts"),
    ("list all ships", "[detection] ships"),
    ("detect ships", "[detection] ships"),
    ("detect the car", "[detection] car"),
    ("find the bus", "[refer] where is the bus ?"),
    ("find the house near the trees", "[refer] where is the house near the trees ?"),
    ("show me the ship", "[refer] where is the ship ?"),
    ("show me what you see", "show me what you see"),
    ("where's the red car?", "[refer] where is the red car ?"),
    ("count the trees", "[vqa] how many trees are there ?"),
    ("what\u2019s in the picture?", "[vqa] what is in the picture ?"),
    ("what do you see in this picture?", "[caption] briefly describe the image"),
    ("describe how ships are built", "describe how ships are built"),
])
def test_a_plain_request_becomes_the_prompt_of_its_task(request_, prompt):
    assert as_task_prompt(request_) == prompt and task_of(prompt) in ("", prompt[1:].split("]")[0])


def test_what_a_refer_question_asks_for():
    assert referred_phrase("[refer] where is the largest ship ?") == "the largest ship"
    assert referred_phrase("[refer] the largest ship") == "the largest ship"
    assert referred_phrase("[vqa] how many ?") == ""


def test_named_tasks_are_answered_greedily_and_free_questions_as_upstream_samples_them():
    given = {"temperature": None, "repetition_penalty": None, "top_p": 0.9}
    for name in ("refer", "vqa", "identify", "detection", "grounding", "caption"):
        assert sampling_for(f"[{name}] x", given) == given | {
            "temperature": 0, "repetition_penalty": 1}
    assert sampling_for("x", given) == {"temperature": 0.6, "repetition_penalty": 1.05,
                                        "top_p": 0.9}
    assert sampling_for("[vqa] x", given | {"temperature": 0.3})["temperature"] == 0.3


# ---- regions -------------------------------------------------------------------------------------

def test_a_region_in_pixels_is_written_in_hundredths():
    size, wanted = (512, 256), "[identify] {<23><31><58><97>}"
    for written in ("120 80 300 250 px", "120,80,300,250 px", "{120, 80, 300, 250} pixels",
                    "300 250 120 80px"):
        assert regions_to_text(f"[identify] {written}", size) == wanted
    (_, box), = parse_boxes(wanted, *size)
    assert all(abs(a - b) <= side / 100 for a, b, side in
               zip(box, (120, 80, 300, 250), size * 2, strict=True))
    assert regions_to_text(wanted, size) == wanted
    assert regions_to_text("in 1999 2000 2001 2002 there", size) == "in 1999 2000 2001 2002 there"


def test_a_region_that_cannot_be_read_is_an_error():
    for wrong, why in (("[identify] 120 80 300 250", "120 80 300 260 px or"),
                       ("{<1><2><3><400>}", "over 100"),
                       ("[identify] 900 900 990 990 px", "not in a picture of 512 x 256")):
        with pytest.raises((UserError, ValueError), match=why):
            regions_to_text(wrong, (512, 256))
    with pytest.raises(UserError, match="needs a picture"):
        regions_to_text("1 2 3 4 px", None)


@pytest.mark.parametrize(("written", "wanted"), [
    ("100.5 146.2 182.0 238.0 px", "{<19><57><35><92>}"),
    ("[100, 146, 182, 238]", "{<19><57><35><92>}"), ("(100,146,182,238)", "{<19><57><35><92>}"),
    ("[0.2, 0.3, 0.36, 0.47]", "{<20><30><36><47>}"), ("0.2 0.3 0.36 0.47", "{<20><30><36><47>}"),
    ("{<12.5><30><55><70.9>}", "{<12><30><55><70>}"),
    ("{<0.12><0.3><0.55><0.7>}", "{<12><30><55><70>}"),
    ("\uff3b\uff11\uff10\uff10\uff0c\uff11\uff14\uff16\uff0c182\uff0c238\uff3d",
     "{<19><57><35><92>}"),
    ("\u3010100\u3001146\u3001182\u3001238\u3011", "{<19><57><35><92>}"),
    ("\uff08100\uff0c146\uff0c182\uff0c238\uff09", "{<19><57><35><92>}"),
    ("\uff5b<12><\uff13\uff10><55><70>\uff5d", "{<12><30><55><70>}"),
    ("(100, 146), (182, 238)", "{<19><57><35><92>}"),
    ("(100 146) to (182 238)", "{<19><57><35><92>}"),
    ("[[100,146],[182,238]]", "{<19><57><35><92>}"), ("[182, 238, 100, 146]", "{<19><57><35><92>}"),
    ("100px 146px 182px 238px", "{<19><57><35><92>}"), ("100 146 182 238 PX", "{<19><57><35><92>}"),
    ("100 px, 146 px, 182 px, 238 px", "{<19><57><35><92>}"),
    ("[+100, +146, +182, +238]", "{<19><57><35><92>}")])
def test_decimals_fractions_and_brackets_are_regions(written, wanted):
    for question in ("[identify] what is it in {}", "what is in {} ?", "{} : what is it"):
        assert regions_to_text(question.replace("{}", written), (512, 256)) == question.replace(
            "{}", wanted)


@pytest.mark.parametrize("written", [
    "-5 10 50 60 px", "\u22125 10 50 60 px", "[-5, 10, 50, 60]", "[100, 146, 182, 300]",
    "-0.1 0.2 0.3 0.4", "{<-1><2><3><4>}", "{<1><2><3><100.5>}", "{<a><2><3><4>}",
    "100,5 146,2 182,0 238,0 px", "{12, 30, 55, 70}", "100.5 146.2 182.0 238.0",
    "[\u20135, 10, 50, 60]", "\uff0d5 10 50 60 px", "[10%, 20%, 30%, 40%]", "10 % 20 % 30 % 40 %",
    "<10><20><30><40>", "{<10>,<20>,<30>,<40>}", "[100, 146, 100, 238]", "[0, 0, 0, 0]",
    "[100.5, 146, 600, 238]", "(100, 146), (182, 300)", "{<10><20><30><\uff11\uff10\uff11>}"])
def test_a_region_that_is_outside_or_unclear_is_refused_and_never_dropped(written):
    for question in ("[identify] what is it in {}", "what is in {} ?"):
        with pytest.raises(UserError) as error:
            regions_to_text(question.replace("{}", written), (512, 256))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("written", [
    "x1=100 y1=146 x2=182 y2=238", "100/146/182/238", "100x146 182x238", "[1e2, 146, 182, 238]",
    "[100, 146, 182]", "<box>100 146 182 238</box>", "[nan, 146, 182, 238]",
    "bbox: 100 146 182 238"])
def test_the_region_of_identify_is_never_lost_however_it_is_written(written):
    with pytest.raises(UserError, match="a region is"):
        regions_to_text(f"[identify] what is it in {written}", (512, 256))


def test_other_numbers_in_a_question_are_left_alone():
    for question in ("in 1999 2000 2001 2002 there", "[1, 2, 3, 4, 5]", "1.5 2.5 3.5 4.5 5.5",
                     "[vqa] are there 3 or 4 ?",
                     "\uff11\uff19\uff19\uff19\uff0c2000\uff0c2001\uff0c2002?",
                     "10% of (1, 2)", "\u8fd9\u662f\u4ec0\u4e48\uff0c\u5728\u54ea\uff1f"):
        assert regions_to_text(question, (512, 256)) == question


def test_long_lines_are_read_in_time():
    for text in ("1" * 100_000, "1 " * 50_000, "1 2 3 4" + " " * 100_000, "1.1" * 40_000,
                 "[ " * 50_000, "{<" * 50_000, "(1,1" * 25_000, "1px " * 25_000, "1% " * 30_000,
                 "<1" * 50_000):
        start = time.perf_counter()
        with contextlib.suppress(UserError):
            regions_to_text(text, (512, 256))
        assert time.perf_counter() - start < 1


def test_a_task_in_capitals_is_the_task():
    assert task_of("[VQA] x") == task_of("[ Vqa ] x") == "vqa"
    assert write_task("[ReFer] The Ship") == "[refer] The Ship"
    assert task_of("[100, 146, 182, 238] what is it") == ""


# ---- detections ----------------------------------------------------------------------------------

BOX = "{<10><10><20><20>}"


def test_boxes_lie_in_the_first_picture_unless_the_answer_names_another():
    sizes = [(100, 100), (200, 400)]

    def pictures(answer):
        return [found.picture for found in find_detections("[detection] x", answer, sizes)]

    assert pictures(f"<p>a</p> {BOX}<delim>{BOX}") == [0, 0]
    assert pictures(f"{BOX} and in picture 2 {BOX}, in the first image {BOX}") == [0, 1, 0]
    assert pictures(f"image 7 {BOX} the second photo {BOX}") == [0, 1]
    (_, found) = find_detections("x", f"{BOX} picture 2 <p>ship</p> {BOX}", sizes)
    assert found.phrase == "ship" and found.box == pytest.approx((21, 42, 41, 82))
    assert found.describe(["a.png", "b.png"]) == "ship: x 21 to 41, y 42 to 82 pixels of b.png"
    assert find_detections("x", BOX, []) == [] and pictures("{<10><10><20><200>}") == []


def test_the_region_that_was_asked_about_gets_the_answer_as_its_name():
    (found,) = find_detections(f"[identify] what is it in {BOX}", "a ship", [(100, 100)], False,
                               [0.5])
    assert found.phrase == "a ship" and found.box == (10.5, 10.5, 20.5, 20.5)
    assert found.confidence is None             # the model has not written this box
    assert find_detections(f"[vqa] what is in {BOX}", "a ship", [(100, 100)]) == []


def test_a_detection_is_described_with_its_confidence_and_as_json():
    first, second = find_detections("[refer] the ship", BOX * 2, [(100, 100)], scores=[0.256])
    assert first.describe(["a.png"]) == "the ship: x 10 to 20, y 10 to 20 pixels (0.26)"
    assert second.describe(["a.png"]) == "the ship: x 10 to 20, y 10 to 20 pixels"
    assert first.to_json(["a.png"]) == {"phrase": "the ship", "pixels": [10.5, 10.5, 20.5, 20.5],
                                        "confidence": 0.256, "picture": "a.png"}


# ---- confidence ----------------------------------------------------------------------------------

def test_a_confidence_is_the_geometric_mean_over_the_tokens_of_the_box():
    texts = ["a {<1>", "<2>", "<3><4>}", " and ", "{<1><2><3><400>}", "{<5><6><7><8>}."]
    probabilities = [0.5, 0.25, 1, 0.1, 0.2, 0.3]
    assert confidences(texts, [math.log(p) for p in probabilities]) == pytest.approx(
        [(0.5 * 0.25) ** (1 / 3), 0.3])
    assert confidences(["no", " box"], [0, 0]) == confidences([], []) == []


def test_the_probabilities_are_the_models_own_over_the_whole_vocabulary():
    model, tokenizer = tiny.skyeye(), tiny.tokenizer()
    grammar = BoxGrammar(tokenizer.model.id_to_piece(list(range(len(tokenizer)))))
    preferred = torch.zeros(tiny.VOCAB)
    preferred[grammar.opening], preferred[2] = 5.0, 3.0         # begin boxes, and end soon
    model.llama_model.lm_head.register_forward_hook(lambda _, args, out: out + preferred)
    generator, checked = torch.Generator().manual_seed(0), 0
    for text in ("a road ?", "many planes and a river", "yes", "a green ship in a harbor"):
        constraint, prompt = BoxConstraint(grammar), torch.tensor(tokenizer.encode(text))
        answer = list(model.generate(prompt, None, 60, constraints=[constraint], temperature=1.5,
                                     generator=generator))
        with torch.no_grad():
            logits = model(torch.cat([prompt, torch.tensor(answer, dtype=torch.long)])[None])
        own = logits[0, len(prompt) - 1:-1].softmax(-1)[range(len(answer)), answer].tolist()
        expected, box = [], []
        for token, probability in zip(answer, own, strict=True):
            if box or "{" in grammar.texts[token]:
                box.append(probability)
            if box and "}" in grammar.texts[token]:
                expected.append(math.prod(box) ** (1 / len(box)))
                box = []
        scores = confidences(constraint.texts, constraint.log_probs)
        assert scores == pytest.approx(expected, rel=1e-3)
        checked += len(expected)
    assert checked > 3
