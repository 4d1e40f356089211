"""When a run ends early: at a signal, or with a loss that is no number."""
import os
import signal
import socket
import threading
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LINE = b"\nfinishing the step, then saving; again to leave at once\n"


class Stop:
    """with Stop() as stop: the first SIGINT or SIGTERM sets stop.signal, the second ends at once.

    Outside the main thread it does nothing."""
    def __init__(self, quiet: bool = False):
        self.signal, self.before, self.quiet, self.own = 0, {}, quiet, os.getpid()

    @property
    def code(self) -> int:
        """What to leave with: 130 or 143; 0 where there was no signal."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self.ears, self.mouth = socket.socketpair()
            self.mouth.setblocking(False)
            self.listener = threading.Thread(target=leave_at_signal, args=(self.ears,), daemon=True)
            self.listener.start()
            self.before = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.before:
            signal.set_wakeup_fd(-1)
            self.mouth.send(b"\0")
            self.mouth.close()
            self.listener.join()

    def note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.own:             # a loader process: its parent decides on Ctrl-C
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif self.signal:
            os._exit(128 + number)
        else:           # from now on the thread ends it, also amid a long product or a dead wait
            self.signal = number
            signal.set_wakeup_fd(self.mouth.fileno(), warn_on_full_buffer=False)
            os.write(2, b"" if self.quiet else LINE)


def leave_at_signal(ears: socket.socket) -> None:
    with ears:
        while number := ears.recv(1)[0]:
            if number in SIGNALS:
                os._exit(128 + number)
