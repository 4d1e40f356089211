"""chat.py --tiles: questions about whole scenes; layers, tables and pictures of the answers.

    python chat.py scene.tif --tiles 512 --prompt "[detection] ships" --geojson ships.geojson

Where a file is written, the answers of the tiles lie beside it (support/scenes/journal.py), and the
same command continues a run that was stopped. torchrun shares the tiles among processes.
"""
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from data import Tokenizer
from projector import SkyEyeGPT
from support.common import UserError
from support.evaluation.runs import hash_weights, output_errors
from support.images.draw import picture_format
from support.scenes.answers import (
    SceneAnswer,
    SceneQuestion,
    TileAnswers,
    TiledScene,
    TileSettings,
    scene_question,
)
from support.scenes.journal import Journal, begin, outputs_of, settings_of
from support.scenes.layers import check_layer, save_answers
from support.scenes.raster import Scene, open_scenes
from support.terminal.display import check_target, eprint
from support.terminal.each import read_lines
from support.terminal.session import Session, expand_paths
from support.training.distributed import (
    finish_processes,
    from_rank_0,
    gather_lists,
    get_rank,
    get_world_size,
    start_processes,
)


class Settings(Protocol):
    """What is used of chat.ChatConfig."""
    images: Sequence[str]
    prompt: Sequence[str]
    each: bool
    conversation: bool | None
    compile: bool
    tiles: int
    overlap: int | None
    scale: Sequence[float]
    rank: Sequence[str]
    geojson: Path | None
    csv: Path | None
    save: Path | None
    fresh: bool
    overwrite: bool
    auto_task: bool
    bands: Sequence[int]
    batch_size: int
    model: str
    dtype: str
    bits: int
    free: bool
    json: bool


MOST_SHOWN = 20                 # boxes, or different values, that are printed
ALL_ELSEWHERE = "--geojson, --csv and --json have all"
CONTINUE = "the same command continues"


# ---- the flags -----------------------------------------------------------------------------------

def check_flags(config: Settings, interactive: bool) -> None:
    """UserError: flags that do not go together, or that would do nothing."""
    if config.tiles and config.each:
        raise UserError("--tiles asks about one scene, --each about many pictures: leave out one")
    if config.tiles and not interactive:
        if config.compile:
            raise UserError("--tiles answers in batches: leave out --compile")
        if config.conversation:
            raise UserError("--tiles asks each question alone: leave out --conversation")
        return
    written = {"--geojson": config.geojson, "--csv": config.csv, "--fresh": config.fresh}
    asked = {"--overlap": config.overlap is not None, "--rank": config.rank,
             "--scale": tuple(config.scale) != (1.0,)}      # of use at a terminal, after /tiles
    for flag, given in (written | ({} if interactive else asked)).items():
        if given:
            raise UserError(f"{flag} goes with --tiles and --prompt (or questions from a pipe)")


def start(config: Settings) -> None:
    """Before the model is read: check the files, and connect the processes of torchrun. UserError.
    """
    if not config.images:
        raise UserError("--tiles: name a scene; several are dates of one place")
    if config.geojson:
        check_layer(config.geojson)
    if config.csv and config.csv.suffix.lower() != ".csv":
        raise UserError(f"--csv {config.csv}: a table is written as .csv")
    if config.save:
        picture_format(config.save)
    files = outputs(config)
    own = outputs_of(files[0]) if files else set()      # of a run that is continued
    for file in files:
        check_target(file, config.images, config.overwrite or str(file) in own)
    start_processes("cpu", int(os.environ.get("WORLD_SIZE", 1)), CONTINUE, hours=7 * 24)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def outputs(config: Settings) -> list[Path]:
    """The files that are asked for; the answers of the tiles lie beside the first."""
    return [file for file in (config.geojson, config.csv, config.save) if file]


def tile_settings(config: Settings, questions: Sequence[SceneQuestion], side: int) -> TileSettings:
    """The overlap, where none is named: an eighth of a tile where boxes are asked for, else none.
    """
    overlap = config.overlap
    if overlap is None:
        overlap = side // 8 if any(asked.kind != "value" for asked in questions) else 0
    return TileSettings(side, overlap, tuple(config.scale), config.batch_size, tuple(config.rank),
                        config.free)


# ---- the command ---------------------------------------------------------------------------------

def ask_scene(model: SkyEyeGPT, tokenizer: Tokenizer, config: Settings, sampling: dict) -> int:
    """Answer all lines about the scene -> the exit code. UserError."""
    questions = [scene_question(line, auto_task=config.auto_task) for line in read_lines(config)]
    settings = tile_settings(config, questions, config.tiles)
    scenes = open_scenes(expand_paths(config.images), config.bands)
    tiled = TiledScene(model, tokenizer, scenes, settings, sampling)
    rank, files = get_rank(), outputs(config)
    if rank == 0:
        tell(scenes, questions, tiled)
    if files:
        record = run_record(config, settings, scenes, questions, sampling)
        own = answer_on_disk(tiled, questions, record, files, config.fresh)
    else:
        own = tiled.ask(questions, {}, lambda answers: None, rank, get_world_size())
    answers = dict(gather_lists(list(own.items())))
    if rank == 0:
        results = tiled.put_together(questions, answers)
        for answer in results:
            print_scene_answer(answer, scenes, config.json)
        for file in files:
            eprint(save_answers(file, results, scenes, Path(config.model).name))
    for scene in scenes:
        scene.close()
    finish_processes()
    return 0


def answer_on_disk(tiled: TiledScene, questions: Sequence[SceneQuestion], record: dict,
                   files: Sequence[Path], fresh: bool) -> dict[int, TileAnswers]:
    """-> the answers of this process's tiles, which are kept beside the first of the files, and
    those that are there already. UserError: they are of another run, or cannot be written."""
    kinds, names = [asked.kind for asked in questions], list(map(str, files))
    done = from_rank_0(lambda: begin(files[0], record, kinds, fresh, names))
    with output_errors(files[0]), Journal(files[0], get_rank()) as journal:
        if get_rank() == 0:
            journal.add_outputs(names)
        try:
            return tiled.ask(questions, done, journal.write, get_rank(), get_world_size())
        except KeyboardInterrupt:
            eprint(f"chat.py: stopped; {CONTINUE}")
            raise


def run_record(config: Settings, settings: TileSettings, scenes: Sequence[Scene],
               questions: Sequence[SceneQuestion], sampling: dict) -> dict:
    """What the answers depend on."""
    decoding = {name: value for name, value in sampling.items() if name not in ("generator", "stop")
                } | {"seed": sampling["generator"].initial_seed()}
    return settings_of(
        [scene.path for scene in scenes], [asked.question for asked in questions],
        tiles=settings.side, overlap=settings.overlap, scale=settings.scales, rank=settings.choices,
        batch_size=settings.batch_size, bands=config.bands, free=settings.unconstrained,
        stretch=[scene.ranges for scene in scenes],
        model=[f"{name} {digest}" for name, digest in hash_weights(Path(config.model)).items()],
        dtype=config.dtype, bits=config.bits, **decoding)


def tell(scenes: Sequence[Scene], questions: Sequence[SceneQuestion], tiled: TiledScene) -> None:
    """What the user should know before the tiles are answered."""
    for scene in scenes:
        if scene.note:
            eprint(f"{scene.path}: {scene.note}")
    for asked in questions:
        if asked.question != asked.line:
            eprint(f"({asked.question})")
    overlap = f", {tiled.settings.overlap} in common" if tiled.settings.overlap else ""
    count = len(tiled.tiles)
    eprint(f"{scenes[0].path}: {tiled.size[0]} x {tiled.size[1]} pixels in {count:,} "
           f"tile{'s' * (count != 1)} of {tiled.settings.side}{overlap}")


# ---- in a conversation ---------------------------------------------------------------------------

def ask_in_session(session: Session, question: str, config: Settings) -> None:
    """At a terminal, after /tiles: print the answer about the whole scene that is looked at; /save
    writes it. UserError."""
    conversation = session.conversation
    if not conversation.paths:
        raise UserError("/tiles: there is no picture to cut into tiles; /image FILE opens one")
    asked = scene_question(question, auto_task=False)
    settings = tile_settings(config, [asked], session.tiles)
    scenes = open_scenes(list(dict.fromkeys(conversation.paths)), config.bands)
    tiled = TiledScene(conversation.model, conversation.tokenizer, scenes, settings,
                       conversation.sampling)
    tell(scenes, [asked], tiled)
    answers = tiled.ask([asked], {}, lambda answers: None)
    [answer] = tiled.put_together([asked], answers)
    print_scene_answer(answer, scenes, session.as_json)
    model = Path(config.model).name
    session.save_scene = lambda file: save_answers(file, [answer], scenes, model)
    if not session.as_json:
        eprint("(/save FILE writes it: .geojson, .csv, or .png, the scene with its boxes or tiles)")


# ---- what is printed -----------------------------------------------------------------------------

def print_scene_answer(answer: SceneAnswer, scenes: Sequence[Scene], as_json: bool) -> None:
    """The answer of the whole scene, then its boxes or how often each value occurs; as JSON, all of
    it on one line."""
    if as_json:
        print(json.dumps(as_row(answer, scenes)), flush=True)
        return
    empty = f", {answer.empty:,} empty ones left out" if answer.empty else ""
    tiles = f"{answer.tiles:,} tile{'s' * (answer.tiles != 1)}{empty}"
    if answer.question.kind == "value":
        print_values(answer, tiles)
        return
    count = len(answer.boxes)
    boxes = "" if answer.question.kind == "count" else " box" if count == 1 else " boxes"
    print(f"{count:,}{boxes} in {tiles}")
    order = sorted(answer.boxes, key=lambda found: -found.confidence)
    for found in order[:MOST_SHOWN]:
        x1, y1, x2, y2 = map(round, found.box)
        date = f" of {scenes[found.picture].path}" if len(scenes) > 1 else ""
        print(f"  {found.phrase}: x {x1} to {x2}, y {y1} to {y2} pixels{date} "
              f"({found.confidence:.2f})")
    if count > MOST_SHOWN:
        print(f"  and {count - MOST_SHOWN:,} with less confidence; {ALL_ELSEWHERE}")


def print_values(answer: SceneAnswer, tiles: str) -> None:
    counts = Counter(value.answer for value in answer.values)
    print(f"{len(counts):,} different answers in {tiles}" if len(counts) != 1 else
          f"one answer in {tiles}")
    for text, count in counts.most_common(MOST_SHOWN):
        mean = sum(v.probability for v in answer.values if v.answer == text) / count
        print(f"  {text}: {count:,} tile{'s' * (count != 1)} (mean probability {mean:.2f})")
    if len(counts) > MOST_SHOWN:
        print(f"  and {len(counts) - MOST_SHOWN:,} more; {ALL_ELSEWHERE}")


def as_row(answer: SceneAnswer, scenes: Sequence[Scene]) -> dict:
    row: dict = {"scene": [scene.path for scene in scenes], "question": answer.question.question,
                 "tiles": answer.tiles, "empty": answer.empty}
    if answer.question.kind == "value":
        return row | {"values": [{"tile": list(value.tile.window), "answer": value.answer,
                                  "probability": value.probability} for value in answer.values]}
    boxes = [{"phrase": found.phrase, "pixels": list(found.box), "confidence": found.confidence,
              "picture": scenes[found.picture].path} for found in answer.boxes]
    count = {"count": len(boxes)} if answer.question.kind == "count" else {}
    return row | count | {"boxes": boxes}
