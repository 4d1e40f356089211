"""One connection of `chat.py --serve`: requests are read, checked and answered.

    GET  /                        the page, one file, with its script and style
    GET  /status                  whether the model is loaded, how many questions wait
    GET  /examples/NAME           a picture of this repository's examples
    POST /picture                 what the page shows of a picture's bytes: size, note, coordinates
    GET  /v1/models               as OpenAI's clients speak it
    GET  /v1/models/NAME          the one model
    POST /v1/chat/completions     likewise (api.py)

Sizes are checked before anything is read, and whoever is slow is cut off. Host and Origin are
checked, so that a page of another site can neither reach the server by a name that it points here
nor post to it. What is logged is the method, the path, the status and the time, and nothing that
was asked.
"""
import contextlib
import io
import json
import queue
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from data import IDENTIFIERS, PROMPTS
from support.common import UserError, is_out_of_memory
from support.serving.api import (
    Answer,
    RequestError,
    Service,
    model_json,
    no_such_model,
    parse_request,
)
from support.serving.engine import Closing, Ended, Engine, QueueFull
from support.terminal.display import eprint

MAX_BODY = 64 << 20             # bytes of a request
IDLE_SECONDS = 60.0             # that a connection is kept without a request
HEADER_SECONDS = 10.0           # from a request's first byte to the end of its headers
BODY_SECONDS = 20.0             # for a body, and a second more for each MEGABYTE
MEGABYTE = 1 << 20
WRITE_SECONDS = 30.0            # for a reader that does not read
POLL_SECONDS = 0.5              # between two looks whether the asker is still there
COMMENT_SECONDS = 5.0           # between two signs of life in a stream that waits
LINGER_SECONDS, LINGER_BYTES = 2.0, 4 << 20     # that are read and dropped after a refusal


class Server(Protocol):
    """What is used of server.ChatServer."""
    name: str
    service: Service | None                     # once the model is loaded
    engine: Engine | None
    closing: bool
    began: float
    page: bytes
    page_headers: dict[str, str]
    examples: dict[str, Path]
    bodies: "contextlib.AbstractContextManager"
    under_way: contextlib.AbstractContextManager

    def allows_host(self, host: str) -> bool: ...
    def allows_token(self, header: str) -> bool: ...


class TimedReader(io.RawIOBase):
    """A socket that has to give what is read from it before a point in time."""

    def __init__(self, connection: socket.socket):
        self.connection, self.end = connection, 0.0

    def allow(self, seconds: float) -> None:
        """From now on."""
        self.end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One connection, and its requests one after the other."""
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "skyeyegpt", ""

    # ---- reading ---------------------------------------------------------------------------------

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.reader = TimedReader(self.connection)
        self.rfile = io.BufferedReader(self.reader)

    def handle_one_request(self) -> None:
        self.close_connection, self.began, self.status, self.command = True, 0.0, 0, ""
        self.route, self.unread, self.path, self.request_version = "?", 0, "", "HTTP/1.1"
        try:
            self.reader.allow(IDLE_SECONDS)
            first = self.rfile.peek(1)                  # of the next request; none: they hung up
            if not first:
                return
            self.began = time.monotonic()
            self.reader.allow(HEADER_SECONDS)
            self.raw_requestline = self.rfile.readline(65537)
            if len(self.raw_requestline) > 65536:
                self.refuse(RequestError("the request's first line is too long", 414))
            elif self.parse_request():
                with self.server.under_way:
                    self.answer_request()
        except TimeoutError:
            if self.began and not self.status:
                self.refuse(RequestError("the request did not arrive in time", 408))
            self.close_connection = True
        except OSError:                                 # they hung up
            self.close_connection = True
        finally:
            if self.began:
                self.log()

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):
            self.refuse(RequestError("HTTP/1.0 and HTTP/1.1 are spoken here", 505))
            return False
        return True

    def handle_expect_100(self) -> bool:
        """100 Continue is sent when the body is wanted."""
        return True

    def answer_request(self) -> None:
        """Check whoever asks, find the route, answer. What was refused becomes an error object."""
        self.path = self.path.split("?", 1)[0]
        self.unread = self.content_length(check=False)
        try:
            self.check_caller()
            method = "GET" if self.command == "HEAD" else self.command
            route = next((route for route in ROUTES if self.path == route or (
                route.endswith("/") and route != "/" and self.path.startswith(route))), "")
            if not route:
                raise RequestError("no such path", 404)
            self.route = route
            if method not in ROUTES[route]:
                allowed = ", ".join(ROUTES[route])
                raise RequestError(f"{allowed} is answered here", 405, headers={"Allow": allowed})
            if route != "/":
                self.check_token()
            if method == "GET" and self.content_length():
                raise RequestError("a GET has no body", 400)
            ROUTES[route][method](self)
        except RequestError as error:
            self.refuse(error)
        except (QueueFull, Closing) as error:
            self.refuse(as_request_error(error))
        except OSError:
            raise
        except Exception as error:
            print_fault()
            self.refuse(as_request_error(error))

    def check_caller(self) -> None:
        """RequestError: headers that contradict each other, a foreign name, another site's page."""
        for name in ("Host", "Content-Length", "Authorization", "Origin", "Content-Type"):
            if len(self.headers.get_all(name, [])) > 1:
                raise RequestError(f"more than one header {name}")
        if "Transfer-Encoding" in self.headers:
            raise RequestError("a body needs a Content-Length here; chunks are not read", 411)
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not host:
            raise RequestError("no header Host")
        if not self.server.allows_host(host):
            raise RequestError("this server is not known by the name in the header Host", 421)
        if origin is not None and origin.lower() not in (f"http://{host.lower()}",
                                                         f"https://{host.lower()}"):
            raise RequestError("another site's page may not ask here", 403)
        if self.command == "POST" and self.headers.get("Sec-Fetch-Site", "none") not in (
                "same-origin", "none"):
            raise RequestError("another site's page may not ask here", 403)

    def check_token(self) -> None:
        if not self.server.allows_token(self.headers.get("Authorization", "")):
            raise RequestError("the token is missing or wrong: Authorization: Bearer TOKEN", 401,
                               code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def content_length(self, check: bool = True) -> int:
        """RequestError: no number, or more than may come; without `check` such a one is 0."""
        text = self.headers.get("Content-Length", "0").strip()
        known = re.fullmatch(r"\d{1,19}", text, re.ASCII)
        if check and not known:
            raise RequestError("Content-Length is not a number of bytes")
        length = int(text) if known else 0
        if check and length > MAX_BODY:
            raise RequestError(f"the body has over {MAX_BODY >> 20} MB", 413)
        return length

    @contextlib.contextmanager
    def body(self, content_type: str) -> Iterator[bytes]:
        """The request's body, counted as long as it is held. RequestError."""
        given = self.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if given != content_type:
            raise RequestError(f"Content-Type must be {content_type}", 415)
        if "Content-Length" not in self.headers:
            raise RequestError("no header Content-Length", 411)
        length = self.content_length()
        with self.server.bodies.take(length):
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.reader.allow(BODY_SECONDS + length / MEGABYTE)
            content = self.rfile.read(length)
            if len(content) < length:
                raise ConnectionResetError              # they hung up in the middle
            self.unread = 0
            yield content

    # ---- writing ---------------------------------------------------------------------------------

    def send_all(self, content: bytes) -> None:
        self.connection.settimeout(WRITE_SECONDS)
        self.connection.sendall(content)

    def head(self, status: int, headers: dict[str, str]) -> bytes:
        """Status line and headers; after a request whose body was not read, the connection ends."""
        self.status = status
        self.close_connection |= self.unread > 0 or self.server.closing
        lines = [f"HTTP/1.1 {status} {self.responses.get(status, ('',))[0]}"]
        fixed = {"Server": self.server_version, "Date": self.date_time_string(),
                 "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
                 "Cross-Origin-Resource-Policy": "same-origin",
                 "Cross-Origin-Opener-Policy": "same-origin", "X-Frame-Options": "DENY",
                 "Cache-Control": "no-store",
                 "Connection": "close" if self.close_connection else "keep-alive"}
        lines += [f"{name}: {value}" for name, value in (fixed | headers).items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def reply(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        head = self.head(status, {"Content-Length": str(len(content))} | headers)
        self.send_all(head + (b"" if self.command == "HEAD" else content))

    def reply_json(self, value: object, status: int = 200, headers: dict | None = None) -> None:
        self.reply(json.dumps(value).encode(), {"Content-Type": "application/json"}
                   | (headers or {}), status)

    def refuse(self, error: RequestError) -> None:
        """An error object; what is still to come of the request is read and dropped, since to close
        at once would take the reply from its reader."""
        self.close_connection |= self.unread > 0 or not hasattr(self, "headers")
        self.reply_json(error.to_json(), error.status, error.headers)
        if not self.close_connection:
            return
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.reader.allow(LINGER_SECONDS)
            dropped = 0
            while dropped < min(self.unread or 1 << 16, LINGER_BYTES) and (
                    part := self.rfile.read1(1 << 16)):
                dropped += len(part)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself, without the request's own text."""
        self.close_connection = True
        self.refuse(RequestError(f"not a request that is understood here ({code})", int(code)))

    def log(self) -> None:
        known = self.command in ("GET", "HEAD", "POST")
        seconds = time.monotonic() - self.began
        eprint(f"{self.command if known else '?'} {self.route} {self.status or 'hung up'} "
               f"{seconds:.2f} s")

    def log_message(self, *_) -> None:
        """Nothing: `log` writes one line a request, without its content."""

    # ---- routes ----------------------------------------------------------------------------------

    def get_page(self) -> None:
        self.reply(self.server.page, self.server.page_headers)

    def get_status(self) -> None:
        engine = self.server.engine
        state = "ending" if self.server.closing else "ready" if self.server.service else "loading"
        load = engine.load() if engine else {"answering": 0, "waiting": 0}
        style = self.server.service.model_config.prompt if self.server.service else ""
        self.reply_json({"state": state, "model": self.server.name, **load,
                         "pad": bool(style) and PROMPTS[style].pad,
                         "tasks": list(IDENTIFIERS), "examples": list(self.server.examples)})

    def get_example(self) -> None:
        file = self.server.examples.get(self.path.removeprefix("/examples/"))
        if file is None:
            raise RequestError("no such example", 404)
        self.reply(file.read_bytes(), {"Content-Type": "image/png"})

    def get_models(self) -> None:
        own = model_json(self.server.name, self.server.began)
        if self.route == "/v1/models":
            self.reply_json({"object": "list", "data": [own]})
        elif unquote(self.path.removeprefix(self.route)) == self.server.name:
            self.reply_json(own)
        else:
            raise no_such_model(self.server.name)

    def post_picture(self) -> None:
        service = self.loaded()
        with self.body("application/octet-stream") as content:
            try:
                found = service.reader.describe(content)
            except UserError as error:
                raise RequestError(str(error)) from None
        self.reply_json(found)

    def post_chat(self) -> None:
        service = self.loaded()
        with self.body("application/json") as content:
            request = parse_request(content, service.name)
            del content
            answer = service.prepare(request)
        request.pictures.clear()                        # they are encoded
        self.server.engine.submit(answer.question)
        try:
            self.stream(answer) if request.stream else self.send_whole(answer)
        finally:
            answer.question.cancel()

    def loaded(self) -> Service:
        if self.server.closing:
            raise RequestError("the server ends", 503, headers={"Retry-After": "10"})
        if self.server.service is None:
            raise RequestError("the model is being loaded", 503, headers={"Retry-After": "2"})
        return self.server.service

    # ---- answers ---------------------------------------------------------------------------------

    def events(self, answer: Answer) -> Iterator[list[int] | Ended | None]:
        """What arrives; None now and then while nothing does. OSError: the asker has hung up."""
        while not answer.ended:
            try:
                yield answer.question.events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if self.hung_up():
                    raise ConnectionResetError from None
                yield None

    def hung_up(self) -> bool:
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send_whole(self, answer: Answer) -> None:
        for event in self.events(answer):
            if event is not None:
                answer.take(event)
        self.reply_json(answer.completion())

    def stream(self, answer: Answer) -> None:
        """Server-sent events, in chunks; comments tell how many questions are before this one."""
        chunked = self.request_version == "HTTP/1.1"
        self.close_connection |= not chunked
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        headers |= {"Transfer-Encoding": "chunked"} if chunked else {}
        self.send_all(self.head(200, headers))
        write = self.write_chunk if chunked else self.send_all
        write(b"".join(map(event_text, answer.chunks(first=True))))
        told, place = time.monotonic(), -1
        try:
            for event in self.events(answer):
                if event is not None:
                    answer.take(event)
                    if text := b"".join(map(event_text, answer.chunks())):
                        write(text)
                elif (now := self.server.engine.place(answer.question)) != place or (
                        time.monotonic() - told > COMMENT_SECONDS):
                    told, place = time.monotonic(), now
                    write(f": waiting {now}\n\n".encode())
            write(b"data: [DONE]\n\n")
        except OSError:
            raise
        except Exception as error:                      # the status has been sent already
            write(event_text(as_request_error(error).to_json()))
        if chunked:
            self.send_all(b"0\r\n\r\n")

    def write_chunk(self, content: bytes) -> None:
        self.send_all(b"%x\r\n%s\r\n" % (len(content), content))

    def do_GET(self) -> None:
        """Not called: answer_request finds the route."""

    do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_GET


def print_fault() -> None:
    """Where in our code an error was raised, without the text, which may hold what was asked."""
    error = sys.exc_info()[1]
    places = [f"{Path(frame.filename).name}:{frame.lineno}"
              for frame in traceback.extract_tb(error.__traceback__)]
    eprint(f"chat.py: {type(error).__name__} in {' '.join(places[-4:])}")


def event_text(value: dict) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def as_request_error(error: Exception) -> RequestError:
    """What is said to whoever asked, without what may stand in the error's own text."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, QueueFull):
        return RequestError(str(error), 429, code="rate_limit_exceeded",
                            headers={"Retry-After": str(error.seconds)})
    if isinstance(error, Closing):
        return RequestError("the server ends", 503, headers={"Retry-After": "10"})
    if is_out_of_memory(error):
        return RequestError("the model's memory is full; ask shorter or later", 503,
                            headers={"Retry-After": "5"})
    return RequestError("a fault of the server", 500)


# path, or what a path begins with -> method -> what answers it
ROUTES: dict[str, dict[str, Callable[[Handler], None]]] = {
    "/": {"GET": Handler.get_page},
    "/status": {"GET": Handler.get_status},
    "/examples/": {"GET": Handler.get_example},
    "/picture": {"POST": Handler.post_picture},
    "/v1/models": {"GET": Handler.get_models},
    "/v1/models/": {"GET": Handler.get_models},
    "/v1/chat/completions": {"POST": Handler.post_chat},
}
