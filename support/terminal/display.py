"""support/terminal/display.py"""
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw

from support.common import Box, write_atomic
from support.images.draw import COLORS, draw_on_picture, unused_name
from support.terminal.questions import Detection

# ---- showing -------------------------------------------------------------------------------------
# Answers, boxes and pictures on the screen.

def stream_answer(talk, question: str, live: bool, as_json: bool, preview: bool) -> None:
    """Print the answer as it comes, then its boxes; as JSON, all at its end.

    live: someone sits there: Ctrl-C stops the answer alone, and boxes are drawn and saved.
    """
    try:
        for piece in talk.ask(question):
            print("" if as_json else piece, end="", flush=True)
    except KeyboardInterrupt:
        if not live:
            raise
        print("" if as_json else " (stopped)", end="")
    answer, marks = talk.turns[-1][1], talk.marks()
    if as_json:
        boxes = [mark.entry(talk.paths) for mark in marks]
        print(json.dumps({"question": question, "answer": answer, "boxes": boxes}), flush=True)
    else:
        print()
        show_detections(marks, talk.pictures, talk.paths, preview)
    for file in save_beside(talk.paths, talk.pictures, marks) if live else ():
        eprint(f"saved {file}")


def show_detections(marks: Sequence[Detection], pictures: Sequence, names: Sequence[str], preview: bool
               ) -> None:
    """Each box in pixels; with `preview` in its color, below the picture it lies in."""
    for k, picture in enumerate(pictures):
        own = [mark for mark in marks if mark.picture == k]
        if own and preview:
            show_picture(picture, [mark.box for mark in own])
        for number, mark in enumerate(own):
            print("  " + (swatch(number) if preview else "") + mark.told(names), flush=True)


def show_picture(picture, boxes: Sequence = ()) -> None:
    """As half blocks, no wider than the window and well within its height."""
    columns, lines = shutil.get_terminal_size()
    print(half_blocks(picture.image, picture.size, boxes, max(1, min(columns - 1, 80)),
                      max(1, min(lines - 6, 24))))


# ---- preview -------------------------------------------------------------------------------------
# A picture in the terminal: each character is two pixels, one above the other.

RESET = "\x1b[0m"


def box_color(number: int) -> tuple[int, int, int]:
    """Of the box with this number, as draw_boxes has it."""
    return ImageColor.getrgb(COLORS[number % len(COLORS)])


def swatch(number: int) -> str:
    """A small square in the color of a box."""
    return f"\x1b[38;2;{';'.join(map(str, box_color(number)))}m■{RESET} "


def half_blocks(image: Image.Image, size: tuple[int, int], boxes: Sequence[Box], columns: int,
                rows: int) -> str:
    """A picture, and its boxes in pixels of one of `size` -> lines of ▀.

    At most `columns` wide and `rows` high, sides in their proportion.
    """
    scale = min(columns / image.width, 2 * rows / image.height)
    width = max(1, int(image.width * scale))
    height = 2 * max(1, round(image.height * scale / 2))
    small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    draw = ImageDraw.Draw(small)
    for number, box in enumerate(boxes):
        x1, y1, x2, y2 = (side * to / of for side, to, of in
                          zip(box, (width, height) * 2, size * 2, strict=True))
        draw.rectangle((min(int(x1), width - 1), min(int(y1), height - 1),
                        max(int(x1), min(int(x2), width - 1)),
                        max(int(y1), min(int(y2), height - 1))), outline=box_color(number))
    pixels = small.load()
    return "\n".join("".join(
        "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*pixels[x, y], *pixels[x, y + 1])
        for x in range(width)) + RESET for y in range(0, height, 2))


# ---- terminal ------------------------------------------------------------------------------------
# What the terminal can do, and the lines that come from it.

def eprint(text: str) -> None:
    """What is no answer goes beside the answers."""
    print(text, file=sys.stderr, flush=True)


def prepare_streams() -> None:
    """What the terminal's encoding has no letter for becomes a replacement, not an error."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None:                          # None: closed
            stream.reconfigure(errors="replace")


def is_interactive() -> bool:
    """Whether a person sits there: questions come from a terminal, answers go to one."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def shows_color(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal says that it has 24-bit color and UTF-8."""
    told = [environment.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    locale = next(filter(None, told), "").lower().replace("-", "")
    return (sys.stdout is not None and sys.stdout.isatty()
            and sys.stdout.encoding.lower().replace("-", "") == "utf8" and "utf8" in locale
            and environment.get("COLORTERM") in ("truecolor", "24bit")
            and environment.get("TERM", "dumb") != "dumb")


def enable_line_editing() -> None:
    """Arrow keys, and the questions of this session again, where the platform has readline."""
    if importlib.util.find_spec("readline"):
        importlib.import_module("readline")


def piped_lines() -> Iterator[str]:
    """The lines of a pipe or a file, none if the input is closed."""
    if sys.stdin is not None and sys.stdin.isatty():
        eprint("a question a line, Ctrl-D at the end")
    for line in sys.stdin or ():
        if line.strip():
            yield line.strip()


def discard_output() -> None:
    """After the reader of a pipe has left: what is still to be written goes nowhere, silently."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- writing -------------------------------------------------------------------------------------
# What a conversation leaves behind: pictures with boxes, and itself as data to learn from.

def save_boxes(file: Path, pictures: Sequence, marks: Sequence[Detection]) -> None:
    """The picture that the first box lies in, with its boxes. ValueError: none, or the suffix."""
    if not pictures:
        raise ValueError(f"{file}: there is no picture to save")
    kind = Image.registered_extensions().get(file.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"{file}: a picture is written as .png, .jpg, .tif, ..; a conversation "
                         "as .json")
    shown = marks[0].picture if marks else 0
    image = draw_on_picture(pictures[shown], [(m.phrase, m.box) for m in marks if m.picture == shown])
    write_atomic(file, lambda aside: image.save(aside, kind))


def save_beside(paths: Sequence[str], pictures: Sequence, marks: Sequence[Detection]) -> list[Path]:
    """Each picture that has boxes, as NAME_boxes.png beside it; never over a file that exists."""
    written = []
    for number in sorted({mark.picture for mark in marks}):
        file = unused_name(paths[number])
        save_boxes(file, pictures, [mark for mark in marks if mark.picture == number])
        written.append(file)
    return written


def save_conversation(file: Path, paths: Sequence[str], turns: Sequence[tuple[str, str]],
               sure: Sequence[Sequence[float]] = ()) -> None:
    """A LLaVA row, as data.py reads it: pictures are named from the file's folder.

    sure: the confidences of the boxes in each answer. What has no answer is left out. ValueError:
    nothing is left, or a picture lies elsewhere.
    """
    folder, said = Path(os.path.abspath(file)).parent, []
    names = [Path(os.path.abspath(path)) for path in paths]     # without .., links not followed
    for (question, answer), boxes in zip_longest(turns, sure, fillvalue=()):
        if answer.strip():
            said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}
                     | ({"confidence": list(boxes)} if boxes else {})]
    if not said:
        raise ValueError(f"{file}: nothing has been said that could be saved")
    for name in names:
        if not name.is_relative_to(folder):
            raise ValueError(f"{file}: a data file names pictures of its own folder; save it in "
                             f"{name.parent} or above")
    row = {"image": [name.relative_to(folder).as_posix() for name in names]} if names else {}
    row["conversations"] = said
    text = json.dumps([row], indent=1) + "\n"
    write_atomic(file, lambda aside: aside.write_text(text, encoding="utf-8"))
