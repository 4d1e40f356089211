"""A Chromium without a window, driven over its own pipe: no package is needed, but Chromium itself.

    with Browser(Path("profile")) as browser:
        browser.open("http://127.0.0.1:8000/")
        browser.wait_for("document.title == 'SkyEyeGPT'")
        browser.screenshot(Path("page.png"))

Protocol: https://chromedevtools.github.io/devtools-protocol; messages are JSON, a NUL between them.
"""
import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
EXECUTABLE = next(filter(None, map(shutil.which, NAMES)), "")
KEYS = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
SHIFT = 8                               # of `modifiers`


class Browser:
    """One page. `errors` holds what the page's script raised or its policy forbade."""

    def __init__(self, profile: Path, width: int = 1200, height: int = 800):
        self.profile, self.size = profile, (width, height)
        self.number, self.rest = 0, b""
        self.errors: list[str] = []
        self.requests: list[str] = []   # addresses that the page asked for
        self.dialogs: list[str] = []    # kinds of what the browser itself asked
        self.leaves = True              # the answer: go on, or stay on the page

    def __enter__(self) -> "Browser":
        theirs_in, self.out = os.pipe()
        self.inp, theirs_out = os.pipe()

        def as_three_and_four() -> None:
            ends = [os.dup(theirs_in), os.dup(theirs_out)]
            for number, end in zip((3, 4), ends, strict=True):
                os.dup2(end, number)

        self.process = subprocess.Popen(
            [EXECUTABLE, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars",
             f"--user-data-dir={self.profile}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=as_three_and_four, close_fds=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.session = self.target = None
        self.new_tab()
        return self

    def new_tab(self) -> None:
        """In the place of the one before, of which nothing is kept."""
        self.session, before = None, self.target
        self.target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=self.target, flatten=True)
        if before:
            self.send("Target.closeTarget", targetId=before)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(*self.size)

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.inp)
        os.close(self.out)

    def write(self, method: str, **parameters) -> int:
        """-> the number that the reply will have."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return self.number

    def send(self, method: str, **parameters) -> dict:
        """-> the result; what else arrives meanwhile is noted."""
        number = self.write(method, **parameters)
        end = time.monotonic() + 60
        while True:
            reply = self.receive(end)
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply["result"]

    def receive(self, end: float) -> dict:
        while b"\0" not in self.rest:
            if not select.select([self.inp], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self.inp, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        self.note(message.get("method", ""), message.get("params", {}))
        return message

    def note(self, method: str, parameters: dict) -> None:
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"][:200])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(parameters["type"])
            self.write("Page.handleJavaScriptDialog", accept=self.leaves)

    # ---- a person's hands and eyes ---------------------------------------------------------------

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait_for("document.readyState == 'complete'")

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=mobile,
                  deviceScaleFactor=1)

    def prefer(self, look: str) -> None:
        """look: "dark" or "light", as the system's setting says."""
        self.send("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": look}])

    def run(self, script: str):
        """-> the value of an expression, awaited."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True,
                           returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description", script))
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"never true: {script}; {self.errors}"
            time.sleep(0.03)

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width, height of an element."""
        return tuple(self.run(f"(r => [r.x, r.y, r.width, r.height])(document.querySelector("
                              f"{json.dumps(selector)}).getBoundingClientRect())"))

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView()")
        x, y, width, height = self.place(selector)
        self.mouse("mousePressed", x + width / 2, y + height / 2)
        self.mouse("mouseReleased", x + width / 2, y + height / 2)

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        if kind != "mouseWheel":
            more = {"button": "left", "clickCount": 1} | more
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("mousePressed", *start)
        for part in (0.3, 0.7, 1.0):
            self.mouse("mouseMoved", *(a + part * (b - a) for a, b in zip(start, end, strict=True)))
        self.mouse("mouseReleased", *end)

    def drop(self, selector: str, files: list[str]) -> None:
        x, y, width, height = self.place(selector)
        data = {"items": [], "files": files, "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x + width / 2, y=y + height / 2,
                      data=data)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        code = KEYS.get(key, ord(key[0].upper()))
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                      modifiers=modifiers, **(text if kind == "keyDown" else {}))

    def downloads(self, folder: Path) -> None:
        """What the page saves goes there."""
        self.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def screenshot(self, file: Path) -> None:
        content = self.send("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(content))
