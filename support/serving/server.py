"""The server of `chat.py --serve`, over Python's own http.server: a thread for each connection, one
for the model.

It answers this machine alone, unless it is told an address, and then only whoever knows a token.
SIGTERM and Ctrl-C let the answers under way finish.
"""
import base64
import contextlib
import hashlib
import hmac
import ipaddress
import os
import re
import socket
import socketserver
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

from data import Tokenizer
from projector import SkyEyeGPT
from support.common import GracefulStop, UserError, read_text
from support.serving.api import RequestError, Service, Settings
from support.serving.engine import Engine
from support.serving.http import MEGABYTE, Handler, print_fault
from support.serving.pictures import PictureReader, example_files
from support.terminal.display import eprint

MAX_BODIES = 256 << 20          # bytes of all requests that are being read or answered
MAX_CONNECTIONS = 256
SWITCH_SECONDS = 2e-4           # after which the model's thread gets its turn among those that read
CLOSE_SECONDS = 60.0            # for the answers under way, when the server is told to end
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "SKYEYE_TOKEN"
PAGE = Path(__file__).with_name("page.html")

Loader = Callable[[], tuple[SkyEyeGPT, Tokenizer]]


class ServeConfig(Settings, Protocol):
    """What is used of chat.ChatConfig."""
    images: Sequence[str]
    prompt: Sequence[str]
    each: bool
    save: Path | None
    json: bool
    compile: bool
    model: str
    host: str
    port: int
    token: Path | None
    open: bool
    batch_size: int
    most_waiting: int
    cache_mb: int


# ---- the command ---------------------------------------------------------------------------------

def serve(config: ServeConfig, load: Loader) -> int:
    """Answer until SIGTERM or Ctrl-C, which let the answers under way finish -> the exit code.

    UserError: the address cannot be had, a token is missing, or the model cannot be loaded.
    """
    check_flags(config)
    sys.setswitchinterval(SWITCH_SECONDS)
    server = make_server(config)
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True, name="http").start()
    eprint(f"{server.url}  (Ctrl-C ends)")
    try:
        eprint(f"loading {config.model}")
        model, tokenizer = load()               # until then a signal ends it at once
        with GracefulStop(quiet=True) as stop:
            server.attach(model, tokenizer)
            eprint("ready")
            if config.open and has_display():
                webbrowser.open(server.url)
            while not stop.signal:
                time.sleep(0.1)
            eprint("finishing the answers under way; once more to quit at once")
            server.drain(CLOSE_SECONDS)
    finally:
        server.stop()
    return stop.code


def check_flags(config: ServeConfig) -> None:
    """UserError: flags that do not go together with --serve."""
    for name in ("images", "prompt", "each", "save", "json", "compile"):
        if getattr(config, name):
            flag = "pictures" if name == "images" else f"--{name}"
            raise UserError(f"--serve: pictures and questions come from the page or a program: "
                            f"leave out {flag}")


def make_server(config: ServeConfig) -> "ChatServer":
    """UserError: no token for an address that others reach, or the port is taken."""
    token = read_token(config.token)
    if config.host not in LOCAL_HOSTS and not token:
        raise UserError(f"--host {config.host}: others can reach it: --token FILE holds the token "
                        f"that they have to send, or the environment's {TOKEN_VARIABLE}")
    try:
        return ChatServer(config, token)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {config.host} --port {config.port}: {reason}; --port 0 takes a "
                        "free one") from None


def read_token(file: Path | None) -> str:
    """The file's one line, or the environment's SKYEYE_TOKEN; "" for neither. UserError."""
    token = read_text(file).strip() if file else os.environ.get(TOKEN_VARIABLE, "")
    place = f"--token {file}" if file else TOKEN_VARIABLE
    if (file or token) and not re.fullmatch(r"[\x21-\x7e]{16,500}", token):
        raise UserError(f"{place}: a token is one line of at least 16 letters or digits, as from: "
                        "openssl rand -hex 24")
    return token


def has_display() -> bool:
    """Whether a browser can show a window; else the module may start one in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


# ---- the server ----------------------------------------------------------------------------------

class ChatServer(ThreadingHTTPServer):
    """A thread for each connection; the model's own thread answers (engine.py)."""
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, config: ServeConfig, token: str = ""):
        """OSError: the address cannot be had."""
        self.config, self.token_hash = config, sha256(token) if token else b""
        self.address_family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        self.name = Path(config.model).resolve().name
        self.service: Service | None = None             # once the model is loaded
        self.engine: Engine | None = None
        self.closing, self.began = False, time.time()
        self.connections = threading.Semaphore(MAX_CONNECTIONS)
        self.bodies = Budget(MAX_BODIES)
        self.under_way = Counter()                      # requests that are being answered
        self.examples = example_files()
        self.page, self.page_headers = read_page()
        super().__init__((config.host, config.port), Handler)

    def server_bind(self) -> None:
        """Without http.server's question to the name servers what this host is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def url(self) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.server_port}/"

    def attach(self, model: SkyEyeGPT, tokenizer: Tokenizer) -> None:
        """From now on it answers."""
        config = self.config
        self.engine = Engine(model, config.batch_size, config.most_waiting,
                             config.cache_mb * MEGABYTE)
        self.engine.start()
        reader = PictureReader(model.config.vit.image_size, model.config.prompt)
        self.service = Service(self.name, model.config, tokenizer, reader, config)

    def drain(self, seconds: float) -> None:
        """Take no more connections and questions; finish the answers under way."""
        self.closing = True
        self.shutdown()
        self.under_way.wait_until_zero(seconds)

    def stop(self) -> None:
        self.closing = True
        self.shutdown()
        self.server_close()
        if self.engine:
            self.engine.close()
        if self.service:
            self.service.reader.close()

    def allows_host(self, host: str) -> bool:
        """Whether a request may call this server so: by a name that a foreign page cannot take.

        A name that somebody else points to this machine is none (DNS rebinding).
        """
        name = host_name(host)
        if name in LOCAL_HOSTS or name == self.config.host.lower():
            return True
        return bool(self.token_hash) and (is_address(name) or name == socket.gethostname().lower())

    def allows_token(self, header: str) -> bool:
        """Compared in constant time."""
        given = header.removeprefix("Bearer ") if header.startswith("Bearer ") else ""
        return not self.token_hash or hmac.compare_digest(sha256(given), self.token_hash)

    def process_request(self, request: socket.socket, client_address) -> None:
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.setblocking(False)          # whatever it says, the others are not kept waiting
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n"
                            b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request, client_address) -> None:
        """Of a connection: what a client did is told nobody, a fault of ours where it lies."""
        if not isinstance(sys.exc_info()[1], OSError | HTTPException):
            print_fault()


class Budget:
    """Bytes that all requests together may hold."""

    def __init__(self, limit: int):
        self.left, self.lock = limit, threading.Lock()

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        """RequestError: so many are not to be had now."""
        with self.lock:
            if count > self.left:
                raise RequestError("too many large requests at once; try again", 429,
                                   headers={"Retry-After": "2"})
            self.left -= count
        try:
            yield
        finally:
            with self.lock:
                self.left += count


class Counter:
    """Counts those within `with`."""

    def __init__(self):
        self.count, self.changed = 0, threading.Condition()

    def __enter__(self) -> None:
        with self.changed:
            self.count += 1

    def __exit__(self, *_) -> None:
        with self.changed:
            self.count -= 1
            self.changed.notify_all()

    def wait_until_zero(self, seconds: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.count == 0, seconds)


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def host_name(host: str) -> str:
    """Of a Host header, without the port: localhost:8000, [::1]:8000."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::\d{1,5})?", host.strip().lower())
    return (match[1] or match[2]) if match else ""


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# ---- the page ------------------------------------------------------------------------------------

def read_page() -> tuple[bytes, dict[str, str]]:
    """-> the page, and headers that let nothing run in it but its own script and style.

    Those are named by their hashes; nothing is loaded from elsewhere, and no text becomes markup
    (trusted types).
    """
    text = PAGE.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[tag] = f"'sha256-{digest}'"
    policy = (f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
              "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
              "form-action 'none'; "
              "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
    return text.encode(), {"Content-Type": "text/html; charset=utf-8",
                           "Content-Security-Policy": policy}
