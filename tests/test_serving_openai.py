"""The `openai` package speaks to chat.py --serve; optional: pip install openai."""
import pytest

import tiny
from serving import alone, data_url, serving, tiny_model

openai = pytest.importorskip("openai", reason="needs openai: pip install openai")
MODEL, TOKENIZER = tiny_model()


@pytest.fixture(scope="module")
def server():
    with serving(MODEL, TOKENIZER) as own:
        yield own


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0) as own:
        yield own


def message(text, *paths):
    parts = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in paths]
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts]}


@pytest.fixture
def paths(tmp_path):
    return [tiny.picture(tmp_path / f"{i}.png", 20 + i, 30, seed=i) for i in range(2)]


def test_an_answer_about_two_pictures(client, server, paths):
    [model] = client.models.list().data
    assert client.models.retrieve(model.id) == model
    reply = client.chat.completions.create(model=model.id, messages=[
        message("find all ships", *paths)], max_tokens=24)
    text, boxes = alone(MODEL, TOKENIZER, paths, ["find all ships"])
    assert reply.choices[0].message.content == text
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.skyeyegpt["boxes"] == boxes and reply.usage.completion_tokens > 0


def test_an_answer_that_streams(client, server, paths):
    asked = {"model": server.name, "messages": [message("tell me about it", paths[0])],
             "temperature": 0.8, "seed": 5}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True,
                                                 stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and len(chunks) > 3
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_text_ends_the_answer(client, server):
    asked = {"model": server.name, "messages": [message("tell me about it")], "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[5:7]
    reply = client.chat.completions.create(**asked, stop=stop)
    assert reply.choices[0].message.content == whole[:whole.index(stop)]


def test_a_field_of_another_server_is_noted(client, server):
    reply = client.chat.completions.create(model=server.name, messages=[message("hello")],
                                           extra_body={"dataset": "a"})
    assert reply.skyeyegpt["notes"] == ["'dataset': not a field of this interface, without effect"]


def test_errors_are_those_that_the_package_knows(client, server):
    hello = [message("hello")]
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.chat.completions.create(model="gpt-4o", messages=hello)
    with pytest.raises(openai.BadRequestError, match="image_url.url") as error:
        client.chat.completions.create(model=server.name, messages=[
            {"role": "user", "content": [{"type": "image_url", "image_url": {
                "url": "http://127.0.0.1/a.png"}}]}])
    assert error.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=server.name, messages=hello, temperature=3)


def test_the_key_is_the_token(tmp_path):
    token = "a-token-of-24-characters"
    (tmp_path / "token").write_text(token)
    with serving(MODEL, TOKENIZER, "--token", str(tmp_path / "token")) as own:
        wrong, right = (openai.OpenAI(base_url=f"{own.url}v1", api_key=key, max_retries=0)
                        for key in ("wrong", token))
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        assert right.models.list().data[0].id == own.name
