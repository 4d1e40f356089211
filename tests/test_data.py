"""Tokenizer, pictures, boxes, prompts, samples and rows: what goes in, what comes out."""
import itertools
import json
import random
import re

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image, ImageDraw

import tiny
from data import (
    MEAN,
    MIRROR,
    NO_AUGMENTATION,
    QUARTER_TURNS,
    STD,
    TEMPLATES,
    Augmentation,
    Tokenizer,
    apply_templates,
    clean_text,
    collate,
    draw_augmentation,
    encode_box,
    encode_conversation,
    load_image,
    parse_boxes,
    preprocess,
    write_boxes,
)
from examples.miniworld import write_world
from support.images.draw import draw_boxes
from support.readers import read_data
from support.readers.common import DataError, Sample
from tiny import N

LLAMA_TOKENIZER = tiny.DATA / "fixtures" / "llama" / "tokenizer.model"


def refusal(function, *args):
    """The one line a DataError says."""
    with pytest.raises(DataError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- tokenizer -----------------------------------------------------------------------------------

VECTORS = {     # of upstream's slow LlamaTokenizer, transformers 4.30
    "[INST] <Img>": "518 25580 29962 529 25518 29958",
    "<s>[INST] <Img>": "1 518 25580 29962 529 25518 29958",
    "</Img> [vqa] Is there a road?  [/INST]":
        "1533 25518 29958 518 29894 25621 29962 1317 727 263 6520 29973 "
        "29871 518 29914 25580 29962",
    "</Img> [vqa] Is there a road? [/INST]":
        "1533 25518 29958 518 29894 25621 29962 1317 727 263 6520 29973 "
        "518 29914 25580 29962",
    "</Img> [caption] briefly describe the image [/INST]":
        "1533 25518 29958 518 6671 29962 23359 8453 278 1967 518 29914 25580 29962",
    "yes</s>": "4874 2",
    "{<23><12><80><40>}</s>":
        "426 29966 29906 29941 5299 29896 29906 5299 29947 29900 5299 29946 29900 29958 29913 2",
    "<p>two airplanes</p> {<9><51><50><82>}<delim>{<53><47><97><78>}</s>":
        "529 29886 29958 10184 4799 9018 267 829 29886 29958 426 29966 29929 5299 29945 29896 5299 "
        "29945 29900 5299 29947 29906 29958 29913 29966 6144 326 26208 29966 29945 29941 5299 "
        "29946 29955 5299 29929 29955 5299 29955 29947 29958 29913 2",
    "a bridge is on a river.</s>": "263 12945 338 373 263 8580 29889 2",
    "<s>[INST] what is it?  [/INST]":
        "1 518 25580 29962 825 338 372 29973 29871 518 29914 25580 29962",
    "[refer]": "518 20275 29962", "[caption]": "518 6671 29962", "[vqa]": "518 29894 25621 29962",
    "[detection]": "518 29881 2650 428 29962", "[identify]": "518 1693 1598 29962",
    "[grounding]": "518 2057 292 29962", "<p>": "529 29886 29958", "</p>": "1533 29886 29958",
    "<delim>": "529 6144 326 29958", "a long answer here</s>": "263 1472 1234 1244 2", "": "",
}


@pytest.mark.skipif(not LLAMA_TOKENIZER.exists(), reason="needs LLaMA's tokenizer.model")
@pytest.mark.parametrize("text", VECTORS)
def test_llama_tokens_are_upstreams(text):
    assert Tokenizer(LLAMA_TOKENIZER).encode(text) == [int(i) for i in VECTORS[text].split()]


def test_special_tokens_have_ids_0_1_2_and_part_the_text():
    tokenizer = tiny.tokenizer()
    ship, road = tokenizer.encode("a ship"), tokenizer.encode("a road")
    assert tokenizer.encode("<s>a ship</s>a road<unk>") == [1, *ship, 2, *road, 0]
    assert (tokenizer.bos, tokenizer.eos, len(tokenizer)) == (1, 2, tiny.VOCAB)


def test_decoding_gives_the_text_back_without_special_tokens():
    tokenizer = tiny.tokenizer()
    for text in (*tiny.SENTENCES, "Ünseen 漢字  two spaces", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode([1, *tokenizer.encode(text), 2, 0]) == text


def test_a_tokenizer_that_is_missing_or_broken_is_named(tmp_path):
    path = tmp_path / "tokenizer.model"
    assert str(path) in refusal(Tokenizer, path)
    path.write_bytes(tiny.tokenizer_bytes()[:1000])
    assert str(path) in refusal(Tokenizer, path)


# ---- prompts -------------------------------------------------------------------------------------

TURNS_OF_TALK = [("[vqa] is there a road ?", "no"), ("what is it in {<9><51><50><82>}", "a ship"),
                 ("describe it", "a green ship in a harbor")]


def tokens(*texts):
    return [i for text in texts for i in tiny.tokenizer().encode(text)]


def test_a_learning_row_is_what_the_docstring_draws():
    ids, labels, shared = encode_conversation(tiny.tokenizer(), TURNS_OF_TALK[:1], slots=N)
    head = [1, *tokens("[INST] <Img>")] + [-1] * N
    question, answer = tokens("</Img> [vqa] is there a road ? [/INST]"), tokens("no</s>")
    assert ids == head + question + answer
    assert labels == [-100] * len(head + question) + answer
    assert shared == len(head)


@pytest.mark.parametrize("style", ["skyeye", "minigpt_v2", "vicuna_v1"])
@pytest.mark.parametrize("pictures", [0, 1, 3])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_labels_are_the_answers_with_their_end_and_nothing_else(style, pictures, turns):
    talk = TURNS_OF_TALK[:turns]
    ids, labels, _ = encode_conversation(tiny.tokenizer(), talk, N, pictures, style)
    assert [i for i in labels if i != -100] == tokens(*(answer + "</s>" for _, answer in talk))
    assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))
    runs = [list(run) for kept, run in itertools.groupby(labels, lambda i: i != -100) if kept]
    assert [tiny.tokenizer().decode(run) for run in runs] == [answer for _, answer in talk]
    assert ids.count(-1) == N * pictures


def test_later_turns_begin_with_a_start_token_of_their_own():
    ids, _, _ = encode_conversation(tiny.tokenizer(), TURNS_OF_TALK, N)
    texts = ("</Img> [vqa] is there a road ? [/INST]", "no</s>",
             "<s>[INST] what is it in {<9><51><50><82>} [/INST]", "a ship</s>",
             "<s>[INST] describe it [/INST]", "a green ship in a harbor</s>")
    pieces = [[1], tokens("[INST] <Img>"), [-1] * N, *map(tokens, texts)]
    assert ids == sum(pieces, [])


def test_each_of_several_pictures_has_its_own_frame():
    ids, _, shared = encode_conversation(tiny.tokenizer(), TURNS_OF_TALK[:1], N, pictures=2)
    head = [1, *tokens("[INST] <Img>"), *[-1] * N, *tokens("</Img><Img>"), *[-1] * N]
    assert ids[:shared] == head


def test_without_pictures_only_the_start_token_is_shared():
    ids, _, shared = encode_conversation(tiny.tokenizer(), TURNS_OF_TALK[:1], N, pictures=0)
    assert ids == [1, *tokens("[INST] [vqa] is there a road ? [/INST]", "no</s>")]
    assert shared == 1


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_skyeye_prompt_is_the_beginning_of_the_row_it_was_learned_from(turns):
    talk = TURNS_OF_TALK[:turns]
    learned, labels, _ = encode_conversation(tiny.tokenizer(), talk, N)
    asked, none, _ = encode_conversation(tiny.tokenizer(), [*talk[:-1], (talk[-1][0], None)], N)
    answer = tokens(talk[-1][1] + "</s>")
    assert asked == learned[:-len(answer)]
    assert learned[-len(answer):] == answer and labels[len(asked):] == answer


def test_minigpt_v2_is_asked_with_two_start_tokens_and_one_space():
    question = TURNS_OF_TALK[0][0]
    asked, _, _ = encode_conversation(tiny.tokenizer(), [(question, None)], N, style="minigpt_v2")
    head = [1, *tokens("<s>[INST] <Img>"), *[-1] * N]
    assert asked == head + tokens(f"</Img> {question} [/INST]")
    assert asked[:2] == [1, 1]


def test_minigpt_v2_learns_with_one_start_token_and_two_spaces():
    ids, _, _ = encode_conversation(tiny.tokenizer(), TURNS_OF_TALK[:2], N, style="minigpt_v2")
    one, two = TURNS_OF_TALK[0][0], TURNS_OF_TALK[1][0]
    pieces = [[1], tokens("[INST] <Img>"), [-1] * N, tokens(f"</Img> {one}  [/INST]", "no</s>"),
              tokens(f"<s>[INST] {two}  [/INST]", "a ship</s>")]
    assert ids == sum(pieces, [])
    assert tokens("a  [/INST]") != tokens("a [/INST]")


def test_minigpt_v2s_chat_writes_an_answer_on_to_its_question_and_has_no_end_token():
    """facts: conversation.py joins roles and messages; only <s> parts the text."""
    talk = [*TURNS_OF_TALK[:2], ("describe it", None)]
    asked, labels, _ = encode_conversation(tiny.tokenizer(), talk, N, style="minigpt_v2")
    (one, no), (two, ship), (three, _) = talk
    pieces = [[1], tokens("<s>[INST] <Img>"), [-1] * N, tokens(f"</Img> {one} [/INST]{no}"),
              tokens(f"<s>[INST] {two} [/INST]{ship}"), tokens(f"<s>[INST] {three} [/INST]")]
    assert asked == sum(pieces, []) and set(labels) == {-100} and 2 not in asked


LLAMA = pytest.mark.skipif(not LLAMA_TOKENIZER.exists(), reason="needs LLaMA's tokenizer.model")


def llama_pieces(text):
    """A text in one go, as the sentencepiece library cuts it."""
    return sentencepiece.SentencePieceProcessor(model_file=str(LLAMA_TOKENIZER)).encode(text)


@LLAMA
def test_the_released_checkpoints_prompt_to_the_id():
    """facts 3.7: two <s>, one space; and 3.6: one <s>, two spaces, the answer and its end."""
    tokenizer, end = Tokenizer(LLAMA_TOKENIZER), "518 29914 25580 29962"
    ids, labels, _ = encode_conversation(tokenizer, [("[vqa] Is there a road?", None)], 256, style="minigpt_v2")
    question = "1533 25518 29958 518 29894 25621 29962 1317 727 263 6520 29973"
    assert " ".join(map(str, ids)) == ("1 1 518 25580 29962 529 25518 29958 " + "-1 " * 256
                                       + f"{question} {end}")
    ids, labels, _ = encode_conversation(tokenizer, [("[vqa] Is there a road?", "yes")], 256, style="minigpt_v2")
    assert " ".join(map(str, ids)) == ("1 518 25580 29962 529 25518 29958 " + "-1 " * 256
                                       + f"{question} 29871 {end} 4874 2")
    assert labels == [-100] * (len(ids) - 2) + [4874, 2]


VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant "
          "gives helpful, detailed, and polite answers to the user's questions.")


@LLAMA
def test_vicunas_prompt_is_cut_at_the_picture_and_has_one_start_token():
    ids, _, shared = encode_conversation(Tokenizer(LLAMA_TOKENIZER), [("What is it?", None)], 576,
                            style="vicuna_v1")
    head, tail = llama_pieces(f"{VICUNA} USER: "), llama_pieces("\nWhat is it? ASSISTANT:")
    assert ids == [1, *head, *[-1] * 576, *tail] and shared == 1 + len(head) + 576
    assert head[-1] == 29871 and tail[:2] == [29871, 13]            # a lone space, then the newline
    text, _, _ = encode_conversation(Tokenizer(LLAMA_TOKENIZER), [("What?", None)], 576, 0, "vicuna_v1")
    assert text == [1, *llama_pieces(f"{VICUNA} USER: What? ASSISTANT:")]


def llava_ids(text, slots):
    """Cut at <image>, each chunk in ids of its own, one <s> in front."""
    first, *more = (llama_pieces(chunk) for chunk in text.split("<image>"))
    return [1, *first, *(i for chunk in more for i in [-1] * slots + chunk)]


@LLAMA
def test_vicunas_labels_are_what_llavas_count_of_each_round_leaves():
    """facts 9.4: a round is as long as its own ids, <s> among them for the last round's </s>; its
    instruction as "USER: q ASSISTANT: ", less 2. USER after </s> has no word mark: one id less."""
    talk = [("What is it?", "a ship"), ("Which color?", "green, and long"), ("Where?", "there")]
    ids, labels, _ = encode_conversation(Tokenizer(LLAMA_TOKENIZER), talk, 3, style="vicuna_v1")
    learned, at, lead = [], 1, f"{VICUNA} USER: <image>\n"
    for question, answer in talk:
        one_less = lead == "USER: "
        instruction = len(llava_ids(f"{lead}{question} ASSISTANT: ", 3)) - 2 - one_less
        whole = len(llava_ids(f"{lead}{question} ASSISTANT: {answer}", 3)) - one_less
        learned.append(range(at + instruction, at + whole))
        at, lead = at + whole, "USER: "
    assert at == len(ids)
    assert [i for i, label in enumerate(labels) if label != -100] == sum(map(list, learned), [])
    assert [[ids[i] for i in run] for run in learned] == [
        [*llama_pieces(answer), 2] for _, answer in talk]
    assert ids[learned[0].stop:][:2] == [11889, 29901]              # USER :


# ---- boxes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("box, text", [
    ((0, 0, 200, 100), "{<0><0><100><100>}"),
    ((1.99, 0.99, 3.98, 99.9), "{<0><0><1><99>}"),                  # cut off, not rounded
    ((58, 29, 116, 58), "{<28><28><57><57>}"),                      # 100 * 0.29 is 28.999..
    ((-5, -9, 250, 130), "{<0><0><100><100>}"),                     # clamped
    ((150, 80, 50, 20), "{<25><20><75><80>}"),                      # sorted
])
def test_boxes_are_written_in_hundredths_cut_off_clamped_and_sorted(box, text):
    assert encode_box(box, 200, 100) == text


def test_a_box_comes_back_within_half_a_bin():
    rng = random.Random(0)
    for _ in range(500):
        width, height = rng.randint(1, 2000), rng.randint(1, 2000)
        x, y = (sorted(rng.uniform(0, side) for _ in "12") for side in (width, height))
        box = (x[0], y[0], x[1], y[1])
        ((phrase, found),) = parse_boxes(encode_box(box, width, height), width, height)
        assert phrase == ""
        for a, b, side in zip(box, found, (width, height) * 2, strict=True):
            assert abs(a - b) <= 0.005 * side + 1e-6


def test_a_text_of_a_box_survives_parsing_and_writing():
    rng = random.Random(1)
    for _ in range(300):
        x, y = (sorted(rng.randint(0, 100) for _ in "12") for _ in "xy")
        text = f"{{<{x[0]}><{y[0]}><{x[1]}><{y[1]}>}}"
        assert encode_box(parse_boxes(text, 640, 480)[0][1], 640, 480) == text


def test_upstreams_corner_is_the_bins_lower_edge():
    text = "{<10><20><30><100>}"
    assert parse_boxes(text, 200, 50, corner=True)[0][1] == (20, 10, 60, 50)
    assert parse_boxes(text, 200, 50)[0][1] == (21, 10.25, 61, 50)


def test_phrases_and_lists_of_boxes_are_read():
    text = ("<p>two airplanes</p> {<9><51><50><82>}<delim>{<53><47><97><78>} and <p> a car </p>"
            "{ <1> <2> <3> <4> }")
    found = parse_boxes(text, 100, 100, corner=True)
    assert found == [("two airplanes", (9, 51, 50, 82)), ("two airplanes", (53, 47, 97, 78)),
                     ("a car", (1, 2, 3, 4))]


def test_corners_the_wrong_way_round_are_sorted():
    assert parse_boxes("{<80><90><10><20>}", 100, 100, corner=True)[0][1] == (10, 20, 80, 90)


@pytest.mark.parametrize("text", ["{<101><0><0><0>}", "{<0><0><0><999>}", "{<1><2><3>}", "",
                                  "{<1><2><3><1000>}", "{<-1><2><3><4>}", "<1><2><3><4>"])
def test_what_is_no_box_is_no_box(text):
    assert parse_boxes(text, 100, 100) == []


def test_no_text_makes_the_parser_fail():
    rng = random.Random(2)
    pieces = [*"{}<>/p 09", "<p>", "</p>", "<delim>", "<100>", "<7>", "{<1><2><3><4>}", "é", "\n"]
    boxes = 0
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 25)))
        for phrase, (x1, y1, x2, y2) in parse_boxes(text, 33, 44):
            boxes += 1
            assert 0 <= x1 <= x2 <= 33 and 0 <= y1 <= y2 <= 44 and isinstance(phrase, str)
    assert boxes > 100


def test_drawn_boxes_stand_where_they_belong_and_the_picture_stays():
    image = Image.new("RGB", (200, 100))
    drawn = np.array(draw_boxes(image, [("", (50, 20, 150, 80)), ("a ship", (0, 0, 199, 99))]))
    assert not np.array(image).any()
    assert tuple(drawn[50, 50]) == (0xff, 0x3b, 0x30) == tuple(drawn[20, 100])
    assert tuple(drawn[50, 199]) == (0xff, 0xcc, 0x00)
    assert not drawn[50, 100].any()


# ---- moves ---------------------------------------------------------------------------------------

STEPS = [steps for n in range(3) for steps in itertools.product((MIRROR, *QUARTER_TURNS), repeat=n)]


@pytest.mark.parametrize("transpose", STEPS, ids=lambda steps: "+".join(s.name for s in steps))
@pytest.mark.parametrize("width, height", [(60, 60), (120, 30)])
def test_a_box_goes_where_its_pixels_go(transpose, width, height):
    """A white rectangle in a black picture, moved by PIL, against its box, moved by Move.box."""
    box, size = (width * 0.1, height * 0.2, width * 0.4, height * 0.9), 60
    image = Image.new("RGB", (width, height))
    corners = (round(box[0]), round(box[1]), round(box[2]) - 1, round(box[3]) - 1)
    ImageDraw.Draw(image).rectangle(corners, fill="white")
    move = Augmentation(transpose=transpose)
    bright = preprocess(image, size, move)[0] * STD[0] + MEAN[0] > 0.5
    y, x = bright.nonzero(as_tuple=True)
    pixels = (x.min() / size, y.min() / size, (x.max() + 1) / size, (y.max() + 1) / size)
    found = move.box(box, width, height)
    found = (found[0] / width, found[1] / height, found[2] / width, found[3] / height)
    assert max(abs(float(a) - b) for a, b in zip(pixels, found, strict=True)) < 1.01 / size


def test_boxes_are_written_at_their_marks_in_order():
    boxes = [(0, 0, 10, 10), (20, 20, 40, 40)]
    text = write_boxes("<bbox> and <bbox>", boxes, 100, 100, NO_AUGMENTATION)
    assert text == "{<0><0><10><10>} and {<20><20><40><40>}"


def test_boxes_that_are_text_move_along():
    mirror = Augmentation(transpose=(MIRROR,))
    text = write_boxes("{<10><20><30><40>} <bbox> {<999><0><0><0>}", [(0, 0, 10, 10)], 100, 100,
                       mirror)
    assert text == "{<69><20><89><40>} {<90><0><100><10>} {<999><0><0><0>}"
    assert write_boxes("{<10><20><30><40>}", [], 100, 100, NO_AUGMENTATION) == "{<10><20><30><40>}"


def sample(question="", answer="", task="caption", images=("a.png",), **more):
    return Sample(tuple(images), ((question, answer),), task, "here", **more)


def moves(*samples, count=200):
    return [draw_augmentation(samples, random.Random(seed)) for seed in range(count)]


@pytest.mark.parametrize("side", ["left", "Rightmost", "TOP", "bottom", "north", "upper"])
def test_where_a_side_is_named_nothing_is_mirrored_or_turned(side):
    plain, named = sample(answer="a ship"), sample(answer=f"a ship at the {side}, perhaps")
    assert all(not move.transpose for move in moves(plain, named))
    assert len({move.transpose for move in moves(plain)}) == 8


@pytest.mark.parametrize("count", ["two", "seven", "no"])
def test_where_something_is_counted_nothing_is_cut_off(count):
    plain, counted = sample(answer="a ship"), sample(answer=f"{count} ships in a harbor")
    assert all(move.crop == NO_AUGMENTATION.crop for move in moves(plain, counted))
    assert any(move.crop != NO_AUGMENTATION.crop for move in moves(plain))


@pytest.mark.parametrize("task", sorted(set(TEMPLATES) - {"caption", "scene"}))
def test_where_something_is_pointed_at_or_asked_about_nothing_is_cut_off(task):
    asked = sample("is there a car ?", "yes", task)
    assert all(move.crop == NO_AUGMENTATION.crop for move in moves(sample(answer="a ship"), asked))


def test_a_crop_keeps_most_of_the_picture_and_stays_inside():
    crops = [move.crop for move in moves(sample(answer="a ship"))]
    for x1, y1, x2, y2 in crops:
        assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
        assert x2 - x1 >= 0.65 - 1e-9 and y2 - y1 >= 0.65 - 1e-9


def test_detections_are_named_from_left_to_right_after_a_move():
    boxes = ((0, 0, 9.5, 10), (60.5, 60, 89.5, 90))
    detection = sample("ships", "<bbox><delim><bbox>", "detection", boxes=boxes)
    (turn,) = apply_templates(detection, (100, 100), Augmentation(transpose=(MIRROR,)), None)
    assert turn == ("[detection] ships", "{<10><60><39><90>}<delim>{<90><0><100><10>}")
    (turn,) = apply_templates(detection, (100, 100), NO_AUGMENTATION, None)
    assert turn == ("[detection] ships", "{<0><0><9><10>}<delim>{<60><60><89><90>}")


def test_boxes_are_dealt_to_question_and_answer_turn_by_turn():
    boxes = tuple((10 * i, 0, 10 * i + 5, 5) for i in range(3))
    talk = Sample((), (("what is <bbox>", "<bbox>"), ("and", "<bbox>")), "conversation", "", boxes)
    assert apply_templates(talk, (100, 100), NO_AUGMENTATION, None) == [
        ("what is {<0><0><5><5>}", "{<10><0><15><5>}"), ("and", "{<20><0><25><5>}")]


@pytest.mark.parametrize("text, cleaned", [
    ("A Bridge is on a River.", "a bridge is on a river"),
    ('Two  "planes" (white); #1: near~the *road*!', "two planes white 1 near the road"),
    ("is it rural, or urban?", "is it rural, or urban?"),
    (" ".join(["Word"] * 60) + ".", " ".join(["word"] * 50)),
    ("", ""),
])
def test_texts_are_cleaned_as_upstream_cleans_them(text, cleaned):
    assert clean_text(text) == cleaned


# ---- pictures ------------------------------------------------------------------------------------

BROKEN = {
    "empty.png": (b"", "empty"),
    "page.jpg": (b"\n<!DOCTYPE html><html>not found</html>", "web page"),
    "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "text.png": (b"hello, this is a text", "unknown format"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_picture_is_named_with_the_reason(tmp_path, name):
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    message = refusal(load_image, tmp_path / name)
    assert str(tmp_path / name) in message and reason in message


def test_a_missing_picture_is_named(tmp_path):
    assert str(tmp_path / "gone.jpg") in refusal(load_image, tmp_path / "gone.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_picture_is_named(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    tiny.picture(path, 200, 100)
    path.write_bytes(path.read_bytes()[:2000])
    assert str(path) in refusal(load_image, path)


def test_a_picture_is_turned_as_its_exif_orientation_says(tmp_path):
    image = Image.new("RGB", (8, 4))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6                            # the camera was held on its side: turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.size == (4, 8)
    assert loaded.getpixel((3, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK"])
def test_a_picture_of_any_mode_becomes_rgb(tmp_path, mode):
    gray = 255 if mode == "1" else 204
    path = tmp_path / f"picture.{'tif' if mode == 'CMYK' else 'png'}"
    Image.new("RGB", (8, 4), (gray,) * 3).convert(mode).save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB" and loaded.size == (8, 4)
    assert np.abs(np.array(loaded).astype(int) - gray).max() <= 1


def cubic(x):
    """PIL's kernel, a = -0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0


def resize_line(length, size):
    """[size, length]: the weights of PIL's antialiased bicubic along one axis."""
    scale = max(length / size, 1)
    centers = (np.arange(size) + 0.5) * length / size
    weights = [[cubic((x + 0.5 - c) / scale) for x in range(length)] for c in centers]
    weights = np.array(weights)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("width, height", [(37, 23), (90, 120), (30, 30)])
def test_preprocessing_is_bicubic_squashing_and_clips_normalization(width, height):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [128 + 90 * np.sin(x / 9 + c) * np.cos(y / (7 + c)) for c in range(3)]
    pixels = np.stack(waves, axis=-1).astype(np.uint8)
    down, across = resize_line(height, 30), resize_line(width, 30)
    wanted = np.einsum("ih,hwc,jw->cij", down, pixels.astype(float), across) / 255
    wanted = (wanted - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    found = preprocess(Image.fromarray(pixels), 30).numpy()
    assert found.shape == (3, 30, 30) and found.dtype == np.float32
    assert np.abs(found - wanted).max() < 2 / 255 / min(STD)        # PIL rounds to 8 bits twice


@pytest.mark.parametrize("width, height", [(500, 375), (256, 256), (20, 600), (448, 448)])
def test_the_picture_is_upstreams_bit_for_bit(width, height):
    """blip_processors.py: torchvision's Resize on a PIL picture, ToTensor, Normalize; in that order
    and in float32, as torchvision does them."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    squashed = np.asarray(image.resize((448, 448), resample=3))
    x = torch.from_numpy(squashed.copy()).permute(2, 0, 1).contiguous()
    x = x.to(torch.float32).div(255)
    mean = torch.as_tensor((0.48145466, 0.4578275, 0.40821073), dtype=torch.float32)
    std = torch.as_tensor((0.26862954, 0.26130258, 0.27577711), dtype=torch.float32)
    x.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
    assert torch.equal(preprocess(image, 448), x)


@pytest.mark.parametrize("width, height", [(37, 23), (23, 37), (30, 30)])
def test_llavas_picture_is_padded_to_a_square_of_the_mean_color(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = max(width, height)
    square = np.full((side, side, 3), (122, 116, 104), dtype=np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    square[y:y + height, x:x + width] = pixels
    found = preprocess(Image.fromarray(pixels), 24, style="vicuna_v1")
    assert torch.equal(found, preprocess(Image.fromarray(square), 24))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_crop_shows_that_part_of_the_picture(axis):
    """In a picture whose values tell the column or the row, fractions of its sides can be read."""
    ramp = np.arange(100)[:, None] if axis else np.arange(200)[None]
    pixels = np.broadcast_to(ramp[..., None], (100, 200, 3)).astype(np.uint8)
    part = preprocess(Image.fromarray(pixels), 20, Augmentation(crop=(0.25, 0.5, 0.75, 0.9)))
    values = 255 * (part * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None])
    line = values[1, :, 7] if axis else values[1, 7]
    start, length = (50, 40) if axis else (50, 100)
    wanted = start + (torch.arange(20) + 0.5) * length / 20 - 0.5
    assert (line - wanted).abs().max() < 1


def test_gain_scales_and_shifts_the_normalized_values():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    moved, still = preprocess(image, 30, Augmentation(gain=(1.25, -0.3))), preprocess(image, 30)
    torch.testing.assert_close(moved, 1.25 * still - 0.3)


# ---- rows ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Five pictures with one to five questions each, and three samples of text alone."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures = [tiny.picture(folder / f"{i}.png", seed=i) for i in range(5)]
    asked = [sample(f"is there a road {i} {j} ?", "yes" * (i + j + 1), "vqa", [picture])
             for i, picture in enumerate(pictures) for j in range(i + 1)]
    texts = [sample(f"say {i}", "a text", "conversation", ()) for i in range(3)]
    mixed = asked + texts
    random.Random(4).shuffle(mixed)
    return mixed


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_a_clip_is_as_many_pictures_as_frames_are_asked_for(tmp_path, frames):
    for i in range(10):
        tiny.picture(tmp_path / "clip" / f"{i}.png", seed=i)
    row = tiny.rows([sample("", "a ship", "video", [str(tmp_path / "clip")])], frames=frames)[0, 0]
    assert len(row["images"]) == frames and (row["ids"] == -1).sum() == frames * N


def test_a_large_jpeg_is_decoded_smaller_where_it_is_trained_on(tmp_path):
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (10, 12, 3)), np.ones((60, 60, 1)))
    path = str(tmp_path / "large.jpg")
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)
    trained = tiny.rows([sample("a", "b", "vqa", [path])])[0, 0]["images"][0]
    exact = preprocess(load_image(path), 30)
    assert (trained - exact).abs().max() < 0.15 and not torch.equal(trained, exact)


def test_a_box_that_is_in_no_picture_is_named_with_its_row(tmp_path):
    path = tiny.picture(tmp_path / "a.png", 40, 30)
    rows = tiny.rows([sample("the ship", "<bbox>", "refer", [path], boxes=((50, 5, 60, 9),))])
    with pytest.raises(DataError, match="here: the box .* is not in a picture of 40 x 30"):
        rows[0, 0]


def plan_of(rows, epoch):
    return [rows.members(epoch, i).tolist() for i in range(len(rows))]


@pytest.mark.parametrize("questions", [1, 2, 4])
@pytest.mark.parametrize("block", [1, 3])
def test_an_epoch_has_every_sample_once(samples, questions, block):
    rows = tiny.rows(samples, questions=questions, block=block)
    for epoch in range(3):
        assert sorted(sum(plan_of(rows, epoch), [])) == list(range(len(samples)))


def test_questions_of_one_picture_share_a_row_and_two_pictures_never_do(samples):
    plan = plan_of(tiny.rows(samples, questions=2), 0)
    for row in plan:
        assert len({samples[i].images for i in row}) == 1 and len(row) <= 2
        assert len(row) == 1 or samples[row[0]].images
    assert len(plan) == 1 + 1 + 2 + 2 + 3 + 3              # ceil of 1..5 questions in pairs, texts


def test_the_order_depends_on_seed_and_epoch_and_nothing_else(samples):
    rows = tiny.rows(samples, questions=2, seed=7)
    first, second = plan_of(rows, 0), plan_of(rows, 1)
    fresh = tiny.rows(samples, questions=2, seed=7)
    assert plan_of(fresh, 1) == second and plan_of(fresh, 0) == first
    assert first != second
    assert plan_of(tiny.rows(samples, questions=2, seed=8), 0) != first


def equal_rows(a, b):
    return a.keys() == b.keys() and all(
        a[k] is b[k] or (a[k] is not None and b[k] is not None and torch.equal(a[k], b[k]))
        for k in a)


def test_a_row_is_the_same_whoever_asks_and_however_often(samples):
    rows = tiny.rows(samples, questions=2, augment=True)
    keys = [(epoch, i) for epoch in range(2) for i in range(len(rows))]
    first = {key: rows[key] for key in keys}
    random.seed(123)
    torch.manual_seed(123)
    for key in random.Random(0).sample(keys, len(keys)):
        assert equal_rows(tiny.rows(samples, questions=2, augment=True)[key], first[key])


def test_moves_and_templates_change_from_epoch_to_epoch(samples):
    rows = tiny.rows([s for s in samples if s.images][:1], augment=True)
    drawn = [rows[epoch, 0] for epoch in range(8)]
    assert len({row["images"].sum().item() for row in drawn}) > 2
    assert len({len(row["ids"]) for row in drawn}) == 2


def test_a_ratio_is_the_part_of_a_sets_rows_in_an_epoch():
    small, large = ([sample(f"{name} {i}", "x", "conversation", ()) for i in range(n)]
                    for name, n in (("small", 4), ("large", 10)))
    rows = tiny.rows(small + large, ratios=[(4, 2.5), (10, 0.5)])
    used = [i for epoch in range(2) for (i,) in plan_of(rows, epoch)]
    assert len(rows) == 10 + 5
    counts = np.bincount(used[:15], minlength=14)
    assert counts[:4].sum() == 10 and counts[:4].min() >= 2 and counts[:4].max() <= 3
    assert counts[4:].sum() == 5 and counts[4:].max() == 1
    assert set(used[:15]) != set(used[15:])                         # another half every time


def test_of_a_set_with_a_ratio_a_row_is_left_and_of_one_without_none():
    few = [sample(str(i), "x", "conversation", ()) for i in range(9)]
    for seed in range(3):
        rows = tiny.rows(few, ratios=[(4, 0.001), (5, 0.0)], seed=seed)
        assert len(rows) == 1 and set(plan_of(rows, 1)[0]) < {0, 1, 2, 3}


def test_with_ratios_every_epoch_has_as_many_rows_also_if_sets_share_pictures():
    samples = [sample(str(i), "x", "vqa", [f"{i % 5}.png"]) for i in range(20)]
    for seed in range(5):
        rows = tiny.rows(samples, questions=3, ratios=[(5, 0.5), (15, 2.0)], seed=seed)
        assert {len(rows.plan(epoch)[2]) for epoch in range(5)} == {len(rows)}


def test_ratios_of_one_change_nothing_about_what_is_seen(samples):
    rows = tiny.rows(samples, questions=2, ratios=[(len(samples), 1.0)])
    assert sorted(sum(plan_of(rows, 3), [])) == list(range(len(samples)))


def test_rows_of_like_length_stand_in_one_block():
    """The spread of lengths inside a block of four is far below that of a shuffled order."""
    many = [sample("x" * (i * 37 % 101), "y", "conversation", ()) for i in range(96)]
    rows = tiny.rows(many, block=4)
    lengths = np.array([rows.letters[row].sum() for row in plan_of(rows, 0)]).reshape(-1, 4)
    assert np.ptp(lengths, axis=1).mean() < 0.5 * np.ptp(np.random.default_rng(0).permutation(
        lengths.ravel()).reshape(-1, 4), axis=1).mean()
    assert (np.diff(lengths.mean(1)) < 0).any() and (np.diff(lengths.mean(1)) > 0).any()


def test_a_packed_row_has_one_copy_of_the_picture_and_positions_that_start_again(samples):
    rows = tiny.rows(samples, questions=2)
    number = next(i for i, row in enumerate(plan_of(rows, 0)) if len(row) == 2)
    row = rows[0, number]
    ids, segments, positions = (row[k].tolist() for k in ("ids", "segments", "positions"))
    shared = segments.count(0)
    assert ids.count(-1) == N and ids[:shared].count(-1) == N and ids.count(1) == 1
    assert segments == sorted(segments) and set(segments) == {0, 1, 2}
    lengths = [segments.count(1), segments.count(2)]
    assert positions == [*range(shared), *(shared + i for n in lengths for i in range(n))]
    assert row["images"].shape == (1, 3, 30, 30)


def test_a_batch_is_padded_on_the_right(samples):
    rows = tiny.rows(samples, questions=2)
    items = [rows[0, i] for i in range(len(rows))]
    batch = collate(items)
    longest = max(len(item["ids"]) for item in items)
    padding = {"ids": 0, "labels": -100, "segments": -1}
    for b, item in enumerate(items):
        size = len(item["ids"])
        for name, pad in padding.items():
            assert torch.equal(batch[name][b, :size], item[name])
            assert batch[name][b, size:].tolist() == [pad] * (longest - size)
        assert torch.equal(batch["positions"][b, :size], item["positions"])
    pictures = [item["images"] for item in items if item["images"] is not None]
    assert torch.equal(batch["images"], torch.cat(pictures)) and len(pictures) < len(items)


def test_a_batch_of_single_questions_needs_no_segments(samples):
    text = tiny.rows([s for s in samples if not s.images])
    batch = collate([text[0, i] for i in range(3)])
    assert set(batch) == {"ids", "labels", "images"} and batch["images"] is None


def test_a_row_that_is_too_long_is_refused_by_name():
    rows = tiny.rows([sample("x" * 90, "y", "conversation", ())], max_tokens=40)
    message = refusal(rows.__getitem__, (0, 0))
    assert "here" in message and "--max_tokens 40" in message


# ---- layouts -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    return write_world(folder, train=12, val=4, test=2, clips=10, size=64, workers=1)


def test_a_miniature_world_has_every_task_and_its_pictures_load(world):
    samples = read_data(world)
    assert {s.task for s in samples} == set(TEMPLATES) - {"grounding"}
    for s in samples:
        assert all(load_image(path).size == (64, 64) for path in s.images)
        texts = " ".join(text for turn in s.turns for text in turn)
        assert texts.count("<bbox>") == len(s.boxes)
    assert {len(s.images) for s in samples if s.task == "video"} == {4}
    assert len({s.images for s in samples if s.task == "scene"}) == 12


def test_stage_1_leaves_conversations_out_and_stage_2_takes_them_alone(world):
    both, first, second = (read_data(world, "train", stage) for stage in (None, 1, 2))
    assert "conversation" not in {s.task for s in first}
    assert {s.task for s in second} == {"conversation"}
    assert len(first) + len(second) == len(both)


def test_every_row_of_a_miniature_world_renders(world):
    samples = read_data(world)
    rows = tiny.rows(samples, questions=4, augment=True)
    for i in range(0, len(rows), 7):
        row = rows[0, i]
        assert (row["ids"] == -1).sum() == N * len(row["images"])
        text = tiny.tokenizer().decode(row["ids"].clamp(min=0).tolist())
        assert "<bbox>" not in text and "{}" not in text


def test_outside_train_the_captions_of_a_picture_are_references_of_one_sample(world):
    captions = [s for s in read_data(world, "val") if s.task == "caption"]
    stored = json.loads((world / "caption" / "caption_Mini_val.json").read_text())
    assert len(captions) == 4
    for s in captions:
        of = [row["caption"] for row in stored if s.images[0].endswith(row["image"])]
        assert list(s.references) == of and len(of) > 1
    assert not any(s.references for s in read_data(world, "train"))


@pytest.fixture
def rsicd(tmp_path):
    rows = [{"filename": f"{i}.jpg", "split": split,
             "sentences": [{"raw": f"picture {i} says {k} ."} for k in range(5)]}
            for i, split in enumerate(("train", "val", "train"))]
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps({"images": rows}))
    (tmp_path / "scene_classes.json").write_text('{"0.jpg": "BareLand", "1.jpg": "Park"}')
    (tmp_path / "rsicd_vqa.txt").write_text("0.jpg:what is the theme of it?park\n"
                                            "1.jpg:is there a road?yes\n")
    for i in range(3):
        tiny.picture(tmp_path / "RSICD_images" / f"{i}.jpg", seed=i)
    return tmp_path


def test_an_rsicd_folder_is_read(rsicd):
    samples = read_data(rsicd)
    captions = [s for s in samples if s.task == "caption"]
    assert [s.turns[0][1] for s in captions] == [f"picture {i} says {k} ." for i in (0, 2)
                                                 for k in range(5)]
    assert captions[-1].images == (str(rsicd / "RSICD_images" / "2.jpg"),)
    (scene,) = [s for s in samples if s.task == "scene"]
    assert scene.turns[0][1] == "bare land" and "bare land, park" in scene.turns[0][0]
    (theme,) = [s for s in samples if s.task == "vqa"]
    assert theme.turns == (("what is the theme of it ?", "park"),) and theme.kind == "theme"


def test_the_val_split_of_an_rsicd_folder_has_references(rsicd):
    captions = [s for s in read_data(rsicd, "val") if s.task == "caption"]
    assert [s.references for s in captions] == [tuple(f"picture 1 says {k} ." for k in range(5))]


XML = """<annotation><filename>{}.jpg</filename>{}</annotation>"""
OBJECT = """<object><name>ship</name><bndbox><xmin>{0}</xmin><ymin>2</ymin><xmax>30</xmax>
<ymax>20</ymax></bndbox><description> object {0} </description></object>"""


def test_the_numbers_of_dior_rsvg_count_objects_in_the_sorted_order_of_the_files(tmp_path):
    """The files are made in another order than that of their names, as a directory lists them."""
    (tmp_path / "Annotations").mkdir()
    numbers = {"00001": [0, 1], "00002": [2], "00010": [3, 4, 5], "00011": [6]}
    for name in ("00010", "00002", "00011", "00001"):
        objects = "".join(OBJECT.format(i) for i in numbers[name])
        (tmp_path / "Annotations" / f"{name}.xml").write_text(XML.format(name, objects))
        tiny.picture(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "train.txt").write_text("0\n4\n6\n")
    (tmp_path / "val.txt").write_text("5\n2\n")
    train, val = read_data(tmp_path), read_data(tmp_path, "val")
    assert [s.turns[0][0] for s in train] == ["object 0", "object 4", "object 6"]
    assert [s.turns[0][0] for s in val] == ["object 2", "object 5"]
    assert train[1].boxes == ((4.0, 2.0, 30.0, 20.0),)
    assert train[1].images == (str(tmp_path / "JPEGImages" / "00010.jpg"),)


def test_a_folder_of_class_folders_is_read(tmp_path):
    for name in ("DenseResidential", "aGrass", "storage_tanks"):
        for i in range(2):
            tiny.picture(tmp_path / name / f"{i}.jpg")
    samples = read_data(tmp_path)
    assert sorted(s.turns[0][1] for s in samples) == ["dense residential"] * 2 + ["grass"] * 2 + [
        "storage tanks"] * 2
    question = samples[0].turns[0][0]
    assert "dense residential, grass, storage tanks" in question
    (tmp_path / "val.txt").write_text("aGrass/1.jpg\n")
    (only,) = read_data(tmp_path, "val")
    assert only.images == (str(tmp_path / "aGrass" / "1.jpg"),) and only.turns[0][1] == "grass"


LLAVA = [{"id": 1, "image": "a.png", "conversations": [
             {"from": "human", "value": "<image>\nwhat is it ?"},
             {"from": "gpt", "value": "A ship."},
             {"from": "human", "value": "where ?"}, {"from": "gpt", "value": "{<1><2><3><4>}"}]},
         {"image": ["a.png", "b.png"], "conversations": [
             {"from": "human", "value": "compare"}, {"from": "gpt", "value": "same"}]},
         {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_llava_conversations_are_read(tmp_path, suffix):
    file = tmp_path / f"talk.{suffix}"
    file.write_text(json.dumps(LLAVA) if suffix == "json" else
                    "\n".join(map(json.dumps, LLAVA)) + "\n\n")
    for name in ("a.png", "b.png"):
        tiny.picture(tmp_path / name)
    one, two, none = read_data(file)
    assert one.turns == (("what is it ?", "A ship."), ("where ?", "{<1><2><3><4>}"))
    assert one.images == (str(tmp_path / "a.png"),) and one.task == "conversation"
    assert two.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png")) and none.images == ()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_a_picture_outside_the_folder_is_refused(tmp_path, name):
    file = tmp_path / "talk.json"
    for image in (name, ["a.png", name]):
        file.write_text(json.dumps([LLAVA[0] | {"image": image}]))
        assert name in refusal(read_data, file)


def test_a_picture_outside_a_skyeye_folder_is_refused(tmp_path):
    (tmp_path / "caption").mkdir()
    (tmp_path / "vqa").mkdir()
    (tmp_path / "caption" / "c.json").write_text('[{"image": "../../x.png", "caption": "a ship"}]')
    assert "../../x.png" in refusal(read_data, tmp_path)


def test_data_that_cannot_be_read_is_named(tmp_path):
    assert str(tmp_path / "gone") in refusal(read_data, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(read_data, tmp_path / "empty")
    for name, text in (("a.json", "[{"), ("b.jsonl", '{"x": 1}\n{'), ("c.json", '{"x": 1}'),
                       ("d.json", "[]"), ("e.json", '[{"conversations": [{"value": "x"}]}]')):
        (tmp_path / name).write_text(text)
        assert str(tmp_path / name) in refusal(read_data, tmp_path / name)


def test_a_row_without_a_field_is_named_with_what_it_has(tmp_path):
    (tmp_path / "vqa").mkdir()
    (tmp_path / "caption").mkdir()
    (tmp_path / "vqa" / "v.json").write_text('[{"image": "a.png", "question": "x", "odd": 1}]')
    message = refusal(read_data, tmp_path)
    assert re.search(r"v\.json:1: .*answer.*odd", message)


# ---- real data -----------------------------------------------------------------------------------

def real(name):
    return pytest.mark.skipif(not (tiny.DATA / name).is_dir(), reason=f"needs {tiny.DATA / name}")


@real("rsicd")
def test_rsicd_has_five_captions_for_each_of_7946_train_pictures_and_no_val_picture_among_them():
    train = [s for s in read_data(tiny.DATA / "rsicd") if s.task == "caption"]
    val = [s for s in read_data(tiny.DATA / "rsicd", "val") if s.task == "caption"]
    assert len(train) == 5 * 7946 and len({s.images for s in train}) == 7946
    assert len(val) == 1027 and all(len(s.references) == 5 for s in val)
    assert not {s.images for s in train} & {s.images for s in val}
    assert load_image(val[0].images[0]).size == (128, 128)


@real("simd_rsvg")
def test_simd_rsvg_has_969_and_283_expressions_with_boxes_inside_their_pictures():
    for split, count in (("train", 969), ("val", 283)):
        samples = read_data(tiny.DATA / "simd_rsvg", split)
        assert len(samples) == count
        for s in samples[::40]:
            width, height = load_image(s.images[0]).size
            (x1, y1, x2, y2), = s.boxes
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


@real("rsscn7")
def test_rsscn7_has_1960_and_280_pictures_of_seven_classes():
    for split, count in (("train", 1960), ("val", 280)):
        samples = read_data(tiny.DATA / "rsscn7", split)
        assert len(samples) == count
        assert {s.turns[0][1] for s in samples} == {"grass", "field", "industry", "river lake",
                                                    "forest", "resident", "parking"}


def test_the_template_pools_are_whole():
    """MiniGPT-v2's, and one of SkyEyeGPT's captions and of the demo's groundings in front."""
    sizes = {task: len(set(pool)) for task, pool in TEMPLATES.items()}
    assert sizes == {"caption": 1 + 17, "video": 1, "vqa": 2, "scene": 1, "refer": 7,
                     "detection": 1, "identify": 7, "grounding": 1 + 4, "conversation": 1}
