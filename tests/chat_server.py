"""A server with OpenAI's chat completions interface in a thread of the test, good or bad.

How it answers is told by a caption in the question, `mode: MODE`; MODES holds what it can do.
"""
import base64
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BOXES = "{<10><10><30><30>}", "{<70><70><90><90>}"          # of the two ships in every question
GOOD = {"description": "A harbor with two ships. <p>A ship</p> {<10><10><30><30>} lies in the "
                       "upper left of the picture.",
        "dialogue": [{"question": "How many ships are there?",
                      "answer": "<p>Two ships</p> {<10><10><30><30>}<delim>{<70><70><90><90>}."},
                     {"question": "Why do they stay here?", "answer": "The pier shelters them."}]}


def good(**changes) -> str:
    return json.dumps(GOOD | changes)


CONTENT = {         # mode: what the model says
    "good": good(), "fenced": f"```json\n{good()}\n```", "slow": good(),
    "wrong count": good(description="Three ships."), "wrong class": good(description="A bridge."),
    "wrong box": good(description="<p>A ship</p> {<10><10><30><101>}."),
    "wrong place": good(description="<p>A ship</p> {<10><10><30><30>} on the right."),
    "not JSON": good()[:-30], "apology": "I'm sorry, but I cannot help with that.",
    "no dialogue": json.dumps({"description": "Two ships."}), "more keys": good(title="Ships"),
    "a text for a turn": good(dialogue=["a", "b"]), "a number": good(description=3),
    "one turn": good(dialogue=GOOD["dialogue"][:1]), "a list": "[1]", "deep": "[" * 5000,
    "twice": good(dialogue=GOOD["dialogue"][:1] * 2), "empty": ""}


class ChatServer:
    """`with ChatServer() as server:` server.url; what it was asked is in its fields."""

    def __init__(self):
        self.asked: Counter = Counter()             # mode and picture -> requests
        self.answered: Counter = Counter()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.times: dict[str, list[float]] = {}
        self.now, self.most_at_once = 0, 0
        self.lock, self.open = threading.Lock(), threading.Event()
        self.open.set()                             # what waits for it is held when it is cleared
        self.location = ""
        handler = type("Handler", (Handler,), {"chat": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.open.set()
        self.server.shutdown()
        self.server.server_close()


def picture_in(body: dict) -> bytes:
    """The JPEG that a request shows."""
    url = body["messages"][1]["content"][1]["image_url"]["url"]
    return base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))


def true_reply(facts: str) -> str:
    """What a model that only repeats the facts says."""
    counts = re.findall(r"^([a-z ]+): (\d+)\n  (\{\S+\}) (.*)$", facts, re.MULTILINE)
    said = [f"The count of {name} is {count}. <p>The {name}</p> {box} is in the {place}."
            for name, count, box, place in counts]
    turns = [{"question": f"How many of {name} are there?", "answer": count}
             for name, count, _, _ in counts]
    turns += [{"question": "What is the scene?", "answer": "It is a place seen from above."},
              {"question": "Why does it look so?", "answer": "It was drawn at random."}]
    return json.dumps({"description": " ".join(said) or "A place.", "dialogue": turns[:6]})


class Handler(BaseHTTPRequestHandler):
    chat: ChatServer

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.chat.asked["GET"] += 1
        self.send(200, b"{}")

    def do_POST(self) -> None:
        chat = self.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][1]["content"][0]["text"]
        mode = re.search("mode: (.*)", text)
        name = mode[1] if mode else f"true, {hash(text)}"
        with chat.lock:
            chat.asked[name] += 1
            chat.bodies.append(body)
            chat.headers.append(dict(self.headers))
            chat.times.setdefault(name, []).append(time.monotonic())
            attempt, chat.now = chat.asked[name], chat.now + 1
            chat.most_at_once = max(chat.most_at_once, chat.now)
        chat.open.wait()
        try:
            if mode:
                self.answer(name.split(", ")[0], attempt)
            else:
                self.say(true_reply(text))
            chat.answered[name] += 1
        finally:
            with chat.lock:
                chat.now -= 1

    def answer(self, mode: str, attempt: int) -> None:
        key = self.headers.get("Authorization", "")
        if mode in CONTENT:
            time.sleep(0.3 if mode == "slow" else 0)
            self.say(CONTENT[mode])
        elif mode == "refusal":
            self.say(None, refusal="I can't assist with that.")
        elif mode == "filter":
            self.say("", finish="content_filter")
        elif mode == "length":
            self.say(good()[:60], finish="length")
        elif mode == "in parts":
            self.say([{"type": "text", "text": good()[:9]}, {"type": "text", "text": good()[9:]}])
        elif mode == "too often":                       # twice, then it answers
            headers = {"Retry-After": "0.2"} if attempt == 1 else {}
            self.say(good()) if attempt > 2 else self.send(429, b"slow down", headers)
        elif mode == "always too often":
            self.send(429, b'{"error": {"message": "no credit"}}', {"Retry-After": "999999"})
        elif mode == "overloaded once":
            self.say(good()) if attempt > 1 else self.send(503, b"")
        elif mode == "broken":
            self.send(500, b"<html>oh no</html>")
        elif mode == "time-out":
            time.sleep(1.2)
        elif mode == "drip":                            # a part now and then, and no end
            self.send_response(200)
            self.end_headers()
            for _ in range(10):
                self.wfile.write(b" ")
                time.sleep(0.15)
        elif mode == "half":
            self.send(200, b'{"choices": [{"mess', {"Content-Length": "5000"})
        elif mode == "half once":
            self.say(good()) if attempt > 1 else self.send(200, b"{", {"Content-Length": "5000"})
        elif mode == "hung up":
            self.close_connection = True
        elif mode == "no completion":
            self.send(200, f'{{"error": "not now, {key}"}}'.encode())
        elif mode == "too long":
            self.send(200, b" " * (2**22 + 9))
        elif mode == "bad request":
            self.send(400, f'{{"error": {{"message": "no {key} here"}}}}'.encode())
        elif mode == "redirect":
            self.send(307, b"", {"Location": self.chat.location})
        else:
            self.send(int(mode), json.dumps({"error": {"message": f"wrong key {key}"}}).encode())

    def say(self, content, finish: str = "stop", refusal: str | None = None) -> None:
        message = {"role": "assistant", "content": content, "refusal": refusal}
        self.send(200, json.dumps({"choices": [{"message": message, "finish_reason": finish}]}
                                  ).encode())

    def send(self, status: int, content: bytes, headers: dict = {}) -> None:  # noqa: B006
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
