"""What surrounds the loop of chat.py: lines typed or piped in, /commands, the open conversations.

A session has one conversation for each set of pictures; the commands switch between them.
"""
import glob
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from data import IDENTIFIERS
from support.common import UserError
from support.explain.command import (
    Explanation,
    explain_answer,
    explanation_to_json,
    print_explanation,
)
from support.images.clips import natural_key
from support.images.draw import picture_format
from support.images.read import Picture
from support.terminal.answers import LEFT_OUT, readable_text
from support.terminal.display import (
    check_save,
    check_target,
    eprint,
    print_detections,
    print_json_answer,
    print_picture,
    save_beside,
)
from support.terminal.questions import (
    Detection,
    task_of,
    write_question,
)

# ---- names of pictures ---------------------------------------------------------------------------

FileKey = tuple[str, int]       # a path and the time when the file was changed last


def file_key(path: str) -> FileKey:
    file = Path(path)
    return path, file.stat().st_mtime_ns if file.exists() else 0


def expand_paths(names: Sequence[str]) -> list[str]:
    """Replace ~ by the home folder and a pattern (*, ?, [..]) by what it matches.

    Matches are in natural order, frame2 before frame10. UserError: a pattern matches nothing, or
    the name is that of no file but an address, or a question.
    """
    paths = []
    for name in names:
        if name.startswith(("http://", "https://")):
            raise UserError(f"{name}: an address, not a file; download the picture first")
        if " " in name and not Path(name).suffix and not Path(name).exists():
            raise UserError(f"{name}: no such picture; a question goes behind --prompt")
        name = str(Path(name).expanduser()) if name.startswith("~") else name
        if not glob.has_magic(name) or Path(name).exists():
            paths.append(name)
            continue
        matches = glob.glob(name)
        if not matches:
            raise UserError(f"{name}: no such picture")
        paths += sorted(matches, key=lambda path: natural_key(Path(path)))
    return paths


def split_arguments(line: str) -> list[str]:
    """As a shell does: a name with blanks stands in quotes, or has a backslash before each."""
    try:
        return shlex.split(line)
    except ValueError:                  # a quote that is not closed, as in harbor's.png
        return line.split()


# ---- the session ---------------------------------------------------------------------------------

KEPT_CACHES = 3     # conversations that keep their KV cache; visual tokens are kept of all pictures


class Conversation(Protocol):
    """What a session uses of chat.Conversation."""
    key: tuple[FileKey, ...]            # its pictures
    paths: list[str]                    # one for each picture: the file or clip it comes from
    pictures: list[Picture]
    turns: list[tuple[str, str]]
    pad: bool                           # boxes count in the picture padded to a square
    cache_bytes: int

    def about(self, paths: list[str]) -> "Conversation": ...
    def release_cache(self) -> None: ...
    def reset(self) -> None: ...
    def undo(self) -> str: ...
    def detections(self) -> list[Detection]: ...
    def save(self, file: Path) -> None: ...


class Session:
    """The conversations of one run of chat.py, the current one, and the task set by /task."""

    def __init__(self, conversation: Conversation, interactive: bool = False,
                 preview: bool = False, auto_task: bool = False, overwrite: bool = False,
                 as_json: bool = False, tiles: int = 0, explain: str | None = None,
                 lora: bool = True):
        """interactive: a person at a terminal; preview: show pictures there; auto_task: rewrite
        plain requests as task prompts; overwrite: save over files that exist; as_json: answers are
        lines of JSON, which hold their questions; tiles: as /tiles sets it; explain: each answer,
        "" in text alone, else with a sheet in this file too; lora=False: compare with the model
        without its LoRA. UserError: the sheet's file exists, is one of the pictures, or is not
        named as a picture."""
        self.interactive, self.preview, self.auto_task = interactive, preview, auto_task
        self.overwrite, self.as_json, self.lora = overwrite, as_json, lora
        self.explain = "" if explain is None and not lora else explain
        self.sheets = 0                                                 # written so far
        self.told_save = False                                          # that /save draws boxes
        self.task = ""                                                  # or "[refer] ", say
        self.tiles = tiles                                              # their side; 0: none
        self.save_scene: Callable[[Path], str] | None                   # the last answer in tiles
        self.conversations: dict[tuple[FileKey, ...], Conversation] = {}        # numbered from 1
        self.recent: list[Conversation] = []                            # the current one is last
        self.select(conversation)
        if self.explain:
            picture_format(Path(self.explain))
            check_target(Path(self.explain), conversation.paths, overwrite)

    @property
    def conversation(self) -> Conversation:
        return self.recent[-1]

    def open(self, names: Sequence[str]) -> None:
        """Switch to the conversation about these pictures, or to the one with this number.

        It continues where it was left; if there is none, a new one begins. Errors of opening the
        pictures leave the session as it was.
        """
        number = int(names[0]) if len(names) == 1 and names[0].isdecimal() else 0
        if 1 <= number <= len(self.conversations) and not Path(names[0]).exists():
            self.select(list(self.conversations.values())[number - 1])
            return
        paths = expand_paths(names)
        known = self.conversations.get(tuple(map(file_key, paths)))
        self.select(known if known is not None else self.conversation.about(paths))

    def select(self, conversation: Conversation) -> None:
        """Make it the current one; conversations not used for long give up their KV caches."""
        self.save_scene = None
        self.conversations.setdefault(conversation.key, conversation)
        self.recent = [other for other in self.recent if other is not conversation]
        self.recent.append(conversation)
        for other in self.recent[:-KEPT_CACHES]:
            other.release_cache()
        if self.interactive:
            eprint(f"looking at {describe_pictures(conversation)}")
        if self.interactive and self.preview:
            for picture in conversation.pictures[:2]:
                print_picture(picture)

    def to_question(self, line: str) -> str:
        """A line as the model reads it: the task in front, regions in hundredths.

        A question that differs from the line is printed, unless JSON will say it. UserError: an
        unknown task, a region that cannot be read, an empty line; at a terminal, files alone.
        """
        line, pictures = check_line(line.strip()), self.conversation.pictures
        if not line:
            raise UserError("an empty question")
        files = [line] if os.path.isfile(line) else split_arguments(line)
        if self.interactive and all(map(os.path.isfile, files)):
            raise UserError(f"{line}: a file, no question; /image {shlex.join(files)} shows it")
        size = pictures[0].size if pictures else None
        question = write_question(line, size, self.conversation.pad, self.task, self.auto_task)
        if question not in (line, self.task + line) and not self.as_json:
            eprint(f"({question})")
        return question

    def save(self, names: Sequence[str | Path], overwrite: bool = False) -> None:
        """Save the current conversation or its picture under the first of these names; without a
        name, each picture with boxes beside itself. UserError: the file exists, or it is one of the
        pictures of this session."""
        if self.save_scene and names:
            file = Path(names[0])
            check_target(file, self.conversation.paths, overwrite or self.overwrite)
            eprint(self.save_scene(file))
            return
        if not names:
            own = self.conversation
            for told in save_beside(own.paths, own.pictures, own.detections()):
                eprint(told)
            return
        file = Path(names[0])
        check_save(file, self.shown_paths(), overwrite or self.overwrite)
        self.conversation.save(file)

    def explanation(self, sheet: str, lora: bool = True, overwrite: bool = False) -> Explanation:
        """Of the last answer; sheet: the file to draw it in, "" for none. UserError: as save and
        explain_answer."""
        if sheet:
            check_target(Path(sheet), self.shown_paths(), overwrite or self.overwrite)
        found, told = explain_answer(self.conversation, Path(sheet) if sheet else None, lora)
        if told:
            eprint(told)
        return found

    def next_sheet(self) -> str:
        """--explain's file, and for the answers after the first NAME_2.png, NAME_3.png, .."""
        self.sheets += 1
        file = Path(self.explain)
        if not self.explain or self.sheets == 1:
            return self.explain
        return str(file.with_name(f"{file.stem}_{self.sheets}{file.suffix}"))

    def shown_paths(self) -> list[str]:
        """The pictures of all conversations."""
        return [path for own in self.conversations.values() for path in own.paths]

    def listing(self) -> str:
        """All sets of pictures with their numbers, * before the current one."""
        lines = []
        for number, conversation in enumerate(self.conversations.values(), start=1):
            mark = "*" if conversation is self.conversation else " "
            size = conversation.cache_bytes / 1e6
            cache = f", cache {size:,.1f} MB" if size else ""
            lines.append(f"{mark} {number}  {describe_pictures(conversation)}; "
                         f"asked {len(conversation.turns)}{cache}")
        return "\n".join([*lines, "  kept: the visual tokens of each picture, and the KV cache of "
                          f"the last {KEPT_CACHES} conversations"])


def show_answer(session: Session) -> None:
    """What follows the last answer when it has been printed: its boxes, once, that /save draws
    them, and with --explain how it came; as JSON, all of it."""
    conversation = session.conversation
    question, answer = conversation.turns[-1] if conversation.turns else ("", "")
    detections, names = conversation.detections(), conversation.paths
    explained = session.explain is not None and bool(conversation.turns)
    if session.as_json:
        found = session.explanation(session.next_sheet(), session.lora) if explained else None
        print_json_answer(question, answer, detections, names, found and explanation_to_json(
            conversation.tokenizer, found))
        return
    print()
    print_detections(detections, names, conversation.pictures if session.preview else ())
    if readable_text(answer)[1]:
        eprint(LEFT_OUT)
    if detections and session.interactive and not session.told_save:
        eprint("(/save draws the boxes on the picture, in a file beside it)")
        session.told_save = True
    if explained:
        print_explanation(conversation.tokenizer, session.explanation(session.next_sheet(),
                                                                      session.lora))


def describe_pictures(conversation: Conversation) -> str:
    """"examples/harbor.png 512 x 512, 8 pictures of clip 640 x 480"; "no picture"."""
    texts = []
    for path in dict.fromkeys(conversation.paths):
        own = [picture for name, picture in zip(conversation.paths, conversation.pictures,
                                                strict=True) if name == path]
        clip = f"{len(own)} pictures of " if len(own) > 1 else ""
        texts.append(f"{clip}{path} {own[0].size[0]} x {own[0].size[1]}")
    return ", ".join(texts) or "no picture"


# ---- commands ------------------------------------------------------------------------------------

HELP = """/image FILE ..  switch to other pictures; /image 1: return to the first ones
/images         list the pictures so far, with their numbers
/again          ask the last question again
/undo           take back the last question and its answer
/reset          forget all questions about these pictures
/task NAME      put [NAME] in front of every question; /task alone: leave questions as they are
/tiles SIDE     ask about the whole of a large picture, in tiles of SIDE pixels; /tiles 0: no more
/save FILE      .png: the picture with its boxes; .json: the conversation, as training data;
                /save FILE --overwrite writes over a file that exists; /save alone: the picture
                with its boxes as NAME_boxes.png beside it; after an answer in tiles: .geojson,
                .csv, or .png, the scene with its boxes or tiles
/explain        how the last answer came: the way through the model, each token's alternatives;
                /explain FILE.png draws where it looked; /explain --no-lora compares with the
                model without its LoRA
/help           this text
/quit           leave, also with Ctrl-D; Ctrl-C stops an answer
Tasks: """ + " ".join(f"[{name}]" for name in IDENTIFIERS) + """
A region: {<12><30><55><70>} in hundredths of the sides, or 120 80 300 260 px; four numbers in
brackets are pixels, [120, 80, 300, 260], or where none is over 1, [0.2, 0.3, 0.6, 0.7], parts of
the sides
Of several pictures a box lies in the first, unless the answer names another ("picture 2")."""


def run_command(session: Session, line: str) -> str | None:
    """Do what a line that begins with / asks for -> the question that /again repeats, or None.

    EOFError: /quit. UserError, ValueError, OSError: what a conversation raises.
    """
    command, *arguments = split_arguments(line)
    conversation = session.conversation
    match command:
        case "/image" if arguments:
            session.open(arguments)
        case "/image" | "/images":
            eprint(session.listing())
        case "/again":
            return conversation.undo()
        case "/undo":
            eprint(f"taken back: {conversation.undo()}")
        case "/reset":
            conversation.reset()
        case "/task":
            task = f"[{arguments[0].strip('[]').lower()}] " if arguments else ""
            session.task = task if task_of(task) else ""
        case "/tiles" if arguments and not (arguments[0].isdecimal() and (
                arguments[0] == "0" or int(arguments[0]) >= 16)):
            raise UserError(f"/tiles {arguments[0]}: the side of a tile in pixels, at least 16; 0: "
                            "no tiles")
        case "/tiles":
            session.tiles = int(arguments[0]) if arguments else session.tiles
            session.save_scene = None
            eprint(f"questions are asked of tiles of {session.tiles} pixels" if session.tiles else
                   "questions are asked of the whole picture")
        case "/save":
            session.save([name for name in arguments if name != "--overwrite"],
                         "--overwrite" in arguments)
        case "/explain":
            files = [name for name in arguments if not name.startswith("--")]
            print_explanation(conversation.tokenizer, session.explanation(
                files[0] if files else "", not {"--no-lora", "--no_lora"} & set(arguments),
                "--overwrite" in arguments))
        case "/help":
            eprint(HELP)
        case "/quit" | "/exit":
            raise EOFError
        case _:
            eprint(f"{command}: unknown command; /help lists the commands")
    return None


# ---- lines ---------------------------------------------------------------------------------------

LEAVE_HINT = "\n/quit or Ctrl-D leaves"
BARE_COMMANDS = {"quit": "/quit", "exit": "/quit", "q": "/quit", "help": "/help", "?": "/help"}


def typed_lines(session: Session) -> Iterator[str]:
    """Lines that a person types at the prompt, until Ctrl-D; Ctrl-C there tells how to leave. A
    word of BARE_COMMANDS alone is the command."""
    enable_line_editing()
    while True:
        try:
            line = input(f"{session.task}> ").strip()
        except KeyboardInterrupt:
            eprint(LEAVE_HINT)
            continue
        except EOFError:
            print()
            return
        if line:
            yield BARE_COMMANDS.get(line.lower(), line)


def enable_line_editing() -> None:
    """Arrow keys, and earlier lines of this session again, where the platform has readline."""
    if importlib.util.find_spec("readline"):
        importlib.import_module("readline")


MAX_LINE = 100_000              # characters; no model's context holds more


def piped_lines() -> Iterator[str]:
    r"""The lines of a pipe or a file, which end in \n or \r\n; none if standard input is closed.

    A byte-order mark is left out, and so is what a line has beyond MAX_LINE and a bit, which
    check_line refuses.
    """
    if sys.stdin is None:
        return
    if sys.stdin.isatty():
        eprint("type one question a line, Ctrl-D at the end")
    mark = "\ufeff"
    while line := sys.stdin.readline(2 * MAX_LINE):
        rest = line
        while rest and not rest.endswith("\n"):
            rest = sys.stdin.readline(2 * MAX_LINE)
        line, mark = line.removeprefix(mark).strip(), ""
        if line:
            yield line


def check_line(line: str) -> str:
    """The line. UserError: it is too long, or no text in UTF-8."""
    if len(line) > MAX_LINE:
        raise UserError(f"a line of over {MAX_LINE:,} characters ({line[:40]} ..): ask shorter")
    if "\0" in line or any("\ud800" <= letter <= "\udfff" for letter in line):
        encoding = "UTF-16" if "\0" in line else "WINDOWS-1252"
        shown = line.replace("\0", "?").encode("ascii", "replace").decode()[:60]
        raise UserError(f"a line that is not UTF-8 ({shown}): convert it from what it was saved in "
                        f"({encoding}?), as in: iconv -f {encoding} -t UTF-8")
    return line
