"""A conversation about pictures, in the terminal.

    python chat.py examples/harbor.png
    python chat.py examples/harbor.png --prompt "[refer] where is the largest ship ?" --save out.png

A question may begin with a task: [caption] [vqa] [refer] [detection] [identify] [grounding].
Boxes in an answer are printed in pixels, drawn on the full-resolution picture and saved.
"""
import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from data import (
    PROMPTS,
    Box,
    DataError,
    Tokenizer,
    load_pictures,
    parse_boxes,
    preprocess,
    render,
)
from formats.drawing import draw_on, free_name
from formats.pictures.bands import parse_bands
from formats.talking.guide import BOXED, Grammar, Guide
from formats.templates import IDENTIFIERS, TASKS
from projector import DTYPES, ModelError, SkyEyeGPT

HELP = """/image FILE ..  other pictures, a new conversation     /reset      forget what was said
/task NAME      put [NAME] before every question       /save FILE  .png: picture with boxes,
/task           questions as they are                              .json: the conversation
/help           this                                   /quit       leave (or Ctrl-D)
Ctrl-C stops an answer. Tasks: """ + " ".join(f"[{name}]" for name in IDENTIFIERS)


class Conversation:
    """Pictures, the turns so far, and a KV cache that holds them: no turn is computed twice."""

    def __init__(self, model: SkyEyeGPT, tokenizer: Tokenizer, paths: list[str], sampling: dict,
                 bands: Sequence[int] = (), frames: int = 8, free: bool = False):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.bands, self.frames, self.free = bands, frames, free
        self.grammar = Grammar(tokenizer.model.id_to_piece(list(range(len(tokenizer)))))
        self.open(paths)

    def open(self, paths: list[str]) -> None:
        """Other pictures. Raises DataError, and then nothing has changed."""
        pictures = load_pictures(paths, self.bands, self.frames)
        size, weight = self.model.config.vit.image_size, self.model.llama_model.lm_head.weight
        self.paths, self.pictures = paths, pictures
        for note in dict.fromkeys(picture.note for picture in pictures if picture.note):
            print(note, file=sys.stderr)
        style = self.model.config.prompt
        images = [preprocess(picture.image, size, style=style) for picture in pictures]
        self.images = torch.stack(images).to(weight.device, weight.dtype) if images else None
        self.reset()

    def reset(self) -> None:
        self.ids: list[int] = []
        self.turns: list[tuple[str, str]] = []
        self.guides: list[Guide] = []           # of the answers
        self.cache = self.model.llama_model.cache(1, self.model.config.llama.max_positions)

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece. What was said stays said when the caller stops early."""
        config = self.model.config
        ids, _, _ = render(self.tokenizer, [*self.turns, (question, None)], config.visual_tokens,
                           len(self.pictures), config.prompt)
        if len(ids) >= self.cache.slots:
            raise DataError(f"the conversation is over {self.cache.slots} tokens: /reset it")
        # Written anew, an answer may fall into other pieces than it was said in: the cache goes
        # back to where both agree.
        same = next((i for i, (a, b) in enumerate(zip(ids, self.ids, strict=False)) if a != b),
                    min(len(ids), len(self.ids)))
        self.cache.used = start = min(self.cache.used, same)
        self.ids, answer = ids, []
        self.turns.append((question, ""))
        self.guides.append(Guide(self.grammar, self.free or not question.startswith(BOXED)))
        device = self.model.llama_model.lm_head.weight.device
        images = None if start else self.images
        try:
            for token in self.model.generate(torch.tensor(ids, device=device), images,
                                             cache=self.cache, guides=self.guides[-1:],
                                             **self.sampling):
                answer.append(token)
                text = self.tokenizer.decode(answer)
                if not text.endswith("\ufffd"):             # half of a letter: wait for the rest
                    yield text[len(self.turns[-1][1]):]
                    self.turns[-1] = (question, text)
        finally:                    # the last token of a stopped answer may be half computed
            self.cache.used = len(ids) + len(answer) - 1 if answer else start
            self.ids = ids + answer

    def boxes(self) -> list[tuple[str, Box]]:
        """(what it is, box in pixels of the first picture) of the last answer."""
        if not self.pictures or not self.turns:
            return []
        question, answer = self.turns[-1]
        pad = PROMPTS[self.model.config.prompt].pad
        return [(phrase or referred(question), box)
                for phrase, box in parse_boxes(answer, *self.pictures[0].size, pad=pad)]

    def save(self, file: Path) -> None:
        """.json: the conversation as a LLaVA row that train.py reads; else the boxes drawn."""
        if file.suffix == ".json":
            said = [{"from": who, "value": text} for turn in self.turns
                    for who, text in zip(("human", "gpt"), turn, strict=True)]
            for turn, guide in zip(said[1::2], self.guides, strict=False):
                turn |= {"confidence": guide.confidences()} if "{" in turn["value"] else {}
            row = {"image": self.paths, "conversations": said}
            file.write_text(json.dumps([row], indent=1) + "\n", encoding="utf-8")
        else:
            if not self.pictures:
                raise DataError("there is no picture to save")
            draw_on(self.pictures[0], self.boxes()).save(file)
        print(f"saved {file}", file=sys.stderr)


def referred(question: str) -> str:
    """What a [refer] question asks for: the question without the template around it."""
    patterns = [re.escape(template).replace(r"\{\}", "(.+)") for template in TASKS["refer"]]
    found = [match[1] for match in (re.fullmatch(p, question) for p in patterns) if match]
    return min(found, key=len, default="")


def checked(question: str) -> str:
    """The question, if what it begins with is a task or no task at all."""
    name = question[1:question.find("]")] if question.startswith("[") and "]" in question else ""
    if name and name not in IDENTIFIERS:
        known = " ".join(f"[{name}]" for name in IDENTIFIERS)
        raise DataError(f"[{name}]: unknown task; there are {known}")
    return question


def speak(talk: Conversation, question: str) -> None:
    """Print the answer as it comes, then its boxes."""
    try:
        for piece in talk.ask(checked(question)):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    print()
    for (phrase, box), sure in zip(talk.boxes(), talk.guides[-1].confidences(), strict=False):
        x1, y1, x2, y2 = (round(side) for side in box)
        print(f"  {phrase or 'box'}: x {x1} to {x2}, y {y1} to {y2} pixels ({sure:.2f})")


def command(talk: Conversation, line: str, task: str) -> str:
    """Do what a /line says -> the task for the questions that follow."""
    word, *rest = line.split()
    if word == "/image" and rest:
        talk.open(rest)
        print(f"looking at {' '.join(rest)}")
    elif word == "/task":
        return checked(f"[{rest[0].strip('[]')}] ") if rest else ""
    elif word == "/reset":
        talk.reset()
    elif word == "/save":
        talk.save(Path(rest[0]) if rest else free_name((talk.paths or ["chat"])[0]))
    else:
        print(HELP)
    return task


def converse(talk: Conversation) -> None:
    task = ""
    while True:
        try:
            line = input(f"{task}> ").strip()
            if line.split(" ")[0] in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                task = command(talk, line, task)
            elif line:
                speak(talk, line if line.startswith("[") else task + line)
                if talk.boxes():
                    talk.save(free_name(talk.paths[0]))
        except (DataError, OSError) as error:
            print(error)
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves")
        except EOFError:
            print()
            return


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="one picture, or a clip's frames")
    parser.add_argument("--model", default="weights/nano", help="folder (default %(default)s)")
    parser.add_argument("--prompt", action="append", help="ask this, print the answer and leave; "
                        "may be given several times for several turns")
    parser.add_argument("--save", type=Path, help="with --prompt: write picture and boxes here")
    parser.add_argument("--bands", type=parse_bands, default=(), metavar="R,G,B",
                        help="which are shown of a picture with more than three, from 1")
    parser.add_argument("--frames", type=int, default=8, help="of a clip (default %(default)s)")
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=300)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest")
    parser.add_argument("--top_p", "--top-p", type=float, default=0.9)
    parser.add_argument("--top_k", "--top-k", type=int, default=50)
    parser.add_argument("--repetition_penalty", "--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--free", action="store_true", help="do not keep boxes well-formed")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--bits", type=int, choices=(16, 8, 4), default=16,
                        help="of the language model's weights (default %(default)s: --dtype)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for question in args.prompt or []:
        checked(question)
    model = SkyEyeGPT.from_pretrained(args.model, args.device, DTYPES[args.dtype], args.bits)
    tokenizer = Tokenizer(Path(args.model) / "tokenizer.model", model.config.llama.vocab_size)
    sampling = {"max_new_tokens": args.max_new_tokens, "stop": tokenizer.eos,
                "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k,
                "repetition_penalty": args.repetition_penalty,
                "generator": torch.Generator(args.device).manual_seed(args.seed)}
    talk = Conversation(model, tokenizer, args.images, sampling, args.bands, args.frames, args.free)
    if args.prompt is None:
        print(f"{args.model} sees {' '.join(args.images) or 'no picture'}; /help tells the rest")
        return converse(talk)
    for question in args.prompt:
        speak(talk, question)
    if args.save:
        talk.save(args.save)


if __name__ == "__main__":
    try:
        main()
    except (DataError, ModelError, OSError) as error:
        print(f"chat.py: {error}", file=sys.stderr)
        sys.exit(2)
