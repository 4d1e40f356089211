"""What begins with a slash."""
from pathlib import Path

from formats.drawing import free_name
from formats.talking.requests import task_of
from formats.talking.terminal import tell
from formats.templates import IDENTIFIERS

HELP = """/image FILE ..  other pictures; /image 1: back to the first ones     /images  all so far
/again          the last question anew     /undo  take it back     /reset  forget all questions
/task NAME      put [NAME] before every question; /task alone: questions as they are
/save FILE      .png: the picture with its boxes, .json: the conversation, to learn from
/help           this                       /quit  leave, or Ctrl-D; Ctrl-C stops an answer
Tasks: """ + " ".join(f"[{name}]" for name in IDENTIFIERS) + """
A region: {<12><30><55><70>} in hundredths of the sides, or 120 80 300 260 px
Of several pictures a box lies in the first, unless the answer names another ("picture 2")."""


def command(session, word: str, *rest: str) -> None:
    """Do it. EOFError is /quit; what a conversation raises."""
    talk = session.talk
    match word:
        case "/image" if rest:
            session.open(list(rest))
        case "/image" | "/images":
            tell(session.shelf.listing())
        case "/task":
            task = f"[{rest[0].strip('[]')}] " if rest else ""
            session.task = task if task_of(task) else ""
        case "/reset":
            talk.reset()
        case "/undo":
            tell(f"taken back: {talk.undo()}")
        case "/again":
            session.speak(talk.undo())
        case "/save":
            talk.save(Path(rest[0]) if rest else free_name((talk.paths or ["chat"])[0]))
        case "/quit" | "/exit":
            raise EOFError
        case "/help":
            tell(HELP)
        case _:
            tell(f"{word}: no command; /help tells them")
