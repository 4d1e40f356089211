"""chat.py in a pseudo-terminal, driven as a person does, also in one that can do little."""
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time

import pytest
from PIL import Image

import tiny

pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
COLOR = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
HARBOR, FOREST = (tiny.ROOT / "examples" / f"{name}.png" for name in ("harbor", "forest"))


def obey_ctrl_c():
    """A shell makes background processes ignore Ctrl-C, and they hand that down to their own."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A pseudo-terminal in which chat.py runs."""

    def __init__(self, *args, columns=100, **environment):
        self.fd, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "chat.py", *map(str, args)], cwd=tiny.ROOT, stdin=terminal,
            stdout=terminal, stderr=terminal, start_new_session=True,
            preexec_fn=lambda: (obey_ctrl_c(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
        os.close(terminal)
        self.output = b""

    def read(self):
        try:
            ready, _, _ = select.select([self.fd], [], [], 0.1)
            self.output += os.read(self.fd, 65536) if ready else b""
        except OSError:                                     # the other end has been closed
            return False
        return True

    def wait(self, text="\n> ", after=0):
        """Until this text stands behind the first `after` characters -> all behind them."""
        end = time.monotonic() + 60
        while text not in self.screen()[after:]:
            assert self.read() and time.monotonic() < end, self.screen()
        return self.screen()[after:]

    def screen(self):
        """All that was printed, without escape sequences."""
        text = self.output.decode("utf-8", "replace").replace("\r", "")
        return re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", text)

    def type(self, line):
        """-> what is printed until the next prompt."""
        after = len(self.screen())
        os.write(self.fd, line.encode() + b"\r")
        return self.wait(after=after)

    def leave(self, keys=b"\x04"):
        """-> the exit code."""
        os.write(self.fd, keys)
        end = time.monotonic() + 60
        while self.read():
            assert time.monotonic() < end, self.screen()
        os.close(self.fd)
        return self.process.wait(60)


@pytest.fixture
def pictures(tmp_path):
    for file in (HARBOR, FOREST):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return [tmp_path / file.name for file in (HARBOR, FOREST)]


def test_ask_switch_ground_save_and_quit(pictures, tmp_path):
    harbor, forest = pictures
    window = Terminal(harbor, **COLOR)
    start = window.wait()
    assert "model weights/nano; /help lists the commands\n" in start
    assert f"looking at {harbor} 512 x 512" in start
    assert b"\x1b[38;2;" in window.output and "▀" * 48 in window.screen()
    described = window.type("describe the image")
    caption = described.split("image)\n")[1].split("\n")[0]
    assert "([caption] briefly describe the image)" in described and len(caption.split()) > 3
    window.type(f"/image {forest}")
    found = window.type("where is the house with a blue roof?")
    assert "([refer] where is the house with a blue roof ?)" in found
    left, top, bottom = map(int, re.search(
        r"■ the house with a blue roof: x (\d+) to \d+, y (\d+) to (\d+) pixels", found).groups())
    assert "(/save draws the boxes on the picture" in found
    assert {path.name for path in tmp_path.iterdir()} == {harbor.name, forest.name}
    assert "forest_boxes.png" in window.type("/save")
    drawn, middle = Image.open(tmp_path / "forest_boxes.png"), (top + bottom) // 2
    assert drawn.size == (512, 512)
    assert (255, 59, 48) in [drawn.getpixel((x, middle)) for x in (left, left + 1)]
    assert "* 2" in window.type("/images")
    window.type("/image 1")
    assert f"\n{caption}\n" in window.type("/again")
    window.type(f"/save {tmp_path / 'talk.json'}")
    window.type(f"/save {tmp_path / 'out.png'}")
    assert "nowhere.png: no such picture" in window.type("/image nowhere.png")
    assert window.leave(b"/quit\r") == 0 and "Traceback" not in window.screen()
    assert {"talk.json", "out.png"} <= {path.name for path in tmp_path.iterdir()}


def test_ctrl_c_stops_an_answer_and_not_the_conversation_in_a_narrow_window_without_color(
        pictures):
    random_words = ("--temperature", 9, "--top_k", 0, "--top_p", 1, "--max_new_tokens", 900)
    window = Terminal(pictures[0], *random_words, columns=20, **COLOR | {"TERM": "dumb"})
    window.wait()
    after = len(window.screen())
    os.write(window.fd, b"hello\r")
    while len(window.screen()) < after + 40:
        assert window.read()
    os.write(window.fd, b"\x03")
    assert "(stopped)" in window.wait(after=after)
    assert "leaves" in window.type("\x03")
    assert "asked 1" in window.type("/images")
    assert window.leave() == 0 and "Traceback" not in window.screen()
    assert b"\x1b[38" not in window.output


def test_lines_typed_while_an_answer_is_generated_wait_and_are_answered_in_order(pictures):
    random_words = ("--temperature", 9, "--top_k", 0, "--top_p", 1, "--max_new_tokens", 300)
    window = Terminal(pictures[0], *random_words, "--no-auto_task", "--no-preview")
    window.wait()
    after = len(window.screen())
    os.write(window.fd, b"hello\r")
    while len(window.screen()) < after + 40:                    # the answer is being printed
        assert window.read()
    os.write(window.fd, b"[vqa] is there a ship ?\r/undo\r[vqa] is there a road ?\r/images\r")
    shown = window.wait("asked 2", after)
    assert "taken back: [vqa] is there a ship ?\n" in shown
    os.write(window.fd, b"/undo\r/undo\r")
    window.wait("taken back: hello\n> ")
    assert window.leave() == 0 and "Traceback" not in window.screen()
    taken = re.findall("taken back: (.+)", window.screen())
    assert taken == ["[vqa] is there a ship ?", "[vqa] is there a road ?", "hello"]


def test_characters_that_the_terminal_lacks_are_replaced(tmp_path):
    picture = tiny.picture(tmp_path / "hafen-ü.png")
    model = tiny.model_folder(tmp_path / "model")
    window = Terminal(picture, "--model", model, "--max_new_tokens", 3, "--preview", columns=20,
                      LC_ALL="C", PYTHONIOENCODING="ascii", TERM="dumb", COLORTERM="")
    assert "?" in window.wait()
    window.type("wo ist das größte Schiff ?")
    assert window.leave() == 0 and "Traceback" not in window.screen()


def test_a_closed_input_is_an_empty_one(tmp_path):
    model = tiny.model_folder(tmp_path / "model")
    done = subprocess.run(f"{sys.executable} chat.py --model {model} <&-", shell=True, text=True,
                          cwd=tiny.ROOT, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_ends_a_pipe_with_130(tmp_path):
    model = tiny.model_folder(tmp_path / "model")
    with subprocess.Popen([sys.executable, "chat.py", "--model", str(model)], cwd=tiny.ROOT,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, preexec_fn=obey_ctrl_c) as process:
        process.stdin.write("[vqa] a road ?\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130 and "Traceback" not in process.stderr.read()
