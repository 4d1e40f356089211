"""A client of OpenAI's chat completions interface, which many servers of language models have.

    POST URL/chat/completions   {"model": .., "messages": [..]}, and the key as a bearer token
    200                         {"choices": [{"message": {"content": ..}, "finish_reason": ..}]}

It speaks with the server that the user names and with no other: redirects are not followed, and no
proxy is used. What a server may do now and then is waited for, longer each time: 429 and 503 (as
long as Retry-After says), other 5xx, no connection, no answer in time, half an answer. What it will
do every time is an error of the user's: a wrong key, address or certificate. The key is sent to the
server and nowhere else: no message, no file and no error has it.
"""
import http.client
import os
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from support.common import UserError, parse_json, printable

KEY_VARIABLE = "WRITER_API_KEY"             # of the environment
MAX_ANSWER = 2**22                          # bytes of an answer that are read
WAITED_FOR = (408, 409, 425, 429, *range(500, 600))
USERS_FAULT = {301: "the server sends to another address", 302: "the server sends to another "
               "address", 303: "the server sends to another address", 307: "the server sends to "
               "another address", 308: "the server sends to another address",
               401: f"the server does not accept the key; is {KEY_VARIABLE} right?",
               403: "the server does not allow it with this key",
               404: "the server has no such address or model",
               405: "this address does not take questions"}
MAX_FAILURES = 10       # requests in a row without an answer, after which no more are sent


class NoAnswer(Exception):
    """Why there is none, in one line: `no answer: ..` or `not asked: ..`."""


class Stopped(Exception):
    """The run ends; this request is not sent."""


@dataclass(frozen=True)
class Address:
    secure: bool
    host: str
    port: int | None
    path: str


def parse_address(url: str, flag: str = "--writer") -> Address:
    """https://HOST[:PORT]/v1 -> where its chat completions are. UserError: it is no such URL."""
    example = f"{flag}: name the server as in https://example.org/v1 or http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UserError(example) from None
    if parts.username is not None or parts.password is not None:
        raise UserError(f"{flag}: no user or key in the URL; the key is read from {KEY_VARIABLE}")
    if parts.query or parts.fragment or parts.scheme not in ("http", "https") or not host:
        raise UserError(example)
    if not re.fullmatch(r"[!-~]+", f"{host}{parts.path}"):
        raise UserError(example)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return Address(parts.scheme == "https", host, port, f"{path}/chat/completions")


def read_key() -> str:
    """The key, or "": servers of one's own need none. UserError: no header can hold it."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise UserError(f"{KEY_VARIABLE}: the key has letters that cannot be sent; set it again")
    return key


class Client:
    """Asks one server, from several threads. UserError: its URL or the key are wrong.

    timeout: seconds until an answer must have begun, and between its parts.
    tries: requests until a question is given up. first_wait: seconds after the first of them, twice
    as many after each further one, at most max_wait, and so many of a Retry-After.
    """

    def __init__(self, url: str, timeout: float, tries: int, first_wait: float, max_wait: float):
        self.address, self.key = parse_address(url), read_key()
        self.timeout, self.tries = timeout, tries
        self.first_wait, self.max_wait = first_wait, max_wait
        self.context = ssl.create_default_context() if self.address.secure else None
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.sockets: set[socket.socket] = set()        # of the requests under way
        self.not_before = 0.0                           # on the clock of time.monotonic
        self.failures = 0                               # in a row

    def ask(self, body: bytes) -> dict[str, str]:
        """-> content, finish_reason and refusal. NoAnswer, Stopped; UserError: it would be the same
        with every other question."""
        if self.failures >= MAX_FAILURES:
            raise NoAnswer(f"not asked: {MAX_FAILURES} questions in a row had no answer")
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                self.hold(0, min(self.max_wait, self.first_wait * 2 ** (attempt - 1)))
            self.wait_turn()
            try:
                status, headers, content = self.post(body)
                if status == 200:
                    answer = read_answer(content)
                    self.failures = 0
                    return {name: self.hide_key(text) for name, text in answer.items()}
            except ssl.SSLCertVerificationError as error:
                raise UserError(f"--writer: the certificate of {self.address.host} is not valid "
                                f"({error.verify_message})") from None
            except TimeoutError:
                reason = f"nothing in {self.timeout:g} seconds"
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = self.shown(str(error) or type(error).__name__)
            else:
                reason = self.reason_of(status, headers, content)
                if status not in WAITED_FOR:
                    raise NoAnswer(f"no answer: {reason}")
                self.hold(retry_after(headers), 0)
        with self.lock:
            self.failures += 1
        raise NoAnswer(f"no answer: {reason} ({self.tries} tries)")

    def reason_of(self, status: int, headers: http.client.HTTPMessage, content: bytes) -> str:
        """What a status other than 200 means. UserError: it would come again each time."""
        text = self.shown(error_message(content))
        if status in USERS_FAULT:
            where = f" ({self.shown(headers['Location'])})" if headers["Location"] else ""
            raise UserError(f"--writer: {USERS_FAULT[status]}{where}; it says {status} {text}")
        return f"HTTP {status} {text}".strip()

    def hide_key(self, text: str) -> str:
        """Servers like to repeat a key that they do not accept."""
        return text.replace(self.key, "***") if self.key else text

    def shown(self, text: str) -> str:
        """For a message: short, on one line, without the key."""
        return printable(self.hide_key(text), 200)

    # -- one request

    def post(self, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        """-> status, headers and content. OSError, HTTPException: no whole answer."""
        headers = {"Content-Type": "application/json", "Accept": "application/json",
                   "User-Agent": "skyeyegpt-data", "Connection": "close"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = self.address
        if address.secure:
            connection = http.client.HTTPSConnection(address.host, address.port,
                                                     timeout=self.timeout, context=self.context)
        else:
            connection = http.client.HTTPConnection(address.host, address.port,
                                                    timeout=self.timeout)
        try:
            connection.connect()
            opened = connection.sock
            with self.lock:
                self.sockets.add(opened)
            try:
                connection.request("POST", address.path, body, headers)
                response = connection.getresponse()
                return response.status, response.headers, self.read_whole(response)
            finally:
                with self.lock:
                    self.sockets.discard(opened)
        finally:
            connection.close()

    def read_whole(self, response: http.client.HTTPResponse) -> bytes:
        """TimeoutError: it comes too slowly. ValueError: too long, or not to its end."""
        deadline, content = time.monotonic() + self.timeout, b""
        while block := response.read1(2**16):
            content += block
            if len(content) > MAX_ANSWER:
                raise ValueError(f"an answer of over {MAX_ANSWER} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:
            raise ValueError("half an answer")
        return content

    # -- waiting and stopping

    def hold(self, everybody: float, this_thread: float) -> None:
        """Wait so many seconds before the next request, of any thread or of this one. Stopped."""
        with self.lock:
            self.not_before = max(self.not_before,
                                  time.monotonic() + min(everybody, self.max_wait))
        if self.stopping.wait(this_thread):
            raise Stopped

    def wait_turn(self) -> None:
        """Stopped: the run ends first."""
        while (seconds := self.not_before - time.monotonic()) > 0:
            if self.stopping.wait(seconds):
                raise Stopped
        if self.stopping.is_set():
            raise Stopped

    def cut_off(self) -> None:
        """End the requests that are under way."""
        with self.lock:
            for opened in self.sockets:
                try:
                    opened.shutdown(socket.SHUT_RDWR)
                except OSError:                         # it has just ended
                    pass


def retry_after(headers: http.client.HTTPMessage) -> float:
    """Seconds, given as such or as a date; 0 where there is none, or none that can be read."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def error_message(content: bytes) -> str:
    """What a server says beside its status, on one line."""
    text = content.decode("utf-8", "replace")
    try:
        error = parse_json(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        pass
    return " ".join(text.split())


def read_answer(content: bytes) -> dict[str, str]:
    """A chat completion -> content, finish_reason and refusal. ValueError: it is none."""
    try:
        choice = parse_json(content.decode("utf-8"))["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        if isinstance(text, list):                      # in parts
            text = "".join(part["text"] for part in text if part.get("type") == "text")
        found = {"content": text, "finish_reason": choice.get("finish_reason") or "",
                 "refusal": message.get("refusal") or ""}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"no chat completion: {error_message(content)}") from None
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError("no chat completion: its fields are no texts")
    return found
