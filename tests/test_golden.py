"""Our numbers are those of upstream's behavior, where no other implementation is installed too."""
import re

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from data import Tokenizer, encode_box, encode_conversation, preprocess
from golden import GOLDEN, OURS, VECTORS, picked
from train import TrainConfig, learning_rate

LLAMA_TOKENIZER = tiny.DATA / "fixtures" / "llama" / "tokenizer.model"


@pytest.mark.parametrize("name", GOLDEN)
def test_a_model_of_sine_waves_gives_the_numbers_transformers_gave(name):
    with torch.no_grad():
        found = picked(OURS[name]())
    torch.testing.assert_close(found, torch.tensor(GOLDEN[name]), rtol=0, atol=1e-4)


# ---- prompts -------------------------------------------------------------------------------------

class StoredTokenizer(Tokenizer):
    """LLaMA-2's ids of the texts that the vectors need, and of no other."""

    def __init__(self):
        self.bos, self.eos = 1, 2

    def encode(self, text, word_boundary=True):
        if not word_boundary:
            return self.encode("\n" + text)[2:]
        parts = [part for part in re.split("(<unk>|</?s>)", text) if part]
        return [i for part in parts for i in ([self.SPECIAL.index(part)] if part in self.SPECIAL
                                              else VECTORS["tokens"]["ids"][part])]


@pytest.mark.parametrize("row", VECTORS["rows"]["rows"])
def test_a_conversation_has_upstreams_ids_and_labels(row):
    ids, labels, prefix_len = encode_conversation(
        StoredTokenizer(), row["turns"], row["visual_tokens"], 1, row["style"])
    assert (ids, labels) == (row["ids"], row["labels"])
    assert ids[prefix_len - 1] == -1 and -1 not in ids[prefix_len:]


@pytest.mark.skipif(not LLAMA_TOKENIZER.exists(), reason="needs LLaMA's tokenizer.model")
def test_the_stored_ids_are_those_of_llamas_tokenizer():
    tokenizer = Tokenizer(LLAMA_TOKENIZER)
    for text, ids in VECTORS["tokens"]["ids"].items():
        assert tokenizer.encode(text) == ids


# ---- boxes, pictures, schedule -------------------------------------------------------------------

def test_boxes_are_written_as_upstream_writes_them():
    for vector in VECTORS["boxes"]["boxes"]:
        assert encode_box(tuple(vector["box"]), *vector["size"]) == vector["text"]


@pytest.mark.parametrize("vector", VECTORS["pictures"]["pictures"])
def test_a_picture_has_upstreams_normalized_values(vector):
    y, x, c = np.mgrid[0:vector["height"], 0:vector["width"], 0:3]
    image = Image.fromarray(((7 * x + 11 * y + 53 * c + x * y // 5) % 256).astype(np.uint8))
    found = preprocess(image, vector["size"], style=vector["style"]).double()
    wanted = {name: torch.tensor(vector[name], dtype=torch.float64)
              for name in ("mean", "std", "values")}
    near = {"rtol": 0, "atol": 2e-6}
    torch.testing.assert_close(found.mean((1, 2)), wanted["mean"], **near)
    torch.testing.assert_close(found.flatten(1).std(1, correction=0), wanted["std"], **near)
    places = torch.linspace(0, found.numel() - 1, 12, dtype=torch.float64).long()
    torch.testing.assert_close(found.flatten()[places], wanted["values"], **near)


def test_the_learning_rate_follows_upstreams_schedule():
    for step, lr in VECTORS["schedule"]["steps"]:
        assert learning_rate(step, TrainConfig()) == pytest.approx(lr, rel=1e-12)
