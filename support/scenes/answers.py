"""Questions about a scene: asked of every tile, in batches, and put together for the whole.

What a request for boxes finds in the tiles is merged to boxes of the scene, and "how many .." is
answered by counting them. Any other question has a value a tile: the answer as it is generated, or
the most probable of a list (--rank).

A batch is always the same tiles, whichever were answered before: what a batch computes, to the last
digit, depends on what is in it.
"""
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from data import BOX, PROMPTS, Tokenizer, encode_conversation, preprocess
from projector import SkyEyeGPT
from support.common import UserError, load_ahead
from support.evaluation.ranking import answer_log_likelihoods
from support.inference.generation import BoxGrammar
from support.scenes.raster import Scene
from support.scenes.tiles import Found, Tile, merge_boxes, tile_grid
from support.terminal.answers import readable_text
from support.terminal.each import Row, answer_rows, check_picture_count
from support.terminal.questions import find_detections, rounded, task_of, write_question

# ---- questions -----------------------------------------------------------------------------------

BOX_TASKS = ("refer", "detection", "grounding")
COUNT = re.compile(r"(?:\[vqa\] ?)?how many (.+?)(?: (?:is|are|do|does|can|in|on|there)\b.*)?"
                   r"[ ?.!]*", re.IGNORECASE)
ANYWHERE = 10**9                # a side in which every region lies, to find one in a question


@dataclass(frozen=True)
class SceneQuestion:
    line: str                           # as it came
    question: str                       # as the model reads it, of each tile
    kind: str                           # of its answer: "boxes", "count" (of boxes) or "value"


def scene_question(line: str, task: str = "", auto_task: bool = True) -> SceneQuestion:
    """task: as write_question takes it. UserError: it asks about a region, or is malformed."""
    question = write_question(line, (ANYWHERE, ANYWHERE), task=task, auto_task=auto_task)
    if BOX.search(question) or task_of(question) == "identify":
        raise UserError(f"{line[:80]}: asks about a region, and each tile is asked alone; crop the "
                        "part in question to a picture of its own")
    if counted := COUNT.fullmatch(question):
        return SceneQuestion(line, f"[detection] {counted[1]}", "count")
    return SceneQuestion(line, question, "boxes" if task_of(question) in BOX_TASKS else "value")


# ---- settings and results ------------------------------------------------------------------------

@dataclass(frozen=True)
class TileSettings:
    side: int                           # of a tile, in pixels at its scale
    overlap: int                        # of neighboring tiles, in pixels at their scale
    scales: tuple[float, ...] = (1.0,)
    batch_size: int = 16                # tiles
    choices: tuple[str, ...] = ()       # the possible answers of questions that have a value
    unconstrained: bool = False         # boxes need not be well-formed

    def __post_init__(self):
        """UserError: tiles that cannot be."""
        if not 0 <= self.overlap < self.side:
            raise UserError(f"--overlap {self.overlap}: at least 0 and less than --tiles "
                            f"{self.side}")


@dataclass(frozen=True)
class TileValue:
    """What one tile answers."""
    tile: Tile
    answer: str
    probability: float                  # of this answer; with choices, among them


@dataclass(frozen=True)
class SceneAnswer:
    question: SceneQuestion
    tiles: int                          # that were asked
    empty: int                          # that have no pixel with a value
    boxes: list[Found] = field(default_factory=list)
    values: list[TileValue] = field(default_factory=list)


# The answers of a tile: None where it is empty, else of each question what JSON can hold,
# {"boxes": [[phrase, x1, y1, x2, y2, confidence, picture], ..]} or {"answer", "probability"}.
TileAnswers = list[dict] | None


class TiledScene:
    """A scene, its tiles and a model that answers about them."""

    def __init__(self, model: SkyEyeGPT, tokenizer: Tokenizer, scenes: Sequence[Scene],
                 settings: TileSettings, sampling: dict):
        """scenes: the dates of one place, on one grid; sampling: arguments of SkyEyeGPT.generate,
        None where sampling_for decides. UserError: too many dates."""
        self.model, self.tokenizer, self.scenes = model, tokenizer, scenes
        self.settings, self.sampling = settings, sampling
        check_picture_count(len(scenes), model.config)
        self.size = scenes[0].size
        self.tiles = tile_grid(self.size, settings.side, settings.overlap, settings.scales)
        self.grammar = BoxGrammar(tokenizer.model.id_to_piece(list(range(len(tokenizer)))))

    def ask(self, questions: Sequence[SceneQuestion], done: dict[int, TileAnswers],
            write: Callable[[dict[int, TileAnswers]], object], rank: int = 0, world_size: int = 1
            ) -> dict[int, TileAnswers]:
        """-> the answers of this process's tiles: those in `done`, and of batches that are not
        whole there, new ones, each batch given to `write` when it is answered. UserError."""
        ids, prefix_len = self.encode(questions)
        numbers = range(0, len(self.tiles), self.settings.batch_size)
        batches = [range(start, min(start + self.settings.batch_size, len(self.tiles)))
                   for start in numbers][rank::world_size]
        pending, answers = [], {}
        for batch in batches:
            if all(i in done for i in batch):
                answers |= {i: done[i] for i in batch}
            else:
                pending.append(batch)
        rows = ((batch, [self.read_rows(i, questions, ids, prefix_len) for i in batch])
                for batch in pending)
        with tqdm(total=sum(map(len, batches)), initial=len(answers), unit="tile",
                  disable=rank > 0 or None) as bar:
            for batch, own in load_ahead(rows):
                new = dict(zip(batch, self.answer_batch(own, questions), strict=True))
                write(new)
                answers |= new
                bar.update(len(batch))
        return answers

    def encode(self, questions: Sequence[SceneQuestion]) -> tuple[list[list[int]], int]:
        """-> the ids of each question, and how many of them stand before it. UserError: too long.
        """
        config = self.model.config
        encoded = [encode_conversation(self.tokenizer, [(asked.question, None)],
                                       config.visual_tokens, len(self.scenes), config.prompt)
                   for asked in questions]
        limit = config.llama.max_positions
        if longest := max((len(ids) for ids, _, _ in encoded if len(ids) >= limit), default=0):
            raise UserError(f"{longest} tokens do not fit the context of {limit}: ask shorter")
        return [ids for ids, _, _ in encoded], encoded[0][2]

    def read_rows(self, number: int, questions: Sequence[SceneQuestion], ids: Sequence[list[int]],
                  prefix_len: int) -> list[Row]:
        """A row for each question about a tile; none where it is empty in one of the dates."""
        images = self.read_tile(self.tiles[number])
        if images is None:
            return []
        sizes = [self.tiles[number].size] * len(self.scenes)
        return [Row(str(number), asked.line, asked.question, sizes, images, own, prefix_len)
                for asked, own in zip(questions, ids, strict=True)]

    def read_tile(self, tile: Tile) -> Tensor | None:
        """-> float[dates, 3, H, W]; None where it is empty in one of them. Read is no more than
        MOST_READ times what the model sees, from an overview where there is one."""
        config = self.model.config
        side = config.vit.image_size
        size = tuple(max(1, min(round(length * min(tile.scale, 1)), MOST_READ * side))
                     for length in tile.size)
        images = []
        for scene in self.scenes:
            image = scene.read(tile.window, size)
            if image is None:
                return None
            images.append(preprocess(image, side, style=config.prompt))
        return torch.stack(images)

    def answer_batch(self, tiles: Sequence[list[Row]], questions: Sequence[SceneQuestion]
                     ) -> Iterator[TileAnswers]:
        """tiles: of each tile the rows of its questions, or none."""
        ranked = self.settings.choices
        generated = [row for own in tiles for row, asked in zip(own, questions, strict=False)
                     if asked.kind != "value" or not ranked]
        answer_rows(self.model, self.tokenizer, generated, self.sampling,
                    self.settings.batch_size, self.grammar, self.settings.unconstrained)
        for own in tiles:
            yield [self.tile_answer(row, asked) for row, asked in zip(own, questions, strict=True)
                   ] if own else None

    def tile_answer(self, row: Row, asked: SceneQuestion) -> dict:
        if asked.kind == "value":
            if self.settings.choices:
                answer, probability = self.choose(row)
            else:
                answer, probability = readable_text(row.answer)[0], row.probability
            return {"answer": " ".join(answer.split()), "probability": rounded(probability)}
        left, top = self.tiles[int(row.path)].window[:2]
        found = find_detections(row.question, row.answer, row.sizes,
                                PROMPTS[self.model.config.prompt].pad, row.scores)
        return {"boxes": [[box.phrase or phrase_of(asked.question),
                           *(round(side + corner, 2) for side, corner in
                             zip(box.box, (left, top) * 2, strict=True)),
                           rounded(box.confidence or 0.0), box.picture] for box in found]}

    def choose(self, row: Row) -> tuple[str, float]:
        """-> the most probable of the choices, and its probability among them."""
        device = self.model.llama_model.lm_head.weight.device
        group = OneQuestion([torch.tensor(row.ids)], row.images, row.prefix_len)
        scores = answer_log_likelihoods(self.model, self.tokenizer, group, self.settings.choices,
                                        str(device))
        shares = scores[0].softmax(dim=0)
        best = int(shares.argmax())
        return self.settings.choices[best], float(shares[best])

    def put_together(self, questions: Sequence[SceneQuestion], answers: dict[int, TileAnswers]
                     ) -> list[SceneAnswer]:
        """Of all tiles' answers those of the scene."""
        empty = sum(own is None for own in answers.values())
        results = []
        for number, asked in enumerate(questions):
            own = [(self.tiles[i], answers[i][number]) for i in sorted(answers)
                   if answers[i] is not None]
            counts = asked, len(own), empty
            if asked.kind == "value":
                results.append(SceneAnswer(*counts, values=[
                    TileValue(tile, entry["answer"], entry["probability"]) for tile, entry in own]))
            else:
                found = found_in(own)
                results.append(SceneAnswer(*counts, boxes=merge_boxes(found, self.size)))
        return results


MOST_READ = 4                   # times the side that the model sees


@dataclass(frozen=True)
class OneQuestion:
    """As ranking takes it."""
    prompts: list[Tensor]
    images: Tensor
    prefix_len: int


def phrase_of(question: str) -> str:
    """What a question asks for: its text without the task."""
    return question[question.find("]") + 1:].strip(" ?") if task_of(question) else question


def found_in(answers: Iterable[tuple[Tile, dict]]) -> Iterator[Found]:
    for tile, entry in answers:
        for phrase, x1, y1, x2, y2, confidence, picture in entry["boxes"]:
            yield Found(phrase, (x1, y1, x2, y2), confidence, tile, picture)
