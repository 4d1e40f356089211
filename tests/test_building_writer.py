"""The writer takes what agrees with the annotations, asks nothing twice, survives its server."""
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.client import HTTPMessage

import pytest
from PIL import Image

import tiny
from chat_server import BOXES, CONTENT, GOOD, ChatServer, picture_in
from data import apply_templates
from support.building import completions
from support.building.completions import KEY_VARIABLE, parse_address, retry_after
from support.building.passages import Facts
from support.building.writer import (
    KeptAnswers,
    WriterSettings,
    as_samples,
    without_boxes,
    write_dialogues,
)
from support.common import UserError
from support.readers.common import Sample, SampleTable
from support.tools.check_data import check_sample

SHIPS = (("ship", (10.5, 10.5, 30.5, 30.5)), ("ship", (70.0, 70.0, 90.0, 90.0)))


@pytest.fixture(scope="module")
def server():
    with ChatServer() as chat:
        yield chat


@pytest.fixture(autouse=True)
def fresh(server, monkeypatch):
    for found in (server.asked, server.answered, server.bodies, server.headers, server.times):
        found.clear()
    server.most_at_once = 0
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return tiny.picture(tmp_path_factory.mktemp("pictures") / "a.png", 100, 100)


def settings(server, **more):
    return WriterSettings(**{"url": server.url, "model": "m", "timeout": 20, "tries": 3,
                             "first_wait": 0.01, "max_wait": 0.3, "stop_seconds": 2} | more)


def facts(picture, mode):
    return Facts(picture, (100, 100), SHIPS, "harbor", (f"mode: {mode}",), ("ship", "bridge"))


def write(server, picture, modes, kept, **more):
    pictures = [facts(picture, mode) for mode in modes]
    return list(write_dialogues(pictures, settings(server, **more), kept))


# ---- what is taken -------------------------------------------------------------------------------

def test_a_good_answer_is_taken_and_a_wrong_one_refused_with_the_reason(server, picture, tmp_path):
    modes = [*CONTENT, "refusal", "filter", "length", "in parts"]
    written = write(server, picture, modes, tmp_path / "kept.jsonl")
    kinds = {mode: one.reason.split(":")[0] for mode, one in zip(modes, written, strict=True)}
    form = dict.fromkeys(("no dialogue", "more keys", "a text for a turn", "a number", "one turn",
                          "a list", "twice"), "wrong form")
    same = {kind: kind for kind in ("wrong count", "wrong class", "wrong box", "wrong place",
                                    "not JSON")}
    assert kinds == {"good": "", "fenced": "", "slow": "", "in parts": "", **form, **same,
                     "apology": "not JSON", "deep": "not JSON", "empty": "not JSON",
                     "refusal": "refused", "filter": "refused", "length": "cut off"}
    for one in written:
        assert bool(one.description) == bool(one.turns) == (not one.reason)
        assert "\n" not in one.reason and len(one.reason) < 400
    assert "three ships" in written[modes.index("wrong count")].reason
    assert written[0].turns[0] == tuple(GOOD["dialogue"][0].values())


def test_what_is_written_can_be_learned(server, picture, tmp_path):
    shown = facts(picture, "good")
    [written] = write(server, picture, ["good"], tmp_path / "kept.jsonl")
    rows = as_samples(written, shown)
    assert [row["task"] for row in rows] == ["grounding", "conversation", "conversation"]
    assert [row["boxes"] for row in rows] == [(SHIPS[0][1],), (), (SHIPS[0][1], SHIPS[1][1])]
    assert rows[1]["turns"][0][1] == ("A harbor with two ships. A ship lies in the upper left of "
                                      "the picture.")
    for sample in SampleTable(row | {"source": "row"} for row in rows):
        assert list(check_sample(sample, [])) == []
    written_boxes = Sample((picture,), rows[2]["turns"], "conversation", "", rows[2]["boxes"])
    assert apply_templates(written_boxes, (100, 100)) == list(written.turns)
    assert as_samples(replace(written, reason="refused: no"), shown) == []
    assert without_boxes(f"<p>two ships</p> {BOXES[0]}<delim>{BOXES[1]}, here") == "two ships, here"


def test_the_model_sees_the_picture_and_the_facts(server, tmp_path):
    large = tiny.picture(tmp_path / "large.png", 300, 200)
    objects = ("storage-tank", (0, 0, 30, 20)), ("ship", (150, 90, 299, 199))
    shown = Facts(large, (300, 200), objects, "harbor", ("mode: good",), ("bridge",))
    list(write_dialogues([shown], settings(server, longest_side=150, options={"seed": 7}),
                         tmp_path / "kept.jsonl"))
    [body] = server.bodies
    text = body["messages"][1]["content"][0]["text"]
    assert Image.open(io.BytesIO(picture_in(body))).size == (150, 100)
    assert body["model"] == "m" and body["seed"] == 7
    for line in ("Scene: harbor", "storage tank: 1", "  {<0><0><10><10>} upper left",
                 "  {<50><45><99><99>} lower right", "Missing from the picture: bridge",
                 "- mode: good"):
        assert line in text.split("\n")
    assert set(text.split("Not looked for, do not mention: ")[1].split("\n")[0].split(", ")
               ) >= {"airplane", "tennis court"}


def test_the_order_is_that_of_the_pictures_and_requests_run_at_once(server, picture, tmp_path):
    modes = ["slow", *(f"good, {number}" for number in range(6)), "slow, 2", "wrong count"]
    pictures = [facts(picture, mode) for mode in modes]
    pictures = [replace(one, scene=f"scene {number}") for number, one in enumerate(pictures)]
    written = list(write_dialogues(pictures, settings(server), tmp_path / "kept.jsonl"))
    assert [one.reason[:5] for one in written] == [""] * 8 + ["wrong"]
    assert 1 < server.most_at_once <= 4
    server.most_at_once = 0
    write(server, picture, [f"slow, {n}" for n in range(3)], tmp_path / "one.jsonl", parallel=1)
    assert server.most_at_once == 1


def test_pictures_are_taken_as_they_are_needed(server, picture, tmp_path):
    taken = []

    def pictures():
        for number in range(1000):
            taken.append(number)
            yield facts(picture, f"good, {number}")

    iterator = write_dialogues(pictures(), settings(server, parallel=2), tmp_path / "kept.jsonl")
    for _ in range(5):
        next(iterator)
    iterator.close()
    assert len(taken) < 40 and server.asked.total() < 40


# ---- what the server does wrong ------------------------------------------------------------------

def test_rate_limits_and_faults_of_a_moment_are_waited_for(server, picture, tmp_path):
    modes = ["too often", "overloaded once", "half once"]
    written = write(server, picture, modes, tmp_path / "kept.jsonl", parallel=1)
    assert [one.reason for one in written] == ["", "", ""]
    assert server.asked == {"too often": 3, "overloaded once": 2, "half once": 2}
    first, second, _ = server.times["too often"]
    assert second - first >= 0.2                        # as Retry-After said


def test_faults_that_stay_are_counted_and_the_run_goes_on(server, picture, tmp_path):
    reasons = {"always too often": "HTTP 429 no credit", "broken": "HTTP 500 <html>oh no</html>",
               "half": "half an answer", "hung up": "Remote end closed connection",
               "no completion": "no chat completion: not now,", "too long": "an answer of over"}
    modes = [*reasons, "bad request", "good"]
    written = write(server, picture, modes, tmp_path / "kept.jsonl", parallel=8)
    for one, (mode, reason) in zip(written, reasons.items(), strict=False):
        assert one.reason.startswith(f"no answer: {reason}") and "(3 tries)" in one.reason, mode
        assert server.asked[mode] == 3
    assert written[-2].reason == "no answer: HTTP 400 no here" and written[-1].reason == ""
    assert server.asked["bad request"] == 1
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 1
    server.asked.clear()
    write(server, picture, ["half", "good", "half once"], tmp_path / "kept.jsonl")
    assert server.asked == {"half": 3, "half once": 2}  # what had no answer is asked again


def test_an_answer_that_does_not_come_in_time_is_not_waited_for(server, picture, tmp_path):
    start = time.monotonic()
    written = write(server, picture, ["time-out", "drip"], tmp_path / "kept.jsonl", timeout=0.5,
                    tries=2)
    reasons = ["no answer: nothing in 0.5 seconds (2 tries)"] * 2
    assert [one.reason for one in written] == reasons and time.monotonic() - start < 10


def test_a_server_that_is_gone_is_not_asked_for_ever(picture, tmp_path, monkeypatch):
    monkeypatch.setattr(completions, "MAX_FAILURES", 3)
    with ChatServer() as gone:
        pass
    written = write(gone, picture, [f"good, {n}" for n in range(20)], tmp_path / "kept.jsonl",
                    parallel=1)
    kinds = Counter(one.reason.split(":")[0] for one in written)
    assert kinds == {"no answer": 3, "not asked": 17}


def test_a_wrong_key_or_address_ends_the_run_in_one_line(server, picture, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret-key-1234")
    for status, words in (("401", "does not accept the key"), ("403", "does not allow"),
                          ("404", "no such address or model")):
        message = tiny.refusal(UserError, write, server, picture, [status], tmp_path / "kept.jsonl")
        assert words in message and "secret" not in message and "***" in message


def test_a_redirect_is_not_followed(server, picture, tmp_path):
    with ChatServer() as other:
        server.location = f"{other.url}/chat/completions"
        message = tiny.refusal(UserError, write, server, picture, ["redirect"],
                               tmp_path / "kept.jsonl")
        assert server.location in message and not other.asked


def test_the_key_is_sent_to_the_server_and_is_nowhere_else(server, picture, tmp_path, monkeypatch,
                                                           capfd):
    write(server, picture, ["good"], tmp_path / "none.jsonl")
    assert "Authorization" not in server.headers[0]
    monkeypatch.setenv(KEY_VARIABLE, " secret-key-1234\n")
    written = write(server, picture, ["good", "bad request", "no completion"],
                    tmp_path / "kept.jsonl")
    assert {header["Authorization"] for header in server.headers[1:]} == {"Bearer secret-key-1234"}
    shown = "".join([repr(written), repr(settings(server)), *capfd.readouterr(),
                     (tmp_path / "kept.jsonl").read_text()])
    assert "secret" not in shown and "no Bearer *** here" in shown
    monkeypatch.setenv(KEY_VARIABLE, "sec ret\nkey")
    message = tiny.refusal(UserError, write, server, picture, ["good"], tmp_path / "kept.jsonl")
    assert KEY_VARIABLE in message and "sec" not in message.replace(KEY_VARIABLE, "")


@pytest.mark.parametrize("url", [
    "ftp://example.org/v1", "file:///etc/passwd", "example.org/v1", "http://", "http://a b/v1",
    "https://user:secret@example.org/v1", "https://example.org/v1?key=secret", "http://a:x/v1",
    "http://example.org/v1\r\nHost: other", "https://example.org/v1#secret", ""])
def test_only_plain_http_addresses_are_taken(url):
    message = tiny.refusal(UserError, parse_address, url)
    assert message.startswith("--writer: ") and "secret" not in message


def test_an_address_may_be_that_of_the_interface_or_of_its_completions():
    for url in ("https://a.org:81/x/v1", "https://a.org:81/x/v1/",
                "https://a.org:81/x/v1/chat/completions"):
        address = parse_address(url)
        assert (address.secure, address.host, address.port) == (True, "a.org", 81)
        assert address.path == "/x/v1/chat/completions"


def test_retry_after_is_seconds_or_a_date():
    headers = HTTPMessage()
    assert retry_after(headers) == 0
    for text, least, most in (("7", 7, 7), ("0.5", 0.5, 0.5), ("soon", 0, 0), ("-3", 0, 0), (
            format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30)), 27, 31)):
        headers = HTTPMessage()
        headers["Retry-After"] = text
        assert least <= retry_after(headers) <= most


def test_pictures_and_facts_that_cannot_be_used_are_counted(server, picture, tmp_path):
    (tmp_path / "page.jpg").write_text("<html>")
    os.mkfifo(tmp_path / "fifo.png")
    good = facts(picture, "good")
    wrong = [replace(good, image=str(tmp_path / name))
             for name in ("no.png", "page.jpg", "fifo.png", ".")]
    wrong.append(replace(good, objects=(("ship", (200, 200, 300, 300)),)))
    written = list(write_dialogues(wrong, settings(server), tmp_path / "kept.jsonl"))
    assert [one.reason.split(":")[0] for one in written] == ["picture"] * 4 + ["wrong facts"]
    assert not server.asked


# ---- what is kept --------------------------------------------------------------------------------

def test_nothing_is_asked_twice(server, picture, tmp_path):
    modes = ["good", "wrong count", "refusal", "not JSON", "length"]
    first = write(server, picture, [*modes, "good"], tmp_path / "kept.jsonl")
    assert server.asked == dict.fromkeys(modes, 1) and first[0] == first[-1]
    again = write(server, picture, [*modes, "good"], tmp_path / "kept.jsonl")
    assert again == first and server.asked.total() == len(modes)
    write(server, picture, ["good"], tmp_path / "kept.jsonl", model="another")
    assert server.asked["good"] == 2                    # another model's answer is another one


def test_the_same_question_at_once_is_asked_once(server, picture, tmp_path):
    written = write(server, picture, ["slow"] * 8, tmp_path / "kept.jsonl")
    assert server.asked == {"slow": 1} and len({one.description for one in written}) == 1


def test_a_line_that_is_cut_off_is_asked_again_and_a_damaged_one_named(server, picture, tmp_path,
                                                                       capfd):
    kept = tmp_path / "folder" / "kept.jsonl"
    modes = ["good, a", "good, b", "good, c"]
    write(server, picture, modes, kept, parallel=1)
    whole = kept.read_bytes()
    for cut in random.Random(1).sample(range(1, whole.rindex(b"\n", 0, -1)), 3):
        server.asked.clear()
        kept.write_bytes(whole[:-cut])
        assert not any(one.reason for one in write(server, picture, modes, kept, parallel=1))
        missing = 3 - whole[:-cut].count(b"\n")
        assert server.asked.total() == missing and kept.read_bytes().count(b"\n") == 3
    assert "cut off" in capfd.readouterr().err
    kept.write_bytes(b"[1]\n" + whole)
    assert f"{kept}:1" in tiny.refusal(UserError, write, server, picture, modes, kept)


def test_two_runs_do_not_write_to_one_file(server, picture, tmp_path):
    with KeptAnswers(tmp_path / "kept.jsonl"):
        message = tiny.refusal(UserError, write, server, picture, ["good"], tmp_path / "kept.jsonl")
    assert "another run" in message and not server.asked


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    def write_half(descriptor, line, write=os.write):
        return write(descriptor, line[:20])

    with KeptAnswers(tmp_path / "kept.jsonl") as kept:
        kept.keep("aa", {"answer": {}})
        before = (tmp_path / "kept.jsonl").read_bytes()
        monkeypatch.setattr(os, "write", write_half)
        assert "cannot be written" in tiny.refusal(UserError, kept.keep, "bb", {"answer": {}})
    assert (tmp_path / "kept.jsonl").read_bytes() == before


# ---- the end of a run ----------------------------------------------------------------------------

CHILD = """
import json, sys
from pathlib import Path
from support.building.passages import Facts
from support.building.writer import WriterSettings, write_dialogues
kept, settings, rows = json.loads(sys.argv[1])
for one in write_dialogues([Facts(**row) for row in rows], WriterSettings(**settings), Path(kept)):
    print(one.reason, flush=True)
"""


def start(server, picture, kept, modes):
    """A process of its own that writes about the pictures."""
    rows = [asdict(facts(picture, mode)) for mode in modes]
    job = json.dumps([str(kept), asdict(settings(server)), rows])
    return subprocess.Popen([sys.executable, "-c", CHILD, job], cwd=tiny.ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_after_kill_9_a_run_goes_on_asks_nothing_twice_and_loses_nothing(server, picture, tmp_path):
    kept = tmp_path / "kept.jsonl"
    modes = [f"{'slow' if n > 5 else 'good'}, {n}" for n in range(14)]
    child = start(server, picture, kept, modes)
    wait_until(lambda: kept.exists() and kept.read_bytes().count(b"\n") >= 6)
    server.open.clear()                                 # no further answer leaves the server
    wait_until(lambda: server.now >= 4)
    lines = kept.read_bytes().count(b"\n")
    child.kill()
    child.communicate()
    held = server.now
    done = server.answered.copy()
    server.asked.clear()
    server.open.set()
    assert 6 <= lines <= 10 and held >= 4
    written = write(server, picture, modes, kept, timeout=20)
    assert [one.reason for one in written] == [""] * 14
    rows = [json.loads(line)["request"] for line in kept.read_text().splitlines()]
    assert len(rows) == len(set(rows)) == 14
    assert sum(server.asked[mode] for mode in modes if done[mode]) == 0
    assert set(server.asked.values()) == {1} and len(server.asked) == 14 - lines


def test_ctrl_c_ends_a_run_and_keeps_the_answers_that_are_under_way(server, picture, tmp_path):
    kept = tmp_path / "kept.jsonl"
    modes = [f"good, {n}" for n in range(9)]
    server.open.clear()
    child = start(server, picture, kept, modes)
    wait_until(lambda: server.now == 4)
    child.send_signal(signal.SIGINT)
    time.sleep(0.2)
    server.open.set()
    _, errors = child.communicate(timeout=20)
    assert child.returncode == -signal.SIGINT and "waiting for 4 answers" in errors
    assert kept.read_bytes().count(b"\n") == 4 and server.asked.total() == 4
    written = write(server, picture, modes, kept)
    assert [one.reason for one in written] == [""] * 9 and set(server.asked.values()) == {1}


def test_a_run_that_is_stopped_waits_no_longer_than_it_says(server, picture, tmp_path):
    server.open.clear()
    pictures = [facts(picture, f"good, {n}") for n in range(9)]
    iterator = write_dialogues(pictures, settings(server, stop_seconds=0.3, parallel=1),
                               tmp_path / "kept.jsonl")

    def stop_when_asked():
        wait_until(lambda: server.now == 1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_asked).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    assert time.monotonic() - start < 5
    server.open.set()
