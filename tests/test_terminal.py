"""chat.py in a real terminal, driven as a person does, and where a terminal can do little."""
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
ABLE = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
HARBOR, FOREST = (tiny.ROOT / "examples" / f"{name}.png" for name in ("harbor", "forest"))


def heed_ctrl_c():
    """A shell lets what it starts in the background ignore Ctrl-C, which is passed on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A window in which chat.py runs."""

    def __init__(self, *args, columns=100, **environment):
        self.fd, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "chat.py", *map(str, args)], cwd=tiny.ROOT, stdin=inside,
            stdout=inside, stderr=inside, start_new_session=True,
            preexec_fn=lambda: (heed_ctrl_c(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
        os.close(inside)
        self.raw = b""

    def read(self):
        try:
            self.raw += os.read(self.fd, 65536) if select.select([self.fd], [], [], 0.1)[0] else b""
        except OSError:                                     # nobody holds the other end any more
            return False
        return True

    def wait(self, mark="\n> ", after=0):
        """Until this is on the screen -> the screen without escapes, from there on."""
        end = time.monotonic() + 60
        while mark not in self.screen()[after:]:
            assert self.read() and time.monotonic() < end, self.screen()
        return self.screen()[after:]

    def screen(self):
        text = self.raw.decode("utf-8", "replace").replace("\r", "")
        return re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", text)

    def type(self, line, mark="\n> "):
        """-> what comes, until the next prompt."""
        after = len(self.screen())
        os.write(self.fd, line.encode() + b"\r")
        return self.wait(mark, after)

    def leave(self, keys=b"\x04"):
        """-> the exit code."""
        os.write(self.fd, keys)
        while self.read():
            pass
        os.close(self.fd)
        return self.process.wait(60)


@pytest.fixture
def pictures(tmp_path):
    for file in (HARBOR, FOREST):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return [tmp_path / file.name for file in (HARBOR, FOREST)]


def test_ask_switch_ground_save_and_quit(pictures, tmp_path):
    harbor, forest = pictures
    window = Terminal(harbor, **ABLE)
    assert f"looking at {harbor} 512 x 512" in window.wait()
    assert b"\x1b[38;2;" in window.raw and "▀" * 48 in window.screen()
    described = window.type("describe the image")
    said = described.split("image)\n")[1].split("\n")[0]
    assert "([caption] briefly describe the image)" in described and len(said.split()) > 3
    window.type(f"/image {forest}")
    found = window.type("where is the house with a blue roof?")
    assert "([refer] where is the house with a blue roof ?)" in found
    left, top, bottom = map(int, re.search(
        r"■ the house with a blue roof: x (\d+) to \d+, y (\d+) to (\d+) pixels", found).groups())
    drawn, middle = Image.open(tmp_path / "forest_boxes.png"), (top + bottom) // 2
    assert drawn.size == (512, 512) and "forest_boxes.png" in found
    assert (255, 59, 48) in [drawn.getpixel((x, middle)) for x in (left, left + 1)]
    assert "* 2" in window.type("/images")
    window.type("/image 1")
    assert f"\n{said}\n" in window.type("/again")
    window.type(f"/save {tmp_path / 'talk.json'}")
    window.type(f"/save {tmp_path / 'out.png'}")
    assert "nowhere.png: no such picture" in window.type("/image nowhere.png")
    assert window.leave(b"/quit\r") == 0 and "Traceback" not in window.screen()
    assert {"talk.json", "out.png"} <= {path.name for path in tmp_path.iterdir()}


def test_ctrl_c_stops_an_answer_and_leaves_the_conversation_in_a_poor_narrow_window(pictures):
    noise = ("--temperature", 9, "--top_k", 0, "--top_p", 1, "--max_new_tokens", 900)
    window = Terminal(pictures[0], *noise, columns=20, **ABLE | {"TERM": "dumb"})
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
    assert b"\x1b[38" not in window.raw


def test_a_terminal_without_letters_for_it_gets_replacements(tmp_path):
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
                          text=True, preexec_fn=heed_ctrl_c) as process:
        process.stdin.write("[vqa] a road ?\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130 and "Traceback" not in process.stderr.read()
