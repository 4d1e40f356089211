"""A server of tiny.model_folder in a thread of the test, and its client."""
import base64
import contextlib
import http.client
import json
import threading
import time
from pathlib import Path

import torch

import chat
import tiny
from support.serving.server import make_server
from support.terminal.questions import write_question

URL = "/v1/chat/completions"


@contextlib.contextmanager
def serving(model, tokenizer, *flags):
    """A server at a free port; `attach` is called, as after the model's load, unless model is
    None."""
    config = chat.parse_args(["--serve", "--port", "0", "--no-open", "--max_new_tokens", "24",
                              *flags])
    server = make_server(config)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    if model:
        server.attach(model, tokenizer)
    try:
        yield server
    finally:
        server.stop()
        thread.join(5)


def data_url(path):
    content = Path(path).read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode()


def user(text, *paths):
    parts = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in paths]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def body(text, *paths, **more):
    return {"messages": [user(text, *paths)]} | more


def ask(server, content, headers=None, path=URL, method="POST", timeout=60):
    """-> status, headers, and the reply: of JSON, else bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=timeout)
    if not isinstance(content, bytes | None):
        content = json.dumps(content).encode()
    sent = {"Content-Type": "application/json"} if content is not None else {}
    with contextlib.closing(connection):
        connection.request(method, path, content, sent | (headers or {}))
        reply = connection.getresponse()
        text = reply.read()
    is_json = reply.headers.get("Content-Type") == "application/json"
    return reply.status, reply.headers, json.loads(text) if is_json and text else text


def answer_of(reply):
    return reply["choices"][0]["message"]["content"]


def events(text):
    """The objects of a stream, without [DONE]."""
    lines = [line[6:] for line in text.decode().split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def streamed(text):
    """-> the content of a stream, why it ended, and the last `skyeyegpt`."""
    found = [event for event in events(text) if event["choices"]]
    content = "".join(event["choices"][0]["delta"].get("content", "") for event in found)
    return content, found[-1]["choices"][0]["finish_reason"], found[-1]["skyeyegpt"]


def alone(model, tokenizer, paths, questions, answers=(), auto_task=True, **sampling):
    """The last answer of chat.py's own conversation, whose earlier answers are given or its own,
    and its boxes."""
    options = {"max_new_tokens": 24, "stop": 2, "temperature": None, "top_p": 0.9, "top_k": 50,
               "repetition_penalty": None, "generator": torch.Generator().manual_seed(42)}
    conversation = chat.Conversation(model, tokenizer, [str(path) for path in paths],
                                     options | sampling)
    for number, question in enumerate(questions):
        size = conversation.pictures[0].size if paths else None
        generator = conversation.sampling["generator"]
        generator.manual_seed(generator.initial_seed())
        text = "".join(conversation.ask(write_question(question, size, auto_task=auto_task)))
        if number < len(answers):
            conversation.turns[-1] = (conversation.turns[-1][0], answers[number])
    return text, [found.to_json(range(9)) for found in conversation.detections()]


def tiny_model():
    model = tiny.skyeye()
    model.llama_model.lm_head.weight.data[2] *= 1.5         # some answers end before others
    return model, tiny.tokenizer()


def script(monkeypatch, server, tokenizer, answer, seconds=0.0):
    """Let the server's model say this text to whatever is asked, a token each `seconds`."""
    engine, ids = server.engine, [*tokenizer.encode(answer), tokenizer.eos]
    choose = type(engine).next_ids

    def next_ids():
        time.sleep(seconds)
        for number, row in enumerate(engine.rows):
            engine.logits[number] = -50.0
            engine.logits[number, ids[len(row.tokens)]] = 50.0
        return choose(engine)
    monkeypatch.setattr(engine, "next_ids", next_ids)
