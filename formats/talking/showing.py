"""Answers, boxes and pictures on the screen."""
import json
import shutil
from collections.abc import Sequence

from formats.talking.marks import Mark
from formats.talking.preview import half_blocks, swatch
from formats.talking.terminal import tell
from formats.talking.writing import write_beside


def speak(talk, question: str, live: bool, as_json: bool, preview: bool) -> None:
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
        show_marks(marks, talk.pictures, talk.paths, preview)
    for file in write_beside(talk.paths, talk.pictures, marks) if live else ():
        tell(f"saved {file}")


def show_marks(marks: Sequence[Mark], pictures: Sequence, names: Sequence[str], preview: bool
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
