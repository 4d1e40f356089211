"""The same questions about each of many pictures: chat.py --each.

Each question about each picture is a conversation of its own. Those that can be are answered in one
batch, and each answer is the one that the question gets alone (projector.answer_batch). A question
that is answered by sampling is answered by itself, from the seed, as it would be alone.

A picture that cannot be read, or a region that is not in it, is told in the place of its answers;
the others are answered, and the exit code is 2.
"""
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from data import PROMPTS, Tokenizer, encode_conversation, load_images, preprocess
from projector import SkyEyeConfig, SkyEyeGPT
from support.common import UserError, load_ahead
from support.images.clips import natural_key
from support.images.common import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from support.images.draw import unused_name
from support.images.read import Picture
from support.inference.generation import BoxConstraint, BoxGrammar
from support.terminal.answers import LEFT_OUT, readable_text
from support.terminal.display import (
    describe_scale,
    eprint,
    print_detections,
    print_json_answer,
    print_json_error,
    save_boxes,
)
from support.terminal.questions import confidences, find_detections, sampling_for, write_question
from support.terminal.session import check_line, expand_paths, piped_lines


class Settings(Protocol):
    """What is used of chat.ChatConfig."""
    images: Sequence[str]
    prompt: Sequence[str]
    conversation: bool | None
    compile: bool
    auto_task: bool
    bands: Sequence[int]
    frames: int
    batch_size: int
    max_new_tokens: int
    free: bool
    save: Path | None
    json: bool
    explain: str | None
    lora: bool


@dataclass
class Row:
    """A question about a picture: what the model gets, or what is wrong with it."""
    path: str
    line: str                                   # the question as it came
    question: str                               # as the model reads it
    sizes: list[tuple[int, int]] = field(default_factory=list)      # of the picture, or a clip's
    images: Tensor | None = None                # float[n, 3, H, W], the picture or the clip's
    ids: list[int] = field(default_factory=list)
    prefix_len: int = 0
    notes: list[str] = field(default_factory=list)
    error: Exception | None = None
    answer: str = ""
    scores: list[float] = field(default_factory=list)               # the confidence of each box
    probability: float = 0.0                    # of exactly this answer


# ---- what is asked -------------------------------------------------------------------------------

def check_flags(config: Settings) -> None:
    """UserError: flags that do not go together with --each."""
    if not config.images:
        raise UserError("--each: name pictures, a folder or a pattern, as 'folder/*.png'")
    if config.conversation:
        raise UserError("--each asks each question alone: leave out --conversation")
    if config.compile:
        raise UserError("--each answers in batches: leave out --compile")
    if config.explain is not None or not config.lora:
        raise UserError("--explain explains an answer of a conversation: leave out --each")
    if config.save and config.save.suffix:
        raise UserError(f"--save {config.save}: with --each it is a folder, as --save boxes")


def picture_files(names: Sequence[str]) -> list[str]:
    """Files, patterns and folders -> files; a folder's pictures and clips in natural order.

    Files of a folder that are left out are told. UserError: a pattern matches nothing, or a folder
    has no picture.
    """
    files = []
    for path in map(Path, expand_paths(names)):
        if not path.is_dir():
            files.append(str(path))
            continue
        shown = [file for file in path.iterdir() if not file.name.startswith(".")]
        own = [file for file in shown if file.suffix.lower() in PICTURE_SUFFIXES + VIDEO_SUFFIXES]
        if not own:
            raise UserError(f"{path}: no pictures in this folder")
        others = sorted(file.name for file in {*shown} - {*own} if file.is_file())
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            eprint(f"{path}: left out, not named as pictures: {', '.join(others[:3])}{more}")
        files += map(str, sorted(own, key=natural_key))
    return files


def read_lines(config: Settings) -> list[str]:
    """The questions: those of --prompt, or the lines of a pipe. UserError: none, an empty one, or a
    command."""
    lines = [line.strip() for line in config.prompt or piped_lines()]
    if not lines or not all(lines):
        raise UserError("--each: what is asked about each picture? --prompt TEXT, or a line each "
                        "from a pipe")
    if commands := [line for line in lines if line.startswith("/")]:
        raise UserError(f"{commands[0][:80]}: with --each there are questions, no commands")
    return [check_line(line) for line in lines]


def read_rows(path: str, lines: Sequence[str], tokenizer: Tokenizer, model_config: SkyEyeConfig,
              config: Settings) -> list[Row]:
    """A row for each line, or one with an error where the picture cannot be read."""
    style, side = model_config.prompt, model_config.vit.image_size
    try:
        pictures = load_images([path], config.bands, config.frames)
        check_picture_count(len(pictures), model_config)
    except (UserError, ValueError, OSError) as error:
        return [Row(path, line, line, error=error) for line in lines]
    images = torch.stack([preprocess(picture.image, side, style=style) for picture in pictures])
    sizes, rows = [picture.size for picture in pictures], []
    limit = model_config.llama.max_positions
    for line in lines:
        try:
            question = write_question(line, sizes[0], PROMPTS[style].pad,
                                      auto_task=config.auto_task)
            ids, _, prefix_len = encode_conversation(
                tokenizer, [(question, None)], model_config.visual_tokens, len(images), style)
            if len(ids) >= limit:
                raise UserError(f"{len(ids)} tokens do not fit the context of {limit}: ask shorter")
        except (UserError, ValueError) as error:
            rows.append(Row(path, line, line, error=error))
        else:
            rows.append(Row(path, line, question, sizes, images, ids, prefix_len))
    rows[0].notes = picture_notes(path, pictures, side)
    return rows


def picture_notes(path: str, pictures: Sequence[Picture], side: int) -> list[str]:
    """What to tell about a picture or the frames of a clip, seen at `side` x `side` pixels."""
    notes = [f"{path}: its pictures are shown as one clip of {len(pictures)} frames; --each asks "
             "about each alone"] if Path(path).is_dir() else []
    for picture in pictures:
        notes += [f"{path}: {picture.note}"] if picture.note else []
        notes += filter(None, [describe_scale(path, picture.size, side)])
    return list(dict.fromkeys(notes))


def check_picture_count(count: int, config: SkyEyeConfig) -> None:
    """UserError: so many pictures leave no room in the model's context for a question."""
    limit, tokens = config.llama.max_positions, config.visual_tokens
    if count * tokens > limit - 32:
        raise UserError(f"{count} pictures take {count * tokens} of {limit} tokens: show "
                        f"{(limit - 32) // tokens} at most")


# ---- answers -------------------------------------------------------------------------------------

def restart(sampling: dict) -> None:
    """Let the next answer be sampled as the first one is."""
    if generator := sampling.get("generator"):
        generator.manual_seed(generator.initial_seed())


def batches_of(rows: Iterable[Sequence[Row]], size: int) -> Iterator[list[Row]]:
    """Of `size` rows and more, up to the end of a picture's."""
    batch: list[Row] = []
    for own in rows:
        batch += own
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def answer_rows(model: SkyEyeGPT, tokenizer: Tokenizer, rows: Sequence[Row], sampling: dict,
                size: int, grammar: BoxGrammar, unconstrained: bool = False) -> None:
    """Fill in `answer` and `scores` of the rows that have no error, at most `size` at a time.

    Together go rows with as many visual tokens, the same sampling, and as much room for an answer
    in the context: near its end an answer is cut off where it would be alone.
    """
    limit, most = model.config.llama.max_positions, sampling["max_new_tokens"]
    alike: dict[tuple, list[Row]] = {}
    for number, row in enumerate(rows):
        if row.error is None:
            own = sampling_for(row.question, sampling)
            alone = number if own["temperature"] else -1
            key = (row.prefix_len, min(most, limit - len(row.ids) + 1), own["temperature"],
                   own["repetition_penalty"], alone)
            alike.setdefault(key, []).append(row)
    for (prefix_len, room, *_), members in alike.items():
        own = sampling_for(members[0].question, sampling) | {"max_new_tokens": room}
        for start in range(0, len(members), size):
            restart(own)
            batch = members[start:start + size]
            constraints = [BoxConstraint.for_question(grammar, row.question) for row in batch]
            for constraint in constraints:
                constraint.enabled &= not unconstrained
            answer_alike(model, tokenizer, batch, prefix_len, own, constraints)


def answer_alike(model: SkyEyeGPT, tokenizer: Tokenizer, rows: Sequence[Row], prefix_len: int,
                 sampling: dict, constraints: Sequence[BoxConstraint]) -> None:
    """One batch; rows of one picture stand side by side and share its visual tokens."""
    weight = model.llama_model.lm_head.weight
    groups = [list(own) for _, own in groupby(rows, key=lambda row: id(row.images))]
    prompts = [[torch.tensor(row.ids, device=weight.device) for row in own] for own in groups]
    images = torch.cat([own[0].images for own in groups]).to(weight.device, weight.dtype)
    answers = model.answer_batch(prompts, images, prefix_len, constraints=constraints, **sampling)
    for row, ids, constraint in zip(rows, answers, constraints, strict=True):
        row.answer = tokenizer.decode(ids).rstrip("\ufffd")
        row.scores = confidences(constraint.texts, constraint.log_probs)
        row.probability = math.exp(sum(constraint.log_probs))


# ---- the command ---------------------------------------------------------------------------------

def ask_each(model: SkyEyeGPT, tokenizer: Tokenizer, config: Settings, sampling: dict) -> int:
    """Answer all lines about all pictures, picture by picture -> the exit code. UserError."""
    paths, lines = picture_files(config.images), read_lines(config)
    read = (read_rows(path, lines, tokenizer, model.config, config) for path in paths)
    grammar = BoxGrammar(tokenizer.model.id_to_piece(list(range(len(tokenizer)))))
    failed, told = False, set(lines)            # questions that differ from their lines are told
    for rows in load_ahead(batches_of(read, config.batch_size)):
        answer_rows(model, tokenizer, rows, sampling, config.batch_size, grammar, config.free)
        for row in rows:
            if row.question not in told and not config.json:
                eprint(f"({row.question})")
            told.add(row.question)
            print_row(row, PROMPTS[model.config.prompt].pad, config)
            failed |= row.error is not None
    return 2 if failed else 0


def print_row(row: Row, pad: bool, config: Settings) -> None:
    """The answer behind the name of its picture, then its boxes; as JSON, all on one line."""
    more = {"picture": row.path} | ({"note": "; ".join(row.notes)} if row.notes else {})
    for note in row.notes if not config.json else ():
        eprint(note)
    if row.error is not None:
        text = str(row.error)
        eprint(f"chat.py: {text if row.path in text else f'{row.path}: {text}'}")
        if config.json:
            print_json_error(row.question, row.error, **more)
        return
    names = [row.path] * len(row.sizes)
    detections = find_detections(row.question, row.answer, row.sizes, pad, row.scores)
    if config.json:
        print_json_answer(row.question, row.answer, detections, names, **more)
    else:
        text, broken = readable_text(row.answer)
        print(f"{row.path}: {' '.join(text.split())}", flush=True)
        print_detections(detections, names)
        if broken:
            eprint(LEFT_OUT)
    if config.save and detections:
        config.save.mkdir(parents=True, exist_ok=True)
        file = unused_name(str(config.save / Path(row.path).name))
        pictures = load_images([row.path], config.bands, config.frames)
        eprint(save_boxes(file, pictures, detections))
