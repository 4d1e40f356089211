"""Requests that want to crash a server, read its files or get past its checks, from a seed.

Each is raw bytes and the statuses that may answer it; () where the server may also hang up, as on
bytes that are no request at all.
"""
import base64
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

CHAT, PICTURE = "/v1/chat/completions", "/picture"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
SECRETS = (b"root:", b"/tmp/", b"/work", b"/home", b"/usr", b"Traceback", b"site-packages",
           b"File ")
PATHS = ("/etc/passwd", "/../../etc/passwd", "/examples/../../etc/passwd", "/examples/..%2f..%2fa",
         "/examples/%2e%2e/README.md", "/examples//etc/passwd", "/examples/....//a", "//etc/passwd",
         "/examples/forest.png%00.txt", "/examples/C:\\a", "/examples/\\..\\a", "/v1/../etc/passwd",
         "/.git/config", "/chat.py", "/support/serving/http.py", "/examples/forest.json",
         "/v1/models/../../../etc/shadow", "http://127.0.0.1/etc/passwd", "*", "/%", "/\xff",
         "/examples/", "/v1", "/v1/completions", "/" + "a" * 5000)
URLS = ("file:///etc/passwd", "/etc/passwd", "http://127.0.0.1:1/a.png", "http://169.254.169.254/",
        "data:image/svg+xml;base64,", "data:text/html;base64,PGI+", "ftp://a/b",
        "javascript:alert(1)",
        "\\\\host\\share\\a.png", "../../a.png", "data:image/png;base64,/etc/passwd")
TEXTS = ("\u202e\u200b\ufeff", "\ud800", "\x00", "A\u0301" * 500, "\U0001f6f0" * 300, "<script>",
         "' OR 1=1 --", "{{7*7}}", "${jndi:ldap://a}", "%s%n%x", "\r\nSet-Cookie: a=b", "</s><s>",
         "<Img>" * 50, "{<1><2>", "{<999><0><0><0>}", "[refer] \u0000", "[x] y", "-1 " * 40,
         "1e999 1 2 3 px", "\u2028", "9" * 400 + " 1 1 1 px")
VALUES = (None, True, -1, 0, 1.5, 1e308, 10**30, "", "a", [], {}, [[]], {"a": {}}, "\ud800",
          [None] * 50, {"$gt": ""}, "1; DROP TABLE a")
FIELDS = ("model", "messages", "stream", "stream_options", "stop", "max_tokens", "temperature",
          "top_p", "seed", "n", "tools", "response_format", "user", "__proto__", "logit_bias")
ANY_REFUSAL = tuple(range(400, 429)) + (431, 501, 505)


class Case(NamedTuple):
    name: str
    content: bytes                      # what is sent
    statuses: tuple[int, ...]           # that may answer it
    closes: bool = False                # whether our side ends there
    may_hang_up: bool = False           # without a status


def request(path: str = CHAT, content: bytes = b"", method: str = "POST", **headers: str) -> bytes:
    named = {"Host": "127.0.0.1", "Content-Type": "application/json",
             "Content-Length": str(len(content)), "Connection": "close"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1",
             *(f"{name}: {value}" for name, value in named.items() if value != "none")]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + content


def chat(changes: dict) -> bytes:
    return request(content=json.dumps(HELLO | changes).encode())


def picture_message(url: object, text: str = "what is it ?") -> dict:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": parts}]}


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# ---- the kinds -----------------------------------------------------------------------------------

def bad_paths(rng: random.Random) -> Case:
    path = rng.choice(PATHS)
    return Case("path", request(path.replace(" ", "%20"), b"", rng.choice(("GET", "HEAD")),
                                Content_Type="none"), (400, 404, 414))


def bad_hosts(rng: random.Random) -> Case:
    host = rng.choice((
        "evil.example", "127.0.0.1.evil.example", "localhost.evil", "169.254.169.254", "[::2]",
        "127.0.0.1@evil.example", "localhost:80:80", " ", "[", "0.0.0.0", "127.0.0.1, evil",
        "evil.example:8000", "xn--lcalhost-q4a", "127.1"))
    return Case("host", request(Host=host, content=json.dumps(HELLO).encode()), (400, 421))


def bad_origins(rng: random.Random) -> Case:
    origin = rng.choice(("http://evil.example", "null", "http://127.0.0.1:1", "file://",
                         "http://127.0.0.1.evil.example", "https://localhost", "127.0.0.1", "",
                         "http://evil.example http://127.0.0.1"))
    extra = {"Origin": origin} if rng.random() < 0.7 else {"Sec_Fetch_Site": rng.choice(
        ("cross-site", "same-site"))}
    return Case("origin", request(content=json.dumps(HELLO).encode(), **extra), (403,))


def bad_lengths(rng: random.Random) -> Case:
    kind = rng.randrange(7)
    if kind == 0:
        return Case("1 GB", request(Content_Length=str(10**9)) + b"a" * 1000, (413,))
    if kind == 1:
        return Case("no number", request(Content_Length=rng.choice(
            ("-1", "a", "1e3", "0x10", "1 2", "\xb2", "9" * 30, "+5", ""))), (400,))
    if kind == 2:
        return Case("two lengths", request(X="1\r\nContent-Length: 5"), (400,))
    if kind == 3:
        return Case("no length", request(Content_Length="none"), (411,))
    if kind == 4:
        return Case("length and chunks", request(Transfer_Encoding="chunked"), (411,))
    if kind == 5:
        return Case("a GET with a body", request("/status", b"abc", "GET"), (400,))
    return Case("shorter than told", request(Content_Length="500") + b"{}", (), True, True)


def chunked_garbage(rng: random.Random) -> Case:
    body = rng.choice((b"5\r\nhello\r\n0\r\n\r\n", b"fffffffffffffff\r\n", b"-1\r\n", b"zz\r\n\r\n",
                       b"0\r\n\r\nGET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))
    return Case("chunks", request(Transfer_Encoding=rng.choice(
        ("chunked", "gzip, chunked", "xchunked", "identity", " chunked")),
        Content_Length="none") + body, (411,))


def no_requests(rng: random.Random) -> Case:
    content = rng.choice((
        b"\r\n\r\n", b"GET\r\n\r\n", b"GET /\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 99,
        b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/x\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", rng.randbytes(200) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 150 + b"\r\n", b"GET /" + b"a" * 70_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", b"A B C D\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n"))
    return Case("no request", content, ANY_REFUSAL, True, True)


def cut_off(rng: random.Random) -> Case:
    whole = chat({})
    return Case("cut off", whole[:rng.randrange(1, len(whole) - 1)], ANY_REFUSAL, True, True)


def bad_methods(rng: random.Random) -> Case:
    method = rng.choice(("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "FOO", "get"))
    return Case("method", request(CHAT, b"", method), (405, 501))


def bad_types(rng: random.Random) -> Case:
    kind = rng.choice(("text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
                       "none", "application/jsonp", "text/html", ""))
    return Case("type", request(content=json.dumps(HELLO).encode(), Content_Type=kind), (415,))


def bad_json(rng: random.Random) -> Case:
    content = rng.choice((
        b"[" * 90_000, b'{"a":' * 50_000, b"{", b"", b"\xff" * 50, b"nul", b"1" * 9000, b'"a"',
        b"[]",
        b'{"messages": NaN}', b"{}" * 3, b'{"messages":"\\ud800"}', b"\xef\xbb\xbf{}",
        b"1," * 210_000,
        '{"messages":[]}'.encode("utf-16"), rng.randbytes(300)))
    return Case("json", request(content=content), (400, 413))


def bad_fields(rng: random.Random) -> Case:
    """Some of these values are right ones."""
    name, value = rng.choice(FIELDS), rng.choice(VALUES)
    return Case(f"{name} {value!r:.20}", chat({name: value}), (200, 400, 404))


def odd_texts(rng: random.Random) -> Case:
    return Case("text", chat({"messages": [{"role": "user", "content": rng.choice(TEXTS)}]}),
                (200, 400))


def bad_urls(rng: random.Random) -> Case:
    return Case("url", chat(picture_message(rng.choice(URLS))), (400,))


def bad_pictures(rng: random.Random) -> Case:
    bomb = (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2
            + b"\x08\x02\0\0\0" + b"\0\0\0\0")
    content = rng.choice((bomb, b"", b"%!PS\n/etc/passwd run", rng.randbytes(500), b"GIF89a",
                          b"\x89PNG\r\n\x1a\n" + rng.randbytes(60), b"II*\0" + rng.randbytes(40),
                          b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///a'/></svg>",
                          b"\xff\xd8\xff\xe0" + rng.randbytes(90), b"PK\x03\x04" + b"a" * 50))
    if rng.random() < 0.5:
        return Case("picture", chat(picture_message(data_url(content))), (400,))
    return Case("picture's bytes", request(PICTURE, content,
                                           Content_Type="application/octet-stream"), (400,))


KINDS = (bad_paths, bad_hosts, bad_origins, bad_lengths, chunked_garbage, no_requests, cut_off,
         bad_methods, bad_types, bad_json, bad_fields, odd_texts, bad_urls, bad_pictures)


def hostile_requests(count: int, seed: int = 0) -> Iterator[Case]:
    rng = random.Random(seed)
    for number in range(count):
        yield KINDS[number % len(KINDS)](rng)


# ---- sending -------------------------------------------------------------------------------------

def send(port: int, case: Case, timeout: float = 20) -> bytes:
    """-> all that the server answers, up to where it hangs up."""
    reply = b""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        try:
            connection.sendall(case.content)
            if case.closes:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                reply += part
        except (ConnectionResetError, BrokenPipeError):
            pass
    return reply


def fault_of(case: Case, reply: bytes) -> str:
    """What is wrong with a reply, or ""."""
    if not reply:
        return "" if case.may_hang_up else "no status"
    status = int(reply[9:12]) if reply.startswith(b"HTTP/1.1 ") else 0
    if status not in case.statuses and not (case.may_hang_up and status in ANY_REFUSAL):
        return f"status {status}, not one of {case.statuses}"
    found = [secret for secret in SECRETS if secret in reply]
    return f"it holds {found[0]!r}" if found else ""


def drip(port: int, content: bytes, seconds: float) -> bytes:
    """Send a byte now and then -> what is answered in the end."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.settimeout(seconds)
        for byte in content:
            try:
                connection.sendall(bytes([byte]))
                if reply := connection.recv(65536):
                    return reply
            except TimeoutError:
                continue
            except OSError:
                return b""
            time.sleep(0)
    return b""
