"""A conversation about pictures, in the terminal.

    python chat.py examples/harbor.png
    python chat.py before.png after.png
    python chat.py examples/harbor.png --prompt "[refer] where is the largest ship ?" --save out.png
    python chat.py examples/harbor.png --json < questions.txt > answers.jsonl
    python chat.py --each 'examples/*.png' --prompt "how many ships are there?"
    python chat.py scene.tif --tiles 512 --prompt "[detection] ships" --geojson ships.geojson
    python chat.py --serve

A question may begin with a task: [caption] [vqa] [refer] [detection] [identify] [grounding]. A
region in it is {<12><30><55><70>}, hundredths of the sides, or 120 80 300 260 px. Boxes in an
answer are printed in pixels; /save and --save draw them on the full-resolution picture. Questions
typed in a terminal are turns of a conversation, those of a script are each answered alone.
"""
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data import PROMPTS, Tokenizer, encode_conversation, load_images, preprocess
from projector import DTYPES, SkyEyeGPT
from support.common import Box, UserError, find_device, in_range, option, parse_config
from support.images.common import parse_bands
from support.inference.cuda_graphs import accelerate_decoding
from support.inference.generation import BoxConstraint, BoxGrammar, pack_if_possible
from support.scenes import ask as scenes
from support.serving.server import serve
from support.terminal.answers import readable_pieces
from support.terminal.display import (
    check_save,
    discard_output,
    eprint,
    is_interactive,
    prepare_streams,
    print_json_error,
    save_boxes,
    save_conversation,
    supports_color,
)
from support.terminal.each import ask_each, check_flags, check_picture_count, picture_notes, restart
from support.terminal.questions import (
    Detection,
    confidences,
    find_detections,
    sampling_for,
    task_of,
)
from support.terminal.session import (
    LEAVE_HINT,
    FileKey,
    Session,
    expand_paths,
    file_key,
    piped_lines,
    run_command,
    show_answer,
    typed_lines,
)


@dataclass(frozen=True)
class ChatConfig:
    # --- pictures and questions ---
    images: tuple[str, ...] = option((), "one picture or several, two dates of a place, or clips; "
        "FOLDER is one clip, 'FOLDER/*.png' are its pictures", positional=True, nargs="*")
    prompt: tuple[str, ...] = option((), "ask this, print the answer and exit; repeat the flag for "
        "several questions", action="append", metavar="TEXT")
    each: bool = option(False, "ask about each picture alone, those of a FOLDER too, in batches")
    batch_size: int = option(16, "with --each, --tiles and --serve, answers generated at a time",
                             type=in_range(int, 1))
    conversation: bool | None = option(None, "let a question follow on those before it", type=bool,
                                       default_text="on in a terminal")
    auto_task: bool = option(True, "put the fitting task in front of a plain request: 'where is "
        "..' becomes [refer], 'find all ..' [detection]")
    bands: tuple[int, ...] = option((), "bands to show as red, green and blue, counted from 1, of "
        "pictures that have more than three", type=parse_bands, nargs=None, metavar="R,G,B")
    frames: int = option(8, "number of frames to show of a clip", type=in_range(int, 1))
    # --- whole scenes ---
    tiles: int = option(0, "ask about a large picture in tiles of so many pixels a side",
                        type=in_range(int, 16), default_text="")
    overlap: int | None = option(None, "pixels that neighboring tiles have in common",
                                 type=in_range(int, 0),
                                 default_text="an eighth of a tile where boxes are asked for")
    scale: tuple[float, ...] = option((1.0,), "look at the scene at these scales; 0.5: tiles that "
        "cover twice as much a side, for large things", type=in_range(float, 0.01, 4))
    rank: tuple[str, ...] = option((), "with --tiles, choose the answer among these, each with its "
                                   "probability", metavar="ANSWER")
    geojson: Path | None = option(None, "with --tiles, write boxes or tiles as a map layer; .gpkg "
                                  "and .shp need fiona", type=Path, metavar="FILE")
    csv: Path | None = option(None, "with --tiles, write them as a table", type=Path,
                              metavar="FILE")
    fresh: bool = option(False, "with --tiles, delete the answers of an earlier run of the file "
                         "and begin again")
    # --- model ---
    model: str = option("weights/nano", "model folder", metavar="FOLDER", is_shipped=True)
    device: str = option("auto", "cpu, cuda, cuda:1, ..; auto: a GPU if there is one")
    dtype: str = option("fp32", "number format of the weights", choices=tuple(DTYPES))
    bits: int = option(16, "bits of the language model's weights; 16: as --dtype says",
                       choices=(16, 8, 4))
    compile: bool = option(False, "torch.compile the decoding step, for a GPU: the first answer "
        "takes a minute longer; on a CPU answers are faster without it")
    # --- decoding ---
    max_new_tokens: int = option(300, "longest answer, in tokens", type=in_range(int, 1))
    temperature: float | None = option(None, "sampling temperature; 0: always the most probable "
        "token", type=in_range(float, 0, 1e9), default_text="0 where a [task] is named, else 0.6")
    top_p: float = option(0.9, "sample from the most probable tokens that together have this "
        "probability", type=in_range(float, 0, 1))
    top_k: int = option(50, "sample from this many most probable tokens; 0: from all",
                        type=in_range(int, 0))
    repetition_penalty: float | None = option(None, "make tokens already generated less likely; "
        "1: no penalty", type=in_range(float, 0, 1e9),
        default_text="1 where a [task] is named, else 1.05")
    seed: int = option(42, "seed of the sampling")
    free: bool = option(False, "do not constrain boxes to be well-formed")
    # --- output ---
    save: Path | None = option(None, "at the end, write the picture with the last answer's boxes "
        "to this file, or the conversation if it ends in .json; with --each a folder, for each "
        "picture with boxes", type=Path, metavar="FILE")
    overwrite: bool = option(False, "let --save and /save write over a file that exists; a picture "
        "that is shown is never written over")
    json: bool = option(False, "print one JSON object a line: question, answer, boxes in pixels")
    explain: str | None = option(None, "after each answer print the way of picture and question "
        "through the model, step by step; with a file, draw there where it looks", nargs="?",
        const="", metavar="FILE")
    lora: bool = option(True, "--no-lora explains, and compares with the model without its LoRA")
    preview: bool | None = option(None, "show pictures in the terminal, as half-block characters",
                                  type=bool, default_text="on where it has 24-bit color")
    # --- a page, and an interface for programs ---
    serve: bool = option(False, "answer in a browser's page, and programs that speak OpenAI's "
        "interface, many at once")
    host: str = option("127.0.0.1", "with --serve, the address to answer at; others can reach one "
        "that is not this machine's own, so it needs --token")
    port: int = option(8000, "with --serve, the port; 0: a free one", type=in_range(int, 0, 65535))
    token: Path | None = option(None, "with --serve, a file with the token that requests have to "
        "send; or the environment's SKYEYE_TOKEN", type=Path, metavar="FILE")
    open: bool = option(True, "with --serve, open the page in a browser")
    most_waiting: int = option(64, "with --serve, questions that may wait; more are told to come "
        "again", type=in_range(int, 1))
    cache_mb: int = option(1024, "with --serve, memory for keys and values, in MB; conversations "
        "not used for longest are computed again", type=in_range(int, 1))


def parse_args(argv: list[str] | None = None) -> ChatConfig:
    return parse_config(ChatConfig, argv, __doc__)


class Conversation:
    """Pictures, the turns so far, and a KV cache that holds them: no turn is computed twice."""

    def __init__(self, model: SkyEyeGPT, tokenizer: Tokenizer, paths: Sequence[str], sampling: dict,
                 bands: Sequence[int] = (), frames: int = 8, unconstrained: bool = False,
                 image_cache: dict[FileKey, Tensor] | None = None, alone: bool = False):
        """paths: pictures and clips; sampling: arguments of SkyEyeGPT.generate, None where
        sampling_for decides; unconstrained: boxes need not be well-formed; image_cache: the visual
        tokens of each file, shared by conversations; alone: no question follows on those before it.
        UserError: the pictures cannot be shown.
        """
        self.model, self.tokenizer, self.sampling, self.alone = model, tokenizer, sampling, alone
        self.bands, self.frames, self.unconstrained = bands, frames, unconstrained
        self.image_cache = {} if image_cache is None else image_cache
        self.grammar = BoxGrammar(tokenizer.model.id_to_piece(list(range(len(tokenizer)))))
        self.files = [(file_key(path), load_images([path], bands, frames)) for path in paths]
        self.pictures = [picture for _, pictures in self.files for picture in pictures]
        self.paths = [path for (path, _), pictures in self.files for _ in pictures]
        check_picture_count(len(self.pictures), model.config)
        for key, pictures in self.files:
            for note in picture_notes(key[0], pictures, model.config.vit.image_size):
                if key not in self.image_cache:         # else it has been told
                    eprint(note)
        self.release_cache()
        self.reset()

    def about(self, paths: Sequence[str]) -> "Conversation":
        """A new conversation with the same model and settings about other pictures."""
        return Conversation(self.model, self.tokenizer, paths, self.sampling, self.bands,
                            self.frames, self.unconstrained, self.image_cache, self.alone)

    def release_cache(self) -> None:
        """Free the KV cache. The next question computes all turns again, the pictures not."""
        self.cached_ids: list[int] = []                 # the tokens that the cache holds
        self.cache = None

    def reset(self) -> None:
        """Forget all questions."""
        self.turns: list[tuple[str, str]] = []          # (question, answer)
        self.constraints: list[BoxConstraint] = []      # one for each answer
        self.first_turn = 0                             # the oldest one that fits the context

    def undo(self) -> str:
        """Remove the last turn -> its question. UserError: there is none."""
        if not self.turns:
            raise UserError("nothing has been asked yet")
        question, _ = self.turns.pop()
        self.constraints.pop()
        self.first_turn = min(self.first_turn, len(self.turns))
        return question

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece. A caller that stops early keeps the turn as far as it came.

        UserError: the question does not fit the context.
        """
        sampling = sampling_for(question, self.sampling)
        if self.alone:
            self.first_turn = len(self.turns)
            restart(sampling)
        ids = self.prompt_ids(question)
        start = self._rewind_cache(ids)
        self.cached_ids = ids[:start]
        constraint = BoxConstraint.for_question(self.grammar, question)
        constraint.enabled = constraint.enabled and not self.unconstrained
        self.turns.append((question, ""))
        self.constraints.append(constraint)
        images = None if start else self.encode_images()
        prompt = torch.tensor(ids, device=self.cache.k.device)
        tokens: list[int] = []
        printed = ""
        try:
            for token in self.model.generate(prompt, images, cache=self.cache,
                                             constraints=[constraint], **sampling):
                tokens.append(token)
                answer = self.tokenizer.decode(tokens)
                if answer.endswith("\ufffd"):           # a character whose last bytes are to come
                    continue
                self.turns[-1] = (question, answer)
                yield answer[len(printed):]
                printed = answer
        finally:                # when stopped, the last token may be computed in some layers only
            self.cache.length = len(ids) + len(tokens) - 1 if tokens else start
            self.cached_ids = ids + tokens

    def prompt_ids(self, question: str) -> list[int]:
        """The ids of the pictures, the turns so far and this question, up to its answer.

        Where they do not fit the context, the oldest turns are left out, never the pictures.
        UserError: not even the question fits.
        """
        config = self.model.config
        limit = config.llama.max_positions
        reserved = min(self.sampling.get("max_new_tokens", limit), limit // 4)      # for the answer
        for first in range(self.first_turn, len(self.turns) + 1):
            turns = [*self.turns[first:], (question, None)]
            ids, _, _ = encode_conversation(self.tokenizer, turns, config.visual_tokens,
                                            len(self.pictures), config.prompt)
            if len(ids) + reserved <= limit:
                break
        if len(ids) >= limit:
            raise UserError(f"{len(ids)} tokens do not fit the context of {limit}: ask shorter")
        if first and not self.first_turn:
            eprint(f"the context of {limit} tokens is full: the oldest questions are forgotten")
        self.first_turn = first
        return ids

    def _rewind_cache(self, ids: list[int]) -> int:
        """Shorten the cache to the prefix it shares with these ids -> the length of that prefix.

        The cache then has room for the ids and an answer. The prefix may end inside an earlier
        answer: encoded as text it can consist of other tokens than were generated.
        """
        shared = min(len(ids) - 1, len(self.cached_ids))        # the last id's logits are needed
        for i in range(shared):
            if ids[i] != self.cached_ids[i]:
                shared = i
                break
        limit = self.model.config.llama.max_positions
        capacity = min(len(ids) + self.sampling.get("max_new_tokens", limit), limit)
        if self.cache is None:
            self.cache = self.model.llama_model.new_cache(1, capacity)
        self.cache.length = min(self.cache.length, shared)
        if self.cache.capacity < capacity:                      # doubled, so that it grows rarely
            row = torch.tensor([0], device=self.cache.k.device)
            self.cache.select_rows(row, min(max(capacity, 2 * self.cache.capacity), limit))
        return self.cache.length

    @torch.inference_mode()
    def encode_images(self) -> Tensor | None:
        """-> the visual tokens, float[pictures * N, D]; no picture is encoded twice."""
        config, weight = self.model.config, self.model.llama_model.lm_head.weight
        for key, pictures in self.files:
            if key not in self.image_cache:
                images = [preprocess(picture.image, config.vit.image_size, style=config.prompt)
                          for picture in pictures]
                self.image_cache[key] = self.model.encode_images(
                    torch.stack(images).to(weight.device, weight.dtype))
        return torch.cat([self.image_cache[key] for key, _ in self.files]) if self.files else None

    def detections(self) -> list[Detection]:
        """The boxes of the last answer."""
        if not self.turns:
            return []
        last = self.constraints[-1:]
        scores = confidences(last[0].texts, last[0].log_probs) if last else ()
        return find_detections(*self.turns[-1], [picture.size for picture in self.pictures],
                               self.pad, scores)

    def boxes(self, picture: int = 0) -> list[tuple[str, Box]]:
        """(phrase, box in pixels) of the last answer in the picture with this index."""
        return [(found.phrase, found.box) for found in self.detections()
                if found.picture == picture]

    def save(self, file: Path) -> None:
        """.json: write the conversation as a LLaVA row, which train.py reads; other suffixes: the
        picture with the boxes of the last answer. UserError, OSError."""
        if file.suffix == ".json":
            scores = [confidences(own.texts, own.log_probs) for own in self.constraints]
            save_conversation(file, list(dict.fromkeys(self.paths)), self.turns, scores, self.alone)
            eprint(f"saved {file}")
        else:
            eprint(save_boxes(file, self.pictures, self.detections()))

    @property
    def key(self) -> tuple[FileKey, ...]:
        """What it is about: two conversations with the same key show the same pictures."""
        return tuple(key for key, _ in self.files)

    @property
    def pad(self) -> bool:
        """Whether boxes count in the picture padded to a square, as LLaVA's do."""
        return PROMPTS[self.model.config.prompt].pad

    @property
    def cache_bytes(self) -> int:
        """Memory that the KV cache takes."""
        return self.cache.k.nbytes + self.cache.v.nbytes if self.cache else 0


def load(config: ChatConfig) -> tuple[SkyEyeGPT, Tokenizer]:
    """The model, its weights arranged for so many answers at once. UserError."""
    device = find_device(config.device)
    model = SkyEyeGPT.from_pretrained(config.model, device, DTYPES[config.dtype], config.bits)
    if not config.compile:                      # the compiler arranges weights in its own way
        many = config.each or config.tiles or config.serve
        model = pack_if_possible(model, config.batch_size if many else 1)
    return model, Tokenizer(Path(config.model) / "tokenizer.model", model.config.llama.vocab_size)


def main(argv: list[str] | None = None) -> int:
    # 1 load
    config = parse_args(argv)
    prepare_streams()
    for question in config.prompt:
        task_of(question.strip())               # report an unknown task before reading the model
    interactive = not config.prompt and is_interactive()
    in_tiles = config.tiles and not interactive
    scenes.check_flags(config, interactive)
    if config.each:
        check_flags(config)
    elif in_tiles:
        scenes.start(config)
    elif config.save:
        check_save(config.save, config.images, config.overwrite)
    if config.serve:                            # loads it when the port is open
        return serve(config, partial(load, config))
    model, tokenizer = load(config)

    sampling = {"max_new_tokens": config.max_new_tokens, "stop": tokenizer.eos,
                "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k,
                "repetition_penalty": config.repetition_penalty,
                "generator": torch.Generator(find_device(config.device)).manual_seed(config.seed)}
    if config.each:
        return ask_each(model, tokenizer, config, sampling)
    if in_tiles:
        return scenes.ask_scene(model, tokenizer, config, sampling)
    accelerate_decoding(model.llama_model, config.compile)

    # 2 the conversation; /image opens others
    if interactive:
        eprint(f"model {config.model}; /help lists the commands")
    alone = not (interactive if config.conversation is None else config.conversation)
    session = Session(
        Conversation(model, tokenizer, expand_paths(config.images), sampling, config.bands,
                     config.frames, config.free, alone=alone),
        interactive,
        preview=supports_color() if config.preview is None else config.preview,
        auto_task=config.auto_task, overwrite=config.overwrite, as_json=config.json,
        tiles=config.tiles, explain=config.explain, lora=config.lora)

    # 3 the loop: read a line, obey a command or ask a question, print the answer and its boxes
    exit_code = 0
    lines = config.prompt or (typed_lines(session) if interactive else piped_lines())
    for line in lines:
        try:
            if line.startswith("/"):
                question = run_command(session, line)       # /again: the question to repeat
            else:
                question = session.to_question(line)
            if question is not None and session.tiles:
                scenes.ask_in_session(session, question, config)
            elif question is not None:
                print_answer(session, question)
        except EOFError:                                    # /quit
            break
        except KeyboardInterrupt:
            if not interactive:
                raise
            eprint(LEAVE_HINT)
        except BrokenPipeError:                             # nobody reads the answers any more
            raise
        except (UserError, ValueError, OSError) as error:   # one line, and the conversation goes on
            if interactive:
                eprint(str(error))
                continue
            exit_code = 2
            eprint(f"chat.py: {error}")
            if config.json:
                print_json_error(line, error)
    if config.save:
        session.save([config.save])
    return exit_code


def print_answer(session: Session, question: str) -> None:
    """Print the answer while it is generated, then its boxes; as JSON, all of it at the end.

    At a terminal Ctrl-C stops the answer alone.
    """
    conversation = session.conversation
    try:
        for piece in readable_pieces(conversation.ask(question)):
            if not session.as_json:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not session.interactive:
            raise
        if not session.as_json:
            print(" (stopped)", end="")
    show_answer(session)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        discard_output()
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except torch.OutOfMemoryError:
        eprint("chat.py: the GPU's memory is full; try --dtype bf16, --bits 8 or 4, fewer pictures")
        sys.exit(2)
    except (UserError, ValueError, OSError) as error:
        eprint(f"chat.py: {error}")
        sys.exit(2)
