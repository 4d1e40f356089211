"""Conversations with tiny models, and chat.py as a user starts it."""
import os
import subprocess
import sys

import torch

import tiny
from chat import Conversation, print_answer
from data import Tokenizer
from projector import SkyEyeGPT
from support.terminal.session import Session, run_command


def make_conversation(folder, paths, max_new_tokens=5, sampling=(), **more):
    """With the tiny model of a folder, greedy unless `sampling` says otherwise."""
    model, tokenizer = SkyEyeGPT.from_pretrained(folder), Tokenizer(folder / "tokenizer.model")
    return Conversation(model, tokenizer, [str(path) for path in paths],
                        {"max_new_tokens": max_new_tokens} | dict(sampling), **more)


def make_session(folder, *paths, max_new_tokens=5, sampling=(), **more):
    return Session(make_conversation(folder, paths, max_new_tokens, sampling), **more)


def handle_line(session, line):
    """What the loop of chat.py does with a line."""
    question = run_command(session, line) if line.startswith("/") else session.to_question(line)
    if question is not None:
        print_answer(session, question)


def script_answer(conversation, answer):
    """Make the model of a conversation generate just this text, and fill the cache with it."""
    tokens = conversation.tokenizer.encode(answer + "</s>")

    def generate(ids, images, cache, **_):
        x = conversation.model.embed(ids[None, cache.length:], images)
        conversation.model.llama_model.model(x, cache=cache)
        for token in tokens[:-1]:
            yield token
            position = torch.tensor([[cache.length]])
            conversation.model.llama_model.model(torch.tensor([[token]]), position, cache=cache)

    conversation.model.generate = torch.inference_mode()(generate)


def run_chat(*args, stdin=""):
    """python chat.py, in a process of its own."""
    return subprocess.run([sys.executable, "chat.py", *map(str, args)], input=stdin, text=True,
                          capture_output=True, cwd=tiny.ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
