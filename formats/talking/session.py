"""What is typed or piped in, one line after the other: questions and /commands."""
import argparse
import json

from formats.talking.commands import command
from formats.talking.names import words
from formats.talking.regions import in_hundredths
from formats.talking.requests import as_task, task_of
from formats.talking.shelf import Shelf, describe
from formats.talking.showing import show_picture, speak
from formats.talking.terminal import shows_color, tell


class Session:
    def __init__(self, shelf: Shelf, args: argparse.Namespace, live: bool):
        """live: whether someone sits there. Raises what the conversation about args.images does."""
        self.shelf, self.args, self.live, self.task = shelf, args, live, ""
        self.auto = live if args.auto_task is None else args.auto_task
        self.preview = shows_color() if args.preview is None else args.preview
        self.open(args.images)

    def open(self, names: list[str]) -> None:
        self.talk = self.shelf.open(names)
        if self.live:
            tell(f"looking at {describe(self.talk)}")
            for picture in self.talk.pictures[:2 * self.preview]:
                show_picture(picture)

    def read(self, line: str) -> None:
        """Answer a question, do a /command. EOFError is /quit, ValueError a user's mistake."""
        if line.startswith("/"):
            command(self, *words(line))
        else:
            self.speak(self.asked(line))

    def speak(self, question: str) -> None:
        speak(self.talk, question, self.live, self.args.json, self.preview)

    def asked(self, line: str) -> str:
        """The question in the model's words: its task before it, regions in hundredths."""
        question = line if line.startswith("[") else self.task + line
        size = self.talk.pictures[0].size if self.talk.pictures else None
        asked = in_hundredths(question, size, self.talk.pad)
        if not task_of(asked) and self.auto:
            asked = as_task(asked)
        if asked != question:
            tell(f"({asked})")
        return asked

    def refuse(self, line: str, error: Exception) -> None:
        """What is wrong with a line that came from a pipe."""
        tell(f"chat.py: {error}")
        if self.args.json:
            print(json.dumps({"question": line, "error": str(error)}), flush=True)
