"""What a conversation leaves behind: pictures with boxes, and itself as data to learn from."""
import json
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from formats.drawing import draw_on, free_name
from formats.released.files import write_safely
from formats.talking.marks import Mark


def write_boxes(file: Path, pictures: Sequence, marks: Sequence[Mark]) -> None:
    """The picture that the first box lies in, with its boxes. ValueError: none, or the suffix."""
    if not pictures:
        raise ValueError(f"{file}: there is no picture to save")
    kind = Image.registered_extensions().get(file.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"{file}: a picture is written as .png, .jpg, .tif, ..; a conversation "
                         "as .json")
    shown = marks[0].picture if marks else 0
    image = draw_on(pictures[shown], [(m.phrase, m.box) for m in marks if m.picture == shown])
    write_safely(file, lambda aside: image.save(aside, kind))


def write_beside(paths: Sequence[str], pictures: Sequence, marks: Sequence[Mark]) -> list[Path]:
    """Each picture that has boxes, as NAME_boxes.png beside it; never over a file that exists."""
    written = []
    for number in sorted({mark.picture for mark in marks}):
        file = free_name(paths[number])
        write_boxes(file, pictures, [mark for mark in marks if mark.picture == number])
        written.append(file)
    return written


def write_talk(file: Path, paths: Sequence[str], turns: Sequence[tuple[str, str]],
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
    write_safely(file, lambda aside: aside.write_text(text, encoding="utf-8"))
