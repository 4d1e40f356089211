"""Line after line: with someone at a terminal, or from a pipe."""
from collections.abc import Iterable

from formats.talking.session import Session
from formats.talking.terminal import edit_lines, tell


def converse(session: Session, wrong: tuple[type[Exception], ...]) -> int:
    """Until /quit or Ctrl-D -> 0. wrong: what is told in a line, and the conversation goes on."""
    edit_lines()
    while True:
        try:
            if line := input(f"{session.task}> ").strip():
                session.read(line)
        except wrong as error:
            tell(str(error))
        except KeyboardInterrupt:
            tell("\n/quit or Ctrl-D leaves")
        except EOFError:
            print()
            return 0


def work(session: Session, lines: Iterable[str], wrong: tuple[type[Exception], ...]) -> int:
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
