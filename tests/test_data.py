"""data.py: tokenizer, images, boxes, prompts and batches: what goes in, what comes out."""
import itertools
import math
import random
import re
import time
from functools import partial

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
    find_boxes,
    load_image,
    parse_boxes,
    phrases_before,
    preprocess,
    upright_box,
    write_boxes,
)
from support.readers.common import DataError, Sample
from support.readers.questions import listed_classes, split_question
from support.tools.check_data import describe_text_boxes
from tiny import N

LLAMA_TOKENIZER = tiny.DATA / "fixtures" / "llama" / "tokenizer.model"


refusal = partial(tiny.refusal, DataError)


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


def test_special_tokens_have_ids_0_1_2_and_split_the_text():
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
    content = tiny.tokenizer_bytes()
    pieces = [piece for i in range(3, tiny.VOCAB)
              if len(piece := tiny.tokenizer().model.id_to_piece(i).encode()) > 5]
    for piece in (pieces[0], pieces[-1]):                   # pieces that are no UTF-8
        for damage in (b"\xff", b"\xe2\x96"):
            field = bytes([10, len(piece)]) + piece
            assert field in content
            path.write_bytes(content.replace(field, field[:-len(damage)] + damage))
            assert str(path) in refusal(Tokenizer, path)
    path.write_bytes(content[:1000])
    assert str(path) in refusal(Tokenizer, path)


# ---- images --------------------------------------------------------------------------------------

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
    """A picture whose values are its columns or rows shows which of them a crop has."""
    ramp = np.arange(100)[:, None] if axis else np.arange(200)[None]
    pixels = np.broadcast_to(ramp[..., None], (100, 200, 3)).astype(np.uint8)
    part = preprocess(Image.fromarray(pixels), 20, Augmentation(crop=(0.25, 0.5, 0.75, 0.9)))
    values = 255 * (part * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None])
    line = values[1, :, 7] if axis else values[1, 7]
    start, length = (50, 40) if axis else (50, 100)
    wanted = start + (torch.arange(20) + 0.5) * length / 20 - 0.5
    assert (line - wanted).abs().max() < 1


def test_contrast_and_brightness_scale_and_shift_the_normalized_values():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    changed = preprocess(image, 30, Augmentation(contrast=1.25, brightness=-0.3))
    torch.testing.assert_close(changed, 1.25 * preprocess(image, 30) - 0.3)


STEPS = [steps for n in range(3) for steps in itertools.product((MIRROR, *QUARTER_TURNS), repeat=n)]


@pytest.mark.parametrize("transpose", STEPS, ids=lambda steps: "+".join(s.name for s in steps))
@pytest.mark.parametrize("width, height", [(60, 60), (120, 30)])
def test_a_box_goes_where_its_pixels_go(transpose, width, height):
    """A white rectangle in a black picture, transposed by PIL, against its transformed box."""
    box, size = (width * 0.1, height * 0.2, width * 0.4, height * 0.9), 60
    image = Image.new("RGB", (width, height))
    corners = (round(box[0]), round(box[1]), round(box[2]) - 1, round(box[3]) - 1)
    ImageDraw.Draw(image).rectangle(corners, fill="white")
    augmentation = Augmentation(transpose=transpose)
    bright = preprocess(image, size, augmentation)[0] * STD[0] + MEAN[0] > 0.5
    y, x = bright.nonzero(as_tuple=True)
    pixels = (x.min() / size, y.min() / size, (x.max() + 1) / size, (y.max() + 1) / size)
    found = augmentation.transform_box(box, width, height)
    found = (found[0] / width, found[1] / height, found[2] / width, found[3] / height)
    assert max(abs(float(a) - b) for a, b in zip(pixels, found, strict=True)) < 1.01 / size


# ---- boxes ---------------------------------------------------------------------------------------

def random_boxes(count, seed=0):
    """Random pictures and boxes in them -> (box, width, height)"""
    rng = random.Random(seed)
    for _ in range(count):
        width, height = rng.randint(1, 3000), rng.randint(1, 3000)
        x, y = sorted(rng.uniform(0, width) for _ in "12"), sorted(rng.uniform(0, height)
                                                                  for _ in "12")
        yield (x[0], y[0], x[1], y[1]), width, height


@pytest.mark.parametrize("pad", [False, True])
def test_a_box_comes_back_within_half_a_bin(pad):
    for box, width, height in random_boxes(2000):
        text = encode_box(box, width, height, pad)
        [(phrase, found)] = parse_boxes(text, width, height, pad=pad)
        assert phrase == ""
        bins = (max(width, height),) * 2 if pad else (width, height)
        for i, (a, b) in enumerate(zip(box, found, strict=True)):
            assert abs(a - b) <= 0.5 * bins[i % 2] / 100 + 1e-6


def test_upstreams_corner_is_within_a_bin_and_never_behind_the_truth():
    for box, width, height in random_boxes(500, seed=1):
        (_, found), = parse_boxes(encode_box(box, width, height), width, height, corner=True)
        for i, (a, b) in enumerate(zip(box, found, strict=True)):
            assert -1e-6 <= a - b <= (width, height)[i % 2] / 100 + 1e-6


def test_any_text_gives_boxes_inside_the_picture_and_never_an_exception():
    rng, alphabet = random.Random(3), "{}<>0123456789 |-p/delim,.\n\u00e9\ufffd"
    pieces = ["{<1><2><3><4>}", "{<99", "><", "|<-90>}", "{<5><6><7><8>|<45>}", "<p>a</p> ", "{"]
    boxes = 0
    for _ in range(5000):
        text = "".join(rng.choice((rng.choice(alphabet), rng.choice(pieces))) for _ in range(20))
        for phrase, (x1, y1, x2, y2) in parse_boxes(text, 640, 480, rng.random() < 0.5,
                                                   rng.random() < 0.5):
            boxes += 1
            assert 0 <= x1 <= x2 <= 640 and 0 <= y1 <= y2 <= 480 and isinstance(phrase, str)
    assert boxes > 500


def test_several_boxes_of_a_phrase_keep_it():
    text = "<p>two ships</p> {<0><0><10><10>}<delim>{<50><50><60><60>}<p>a car</p> {<1><2><3><4>}"
    assert [phrase for phrase, _ in parse_boxes(text, 100, 100)] == ["two ships"] * 2 + ["a car"]


def test_corners_in_the_wrong_order_are_sorted_and_what_reaches_over_the_edge_is_cut():
    assert encode_box((80, 90, 10, 20), 100, 100) == encode_box((10, 20, 80, 90), 100, 100)
    assert encode_box((-50, -9, 40, 170), 100, 100) == "{<0><0><40><100>}"
    assert parse_boxes("{<80><90><10><20>}", 100, 100, corner=True)[0][1] == (10, 20, 80, 90)


@pytest.mark.parametrize("box", [(math.nan, 0, 5, 5), (0, math.nan, 5, 5), (0, 0, math.nan, 5),
                                 (0, 0, 5, math.nan), (101, 0, 120, 9), (0, -9, 5, -1)])
def test_a_box_that_is_not_in_the_picture_is_an_error(box):
    with pytest.raises(ValueError):
        encode_box(box, 100, 100)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, -60, 180, 359])
def test_a_turned_box_gives_the_upright_box_around_its_corners(degrees):
    box, angle = (20, 30, 60, 50), math.radians(degrees)
    corners = [(x - 40, y - 40) for x in (20, 60) for y in (30, 50)]
    x = [40 + a * math.cos(angle) - b * math.sin(angle) for a, b in corners]
    y = [40 + a * math.sin(angle) + b * math.cos(angle) for a, b in corners]
    assert upright_box(box, degrees) == pytest.approx((min(x), min(y), max(x), max(y)))


def test_geochats_boxes_are_read():
    (phrase, box), = parse_boxes("<p>ship</p> {<20><30><60><50>|<90>}", 100, 100, corner=True)
    assert phrase == "ship" and box == pytest.approx((30, 20, 50, 60))


def test_padding_puts_a_box_where_the_padded_picture_shows_it():
    """A white box in a black strip: the text's hundredths are those of the square fed in."""
    image = Image.new("RGB", (400, 100))
    ImageDraw.Draw(image).rectangle((100, 20, 199, 79), fill="white")
    x = preprocess(image, 200, style="vicuna_v1")[0] > 1.5
    rows, columns = x.any(1).nonzero()[:, 0], x.any(0).nonzero()[:, 0]
    shown = [columns[0] / 2, rows[0] / 2, (columns[-1] + 1) / 2, (rows[-1] + 1) / 2]
    text = encode_box((100, 20, 200, 80), 400, 100, pad=True)
    written = [int(n) for n in text.strip("{}<>").split("><")]
    assert all(abs(float(a) - b) <= 1 for a, b in zip(shown, written, strict=True))


@pytest.mark.parametrize("box, text", [
    ((0, 0, 200, 100), "{<0><0><100><100>}"),
    ((1.99, 0.99, 3.98, 99.9), "{<0><0><1><99>}"),                  # cut off, not rounded
    ((58, 29, 116, 58), "{<28><28><57><57>}"),                      # 100 * 0.29 is 28.999..
    ((-5, -9, 250, 130), "{<0><0><100><100>}"),                     # clamped
    ((150, 80, 50, 20), "{<25><20><75><80>}"),                      # sorted
])
def test_boxes_are_written_in_hundredths_cut_off_clamped_and_sorted(box, text):
    assert encode_box(box, 200, 100) == text


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


@pytest.mark.parametrize("text", ["{<101><0><0><0>}", "{<0><0><0><999>}", "{<1><2><3>}", "",
                                  "{<1><2><3><1000>}", "{<-1><2><3><4>}", "<1><2><3><4>"])
def test_what_is_no_box_is_no_box(text):
    assert parse_boxes(text, 100, 100) == [] == find_boxes(text)


def test_the_boxes_that_are_found_are_those_that_are_parsed():
    text = "{<1><2><3><4>} {<101><0><0><0>} <p>a</p>{ <5> <6><7><8>|<-30>}"
    assert [match[0] for match in find_boxes(text)] == [text[:14], text[-22:]]
    assert len(parse_boxes(text, 100, 100)) == 2


def test_boxes_are_written_at_their_placeholders_in_order():
    boxes = [(0, 0, 10, 10), (20, 20, 40, 40)]
    text = write_boxes("<bbox> and <bbox>", boxes, 100, 100, NO_AUGMENTATION)
    assert text == "{<0><0><10><10>} and {<20><20><40><40>}"


def test_boxes_that_are_text_are_transformed_too():
    mirror = Augmentation(transpose=(MIRROR,))
    text = write_boxes("{<10><20><30><40>} <bbox> {<999><0><0><0>}", [(0, 0, 10, 10)], 100, 100,
                       mirror)
    assert text == "{<69><20><89><40>} {<90><0><100><10>} {<999><0><0><0>}"
    assert write_boxes("{<10><20><30><40>}", [], 100, 100, NO_AUGMENTATION) == "{<10><20><30><40>}"


# ---- prompts -------------------------------------------------------------------------------------

TURNS = [("[vqa] is there a road ?", "no"), ("what is it in {<9><51><50><82>}", "a ship"),
         ("describe it", "a green ship in a harbor")]


def tokens(*texts):
    return [i for text in texts for i in tiny.tokenizer().encode(text)]


def encode(turns, **more):
    return encode_conversation(tiny.tokenizer(), turns, N, **more)


def test_a_training_row_is_what_the_docstring_draws():
    ids, labels, prefix_len = encode(TURNS[:1])
    head = [1, *tokens("[INST] <Img>")] + [-1] * N
    question, answer = tokens("</Img> [vqa] is there a road ? [/INST]"), tokens("no</s>")
    assert ids == head + question + answer
    assert labels == [-100] * len(head + question) + answer
    assert prefix_len == len(head)


@pytest.mark.parametrize("style", ["skyeye", "minigpt_v2", "vicuna_v1"])
@pytest.mark.parametrize("num_images", [0, 1, 3])
@pytest.mark.parametrize("turns", [TURNS[:1], TURNS[:2], TURNS], ids=len)
def test_labels_are_the_answers_with_their_end_and_nothing_else(style, num_images, turns):
    ids, labels, _ = encode(turns, num_images=num_images, style=style)
    assert [i for i in labels if i != -100] == tokens(*(answer + "</s>" for _, answer in turns))
    assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))
    runs = [list(run) for labeled, run in itertools.groupby(labels, lambda i: i != -100) if labeled]
    assert [tiny.tokenizer().decode(run) for run in runs] == [answer for _, answer in turns]
    assert ids.count(-1) == N * num_images


def test_later_turns_begin_with_a_start_token_of_their_own():
    ids, _, _ = encode(TURNS)
    texts = ("</Img> [vqa] is there a road ? [/INST]", "no</s>",
             "<s>[INST] what is it in {<9><51><50><82>} [/INST]", "a ship</s>",
             "<s>[INST] describe it [/INST]", "a green ship in a harbor</s>")
    assert ids == [1, *tokens("[INST] <Img>"), *[-1] * N, *tokens(*texts)]


def test_each_of_several_images_has_its_own_tags():
    ids, _, prefix_len = encode(TURNS[:1], num_images=2)
    head = [1, *tokens("[INST] <Img>"), *[-1] * N, *tokens("</Img><Img>"), *[-1] * N]
    assert ids[:prefix_len] == head


def test_without_images_the_prefix_is_the_start_token():
    ids, _, prefix_len = encode(TURNS[:1], num_images=0)
    assert ids == [1, *tokens("[INST] [vqa] is there a road ? [/INST]", "no</s>")]
    assert prefix_len == 1


@pytest.mark.parametrize("turns", [TURNS[:1], TURNS[:2], TURNS], ids=len)
def test_the_skyeye_prompt_at_inference_is_the_beginning_of_the_training_row(turns):
    trained, labels, _ = encode(turns)
    prompt, _, _ = encode([*turns[:-1], (turns[-1][0], None)])
    answer = tokens(turns[-1][1] + "</s>")
    assert trained == prompt + answer and labels[len(prompt):] == answer


def test_minigpt_v2_has_two_start_tokens_and_one_space_at_inference():
    question = TURNS[0][0]
    prompt, _, _ = encode([(question, None)], style="minigpt_v2")
    head = [1, *tokens("<s>[INST] <Img>"), *[-1] * N]
    assert prompt == head + tokens(f"</Img> {question} [/INST]")
    assert prompt[:2] == [1, 1]


def test_minigpt_v2_has_one_start_token_and_two_spaces_in_training():
    ids, _, _ = encode(TURNS[:2], style="minigpt_v2")
    one, two = TURNS[0][0], TURNS[1][0]
    assert ids == [1, *tokens("[INST] <Img>"), *[-1] * N, *tokens(
        f"</Img> {one}  [/INST]", "no</s>", f"<s>[INST] {two}  [/INST]", "a ship</s>")]
    assert tokens("a  [/INST]") != tokens("a [/INST]")


@pytest.mark.parametrize("style", ["minigpt_v2", "skyeye"])
def test_a_row_without_an_image_has_one_space_before_the_instructions_end(style):
    """Upstream's text-only questions have no blank at their end, those about images do."""
    (one, no), (two, ship) = TURNS[:2]
    ids, labels, prefix_len = encode(TURNS[:2], num_images=0, style=style)
    assert ids == [1, *tokens(f"[INST] {one} [/INST]", f"{no}</s>",
                              f"<s>[INST] {two} [/INST]", f"{ship}</s>")]
    assert prefix_len == 1 and sum(label != -100 for label in labels) == len(
        tokens(f"{no}</s>", f"{ship}</s>"))


def test_minigpt_v2_encodes_a_question_and_its_answer_together_at_inference_without_an_end_token():
    """Upstream's conversation.py joins roles and messages; only <s> separates the turns."""
    (one, no), (two, ship), (three, _) = TURNS
    prompt, labels, _ = encode([*TURNS[:2], (three, None)], style="minigpt_v2")
    assert prompt == [1, *tokens("<s>[INST] <Img>"), *[-1] * N, *tokens(
        f"</Img> {one} [/INST]{no}", f"<s>[INST] {two} [/INST]{ship}",
        f"<s>[INST] {three} [/INST]")]
    assert set(labels) == {-100} and 2 not in prompt


LLAMA = pytest.mark.skipif(not LLAMA_TOKENIZER.exists(), reason="needs LLaMA's tokenizer.model")


def llama_encode(turns, visual_tokens, num_images=1, style="vicuna_v1"):
    return encode_conversation(Tokenizer(LLAMA_TOKENIZER), turns, visual_tokens, num_images, style)


def llama_pieces(text):
    """The ids of a whole text, as the sentencepiece library encodes it."""
    return sentencepiece.SentencePieceProcessor(model_file=str(LLAMA_TOKENIZER)).encode(text)


@LLAMA
def test_the_released_checkpoints_prompt_to_the_id():
    """At inference two <s> and one space; in training one <s>, two spaces, the answer, its end."""
    question, end = "1533 25518 29958 518 29894 25621 29962 1317 727 263 6520 29973", (
        "518 29914 25580 29962")
    ids, _, _ = llama_encode([("[vqa] Is there a road?", None)], 256, style="minigpt_v2")
    assert " ".join(map(str, ids)) == ("1 1 518 25580 29962 529 25518 29958 " + "-1 " * 256
                                       + f"{question} {end}")
    ids, labels, _ = llama_encode([("[vqa] Is there a road?", "yes")], 256, style="minigpt_v2")
    assert " ".join(map(str, ids)) == ("1 518 25580 29962 529 25518 29958 " + "-1 " * 256
                                       + f"{question} 29871 {end} 4874 2")
    assert labels == [-100] * (len(ids) - 2) + [4874, 2]


VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant "
          "gives helpful, detailed, and polite answers to the user's questions.")


@LLAMA
def test_vicunas_prompt_is_split_at_the_image_and_has_one_start_token():
    ids, _, prefix_len = llama_encode([("What is it?", None)], 576)
    head, tail = llama_pieces(f"{VICUNA} USER: "), llama_pieces("\nWhat is it? ASSISTANT:")
    assert ids == [1, *head, *[-1] * 576, *tail] and prefix_len == 1 + len(head) + 576
    assert head[-1] == 29871 and tail[:2] == [29871, 13]            # a lone space, then the newline
    ids, _, _ = llama_encode([("What?", None)], 576, num_images=0)
    assert ids == [1, *llama_pieces(f"{VICUNA} USER: What? ASSISTANT:")]


def llava_ids(text, visual_tokens):
    """As LLaVA does: split at <image>, each chunk encoded on its own, one <s> in front."""
    first, *others = (llama_pieces(chunk) for chunk in text.split("<image>"))
    return [1, *first, *(i for chunk in others for i in [-1] * visual_tokens + chunk)]


@LLAMA
def test_vicunas_labels_are_what_llavas_count_of_each_round_leaves():
    """A round is as long as its own ids, <s> among them for the last round's </s>; its instruction
    as "USER: q ASSISTANT: ", less 2. USER after </s> has no word boundary: one id less."""
    turns = [("What is it?", "a ship"), ("Which color?", "green, and long"), ("Where?", "there")]
    ids, labels, _ = llama_encode(turns, 3)
    answers, start, prefix = [], 1, f"{VICUNA} USER: <image>\n"
    for question, answer in turns:
        one_less = prefix == "USER: "
        instruction = len(llava_ids(f"{prefix}{question} ASSISTANT: ", 3)) - 2 - one_less
        length = len(llava_ids(f"{prefix}{question} ASSISTANT: {answer}", 3)) - one_less
        answers.append(range(start + instruction, start + length))
        start, prefix = start + length, "USER: "
    assert start == len(ids)
    assert [i for i, label in enumerate(labels) if label != -100] == sum(map(list, answers), [])
    assert [[ids[i] for i in positions] for positions in answers] == [
        [*llama_pieces(answer), 2] for _, answer in turns]
    assert ids[answers[0].stop:][:2] == [11889, 29901]              # USER :


# ---- templates -----------------------------------------------------------------------------------

def sample(question="", answer="", task="caption", images=("a.png",), **more):
    return Sample(tuple(images), ((question, answer),), task, "here", **more)


def test_the_template_pools_are_complete():
    """MiniGPT-v2's, and one of SkyEyeGPT's captions and of the demo's groundings in front."""
    sizes = {task: len(set(pool)) for task, pool in TEMPLATES.items()}
    assert sizes == {"caption": 1 + 17, "video": 1, "vqa": 2, "scene": 1, "refer": 7,
                     "detection": 1, "identify": 7, "grounding": 1 + 4, "conversation": 1}
    ends_in_a_blank = {text for pool in TEMPLATES.values() for text in pool if text.endswith(" ")}
    assert ends_in_a_blank == {"[caption] A photo of ", "[caption] An image that shows ",
                               "[caption] Write a short description for the image. "}


@pytest.mark.parametrize("text, cleaned", [
    ("A Bridge is on a River.", "a bridge is on a river"),
    ('Two  "planes" (white); #1: near~the *road*!', "two planes white 1 near the road"),
    ("is it rural, or urban?", "is it rural, or urban?"),
    (" ".join(["Word"] * 60) + ".", " ".join(["word"] * 50)),
    ("a ship\t\n in\u00a0 port", "a ship in port"),
    ("", ""),
])
def test_texts_are_cleaned_as_upstream_cleans_them(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize("task, question, answer, expected", [
    ("vqa", "Is it Rural?", "Yes.", ("is it rural?", "yes")),
    ("refer", "The White Ship.", "<bbox>", ("the white ship", "{<10><20><30><40>}")),
    ("identify", "<bbox>", "The (white) Ship: at  left.",
     ("{<10><20><30><40>}", "the white ship at left")),
    ("grounding", "A. B", "A <p>Ship</p> <bbox>.", ("A. B", "A <p>Ship</p> {<10><20><30><40>}.")),
    ("conversation", "Why?  So.", "It is A.", ("Why?  So.", "It is A.")),
])
def test_upstream_cleans_the_texts_of_some_tasks_and_of_identify_the_answer(
        task, question, answer, expected):
    boxes = ((10.5, 20.5, 30.5, 40.5),) * (question + answer).count("<bbox>")
    (found,) = apply_templates(Sample((), ((question, answer),), task, "", boxes), (100, 100))
    template = TEMPLATES[task][0]
    assert found == (template.replace("{}", expected[0]), expected[1])


def test_detections_are_listed_from_left_to_right_after_an_augmentation():
    boxes = ((0, 0, 9.5, 10), (60.5, 60, 89.5, 90))
    detection = sample("ships", "<bbox><delim><bbox>", "detection", boxes=boxes)
    [turn] = apply_templates(detection, (100, 100), Augmentation(transpose=(MIRROR,)))
    assert turn == ("[detection] ships", "{<10><60><39><90>}<delim>{<90><0><100><10>}")
    [turn] = apply_templates(detection, (100, 100))
    assert turn == ("[detection] ships", "{<0><0><9><10>}<delim>{<60><60><89><90>}")


def test_boxes_are_dealt_to_question_and_answer_turn_by_turn():
    boxes = tuple((10 * i, 0, 10 * i + 5, 5) for i in range(3))
    turns = (("what is <bbox>", "<bbox>"), ("and", "<bbox>"))
    conversation = Sample((), turns, "conversation", "", boxes)
    assert apply_templates(conversation, (100, 100)) == [
        ("what is {<0><0><5><5>}", "{<10><0><15><5>}"), ("and", "{<20><0><25><5>}")]


# ---- augmentation --------------------------------------------------------------------------------

def augmentations(*samples, count=200):
    return [draw_augmentation(samples, random.Random(seed)) for seed in range(count)]


@pytest.mark.parametrize("side", ["left", "Rightmost", "TOP", "bottom", "north", "upper"])
def test_where_a_side_is_named_nothing_is_mirrored_or_turned(side):
    plain, named = sample(answer="a ship"), sample(answer=f"a ship at the {side}, perhaps")
    assert all(not drawn.transpose for drawn in augmentations(plain, named))
    assert len({drawn.transpose for drawn in augmentations(plain)}) == 8


@pytest.mark.parametrize("number", ["two", "seven", "no"])
def test_where_something_is_counted_nothing_is_cropped(number):
    plain, counted = sample(answer="a ship"), sample(answer=f"{number} ships in a harbor")
    assert all(drawn.crop == NO_AUGMENTATION.crop for drawn in augmentations(plain, counted))
    assert any(drawn.crop != NO_AUGMENTATION.crop for drawn in augmentations(plain))


@pytest.mark.parametrize("task", sorted(set(TEMPLATES) - {"caption", "scene"}))
def test_where_something_is_located_or_asked_about_nothing_is_cropped(task):
    plain, question = sample(answer="a ship"), sample("is there a car ?", "yes", task)
    assert all(drawn.crop == NO_AUGMENTATION.crop for drawn in augmentations(plain, question))


def test_a_crop_has_most_of_the_image_and_stays_inside():
    for x1, y1, x2, y2 in (drawn.crop for drawn in augmentations(sample(answer="a ship"))):
        assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
        assert x2 - x1 >= 0.65 - 1e-9 and y2 - y1 >= 0.65 - 1e-9


# ---- batches -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Five images with one to five questions each, and three samples of text alone."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [tiny.picture(folder / f"{i}.png", seed=i) for i in range(5)]
    questions = [sample(f"is there a road {i} {j} ?", "yes" * (i + j + 1), "vqa", [path])
                 for i, path in enumerate(paths) for j in range(i + 1)]
    texts = [sample(f"say {i}", "a text", "conversation", ()) for i in range(3)]
    mixed = questions + texts
    random.Random(4).shuffle(mixed)
    return mixed


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_a_clip_is_as_many_images_as_frames_are_requested(tmp_path, frames):
    for i in range(10):
        tiny.picture(tmp_path / "clip" / f"{i}.png", seed=i)
    row = tiny.rows([sample("", "a ship", "video", [str(tmp_path / "clip")])], frames=frames)[0, 0]
    assert len(row["images"]) == frames and (row["ids"] == -1).sum() == frames * N


def test_a_large_jpeg_is_decoded_smaller_for_training(tmp_path):
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (10, 12, 3)), np.ones((60, 60, 1)))
    path = str(tmp_path / "large.jpg")
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)
    trained = tiny.rows([sample("a", "b", "vqa", [path])])[0, 0]["images"][0]
    exact = preprocess(load_image(path), 30)
    assert (trained - exact).abs().max() < 0.15 and not torch.equal(trained, exact)


def test_a_box_outside_its_image_is_named_with_its_row(tmp_path):
    path = tiny.picture(tmp_path / "a.png", 40, 30)
    rows = tiny.rows([sample("the ship", "<bbox>", "refer", [path], boxes=((50, 5, 60, 9),))])
    with pytest.raises(DataError, match="here: the box .* is not in a picture of 40 x 30"):
        rows[0, 0]


def samples_of_rows(rows, epoch):
    return [rows.samples_of_row(epoch, i).tolist() for i in range(len(rows))]


@pytest.mark.parametrize("questions_per_row", [1, 2, 4])
@pytest.mark.parametrize("bucket_size", [1, 3])
def test_an_epoch_has_every_sample_once(samples, questions_per_row, bucket_size):
    rows = tiny.rows(samples, questions_per_row=questions_per_row, bucket_size=bucket_size)
    for epoch in range(3):
        assert sorted(sum(samples_of_rows(rows, epoch), [])) == list(range(len(samples)))


def test_questions_about_one_image_share_a_row_and_two_images_never_do(samples):
    found = samples_of_rows(tiny.rows(samples, questions_per_row=2), 0)
    for row in found:
        assert len({samples[i].images for i in row}) == 1 and len(row) <= 2
        assert len(row) == 1 or samples[row[0]].images
    assert len(found) == 1 + 1 + 2 + 2 + 3 + 3             # ceil of 1..5 questions in pairs, texts


def test_the_order_depends_on_seed_and_epoch_and_nothing_else(samples):
    rows = tiny.rows(samples, questions_per_row=2, seed=7)
    first, second = samples_of_rows(rows, 0), samples_of_rows(rows, 1)
    again = tiny.rows(samples, questions_per_row=2, seed=7)
    assert samples_of_rows(again, 1) == second and samples_of_rows(again, 0) == first
    assert first != second
    assert samples_of_rows(tiny.rows(samples, questions_per_row=2, seed=8), 0) != first


def equal_rows(a, b):
    return a.keys() == b.keys() and all(
        a[k] is b[k] or (a[k] is not None and b[k] is not None and torch.equal(a[k], b[k]))
        for k in a)


def test_a_row_is_the_same_in_every_dataset_and_at_every_call(samples):
    rows = tiny.rows(samples, questions_per_row=2, augment=True)
    keys = [(epoch, i) for epoch in range(2) for i in range(len(rows))]
    first = {key: rows[key] for key in keys}
    random.seed(123)
    torch.manual_seed(123)
    for key in random.Random(0).sample(keys, len(keys)):
        assert equal_rows(tiny.rows(samples, questions_per_row=2, augment=True)[key], first[key])


def test_augmentations_and_templates_change_from_epoch_to_epoch(samples):
    rows = tiny.rows([s for s in samples if s.images][:1], augment=True)
    drawn = [rows[epoch, 0] for epoch in range(8)]
    assert len({row["images"].sum().item() for row in drawn}) > 2
    assert len({len(row["ids"]) for row in drawn}) == 2


def test_a_ratio_is_the_part_of_a_data_sets_rows_in_an_epoch():
    small, large = ([sample(f"{name} {i}", "x", "conversation", ()) for i in range(n)]
                    for name, n in (("small", 4), ("large", 10)))
    rows = tiny.rows(small + large, ratios=[(4, 2.5), (10, 0.5)])
    used = [i for epoch in range(2) for [i] in samples_of_rows(rows, epoch)]
    assert len(rows) == 10 + 5
    counts = np.bincount(used[:15], minlength=14)
    assert counts[:4].sum() == 10 and counts[:4].min() >= 2 and counts[:4].max() <= 3
    assert counts[4:].sum() == 5 and counts[4:].max() == 1
    assert set(used[:15]) != set(used[15:])                         # another half every time


def test_a_data_set_with_a_small_ratio_has_one_row_and_one_with_ratio_0_has_none():
    few = [sample(str(i), "x", "conversation", ()) for i in range(9)]
    for seed in range(3):
        rows = tiny.rows(few, ratios=[(4, 0.001), (5, 0.0)], seed=seed)
        assert len(rows) == 1 and set(samples_of_rows(rows, 1)[0]) < {0, 1, 2, 3}


def test_with_ratios_every_epoch_has_as_many_rows_even_if_data_sets_share_images():
    shared = [sample(str(i), "x", "vqa", [f"{i % 5}.png"]) for i in range(20)]
    for seed in range(5):
        rows = tiny.rows(shared, questions_per_row=3, ratios=[(5, 0.5), (15, 2.0)], seed=seed)
        assert {len(rows.epoch_plan(epoch).rows) for epoch in range(5)} == {len(rows)}


def test_with_ratios_of_one_an_epoch_has_every_sample_once(samples):
    rows = tiny.rows(samples, questions_per_row=2, ratios=[(len(samples), 1.0)])
    assert sorted(sum(samples_of_rows(rows, 3), [])) == list(range(len(samples)))


def test_rows_of_like_length_are_in_one_bucket():
    """The spread of lengths inside a bucket of four is far below that of a shuffled order."""
    many = [sample("x" * (i * 37 % 101), "y", "conversation", ()) for i in range(96)]
    rows = tiny.rows(many, bucket_size=4)
    lengths = [rows.num_chars[row].sum() for row in samples_of_rows(rows, 0)]
    buckets = np.array(lengths).reshape(-1, 4)
    shuffled = np.random.default_rng(0).permutation(lengths).reshape(-1, 4)
    assert np.ptp(buckets, axis=1).mean() < 0.5 * np.ptp(shuffled, axis=1).mean()
    steps = np.diff(buckets.mean(1))
    assert (steps < 0).any() and (steps > 0).any()


def test_a_packed_row_has_one_copy_of_the_image_and_positions_that_restart(samples):
    rows = tiny.rows(samples, questions_per_row=2)
    number = next(i for i, row in enumerate(samples_of_rows(rows, 0)) if len(row) == 2)
    row = rows[0, number]
    ids, segments, positions = (row[k].tolist() for k in ("ids", "segments", "positions"))
    prefix_len = segments.count(0)
    assert ids.count(-1) == N and ids[:prefix_len].count(-1) == N and ids.count(1) == 1
    assert segments == sorted(segments) and set(segments) == {0, 1, 2}
    lengths = [segments.count(1), segments.count(2)]
    assert positions == [*range(prefix_len), *(prefix_len + i for n in lengths for i in range(n))]
    assert row["images"].shape == (1, 3, 30, 30)


def test_a_batch_is_padded_on_the_right(samples):
    rows = tiny.rows(samples, questions_per_row=2)
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
    images = [item["images"] for item in items if item["images"] is not None]
    assert torch.equal(batch["images"], torch.cat(images)) and len(images) < len(items)


def test_a_batch_of_single_questions_needs_no_segments(samples):
    texts = tiny.rows([s for s in samples if not s.images])
    batch = collate([texts[0, i] for i in range(3)])
    assert set(batch) == {"ids", "labels", "images"} and batch["images"] is None


def test_a_row_that_is_too_long_is_refused_by_name():
    rows = tiny.rows([sample("x" * 90, "y", "conversation", ())], max_tokens=40)
    message = refusal(rows.__getitem__, (0, 0))
    assert "here" in message and "--max_tokens 40" in message


def test_line_breaks_of_a_conversation_go_where_the_style_has_them():
    turns = (("A\nB  C", "x"), ("D\nE", "y"))
    for style, first in (("vicuna_v1", "A\nB  C"), ("skyeye", "A\nB  C"), ("minigpt_v2", "AB  C")):
        written = apply_templates(Sample((), turns, "conversation", ""), (1, 1), style=style)
        assert written == [(first, "x"), ("D\nE", "y")]


def test_the_phrase_before_a_place_is_the_last_that_ends_there():
    """As a regular expression finds it in what stands before, at every place of random texts."""
    rng = random.Random(3)
    for _ in range(300):
        text = "".join(rng.choices(["<p>", "</p>", " a", "b ", "\n", "<", "{<1><2><3><4>}"], k=12))
        found = [re.findall(r"<p>(.*?)</p>", text[:i]) or [""] for i in range(len(text))]
        assert phrases_before(text, range(len(text))) == [names[-1].strip() for names in found]


@pytest.mark.parametrize("text", ["<p>" * 30_000, "{" * 100_000, "{<" * 50_000, "a" * 100_000,
                                  "<p>a</p>{<1><2><3><4>}" * 5000, " \n" * 50_000 + "a"])
def test_a_hundred_thousand_letters_take_no_second(text):
    start = time.process_time()
    parse_boxes(text, 100, 100)
    clean_text(text)
    describe_text_boxes(text)
    split_question("a:" + text)
    listed_classes(text)
    assert time.process_time() - start < 1
