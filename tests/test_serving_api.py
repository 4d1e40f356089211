"""OpenAI's interface: what is asked is what chat.py asks, and whatever else is refused by name."""
import base64
import json

import pytest

import chat
import tiny
from serving import tiny_model
from support.serving.api import (
    EXTRA,
    FIELDS,
    RequestError,
    Service,
    first_stop,
    parse_request,
    safe_length,
)
from support.serving.engine import Ended
from support.serving.pictures import PictureReader

MODEL, TOKENIZER = tiny_model()
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def service():
    reader = PictureReader(tiny.VIT.image_size, "skyeye")
    yield Service("tiny", MODEL.config, TOKENIZER, reader, chat.parse_args(["--serve"]))
    reader.close()


def parse(messages=HELLO, **more):
    return parse_request(json.dumps({"messages": messages} | more).encode(), "tiny")


def refused(content, **more):
    """-> the error's status and its message."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(RequestError) as error:
        parse_request(content, "tiny")
    shown = error.value.to_json()["error"]
    assert set(shown) == {"message", "type", "param", "code"} and "\n" not in shown["message"]
    return error.value.status, shown["message"]


def picture_part(content=b"abc", kind="png"):
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


PICTURE = picture_part((tiny.ROOT / "examples/forest.png").read_bytes())


def contents_of(request):
    return [base64.b64decode(text, validate=True) for text in request.pictures]


def test_every_field_that_openais_clients_send_is_known():
    request = parse(
        HELLO, model="tiny", stream=True, stream_options={"include_usage": True}, max_tokens=7,
        temperature=0.5, top_p=0.5, stop=["a", "b"], seed=3, n=1, frequency_penalty=0,
        presence_penalty=0.0, user="me", logprobs=False, response_format={"type": "text"},
        top_k=4, repetition_penalty=1.1, tools=[], tool_choice="auto", logit_bias=None,
        functions=[], function_call="none", safety_identifier="me", prompt_cache_key="a")
    assert request.stream and request.include_usage and request.stops == ("a", "b")
    assert request.options == {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.5, "seed": 3,
                               "top_k": 4, "repetition_penalty": 1.1}
    assert request.turns == [("hello", None)] and not request.pictures and not request.notes


def test_turns_texts_and_pictures_come_in_their_order():
    request = parse([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [picture_part(b"1"), {"type": "text", "text": "one"},
                                     picture_part(b"2", "jpeg"), {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "three"}, picture_part(b"3")]}])
    assert request.turns == [("one\ntwo", "yes"), ("three", None)]
    assert contents_of(request) == [b"1", b"2", b"3"]
    assert "system" in request.notes[0]


def test_fields_of_other_servers_have_no_effect_and_are_noted():
    request = parse(dataset="a", min_p=0.1, chat_template_kwargs={"a": [1]}, audio=None)
    assert request.options == {} and request.turns == [("hello", None)]
    [note] = request.notes
    assert note == ("'audio', 'chat_template_kwargs', 'dataset', 'min_p': not a field of this "
                    "interface, without effect")
    [note] = parse(**{f"{i}\n" * 99: i for i in range(30)}).notes
    assert "and 22 more" in note and len(note) < 700 and "\n" not in note
    assert parse(top_k=-1).options == {"top_k": 0}


def test_messages_that_follow_each_other_are_one():
    """As OpenAI's interface takes them, where chat.py has a question and its answer in turn."""
    asked = [("assistant", "what can I do for you?"), ("system", "be brief"), ("user", "one"),
             ("user", [picture_part(b"1"), {"type": "text", "text": "two"}]), ("assistant", "yes"),
             ("assistant", ""), ("assistant", "no"), ("user", ""), ("system", "be brief"),
             ("user", "three")]
    request = parse([{"role": role, "content": content} for role, content in asked])
    assert request.turns == [("one\ntwo", "yes\nno"), ("three", None)]
    assert contents_of(request) == [b"1"] and len(request.notes) == 2
    assert "before the first question" in request.notes[0] and "system" in request.notes[1]


def test_what_evaluation_programs_send_is_a_question():
    """VLMEvalKit's GPT4V and LMDeployAPI, lmms-eval's openai, and their texts in parts."""
    jpeg = picture_part(b"1", "jpeg")
    jpeg["image_url"] |= {"detail": "low", "min_pixels": 3}
    text = {"type": "text", "text": "is there a road ?"}
    vlmevalkit = {"messages": [{"role": "user", "content": [jpeg, text]}], "temperature": 0}
    for sent in (vlmevalkit | {"max_tokens": 2048},
                 vlmevalkit | {"max_tokens": 16384, "n": 1, "dataset": "examples"},
                 {"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]},
                               {"role": "user", "content": [text, picture_part(b"1")]}],
                  "max_tokens": 16, "temperature": 0, "top_p": 1.0},
                 {"messages": [{"role": "user", "content": [text, {
                     "type": "image_url", "image_url": jpeg["image_url"]["url"]}]}],
                  "max_completion_tokens": 16, "response_format": {"type": "text"}}):
        request = parse(model="tiny", **sent)
        assert request.turns == [("is there a road ?", None)] and contents_of(request) == [b"1"]
        assert request.options.get("temperature", 0) == 0


@pytest.mark.parametrize(("field", "value"), [
    ("temperature", 3), ("temperature", -1), ("temperature", "1"), ("temperature", True),
    ("temperature", float("nan")), ("temperature", float("inf")), ("top_p", 1.5), ("top_p", []),
    ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", 10**30), ("seed", "a"), ("seed", 2**64),
    ("stream", 1), ("stream", "true"), ("stream_options", {"usage": True}), ("stream_options", []),
    ("stop", ""), ("stop", ["a"] * 5), ("stop", [1]), ("stop", "a" * 101), ("n", 2), ("n", True),
    ("logprobs", True), ("tools", [{}]), ("response_format", {"type": "json_object"}),
    ("presence_penalty", 1), ("model", 3), ("functions", [{}]), ("top_k", -2), ("top_k", 1.5),
    ("repetition_penalty", 0), ("messages", None)])
def test_a_field_with_a_wrong_value_is_refused_by_its_name(field, value):
    status, message = refused({"messages": HELLO, field: value})
    assert status == 400 and field in message


@pytest.mark.parametrize("messages", [
    None, [], {}, "hello", [1], [{}], [{"role": "user"}], [{"role": "user", "content": ""}],
    [{"role": "user", "content": " \n"}], [{"role": "user", "content": 1}],
    [{"role": "user", "content": []}], [{"role": "user", "content": ["hello"]}],
    [{"role": "user", "content": [{"type": "audio"}]}], [{"role": "tool", "content": "a"}],
    [{"role": 1, "content": "a"}], [{"role": "assistant", "content": "a"}],
    [{"role": "assistant", "content": "a"}, {"role": "user", "content": " "}],
    HELLO + [{"role": "assistant", "content": "a"}], HELLO * 401,
    HELLO + [{"role": "assistant", "content": [picture_part()]}] + HELLO,
    [{"role": "user", "content": "a\0b"}], [{"role": "user", "content": "\ud800"}],
    [{"role": "user", "content": [{"type": "text", "text": None}]}],
    [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": "http://a/b.png"}]}]])
def test_messages_that_are_no_conversation_are_refused(messages):
    status, message = refused({"messages": messages})
    assert status == 400 and "messages" in message


@pytest.mark.parametrize("url", [
    "http://127.0.0.1/a.png", "https://example.com/a.png", "file:///etc/passwd", "/etc/passwd",
    "../a.png", "data:text/html;base64,YQ==", "data:image/png,abc", "data:image/png;base64,\u00e9",
    "data:image/png;base64,\ud800", "", 3, None, ["a"], "DATA:image/png;base64,YQ=="])
def test_addresses_and_paths_are_refused(url):
    part = {"type": "image_url", "image_url": {"url": url}}
    status, message = refused({"messages": [{"role": "user", "content": [part]}]})
    assert status == 400 and "image_url.url" in message
    assert ascii(url) not in message and str(url) not in message or not url


def test_a_body_that_is_no_json_object_is_refused_without_its_text():
    for content in (b"", b"{", b"[]", b"1", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 200,
                    b"secret", b'"secret"', b"9" * 5000, b"\x00", b"NaN"):
        status, message = refused(content)
        assert status == 400 and "secret" not in message
    assert refused(b"[" + b"1," * 300_000)[0] == 413


def test_another_model_is_not_here():
    assert refused({"messages": HELLO, "model": "gpt-4o"}) == (
        404, "no such model; the one here is tiny")


def test_texts_of_over_the_limit_are_refused():
    long = "a " * 40_000
    talk = [{"role": role, "content": long} for role in ("user", "assistant", "user")]
    assert refused({"messages": talk})[0] == 413
    assert refused({"messages": [{"role": "user", "content": long * 2}]})[0] == 400


def test_the_model_reads_what_chat_py_would_read(service, tmp_path):
    path = tiny.picture(tmp_path / "a.png")
    part = picture_part(open(path, "rb").read())
    answer = service.prepare(parse([{"role": "user", "content": [
        part, {"type": "text", "text": " where is the ship at 3 4 20 15 px ?"}]}]))
    assert answer.asked == "[refer] where is the ship at {<8><17><54><65>} ?"
    assert answer.question.sampling["temperature"] == 0 and answer.question.constraint.enabled
    free = service.prepare(parse(HELLO))
    assert free.question.sampling["temperature"] == 0.6 and not free.question.constraint.enabled
    chosen = service.prepare(parse(HELLO, temperature=0.0, max_tokens=10**6, seed=-1))
    assert chosen.question.sampling["temperature"] == 0.0
    assert chosen.question.max_new_tokens == 300 and chosen.question.seed >= 0


def test_what_cannot_be_asked_is_refused_as_chat_py_does(service, tmp_path):
    wide = tiny.picture(tmp_path / "a.png", 2000, 9)
    for text, told, content in (
            ("[rever] a ship", "unknown task", None), ("what is in 1 2 3 400 px", "not in", wide),
            ("hello", "picture 1: not a picture", b"abc"), ("hello " * 300, "do not fit", None)):
        part = [] if content is None else [
            picture_part(content if content == b"abc" else open(content, "rb").read())]
        with pytest.raises(RequestError, match=told) as error:
            service.prepare(parse([{"role": "user", "content": [*part, {"type": "text",
                                                                        "text": text}]}]))
        assert error.value.status == 400 and "/" not in str(error.value).replace("is/are", "")


@pytest.mark.parametrize("text", ["a b", "abc", "====", "\n", "YQ==YQ==", "YQ=\x00"])
def test_what_is_no_base64_is_refused(service, text):
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}
    with pytest.raises(RequestError, match="picture 2: not base64") as error:
        service.prepare(parse([{"role": "user", "content": [PICTURE, part, {
            "type": "text", "text": "hello"}]}]))
    assert error.value.status == 400 and text not in str(error.value)


def test_a_picture_that_is_known_is_not_decoded_again(service, monkeypatch):
    asked = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "hello"}]}]
    [first] = service.prepare(parse(asked)).question.pictures
    monkeypatch.setattr(PictureReader, "encode", None)
    monkeypatch.setattr(base64, "b64decode", None)
    assert service.prepare(parse(asked)).question.pictures == (first,)


def test_more_pictures_than_fit_are_refused(service, tmp_path):
    part = picture_part(open(tiny.picture(tmp_path / "a.png"), "rb").read())
    with pytest.raises(RequestError, match="show 24 at most"):
        service.prepare(parse([{"role": "user", "content": [part] * 40 + [
            {"type": "text", "text": "hello"}]}]))


def test_the_oldest_turns_are_left_out_with_a_note(service):
    talk = [{"role": role, "content": "many planes and a river " * 3}
            for _ in range(9) for role in ("user", "assistant")]
    answer = service.prepare(parse([*talk, *HELLO]))
    assert len(answer.question.ids) < tiny.SKYEYE_LLAMA.max_positions * 3 / 4 + 1
    assert "questions are left out" in answer.notes[0]


def feed(answer, tokens, ended=None):
    """-> the chunks of an answer whose tokens come one by one."""
    found = list(answer.chunks(first=True))
    for event in [*([token] for token in tokens), ended or Ended("stop")]:
        if isinstance(event, list):
            answer.question.constraint.observe(event[0], -0.5)
        answer.take(event)
        found += answer.chunks()
    return found


def contents(chunks):
    return [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks
            if chunk["choices"]]


def test_a_stream_says_what_the_whole_reply_says(service, tmp_path):
    part = picture_part(open(tiny.picture(tmp_path / "a.png", 200, 100), "rb").read())
    ids = TOKENIZER.encode("<p>two planes</p> {<9><51><50><82>} in a <p>river</p> \u00e9!")
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "[vqa] what ?"}]}]
    one, two = (service.prepare(parse(messages, stream_options={"include_usage": True}))
                for _ in range(2))
    one.request.include_usage = True
    chunks = feed(one, ids)
    for token in ids:
        two.question.constraint.observe(token, -0.5)
    two.take(ids)
    two.take(Ended("stop"))
    whole = two.completion()
    message = whole["choices"][0]["message"]["content"]
    assert "".join(contents(chunks)) == message and len(set(contents(chunks))) > 5
    readable = "".join(chunk[EXTRA]["text"] for chunk in chunks[1:-2] if EXTRA in chunk)
    assert readable == whole[EXTRA]["text"] == chunks[-2][EXTRA]["text"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == len(ids)
    assert whole["choices"][0]["finish_reason"] == "stop" == (
        chunks[-2]["choices"][0]["finish_reason"])
    [box] = whole[EXTRA]["boxes"]
    assert box["phrase"] == "two planes" and box["picture"] == 0
    assert box["pixels"] == [19.0, 51.5, 101.0, 82.5] and 0.6 < box["confidence"] < 0.61


@pytest.mark.parametrize("stops", [["river"], ["plane", "river"], [" ri", "zzz"], ["s"]])
def test_an_answer_ends_before_a_text_that_stops_it(service, stops):
    text = "two planes near the river, a bridge"
    answer = service.prepare(parse(stop=stops))
    chunks = feed(answer, TOKENIZER.encode(text), Ended("length"))
    expected = text[:min(text.find(stop) for stop in stops if stop in text)]
    assert "".join(contents(chunks)) == expected and answer.question.cancelled
    assert answer.completion()["choices"][0]["finish_reason"] == "stop"


def test_what_may_become_a_text_that_stops_is_held_back():
    assert safe_length("abcab", ["abd", "x"]) == 3 and safe_length("abc", []) == 3
    assert first_stop("a b c", ["c", "b"]) == (2, "b") and first_stop("a", ["b"]) is None


def test_what_goes_wrong_is_raised_unless_the_answer_is_there(service):
    answer = service.prepare(parse())
    with pytest.raises(ZeroDivisionError):
        answer.take(Ended("error", ZeroDivisionError()))


def test_the_fields_are_those_that_the_page_names():
    page = (tiny.ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    missing = [name for name in FIELDS if f"`{name}`" not in page]
    assert not missing
