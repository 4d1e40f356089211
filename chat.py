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

from data import PROMPTS, Box, DataError, Tokenizer, load_pictures, preprocess, render
from formats.released.faster import faster
from formats.released.replay import replayed
from formats.talking import flags, terminal
from formats.talking.guide import BOXED, Grammar, Guide
from formats.talking.loop import converse, work
from formats.talking.marks import Mark, find_marks
from formats.talking.names import stamp
from formats.talking.requests import drawn, task_of
from formats.talking.session import Session
from formats.talking.shelf import Shelf
from formats.talking.terminal import tell
from formats.talking.writing import write_boxes, write_talk
from projector import DTYPES, ModelError, SkyEyeGPT

WRONG = (DataError, ValueError, OSError)        # told in a line, and the conversation goes on


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
        self.free, self.grammar = free, Grammar(tokenizer.model.id_to_piece(
            list(range(len(tokenizer)))))
        self.groups = [(stamp(path), load_pictures([path], bands, frames)) for path in paths]
        self.pictures = [picture for _, group in self.groups for picture in group]
        self.paths = [path for (path, _), group in self.groups for _ in group]
        limit, each = model.config.llama.max_positions, model.config.visual_tokens
        if len(self.pictures) * each > limit - 32:
            raise DataError(f"{len(self.pictures)} pictures take {len(self.pictures) * each} of "
                            f"{limit} tokens: show {(limit - 32) // each} at most")
        for note in dict.fromkeys(picture.note for picture in self.pictures if picture.note):
            tell(note)
        self.rest()
        self.reset()

    def rest(self) -> None:
        """Give the cache back. The next question computes all turns again, the pictures not."""
        self.ids: list[int] = []
        self.cache = None

    def reset(self) -> None:
        self.turns: list[tuple[str, str]] = []
        self.guides: list[Guide] = []           # of the answers
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
            ids, _, _ = render(self.tokenizer, turns, config.visual_tokens, len(self.pictures),
                               config.prompt)
            if len(ids) + room <= limit or len(turns) == 1:
                break
            first += 1
        if len(ids) >= limit:
            raise DataError(f"{len(ids)} tokens do not fit the context of {limit}: ask shorter")
        if first and not self.first:
            tell(f"the context of {limit} tokens is full: the oldest questions are forgotten")
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
        sampling, ids, answer = drawn(question, self.sampling), self.prompt(question), []
        start = self.go_back(ids)
        self.ids = ids[:start]
        self.turns.append((question, ""))
        self.guides.append(Guide(self.grammar, self.free or not question.startswith(BOXED)))
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

    def marks(self) -> list[Mark]:
        """The boxes of the last answer."""
        if not self.turns:
            return []
        sure = self.guides[-1].confidences() if self.guides else ()
        return find_marks(*self.turns[-1], [p.size for p in self.pictures], self.pad, sure)

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
            write_talk(file, list(dict.fromkeys(self.paths)), self.turns, sure)
        else:
            write_boxes(file, self.pictures, self.marks())
        tell(f"saved {file}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return flags.parse_args(argv, __doc__)


def find_device(name: str) -> torch.device:
    """auto: a GPU where there is one. Raises DataError where there is none of that name."""
    try:
        name = name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {name}: {str(error).splitlines()[0]}") from None


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    terminal.prepare()
    for question in args.prompt or ():
        task_of(question)                       # an unknown one is told before the model is read
    device = find_device(args.device)
    model = SkyEyeGPT.from_pretrained(args.model, device, DTYPES[args.dtype], args.bits)
    model = model if args.compile else faster(model)        # the compiler packs in its own way
    replayed(model.llama_model, args.compile)
    tokenizer = Tokenizer(Path(args.model) / "tokenizer.model", model.config.llama.vocab_size)
    sampling = {"max_new_tokens": args.max_new_tokens, "stop": tokenizer.eos,
                "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k,
                "repetition_penalty": args.repetition_penalty,
                "generator": torch.Generator(device).manual_seed(args.seed)}
    start = partial(Conversation, model, tokenizer, sampling=sampling, bands=args.bands,
                    frames=args.frames, free=args.free, seen={})
    live = args.prompt is None and terminal.is_live()
    if live:
        tell(f"{args.model} answers; /help tells the commands")
    session = Session(Shelf(start), args, live)
    lines = terminal.piped() if args.prompt is None else iter(args.prompt)
    code = converse(session, WRONG) if live else work(session, lines, WRONG)
    if args.save:
        session.talk.save(args.save)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        terminal.discard_output()
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except torch.OutOfMemoryError:
        tell("chat.py: the GPU's memory is full; try --dtype bf16, --bits 8 or 4, fewer pictures")
        sys.exit(2)
    except (ModelError, *WRONG) as error:
        tell(f"chat.py: {error}")
        sys.exit(2)
