"""Boxes drawn on a picture."""
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]         # x1, y1, x2, y2 in pixels
COLORS = "#ff3b30 #ffcc00 #34c759 #00c7ff #ff2d92 #ff9500 #af52de #ffffff".split()


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[str, Box]],
               colors: Sequence[str] = COLORS) -> Image.Image:
    """A copy of the picture with each box and its phrase, in the colors in turn."""
    image = image.copy()
    draw, stroke = ImageDraw.Draw(image), max(2, max(image.size) // 200)
    font = ImageFont.load_default(max(11, max(image.size) // 32))
    for i, (phrase, box) in enumerate(boxes):
        rim = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
        draw.rectangle(rim, outline="black", width=stroke + 2)
        draw.rectangle(box, outline=colors[i % len(colors)], width=stroke)
        if phrase:
            _, _, width, height = draw.textbbox((4, 2), phrase, font=font)
            width, height = width + 4, height + 4
            x = max(0, min(box[0], image.width - width))
            y = box[1] - height if box[1] > height else min(box[3], image.height - height)
            draw.rectangle((x, y, x + width, y + height), fill=colors[i % len(colors)])
            draw.text((x + 4, y + 2), phrase, fill="black", font=font)
    return image


def draw_on(picture, boxes: Sequence[tuple[str, Box]]) -> Image.Image:
    """Boxes in pixels of the whole picture, also where it was reduced as it was read."""
    across, down = (a / b for a, b in zip(picture.image.size, picture.size, strict=True))
    return draw_boxes(picture.image, [(phrase, (box[0] * across, box[1] * down, box[2] * across,
                                                box[3] * down)) for phrase, box in boxes])


def free_name(picture: str) -> Path:
    """NAME_boxes.png beside the picture, or NAME_boxes_2.png, ..: never a file that exists."""
    stem, number = Path(picture).with_suffix(""), 1
    file = Path(f"{stem}_boxes.png")
    while file.exists():
        number += 1
        file = Path(f"{stem}_boxes_{number}.png")
    return file
