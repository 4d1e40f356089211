"""A conversation about pictures, in the terminal.

    python chat.py examples/harbor.png
    python chat.py before.png after.png
    python chat.py examples/harbor.png --prompt "[refer] where is the largest ship ?" --save out.png
    python chat.py examples/harbor.png --json < questions.txt > answers.jsonl

A question may begin with a task: [caption] [vqa] [refer] [detection] [identify] [grounding]. A
region in it is {<12><30><55><70>}, hundredths of the sides, or 120 80 300 260 px. Boxes in an
answer are printed in pixels, drawn on the full-resolution picture and saved.
"""
import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data import PROMPTS, Tokenizer, encode_conversation, load_images, preprocess
from projector import DTYPES, SkyEyeGPT
from support.checkpoints.files import ModelError
from support.common import Box
from support.images.common import parse_bands
from support.inference.cpu_kernels import pack_for_cpu
from support.inference.cuda_graphs import accelerate_decoding
from support.inference.generation import BOX_TASKS, BoxConstraint, BoxGrammar
from support.readers.common import DataError
from support.terminal.display import (
    discard_output,
    eprint,
    is_interactive,
    piped_lines,
    prepare_streams,
    save_boxes,
    save_conversation,
)
from support.terminal.questions import Detection, find_detections, sampling_for, task_of
from support.terminal.session import (
    OpenConversations,
    Session,
    file_key,
    run_batch,
    run_interactive,
)

USER_ERRORS = (DataError, ValueError, OSError)        # told in a line, and the conversation goes on


class Conversation:
    """Pictures, the turns so far, and a KV cache that holds them: no turn is computed twice."""

    def __init__(self, model: SkyEyeGPT, tokenizer: Tokenizer, paths: list[str], sampling: dict,
                 bands: Sequence[int] = (), frames: int = 8, free: bool = False,
                 seen: dict[tuple, Tensor] | None = None):
        """free: boxes need not be well-formed; seen: visual tokens, shared by conversations.

        Raises DataError.
        """
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.seen, self.pad = {} if seen is None else seen, PROMPTS[model.config.prompt].pad
        self.free, self.grammar = free, BoxGrammar(tokenizer.model.id_to_piece(
            list(range(len(tokenizer)))))
        self.groups = [(file_key(path), load_images([path], bands, frames)) for path in paths]
        self.pictures = [picture for _, group in self.groups for picture in group]
        self.paths = [path for (path, _), group in self.groups for _ in group]
        limit, each = model.config.llama.max_positions, model.config.visual_tokens
        if len(self.pictures) * each > limit - 32:
            raise DataError(f"{len(self.pictures)} pictures take {len(self.pictures) * each} of "
                            f"{limit} tokens: show {(limit - 32) // each} at most")
        for note in dict.fromkeys(picture.note for picture in self.pictures if picture.note):
            eprint(note)
        self.rest()
        self.reset()

    def rest(self) -> None:
        """Give the cache back. The next question computes all turns again, the pictures not."""
        self.ids: list[int] = []
        self.cache = None

    def reset(self) -> None:
        self.turns: list[tuple[str, str]] = []
        self.guides: list[BoxConstraint] = []           # of the answers
        self.first = 0                          # the oldest turn that still fits the context

    def undo(self) -> str:
        """Take the last turn back -> its question. Raises DataError."""
        if not self.turns:
            raise DataError("nothing has been asked yet")
        (question, _), _ = self.turns.pop(), self.guides.pop()
        self.first = min(self.first, len(self.turns))
        return question

    def prompt(self, question: str) -> list[int]:
        """The ids up to its answer. Over the context the oldest turns go, never the pictures."""
        config, first = self.model.config, self.first
        limit = config.llama.max_positions
        room = min(self.sampling.get("max_new_tokens", limit), limit // 4)
        while True:
            turns = [*self.turns[first:], (question, None)]
            ids, _, _ = encode_conversation(self.tokenizer, turns, config.visual_tokens, len(self.pictures),
                               config.prompt)
            if len(ids) + room <= limit or len(turns) == 1:
                break
            first += 1
        if len(ids) >= limit:
            raise DataError(f"{len(ids)} tokens do not fit the context of {limit}: ask shorter")
        if first and not self.first:
            eprint(f"the context of {limit} tokens is full: the oldest questions are forgotten")
        self.first = first
        return ids

    def go_back(self, ids: list[int]) -> int:
        """-> up to where the cache holds these ids; it has room then for them and an answer."""
        # Written anew, an answer may fall into other pieces than it was said in.
        same = next((i for i, (a, b) in enumerate(zip(ids, self.ids, strict=False)) if a != b),
                    min(len(ids) - 1, len(self.ids)))
        llama, limit = self.model.llama_model, self.model.config.llama.max_positions
        slots = min(len(ids) + self.sampling.get("max_new_tokens", limit), limit)
        if self.cache is None:
            self.cache = llama.cache(1, slots)
        self.cache.used = min(self.cache.used, same)
        if self.cache.slots < slots:
            self.cache.take(torch.tensor([0], device=self.cache.k.device),
                            min(max(slots, 2 * self.cache.slots), limit))
        return self.cache.used

    @torch.inference_mode()
    def look(self) -> Tensor | None:
        """The visual tokens, float[pictures * N, D]; no picture is encoded twice."""
        config, weight = self.model.config, self.model.llama_model.lm_head.weight
        for name, group in self.groups:
            if name not in self.seen:
                images = [preprocess(picture.image, config.vit.image_size, style=config.prompt)
                          for picture in group]
                self.seen[name] = self.model.encode_images(
                    torch.stack(images).to(weight.device, weight.dtype))
        return torch.cat([self.seen[name] for name, _ in self.groups]) if self.groups else None

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece. What was said stays said when the caller stops early."""
        sampling, ids, answer = sampling_for(question, self.sampling), self.prompt(question), []
        start = self.go_back(ids)
        self.ids = ids[:start]
        self.turns.append((question, ""))
        self.guides.append(BoxConstraint(self.grammar, self.free or not question.startswith(BOX_TASKS)))
        images = None if start else self.look()
        try:
            for token in self.model.generate(torch.tensor(ids, device=self.cache.k.device), images,
                                             cache=self.cache, guides=self.guides[-1:], **sampling):
                answer.append(token)
                text, said = self.tokenizer.decode(answer), self.turns[-1][1]
                if not text.endswith("\ufffd"):             # half of a letter: wait for the rest
                    self.turns[-1] = (question, text)
                    yield text[len(said):]
        finally:                    # the last token of a stopped answer may be half computed
            self.cache.used = len(ids) + len(answer) - 1 if answer else start
            self.ids = ids + answer

    def marks(self) -> list[Detection]:
        """The boxes of the last answer."""
        if not self.turns:
            return []
        sure = self.guides[-1].confidences() if self.guides else ()
        return find_detections(*self.turns[-1], [p.size for p in self.pictures], self.pad, sure)

    def boxes(self, picture: int = 0) -> list[tuple[str, Box]]:
        """(what it is, box in pixels) of the last answer in one of the pictures."""
        return [(mark.phrase, mark.box) for mark in self.marks() if mark.picture == picture]

    @property
    def bytes(self) -> int:
        """What the KV cache takes."""
        return self.cache.k.nbytes + self.cache.v.nbytes if self.cache else 0

    def save(self, file: Path) -> None:
        """.json: the conversation as a LLaVA row that train.py reads; else the boxes drawn."""
        if file.suffix == ".json":
            sure = [guide.confidences() for guide in self.guides]
            save_conversation(file, list(dict.fromkeys(self.paths)), self.turns, sure)
        else:
            save_boxes(file, self.pictures, self.marks())
        eprint(f"saved {file}")


DTYPE_NAMES = ("fp32", "bf16", "fp16")


def make_args(argv: list[str] | None, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("images", nargs="*", help="one picture or several, two dates of a place, clips; "
        "FOLDER is a clip, 'FOLDER/*.png' are its pictures")
    add("--model", default="weights/nano", help="folder (default %(default)s)")
    add("--prompt", action="append", help="ask this, print the answer and leave; may be given "
        "several times for several turns")
    add("--save", type=Path, help="at the end write the last answer's boxes on the picture, or "
        "as .json the conversation")
    add("--free", action="store_true", help="do not keep boxes well-formed")
    add("--json", action="store_true", help="an object a line: question, answer, boxes in pixels")
    add("--auto_task", "--auto-task", action=switch, help="a plain request takes its task: "
        "'where is ..' [refer], 'find all ..' [detection] (default: on in a terminal)")
    add("--preview", action=switch, help="pictures as half blocks in the terminal (default: on "
        "where it has 24-bit color)")
    add("--bands", type=parse_bands, default=(), metavar="R,G,B",
        help="which are shown of a picture with more than three, from 1")
    add("--frames", type=at_least(1), default=8, help="of a clip (default %(default)s)")
    add("--max_new_tokens", "--max-new-tokens", type=at_least(1), default=300)
    add("--temperature", type=at_most(1e9), help="0: always the likeliest, as by default where a "
        "[task] is named; else 0.6")
    add("--top_p", "--top-p", type=at_most(1), default=0.9)
    add("--top_k", "--top-k", type=at_least(0), default=50, help="0: all")
    add("--repetition_penalty", "--repetition-penalty", type=at_most(1e9),
        help="default 1 where a [task] is named, else 1.05")
    add("--seed", type=int, default=42)
    add("--device", default="auto", help="cpu, cuda, cuda:1, .. (default: cuda where there is one)")
    add("--dtype", choices=DTYPE_NAMES, default="fp32")
    add("--bits", type=int, choices=(16, 8, 4), default=16, help="of the language model's weights "
        "(default %(default)s: --dtype)")
    add("--compile", action="store_true", help="torch.compile the step from word to word, for a "
        "GPU: a minute's wait; a CPU is faster without")
    return parser.parse_args(argv)


def at_least(least: int):
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: at least {least}")
        return int(text)
    return number


def at_most(most: float):
    def number(text: str) -> float:
        if not 0 <= float(text) <= most:
            raise argparse.ArgumentTypeError(f"{text}: from 0 to {most:g}")
        return float(text)
    return number


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return make_args(argv, __doc__)


def find_device(name: str) -> torch.device:
    """auto: a GPU where there is one. Raises DataError where there is none of that name."""
    try:
        name = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {name}: {str(error).splitlines()[0]}") from None


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    prepare_streams()
    for question in args.prompt or ():
        task_of(question)                       # an unknown one is told before the model is read
    device = find_device(args.device)
    model = SkyEyeGPT.from_pretrained(args.model, device, DTYPES[args.dtype], args.bits)
    model = model if args.compile else pack_for_cpu(model)        # the compiler packs in its own way
    accelerate_decoding(model.llama_model, args.compile)
    tokenizer = Tokenizer(Path(args.model) / "tokenizer.model", model.config.llama.vocab_size)
    sampling = {"max_new_tokens": args.max_new_tokens, "stop": tokenizer.eos,
                "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k,
                "repetition_penalty": args.repetition_penalty,
                "generator": torch.Generator(device).manual_seed(args.seed)}
    start = partial(Conversation, model, tokenizer, sampling=sampling, bands=args.bands,
                    frames=args.frames, free=args.free, seen={})
    live = args.prompt is None and is_interactive()
    if live:
        eprint(f"{args.model} answers; /help tells the commands")
    session = Session(OpenConversations(start), args, live)
    lines = piped_lines() if args.prompt is None else iter(args.prompt)
    code = run_interactive(session, USER_ERRORS) if live else run_batch(session, lines, USER_ERRORS)
    if args.save:
        session.talk.save(args.save)
    return code


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
    except (ModelError, *USER_ERRORS) as error:
        eprint(f"chat.py: {error}")
        sys.exit(2)
