"""chat.py --serve over HTTP: who may ask, what is refused, and that nothing brings it down."""
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

import chat
import tiny
from hostile_requests import Case, drip, fault_of, hostile_requests, request, send
from serving import URL, alone, answer_of, ask, body, serving, streamed, tiny_model, user
from support.common import UserError
from support.serving import http as handler
from support.serving.server import check_flags, has_display, host_name, make_server, read_token

MODEL, TOKENIZER = tiny_model()
QUESTIONS = ("[vqa] is there a road ?", "find all ships", "tell me about the river and planes",
             "where is the plane ?", "what is in 2 2 15 15 px")


@pytest.fixture(scope="module")
def server():
    with serving(MODEL, TOKENIZER, "--batch_size", "4") as own:
        yield own


@pytest.fixture
def paths(tmp_path):
    return [tiny.picture(tmp_path / f"{i}.png", 20 + i, 30, seed=i) for i in range(3)]


# ---- answers -------------------------------------------------------------------------------------

def test_an_answer_is_that_of_chat_py(server, paths):
    status, _, reply = ask(server, body(QUESTIONS[1], *paths[:2], model=server.name))
    text, boxes = alone(MODEL, TOKENIZER, paths[:2], [QUESTIONS[1]])
    assert status == 200 and answer_of(reply) == text and reply["skyeyegpt"]["boxes"] == boxes
    assert reply["skyeyegpt"]["question"] == "[detection] ships"
    assert reply["usage"]["total_tokens"] == sum(
        reply["usage"][name] for name in ("prompt_tokens", "completion_tokens"))


def test_a_stream_ends_with_done_and_says_what_the_whole_reply_says(server, paths):
    content = body(QUESTIONS[2], paths[0])
    _, headers, text = ask(server, content | {"stream": True})
    _, _, whole = ask(server, content)
    assert headers["Content-Type"].startswith("text/event-stream")
    said, reason, extra = streamed(text)
    assert said == answer_of(whole) and extra == whole["skyeyegpt"]
    assert reason == whole["choices"][0]["finish_reason"]


def test_a_conversation_goes_on(server, paths):
    _, _, first = ask(server, body(QUESTIONS[0], paths[0]))
    said = {"role": "assistant", "content": answer_of(first)}
    talk = [user(QUESTIONS[0], paths[0]), said, user(QUESTIONS[3])]
    _, _, second = ask(server, {"messages": talk})
    expected, _ = alone(MODEL, TOKENIZER, paths[:1], [QUESTIONS[0], QUESTIONS[3]])
    assert answer_of(second) == expected
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 20


def test_each_of_many_at_once_gets_the_answer_it_gets_alone(server, paths):
    asked = [(text, paths[i:i + 1 + j]) for i in range(2) for j in range(2) for text in QUESTIONS]
    answers = [None] * len(asked)

    def one(number):
        text, own = asked[number]
        _, _, reply = ask(server, body(text, *own, stream=number % 2 == 0))
        answers[number] = streamed(reply)[0] if number % 2 == 0 else answer_of(reply)
    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [alone(MODEL, TOKENIZER, own, [text])[0] for text, own in asked]


def test_the_models_and_the_status_are_listed(server):
    [model] = ask(server, None, path="/v1/models", method="GET")[2]["data"]
    assert model["id"] == server.name
    assert ask(server, None, path=f"/v1/models/{server.name}", method="GET")[2] == model
    for name in ("gpt-4o", "", "..%2f..", f"{server.name}/a"):
        status, _, reply = ask(server, None, path=f"/v1/models/{name}", method="GET")
        assert status == 404 and reply["error"]["code"] == "model_not_found"
    status = ask(server, None, path="/status", method="GET")[2]
    assert status["state"] == "ready" and "forest.png" in status["examples"]
    assert "desert_boxes.png" not in status["examples"] and len(status["examples"]) == 10
    code, headers, content = ask(server, None, path="/examples/forest.png", method="GET")
    assert code == 200 and content == (tiny.ROOT / "examples/forest.png").read_bytes()
    code, headers, content = ask(server, None, path="/examples/forest.png", method="HEAD")
    assert code == 200 and not content and int(headers["Content-Length"]) > 1000


def test_one_connection_takes_many_requests(server):
    head = request("/status", method="GET", Connection="keep-alive", Content_Type="none")
    last = request("/v1/models", method="GET", Content_Type="none")
    reply = send(server.server_port, Case("", head * 2 + last, (200,)))
    assert reply.count(b"HTTP/1.1 200 OK") == 3 and reply.count(b"Connection: keep-alive") == 2


def test_an_old_client_gets_a_stream_without_chunks(server):
    content = json.dumps(body("hello", stream=True)).encode()
    raw = request(content=content).replace(b"HTTP/1.1", b"HTTP/1.0")
    reply = send(server.server_port, Case("", raw, (200,)))
    assert b"chunked" not in reply and reply.endswith(b"data: [DONE]\n\n")


def test_a_body_may_wait_for_the_word_to_come(server):
    content = json.dumps(body("hello", max_tokens=1)).encode()
    head, _, rest = request(content=content, Expect="100-continue").partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.server_port), 20) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(rest)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


# ---- the page's pictures -------------------------------------------------------------------------

def describe(server, content):
    return ask(server, content, {"Content-Type": "application/octet-stream"}, "/picture")


def test_what_the_page_shows_of_a_picture(server, paths, tmp_path):
    with open(paths[1], "rb") as file:
        status, _, found = describe(server, file.read())
    assert status == 200 and found == {"width": 21, "height": 30, "note": ""}


def geotiff(**tags):
    """A 16-bit TIFF of 40 x 30 pixels, with GeoTIFF tags."""
    own = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, values in ((33550, 12, (0.5, 0.25, 0.0)), (33922, 12, (0, 0, 0, 500, 900, 0.0)),
                              (34735, 3, (1, 1, 0, 1, 3072, 0, 1, 32650))):
        if tag not in tags.get("without", ()):
            own.tagtype[tag], own[tag] = kind, values
    content = io.BytesIO()
    pixels = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
    Image.fromarray(pixels).save(content, "TIFF", tiffinfo=own)
    return content.getvalue()


def test_a_geotiff_is_shown_as_a_copy_with_its_place(server):
    status, _, found = describe(server, geotiff())
    assert status == 200 and found["preview"].startswith("data:image/png;base64,")
    assert found["coordinates"] == {"left": 500.0, "top": 900.0, "width": 0.5, "height": 0.25,
                                    "epsg": 32650}
    assert describe(server, geotiff(without=(34735,)))[2]["coordinates"]["epsg"] is None
    assert "coordinates" not in describe(server, geotiff(without=(33550,)))[2]


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(server):
    content = io.BytesIO()
    Image.new("1", (11_000, 10_000)).save(content, "PNG")
    status, _, reply = describe(server, content.getvalue())
    assert status == 400 and "at most 100 million" in reply["error"]["message"]


# ---- who may ask ---------------------------------------------------------------------------------

TOKEN = "a-token-of-24-characters"


def test_a_token_is_asked_for_everywhere_but_on_the_page(tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    with serving(MODEL, TOKENIZER, "--token", str(tmp_path / "token")) as own:
        for path, method in (("/v1/models", "GET"), ("/status", "GET"), (URL, "POST"),
                             ("/examples/forest.png", "GET"), ("/picture", "POST")):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN},
                           {"Authorization": f"Bearer {TOKEN} "[:-2]}):
                status, headers, reply = ask(own, None if method == "GET" else b"{}", header, path,
                                             method)
                assert status == 401 and headers["WWW-Authenticate"] == "Bearer"
                assert reply["error"]["code"] == "invalid_api_key"
        assert ask(own, None, path="/", method="GET")[0] == 200
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert ask(own, None, right, "/v1/models", "GET")[0] == 200
        assert ask(own, body("hello", max_tokens=1), right)[0] == 200


def test_an_address_that_others_reach_needs_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv("SKYEYE_TOKEN", raising=False)
    config = chat.parse_args(["--serve", "--host", "0.0.0.0", "--port", "0"])
    assert "--token" in tiny.refusal(UserError, make_server, config)
    monkeypatch.setenv("SKYEYE_TOKEN", "short")
    message = tiny.refusal(UserError, make_server, config)
    assert "SKYEYE_TOKEN" in message and "short" not in message
    (tmp_path / "token").write_text("a secret with blanks in it")
    assert "secret" not in tiny.refusal(UserError, read_token, tmp_path / "token")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN


def test_names_that_are_allowed():
    config = chat.parse_args(["--serve", "--port", "0"])
    own = make_server(config)
    with contextlib.closing(own.socket):
        assert all(map(own.allows_host, ("127.0.0.1", "localhost:9", "[::1]:80", "LOCALHOST")))
        assert not any(map(own.allows_host, ("10.0.0.1", "a.example", "", "localhost.a", "[::1",
                                             "127.0.0.1:a", "localhost:8000:1", "a@localhost")))
    assert host_name("[::1]:8000") == "::1" and host_name("a b") == "a b"


def test_flags_that_do_not_go_together_are_refused(capsys):
    for flags in (["a.png"], ["--prompt", "a"], ["--each"], ["--json"], ["--save", "a.png"]):
        message = tiny.refusal(UserError, check_flags, chat.parse_args(["--serve", *flags]))
        assert "leave out" in message


def test_a_port_that_is_taken_is_told_in_one_line(server):
    config = chat.parse_args(["--serve", "--port", str(server.server_port)])
    assert f"--port {server.server_port}: Address already in use" in tiny.refusal(
        UserError, make_server, config)


def test_a_browser_is_opened_where_it_can_be_seen(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", "")
    assert not has_display()
    monkeypatch.setenv("DISPLAY", ":0")
    assert has_display()


# ---- the page's safety ---------------------------------------------------------------------------

def test_nothing_but_the_pages_own_script_runs_in_it(server):
    _, headers, page = ask(server, None, path="/", method="GET")
    policy = dict(part.strip().split(" ", 1) for part in
                  headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["script-src"].startswith("'sha256-") and policy["style-src"].startswith("'sha256")
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    text = page.decode()
    assert not [word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write",
                                  "eval(", "new Function", " onclick=", " style=", "http://",
                                  "https://") if word in text.replace(
                                      "http://www.w3.org/2000/svg", "")]


def test_a_log_line_holds_nothing_that_was_asked(server, paths, capsys):
    ask(server, body("a secret question", paths[0]), path=URL + "?secret=1")
    ask(server, None, path="/secret", method="GET")
    ask(server, b"secret", method="SECRET")
    log = capsys.readouterr().err
    assert "POST /v1/chat/completions 200" in log and "GET ? 404" in log and "secret" not in log


# ---- hostile, slow and gone ----------------------------------------------------------------------

def test_a_thousand_hostile_requests_get_their_statuses(server, paths, monkeypatch, capsys):
    monkeypatch.setattr(handler, "LINGER_SECONDS", 0.05)
    monkeypatch.setattr(handler, "HEADER_SECONDS", 0.5)
    faults = []
    for number, case in enumerate(hostile_requests(1000)):
        if fault := fault_of(case, send(server.server_port, case)):
            faults.append(f"{number} {case.name}: {fault}")
    assert not faults, "\n".join(faults)
    assert "Traceback" not in capsys.readouterr().err
    status, _, reply = ask(server, body(QUESTIONS[0], paths[0]))
    assert status == 200
    assert answer_of(reply) == alone(MODEL, TOKENIZER, paths[:1], [QUESTIONS[0]])[0]


def test_who_is_slow_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(handler, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(handler, "BODY_SECONDS", 0.3)
    assert drip(server.server_port, request() * 9, 0.02).startswith(b"HTTP/1.1 408 ")
    head, _, rest = request(content=b"a" * 500).partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.server_port), 20) as connection:
        connection.sendall(head + b"\r\n\r\n" + rest[:100])
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
    monkeypatch.setattr(handler, "IDLE_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.server_port), 20) as connection:
        assert connection.recv(1) == b""                # who says nothing is told nothing


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_stops_the_answer(paths, monkeypatch, stream):
    with serving(MODEL, TOKENIZER, "--max_new_tokens", "200") as own:
        monkeypatch.setattr(own.engine, "take", lambda row, token: (
            time.sleep(0.02), type(own.engine).take(own.engine, row, 5))[1])    # slow, and no end
        content = json.dumps(body(QUESTIONS[2], paths[0], stream=stream)).encode()
        connection = socket.create_connection(("127.0.0.1", own.server_port), 20)
        connection.sendall(request(content=content))
        if stream:
            connection.recv(1000)
        wait_until(lambda: own.engine.load()["answering"] == 1)
        connection.close()
        began = time.monotonic()
        wait_until(lambda: own.engine.load()["answering"] == 0)
        assert time.monotonic() - began < 2.5           # 200 tokens take 4 s


def test_a_full_queue_tells_when_to_come_again(paths, monkeypatch):
    with serving(MODEL, TOKENIZER, "--batch_size", "1", "--most_waiting", "2") as own:
        held = threading.Event()
        step = own.engine.step
        monkeypatch.setattr(own.engine, "step", lambda: (held.wait(20), step()))
        replies = []
        threads = [threading.Thread(target=lambda: replies.append(ask(own, body("hello"))))
                   for _ in range(3)]
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(lambda n=number: sum(own.engine.load().values()) == n + 1)
        status, headers, reply = ask(own, body("hello"))
        assert status == 429 and 1 <= int(headers["Retry-After"]) <= 60
        assert reply["error"]["type"] == "rate_limit_error"
        held.set()
        for thread in threads:
            thread.join()
        assert [reply[0] for reply in replies] == [200] * 3
        assert len({answer_of(reply[2]) for reply in replies}) == 1


def test_who_waits_is_told_how_many_are_before(monkeypatch):
    monkeypatch.setattr(handler, "POLL_SECONDS", 0.02)
    with serving(MODEL, TOKENIZER, "--batch_size", "1") as own:
        held = threading.Event()
        step = own.engine.step
        monkeypatch.setattr(own.engine, "step", lambda: (held.wait(20), step()))
        first = threading.Thread(target=ask, args=(own, body("hello")))
        first.start()
        wait_until(lambda: own.engine.load()["answering"] == 1)
        with socket.create_connection(("127.0.0.1", own.server_port), 20) as connection:
            connection.sendall(request(content=json.dumps(body("hello", stream=True)).encode()))
            text = b""
            while b": waiting 1" not in text:
                text += connection.recv(1000)
            held.set()
            while part := connection.recv(1000):
                text += part
        first.join()
        assert b"[DONE]" in text


def test_while_the_model_is_loaded_it_says_so():
    with serving(None, None) as own:
        status, headers, reply = ask(own, body("hello"))
        assert status == 503 and headers["Retry-After"] and "loaded" in reply["error"]["message"]
        assert ask(own, None, path="/status", method="GET")[2]["state"] == "loading"
        own.attach(MODEL, TOKENIZER)
        assert ask(own, body("hello", max_tokens=1))[0] == 200


def test_connections_and_bodies_are_limited(server, monkeypatch):
    monkeypatch.setattr(server.bodies, "left", 10)
    status, headers, _ = ask(server, body("hello"))
    assert status == 429 and headers["Retry-After"]
    monkeypatch.setattr(server.bodies, "left", 1 << 20)
    with monkeypatch.context() as patched:
        patched.setattr(server.connections, "acquire", lambda blocking: False)
        with socket.create_connection(("127.0.0.1", server.server_port), 20) as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 503 ")
    assert ask(server, body("hello", max_tokens=1))[0] == 200
    assert server.bodies.left == 1 << 20


def test_sigterm_finishes_the_answers_under_way(tmp_path, paths):
    folder = tiny.model_folder(tmp_path / "model")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    with subprocess.Popen(
            [sys.executable, "chat.py", "--serve", "--port", "0", "--model", str(folder),
             "--max_new_tokens", "150"], cwd=tiny.ROOT, stderr=subprocess.PIPE, text=True,
            env=environment) as process:
        try:
            port = int(process.stderr.readline().split(":")[2].split("/")[0])
            while process.stderr.readline() != "ready\n":
                pass
            content = json.dumps(body(QUESTIONS[2], paths[0], stream=True)).encode()
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                connection.sendall(request(content=content))
                text = connection.recv(200)
                process.send_signal(signal.SIGTERM)
                while part := connection.recv(65536):
                    text += part
            assert text.count(b'"content"') > 3 and b"data: [DONE]" in text
            assert b'"finish_reason": "length"' in text or b'"finish_reason": "stop"' in text
            assert process.wait(60) == 143
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
        finally:
            process.kill()
