"""A million samples in little memory, shared by the processes that load rows: texts in one block
of bytes, the rest in arrays."""
import json
from array import array
from collections.abc import Iterable, Sequence

FIELD, TEXT = "\x1f", "\x1e"            # between a row's parts, between the texts of its turns


class Table(Sequence):
    """Rows as the formats yield them; table[i] makes the i-th anew."""

    def __init__(self, rows: Iterable[dict] = ()):
        self.block, self.ends = bytearray(), array("Q", [0])
        self.images: list[tuple[str, ...]] = []
        self.image, self.letters = array("I"), array("I")   # of each row: which of `images`
        self.number: dict = {}                              # where in `images` one stands
        for row in rows:
            self.add(row)

    def add(self, row: dict) -> None:
        images = tuple(row["images"])
        number = self.number.setdefault(images or len(self.ends), len(self.images))
        if number == len(self.images):
            self.images.append(images)
        turns, boxes, references = row["turns"], row.get("boxes"), row.get("references")
        rest = json.dumps([boxes or (), references or ()]) if boxes or references else ""
        texts, marks = TEXT.join(map(TEXT.join, turns)), len(boxes or ())
        if texts.count(TEXT) != 2 * len(turns) - 1:
            raise ValueError(f"{row['source']}: the control character {TEXT!r} in a text")
        if (found := texts.count("<bbox>")) != marks:
            raise ValueError(f"{row['source']}: {found} <bbox> marks for {marks} boxes")
        parts = (row["task"], row.get("kind", ""), row["source"], rest, texts)
        self.block += FIELD.join(parts).encode("utf-8", "surrogatepass")
        self.ends.append(len(self.block))
        self.image.append(number)
        self.letters.append(len(texts) - 2 * len(turns) + 1)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> dict:
        i = range(len(self))[i]
        parts = self.block[self.ends[i]:self.ends[i + 1]].decode("utf-8", "surrogatepass")
        task, kind, source, rest, said = parts.split(FIELD, 4)
        texts = said.split(TEXT)
        boxes, references = json.loads(rest) if rest else ((), ())
        return {"images": self.images[self.image[i]], "task": task, "kind": kind, "source": source,
                "turns": tuple(zip(texts[::2], texts[1::2], strict=True)),
                "boxes": tuple(map(tuple, boxes)), "references": tuple(references)}

    def join(self, other: "Table") -> None:
        """Put the other's rows behind these; pictures of the two are never the same."""
        shift, first = len(self.block), len(self.images)
        self.block += other.block
        self.ends.extend(end + shift for end in other.ends[1:])
        self.image.extend(number + first for number in other.image)
        self.letters.extend(other.letters)
        self.images += other.images
