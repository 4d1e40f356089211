"""Where the model looks, drawn: one picture with everything that was read of an answer.

    the picture with the answer's boxes, and where the middle patch of the first one looks
    for each word of the answer, layer by layer, the attention from it to the picture
    the logit lens: what each layer would say, if it were the last

A tile is the picture as the model sees it, gray; the brighter the yellow, the larger the share of
attention, relative to the tile's largest. Each square is a patch. Patches that were joined to one
visual token have the same brightness: the language model cannot tell them apart.
"""
import re
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data import PROMPTS, Tokenizer, pad_to_square, parse_boxes
from projector import SkyEyeConfig
from support.common import Box
from support.explain.attention import Reading, over_patches
from support.images.draw import COLORS
from support.inference.generation import token_text

TILE, MARGIN, SIDE = 132, 8, 56         # pixels: a tile, the room between, the column of names
MOST_WORDS, MOST_LAYERS, MOST_LENS = 8, 4, 8
HEAT = (255, 214, 10)                   # RGB of the strongest attention
FONT = 13

# ---- what is drawn -------------------------------------------------------------------------------

WORD = re.compile(r"<(\d+)>|</?[a-z]+>|(\w[\w'-]*)")        # a number of a box, a tag, a word


def answer_words(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
    """The words of an answer and the numbers of its boxes, each with the places of its tokens in
    the answer; tags such as <p> are none."""
    texts = [token_text(tokenizer.model.id_to_piece(token)) if token > 2 else ""
             for token in tokens]
    starts = np.cumsum([0, *map(len, texts)])
    words = []
    for match in WORD.finditer("".join(texts)):
        if word := match[1] or match[2]:
            group = 1 if match[1] else 2
            start, end = match.span(group)
            words.append((word, [i for i in range(len(texts))
                                 if starts[i] < end and starts[i + 1] > start]))
    return words


def spread_evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 .. count - 1, the last one among them."""
    most = min(count, most)
    return [(i + 1) * count // most - 1 for i in range(most)]


def seen_picture(image: Image.Image, config: SkyEyeConfig) -> Image.Image:
    """The square that the model sees, at the size of a tile."""
    image = pad_to_square(image) if PROMPTS[config.prompt].pad else image
    return image.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC)


def middle_patch(boxes: Sequence[Box], config: SkyEyeConfig) -> int:
    """The patch in the middle of the first box, in hundredths; without boxes, of the picture."""
    x1, y1, x2, y2 = boxes[0] if boxes else (0, 0, 100, 100)
    grid = config.vit.grid
    column, row = (min(int((a + b) / 200 * grid), grid - 1) for a, b in ((x1, x2), (y1, y2)))
    return row * grid + column


def answer_boxes(answer: str) -> list[Box]:
    """The boxes of an answer in hundredths of the square that the model sees."""
    return [box for _, box in parse_boxes(answer, 100, 100)]


def heat_tile(seen: Image.Image, heat: Tensor, boxes: Sequence[Box] = ()) -> Image.Image:
    """heat: float[grid, grid], of any scale; boxes in hundredths."""
    strength = (heat / heat.max().clamp(min=1e-12)).numpy()
    mask = Image.fromarray((strength * 200).astype(np.uint8)).resize(seen.size,
                                                                     Image.Resampling.NEAREST)
    gray = seen.convert("L").point(lambda value: value * 8 // 10).convert("RGB")
    tile = Image.composite(Image.new("RGB", seen.size, HEAT), gray, mask)
    outline(tile, boxes)
    return tile


def outline(tile: Image.Image, boxes: Sequence[Box]) -> None:
    draw = ImageDraw.Draw(tile)
    for number, box in enumerate(boxes):
        place = [min(round(side * TILE / 100), TILE - 1) for side in box]
        draw.rectangle(place, outline=COLORS[number % len(COLORS)])


# ---- the sheet -----------------------------------------------------------------------------------

class Canvas:
    """A white picture that grows downwards as it is drawn on."""

    def __init__(self, width: int):
        self.image, self.y = Image.new("RGB", (width, MARGIN), "white"), MARGIN
        self.font = ImageFont.load_default(FONT)

    def grow(self, height: int) -> ImageDraw.ImageDraw:
        """Room for so many pixels below y."""
        bottom = self.y + height + MARGIN
        if bottom > self.image.height:
            image = Image.new("RGB", (self.image.width, bottom), "white")
            image.paste(self.image)
            self.image = image
        return ImageDraw.Draw(self.image)

    def text(self, x: int, text: str, color: str = "black", width: int = 0) -> None:
        """One line, cut off at this width in pixels, if one is given; y stays."""
        draw = self.grow(FONT + 6)
        while width and text and draw.textlength(text, font=self.font) > width:
            text = text[:-1]
        draw.text((x, self.y), text, fill=color, font=self.font)

    def paragraph(self, text: str, x: int = MARGIN, color: str = "black") -> None:
        for line in textwrap.wrap(text, max(8, (self.image.width - x) // 7)):
            self.text(x, line, color)
            self.y += FONT + 5

    def tile(self, x: int, tile: Image.Image) -> None:
        self.grow(tile.height)
        self.image.paste(tile, (x, self.y))


def columns(count: int) -> Iterator[int]:
    """The left sides of tiles beside each other, behind the column of names."""
    return (MARGIN + SIDE + i * (TILE + MARGIN) for i in range(count))


def draw_sheet(image: Image.Image, question: str, reading: Reading, patches: Tensor,
               tokenizer: Tokenizer, config: SkyEyeConfig, picture: int = 0) -> Image.Image:
    """image: the picture; picture: its number among those of the prompt; patches: where its
    middle_patch looks, float[blocks, P]."""
    answer = tokenizer.decode(reading.tokens)
    all_words = answer_words(tokenizer, reading.tokens)
    words = all_words[:MOST_WORDS]
    tiles = max(len(words), MOST_LAYERS + 1)
    canvas = Canvas(2 * MARGIN + SIDE + tiles * (TILE + MARGIN))
    seen, boxes = seen_picture(image, config), answer_boxes(answer)
    draw_head(canvas, seen, question, answer, boxes, patches, config)
    draw_words(canvas, seen, words, boxes, reading, config, picture)
    draw_lens(canvas, reading, tokenizer)
    if len(all_words) > len(words):
        canvas.paragraph(f"Shown are the first {len(words)} of {len(all_words)} words.")
    return canvas.image


def draw_head(canvas: Canvas, seen: Image.Image, question: str, answer: str, boxes: Sequence[Box],
              patches: Tensor, config: SkyEyeConfig) -> None:
    canvas.paragraph(question)
    canvas.paragraph(answer, color="#0a58ca")
    grid, chosen = config.vit.grid, spread_evenly(len(patches), MOST_LAYERS)
    patch = middle_patch(boxes, config)
    others = patches.index_fill(1, torch.tensor([patch]), 0)                  # [blocks, P]
    cell = [100 * side / grid for side in (patch % grid, patch // grid, patch % grid + 1,
                                           patch // grid + 1)]
    canvas.y += MARGIN
    canvas.paragraph("Vision encoder: where the framed patch looks beside itself, by the mean over "
                     "heads; in percent, what the other patches got")
    first, *places = columns(1 + len(chosen))
    shown = seen.copy()
    outline(shown, boxes)
    canvas.tile(first, shown)
    for x, layer in zip(places, chosen, strict=True):
        tile = heat_tile(seen, others[layer].unflatten(0, (grid, grid)))
        outline(tile, [tuple(cell)])
        canvas.tile(x, tile)
    canvas.y += TILE + 2
    for x, layer in zip(places, chosen, strict=True):
        canvas.text(x, f"block {layer + 1}: {others[layer].sum():.0%}", "#555555")
    canvas.y += FONT + 3 * MARGIN


def draw_words(canvas: Canvas, seen: Image.Image, words: Sequence[tuple[str, list[int]]],
               boxes: Sequence[Box], reading: Reading, config: SkyEyeConfig, picture: int) -> None:
    """A row a layer, a column a word; below each tile the share of the attention that the picture
    got, the rest went to other pictures and to the words of the prompt and the answer."""
    slots = [i < 0 for i in (*reading.ids, *reading.tokens)]
    if not words or not any(slots):
        return
    heat = over_patches(reading.attention, slots, config, picture)            # [L, A, grid, grid]
    canvas.paragraph("Language model: where each word (and its probability) was read from, by the "
                     "mean over heads; in percent, what the picture got of all attention")
    for x, (word, places) in zip(columns(len(words)), words, strict=True):
        p = reading.probability[places].prod().item()
        canvas.text(x, f"{word} ({p:.2f})", "#0a58ca", TILE)
    canvas.y += FONT + 5
    for layer in spread_evenly(len(heat), MOST_LAYERS):
        canvas.text(MARGIN, f"layer {layer + 1}")
        for x, (_, places) in zip(columns(len(words)), words, strict=True):
            own = heat[layer, places].mean(dim=0)                             # [grid, grid]
            canvas.tile(x, heat_tile(seen, own, boxes))
            canvas.y += TILE + 2
            canvas.text(x, f"{own.sum():.0%}", "#555555")
            canvas.y -= TILE + 2
        canvas.y += TILE + FONT + MARGIN
    canvas.y += MARGIN


def draw_lens(canvas: Canvas, reading: Reading, tokenizer: Tokenizer) -> None:
    """A row a layer, a column a token, as many as there is room for; the darker, the more probable
    the layer finds it."""
    cell = 82
    tokens = reading.tokens[:(canvas.image.width - MARGIN - SIDE) // cell]
    canvas.paragraph("Logit lens: what each layer would say if it were the last, and how probable "
                     "it finds that; blue where it is the answer's token")
    for layer in spread_evenly(len(reading.lens), MOST_LENS):
        canvas.text(MARGIN, f"layer {layer + 1}")
        for i, token in enumerate(tokens):
            said, p = reading.lens_ids[layer, i].item(), reading.lens[layer, i].item()
            x, shade = MARGIN + SIDE + i * cell, round(255 - 90 * p)
            canvas.grow(FONT + 6)
            ImageDraw.Draw(canvas.image).rectangle(
                (x, canvas.y - 1, x + cell - 4, canvas.y + FONT + 4), fill=(shade, shade, 255))
            piece = tokenizer.model.id_to_piece(said).replace("\u2581", " ").strip()
            canvas.text(x + 3, f"{p:.2f} {piece}", "#0a58ca" if said == token else "#333333",
                        cell - 9)
        canvas.y += FONT + 8
