"""The sheet shows the words of an answer where the model looked for them."""
import re

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from conversations import make_conversation
from data import Tokenizer
from support.explain.attention import Reading, patch_attention, read_answer
from support.explain.command import draw_answer, images_of, last_turn
from support.explain.sheet import (
    HEAT,
    TILE,
    Canvas,
    answer_boxes,
    answer_words,
    draw_sheet,
    heat_tile,
    middle_patch,
    seen_picture,
    spread_evenly,
)

NANO = Tokenizer(tiny.ROOT / "weights/nano/tokenizer.model")


@pytest.mark.parametrize("tokenizer", [NANO, tiny.tokenizer()], ids=["nano", "digits apart"])
def test_words_are_the_words_and_numbers_of_an_answer_and_know_their_tokens(tokenizer):
    text = "<p>two airplanes</p> {<12><3><100><78>} <delim>"
    tokens = [*tokenizer.encode(text), tokenizer.eos]
    words = answer_words(tokenizer, tokens)
    assert [word for word, _ in words] == ["two", "airplanes", "12", "3", "100", "78"]
    for word, places in words:
        assert places == list(range(places[0], places[-1] + 1))
        piece = "".join(tokenizer.model.id_to_piece(tokens[i]) for i in places)
        assert word in piece
    taken = [i for _, places in words for i in places]
    assert len(set(taken)) == len(taken) or tokenizer is NANO       # "<p>two" may be one piece


def test_layers_are_spread_evenly_and_the_last_is_among_them():
    assert spread_evenly(32, 4) == [7, 15, 23, 31] and spread_evenly(4, 4) == [0, 1, 2, 3]
    assert spread_evenly(3, 8) == [0, 1, 2] and spread_evenly(39, 4)[-1] == 38


def test_the_middle_patch_lies_in_the_first_box():
    config, grid = tiny.SKYEYE, tiny.VIT.grid
    [box] = answer_boxes("{<51><3><69><21>}")
    patch = middle_patch([box], config)
    assert divmod(patch, grid) == (int(0.125 * grid), int(0.605 * grid))
    assert middle_patch([], config) == grid // 2 * grid + grid // 2
    assert middle_patch([(100, 100, 100, 100)], config) == grid ** 2 - 1


def test_a_tile_is_yellow_where_the_attention_is_and_gray_where_it_is_not():
    seen = Image.effect_noise((TILE, TILE), 60).convert("RGB")
    heat = torch.zeros(6, 6)
    heat[1, 4], heat[5, 0] = 3e-5, 1e-5
    pixels = np.asarray(heat_tile(seen, heat)).astype(int)
    saturation = pixels.max(-1) - pixels.min(-1)
    cells = saturation.reshape(6, TILE // 6, 6, TILE // 6).mean((1, 3))
    assert cells[1, 4] > 100 and 20 < cells[5, 0] < cells[1, 4] / 2
    cells[1, 4] = cells[5, 0] = 0
    assert cells.max() == 0
    assert abs(pixels[1 * TILE // 6 + 5, 4 * TILE // 6 + 5] - HEAT).max() < 80
    heat_tile(seen, torch.zeros(6, 6))                          # no attention at all: no error


def test_the_canvas_never_shrinks():
    canvas = Canvas(50)
    canvas.grow(80)
    height = canvas.image.height
    canvas.grow(10)
    assert canvas.image.height == height
    canvas.y += 30
    canvas.grow(80)
    assert canvas.image.height == height + 30


def make_reading(model, answer, pictures=1):
    tokenizer = tiny.tokenizer()
    ids = [1, 5, *[-1] * pictures * tiny.N, 17]
    return read_answer(model, ids, [*tokenizer.encode(answer), 2], tiny.images(pictures))


@pytest.mark.parametrize("answer", [
    "{<12><3><30><78>}", "yes", "a green ship in a harbor near many planes and some white cars "
    "near the river", "\u8239 {<1><2><3>"])
def test_a_sheet_is_drawn_of_every_answer_with_everything_inside(answer):
    model = tiny.skyeye()
    reading = make_reading(model, answer)
    patches = patch_attention(model.visual_encoder, tiny.images(1)[0], 3)
    sheet = draw_sheet(Image.effect_noise((61, 47), 60), "[refer] where is " + "it " * 90, reading,
                       patches, tiny.tokenizer(), model.config)
    pixels = np.asarray(sheet)
    assert sheet.width > 5 * TILE and sheet.height > 3 * TILE
    for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (border == 255).all()                            # nothing is cut off


def test_another_pictures_attention_gives_another_sheet():
    model = tiny.skyeye()
    reading = make_reading(model, "{<12><3><30><78>}", pictures=2)
    patches = patch_attention(model.visual_encoder, tiny.images(1)[0], 3)
    image = Image.effect_noise((61, 47), 60)
    first, second = (draw_sheet(image, "why ?", reading, patches, tiny.tokenizer(), model.config,
                                picture) for picture in (0, 1))
    assert first.size == second.size and first.tobytes() != second.tobytes()


def test_an_answer_about_no_picture_has_its_lens_alone():
    model = tiny.skyeye()
    reading = read_answer(model, [1, 5, 17], [40, 2], None)
    assert isinstance(reading, Reading)
    draw_sheet(Image.effect_noise((61, 47), 60), "why ?", reading, torch.rand(2, 36),
               tiny.tokenizer(), model.config)


def test_the_picture_is_shown_as_the_model_sees_it():
    wide = Image.new("RGB", (80, 20), "red")
    assert seen_picture(wide, tiny.SKYEYE).getcolors() == [(TILE * TILE, (255, 0, 0))]


def test_the_sheet_of_the_front_page_is_what_the_shipped_model_gives():
    """Made again by the command above it, with another name; floats differ between processors."""
    shown = tiny.ROOT / "examples/forest_explain.png"
    readme = (tiny.ROOT / "README.md").read_text(encoding="utf-8")
    name, question = re.search(r'chat.py (\S+) --prompt "(.+)" --explain \S+.png',
                               readme).groups()
    assert f"](examples/{shown.name})" in readme
    conversation = make_conversation(tiny.ROOT / "weights/nano", [tiny.ROOT / name], 60)
    list(conversation.ask(question))
    ids, tokens = last_turn(conversation)
    reading = read_answer(conversation.model, ids, tokens, conversation.encode_images())
    drawn = np.asarray(draw_answer(conversation, reading, images_of(conversation))).astype(int)
    stored = np.asarray(Image.open(shown).convert("RGB")).astype(int)
    assert drawn.shape == stored.shape and abs(drawn - stored).mean() < 0.5
