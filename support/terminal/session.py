"""support/terminal/session.py"""
import argparse
import glob
import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data import IDENTIFIERS
from support.images.clips import natural_key
from support.images.draw import unused_name
from support.terminal.display import (
    enable_line_editing,
    eprint,
    show_picture,
    shows_color,
    stream_answer,
)
from support.terminal.questions import as_task, regions_to_text, task_of

# ---- names ---------------------------------------------------------------------------------------
# Which pictures a line of names means.

FileKey = tuple[str, int]                 # a path, and when its file was changed last


def expand_paths(names: Sequence[str]) -> list[str]:
    """Patterns (*, ?, [..]) become what they match, frame2 before frame10; ~ the home folder.

    ValueError: one line with a pattern that nothing matches.
    """
    paths = []
    for name in names:
        name = str(Path(name).expanduser()) if name.startswith("~") else name
        found = [name]
        if glob.has_magic(name) and not Path(name).exists():
            found = sorted(glob.glob(name), key=lambda path: natural_key(Path(path)))
        if not found:
            raise ValueError(f"{name}: no such picture")
        paths += found
    return paths


def split_words(line: str) -> list[str]:
    """Names may stand in quotes, as in a shell, and a blank may be written after a backslash."""
    try:
        return shlex.split(line)
    except ValueError:                  # a quote that is not closed, as in harbor's.png
        return line.split()


def file_key(path: str) -> FileKey:
    file = Path(path)
    return path, file.stat().st_mtime_ns if file.exists() else 0


# ---- shelf ---------------------------------------------------------------------------------------
# The conversations of a session, one for each set of pictures; the last few keep their caches.

KEPT_CACHES = 3        # conversations that keep their KV cache; visual tokens are kept of every picture


class OpenConversations:
    def __init__(self, start: Callable[[list[str]], object]):
        """start: makes the conversation about these paths."""
        self.start = start
        self.talks: dict[tuple[FileKey, ...], object] = {}        # in the order they were begun
        self.recent: list[tuple[FileKey, ...]] = []               # the one spoken with comes last

    def open(self, names: Sequence[str]):
        """The conversation about these pictures, or the one with that number; new or as it was.

        Raises what `start` raises, and then nothing has changed.
        """
        number = int(names[0]) if len(names) == 1 and names[0].isdecimal() else 0
        if 1 <= number <= len(self.talks) and not Path(names[0]).exists():
            key = list(self.talks)[number - 1]
        else:
            paths = expand_paths(names)
            key = tuple(map(file_key, paths))
        if key not in self.talks:
            self.talks[key] = self.start(paths)
        self.recent = [other for other in self.recent if other != key] + [key]
        for other in self.recent[:-KEPT_CACHES]:
            self.talks[other].rest()
        return self.talks[key]

    def listing(self) -> str:
        """All sets of pictures with their numbers; * the one spoken about."""
        lines = []
        for number, (key, talk) in enumerate(self.talks.items(), start=1):
            mark = "*" if key == self.recent[-1] else " "
            cache = f", cache {talk.bytes / 1e6:,.1f} MB" if talk.bytes else ""
            lines.append(f"{mark} {number}  {describe_pictures(talk)}; asked {len(talk.turns)}{cache}")
        return "\n".join([*lines, "  kept: the visual tokens of each picture, and the KV cache of "
                          f"the last {KEPT_CACHES} conversations"])


def describe_pictures(talk) -> str:
    """examples/harbor.png 512 x 512, examples/river.png 512 x 512; a clip in one."""
    pictures = []
    for path in dict.fromkeys(talk.paths):
        own = [picture for name, picture in zip(talk.paths, talk.pictures, strict=True)
               if name == path]
        clip = f"{len(own)} pictures of " if len(own) > 1 else ""
        pictures.append(f"{clip}{path} {own[0].size[0]} x {own[0].size[1]}")
    return ", ".join(pictures) or "no picture"


# ---- session -------------------------------------------------------------------------------------
# What is typed or piped in, one line after the other: questions and /commands.

class Session:
    def __init__(self, shelf: OpenConversations, args: argparse.Namespace, live: bool):
        """live: whether someone sits there. Raises what the conversation about args.images does."""
        self.shelf, self.args, self.live, self.task = shelf, args, live, ""
        self.auto = live if args.auto_task is None else args.auto_task
        self.preview = shows_color() if args.preview is None else args.preview
        self.open(args.images)

    def open(self, names: list[str]) -> None:
        self.talk = self.shelf.open(names)
        if self.live:
            eprint(f"looking at {describe_pictures(self.talk)}")
            for picture in self.talk.pictures[:2 * self.preview]:
                show_picture(picture)

    def read(self, line: str) -> None:
        """Answer a question, do a /command. EOFError is /quit, ValueError a user's mistake."""
        if line.startswith("/"):
            run_command(self, *split_words(line))
        else:
            self.speak(self.asked(line))

    def speak(self, question: str) -> None:
        stream_answer(self.talk, question, self.live, self.args.json, self.preview)

    def asked(self, line: str) -> str:
        """The question in the model's words: its task before it, regions in hundredths."""
        question = line if line.startswith("[") else self.task + line
        size = self.talk.pictures[0].size if self.talk.pictures else None
        asked = regions_to_text(question, size, self.talk.pad)
        if not task_of(asked) and self.auto:
            asked = as_task(asked)
        if asked != question:
            eprint(f"({asked})")
        return asked

    def refuse(self, line: str, error: Exception) -> None:
        """What is wrong with a line that came from a pipe."""
        eprint(f"chat.py: {error}")
        if self.args.json:
            print(json.dumps({"question": line, "error": str(error)}), flush=True)


# ---- loop ----------------------------------------------------------------------------------------
# Line after line: with someone at a terminal, or from a pipe.

def run_interactive(session: Session, wrong: tuple[type[Exception], ...]) -> int:
    """Until /quit or Ctrl-D -> 0. wrong: what is told in a line, and the conversation goes on."""
    enable_line_editing()
    while True:
        try:
            if line := input(f"{session.task}> ").strip():
                session.read(line)
        except wrong as error:
            eprint(str(error))
        except KeyboardInterrupt:
            eprint("\n/quit or Ctrl-D leaves")
        except EOFError:
            print()
            return 0


def run_batch(session: Session, lines: Iterable[str], wrong: tuple[type[Exception], ...]) -> int:
    """Until they end -> the exit code: 2 if a line was wrong; the others are answered all the same.

    BrokenPipeError: nobody reads the answers any more.
    """
    code = 0
    for line in lines:
        try:
            session.read(line)
        except BrokenPipeError:
            raise
        except EOFError:                # /quit
            break
        except wrong as error:
            code = 2
            session.refuse(line, error)
    return code


# ---- commands ------------------------------------------------------------------------------------
# What begins with a slash.

HELP = """/image FILE ..  other pictures; /image 1: back to the first ones     /images  all so far
/again          the last question anew     /undo  take it back     /reset  forget all questions
/task NAME      put [NAME] before every question; /task alone: questions as they are
/save FILE      .png: the picture with its boxes, .json: the conversation, to learn from
/help           this                       /quit  leave, or Ctrl-D; Ctrl-C stops an answer
Tasks: """ + " ".join(f"[{name}]" for name in IDENTIFIERS) + """
A region: {<12><30><55><70>} in hundredths of the sides, or 120 80 300 260 px
Of several pictures a box lies in the first, unless the answer names another ("picture 2")."""


def run_command(session, word: str, *rest: str) -> None:
    """Do it. EOFError is /quit; what a conversation raises."""
    talk = session.talk
    match word:
        case "/image" if rest:
            session.open(list(rest))
        case "/image" | "/images":
            eprint(session.shelf.listing())
        case "/task":
            task = f"[{rest[0].strip('[]')}] " if rest else ""
            session.task = task if task_of(task) else ""
        case "/reset":
            talk.reset()
        case "/undo":
            eprint(f"taken back: {talk.undo()}")
        case "/again":
            session.speak(talk.undo())
        case "/save":
            talk.save(Path(rest[0]) if rest else unused_name((talk.paths or ["chat"])[0]))
        case "/quit" | "/exit":
            raise EOFError
        case "/help":
            eprint(HELP)
        case _:
            eprint(f"{word}: no command; /help tells them")
