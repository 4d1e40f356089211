"""What chat.py shows and writes: answers and their boxes, previews of pictures, saved files.

Answers go to standard output, everything else to standard error. A preview draws a picture with
the character ▀, half a cell high: its foreground color is one pixel, its background color the pixel
below.
"""
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw

from support.common import Box, UserError, write_atomic
from support.images.draw import (
    COLORS,
    draw_on_picture,
    picture_format,
    save_picture,
    unused_name,
)
from support.images.read import Picture
from support.terminal.answers import readable_text
from support.terminal.questions import Detection, rounded

# ---- the terminal --------------------------------------------------------------------------------

def eprint(text: str) -> None:
    """Print to standard error: everything that is not an answer."""
    print(text, file=sys.stderr, flush=True)


def prepare_streams() -> None:
    """Replace characters that the terminal's encoding lacks, instead of raising an error. Of the
    input, keep bytes that are no characters as lone surrogates, and end lines at \\n alone."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:                          # None: closed
            stream.reconfigure(errors="replace")
    if sys.stdin is not None:
        sys.stdin.reconfigure(errors="surrogateescape", newline="\n")


def is_interactive() -> bool:
    """Whether questions come from a terminal and answers go to one."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def supports_color(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether standard output is a terminal that announces 24-bit color and UTF-8."""
    if sys.stdout is None or not sys.stdout.isatty():
        return False
    locales = [environment.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    locale = next(filter(None, locales), "")            # the first that is set counts
    utf8 = all("utf8" in name.lower().replace("-", "") for name in (sys.stdout.encoding, locale))
    color = environment.get("COLORTERM") in ("truecolor", "24bit")
    return utf8 and color and environment.get("TERM", "dumb") != "dumb"


def discard_output() -> None:
    """When the reader of our output has gone: drop what is still to be written, silently."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- answers -------------------------------------------------------------------------------------

def print_detections(detections: Sequence[Detection], names: Sequence[str],
                     previews: Sequence[Picture] = ()) -> None:
    """A line for each box, picture by picture. names: of the pictures; previews: the pictures
    where they are to be shown, each above its boxes, which then have their colors."""
    for index in range(len(names)):
        found = [detection for detection in detections if detection.picture == index]
        if found and previews:
            print_picture(previews[index], [detection.box for detection in found])
        for number, detection in enumerate(found):
            mark = color_square(number) if previews else ""
            print(f"  {mark}{detection.describe(names)}", flush=True)


def print_json_answer(question: str, answer: str, detections: Sequence[Detection],
                      names: Sequence[str], explanation: dict | None = None, **more: str) -> None:
    """An answer as one line of JSON: `answer` as it was generated, `text` as a person sees it.
    explanation: of --explain, the last field; more: fields that come first."""
    boxes = [detection.to_json(names) for detection in detections]
    last = {} if explanation is None else {"explanation": explanation}
    print(json.dumps(more | {"question": question, "answer": answer,
                             "text": readable_text(answer)[0], "boxes": boxes} | last), flush=True)


def print_json_error(question: str, error: Exception, **more: str) -> None:
    """What stands in the place of an answer where there is none."""
    print(json.dumps(more | {"question": question[:1000], "error": str(error)}), flush=True)


MUCH_LARGER = 8         # times the side that the model sees: a picture of which it cannot see much


def describe_scale(name: str, size: tuple[int, int], side: int) -> str:
    """What to know about a picture much larger than the `side` x `side` pixels that the model sees;
    "" for others. size: width and height."""
    if max(size) <= MUCH_LARGER * side:
        return ""
    return (f"{name}: the model sees its {size[0]} x {size[1]} pixels as {side} x {side}, and "
            f"nothing smaller than about {2 * max(size) // side} pixels: ask about it in tiles "
            f"(--tiles {2 * side} or /tiles {2 * side}), or crop the part in question to a picture "
            f"of its own, of up to {MUCH_LARGER * side} pixels a side")


# ---- previews ------------------------------------------------------------------------------------

RESET_COLOR = "\x1b[0m"
TWO_PIXELS = "\x1b[38;2;{};{};{};48;2;{};{};{}m▀"       # RGB of the upper pixel, of the lower one


def print_picture(picture: Picture, boxes: Sequence[Box] = ()) -> None:
    """A preview no wider than the window and well within its height."""
    window_columns, window_rows = shutil.get_terminal_size()
    columns = max(1, min(window_columns - 1, 80))
    rows = max(1, min(window_rows - 6, 24))
    print(half_blocks(picture.image, picture.size, boxes, columns, rows))


def half_blocks(image: Image.Image, size: tuple[int, int], boxes: Sequence[Box], columns: int,
                rows: int) -> str:
    """A picture as lines of ▀, at most `columns` wide and `rows` high, its proportions kept.

    size: width and height of the full-size picture, in whose pixels the boxes are.
    """
    scale = min(columns / image.width, 2 * rows / image.height)
    width = max(1, int(image.width * scale))
    height = 2 * max(1, round(image.height * scale / 2))
    small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    draw = ImageDraw.Draw(small)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        left, right = (min(int(x * width / size[0]), width - 1) for x in (x1, x2))
        top, bottom = (min(int(y * height / size[1]), height - 1) for y in (y1, y2))
        draw.rectangle((left, top, right, bottom), outline=box_color(number))
    pixels, lines = small.load(), []
    for y in range(0, height, 2):
        cells = [TWO_PIXELS.format(*pixels[x, y], *pixels[x, y + 1]) for x in range(width)]
        lines.append("".join(cells) + RESET_COLOR)
    return "\n".join(lines)


def box_color(number: int) -> tuple[int, int, int]:
    """RGB of the box with this number, as draw_boxes colors it."""
    return ImageColor.getrgb(COLORS[number % len(COLORS)])


def color_square(number: int) -> str:
    """A small square in the color of a box."""
    red, green, blue = box_color(number)
    return f"\x1b[38;2;{red};{green};{blue}m■{RESET_COLOR} "


# ---- files ---------------------------------------------------------------------------------------

def check_target(file: Path, inputs: Sequence[str], overwrite: bool = False) -> None:
    """UserError: it exists, or, with `overwrite`, is one of the input pictures or in a clip."""
    if not file.exists():
        return
    for name in inputs:
        path = Path(name)
        if path.exists() and (file.samefile(path) or path.is_dir() and file.parent.samefile(path)):
            raise UserError(f"{file}: a picture of the conversation; save under another name")
    if not overwrite:
        raise UserError(f"{file}: exists; --overwrite writes over it")


OR_CONVERSATION = "; a conversation as .json"


def check_save(file: Path, inputs: Sequence[str], overwrite: bool = False) -> None:
    """UserError: as check_target; or nothing is written under such a name."""
    check_target(file, inputs, overwrite)
    if file.suffix != ".json":
        picture_format(file, OR_CONVERSATION)


def save_boxes(file: Path, pictures: Sequence[Picture], detections: Sequence[Detection]) -> str:
    """Write the picture that the first box lies in, with its boxes drawn on it -> what to tell.

    UserError: there is no picture, or the suffix of `file` is not that of a picture format.
    """
    if not pictures:
        raise UserError(f"{file}: there is no picture to save")
    picture_format(file, OR_CONVERSATION)
    index = detections[0].picture if detections else 0
    boxes = [(found.phrase, found.box) for found in detections if found.picture == index]
    save_picture(draw_on_picture(pictures[index], boxes), file)
    if not boxes:
        return f"saved {file}, without a box: the last answer has none"
    others = len({found.picture for found in detections}) - 1
    more = f"; {others} more with boxes: /save alone writes each" if others else ""
    return f"saved {file}{more}"


def save_beside(paths: Sequence[str], pictures: Sequence[Picture],
                detections: Sequence[Detection]) -> list[str]:
    """Write each picture that has boxes, or else the first one, as NAME_boxes.png beside it -> what
    to tell of each.

    A file that exists is never overwritten: the name becomes NAME_boxes_2.png, and so on.
    UserError: there is no picture.
    """
    if not pictures:
        raise UserError("/save: there is no picture; /save chat.json writes the conversation")
    shown = sorted({detection.picture for detection in detections}) or [0]
    return [save_boxes(unused_name(paths[index]), [pictures[index]],
                       [replace(found, picture=0) for found in detections
                        if found.picture == index]) for index in shown]


def save_conversation(file: Path, paths: Sequence[str], turns: Sequence[tuple[str, str]],
                      scores: Sequence[Sequence[float]] = (), alone: bool = False) -> None:
    """Write (question, answer) turns as a LLaVA row, which data.py reads and train.py learns from;
    where each was asked alone, as a row each.

    Pictures are named relative to the file's folder. Turns with an empty answer are left out.
    scores: the confidences of the boxes in each answer. UserError: no turn is left, or a picture
    lies outside the folder.
    """
    folder = Path(os.path.abspath(file)).parent         # resolves .. but does not follow links
    pictures = [Path(os.path.abspath(path)) for path in paths]
    messages = []
    for (question, answer), confidence in zip_longest(turns, scores, fillvalue=()):
        if answer.strip():
            reply = {"from": "gpt", "value": answer}
            if confidence:
                reply["confidence"] = [rounded(score) for score in confidence]
            messages += [{"from": "human", "value": question}, reply]
    if not messages:
        raise UserError(f"{file}: there is no answer to save yet")
    for picture in pictures:
        if not picture.is_relative_to(folder):
            raise UserError(f"{file}: a data file names pictures of its own folder; save it in "
                            f"{picture.parent} or above")
    shown = [picture.relative_to(folder).as_posix() for picture in pictures]
    size = 2 if alone else len(messages)
    rows = [({"image": shown} if shown else {}) | {"conversations": messages[i:i + size]}
            for i in range(0, len(messages), size)]
    text = json.dumps(rows, indent=1) + "\n"
    write_atomic(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
