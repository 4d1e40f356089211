"""What every test builds on: tiny models with random weights, a tiny tokenizer, random pictures.

No two sizes coincide, so that a transposed or mistaken dimension raises an error.
"""
import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image

from data import PackedDataset, Tokenizer
from llama import LlamaConfig
from lora import LoRAConfig
from projector import SkyEyeConfig, SkyEyeGPT
from support.readers.common import Sample
from vit import ViTConfig

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"        # real data, where there is any

VIT = ViTConfig(image_size=30, patch_size=5, width=24, depth=2, heads=3, mlp_width=40)  # 6 x 6
LLAMA = LlamaConfig(vocab_size=61, width=50, depth=4, heads=5, mlp_width=44, max_positions=64)
LORA = LoRAConfig(r=7, alpha=11.0, dropout=0.0)
VOCAB = 340  # of the tokenizer
SKYEYE_LLAMA = LlamaConfig(vocab_size=VOCAB, width=50, depth=2, heads=5, mlp_width=44,
                           max_positions=256)
SKYEYE = SkyEyeConfig(vit=VIT, llama=SKYEYE_LLAMA, lora=LORA)  # 9 visual tokens
N = SKYEYE.visual_tokens

SENTENCES = (
    "[INST] <Img></Img> [caption] briefly describe the image [/INST] a green ship in a harbor",
    "[vqa] is there a road ? yes no [refer] where is the leftmost airplane ? {<12><34><56><78>}",
    "[identify] what is it in {<9><51><50><82>} a storage tank <p>two airplanes</p> <delim>",
    "there are many planes and some white cars near the river, a bridge is on a river.",
)


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter, also biases, norms and a LoRA's B, a random value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.3 * noise)
            elif p.ndim > 1 and "embed" not in name:
                p.copy_(noise * 1.5 / p[0].numel() ** 0.5)
            else:
                p.copy_(0.7 * noise)
    return module.eval()


def skyeye(config: SkyEyeConfig = SKYEYE, seed: int = 0) -> SkyEyeGPT:
    return randomize(SkyEyeGPT(config), seed)


def images(count: int, seed: int = 0) -> torch.Tensor:
    shape = (count, 3, VIT.image_size, VIT.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(rows: int, length: int, vocab: int = LLAMA.vocab_size, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


@functools.cache
def tokenizer_bytes() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, vocab_size=VOCAB,
        model_type="bpe", character_coverage=1.0, byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        num_threads=1)
    return model.getvalue()


@functools.cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(tokenizer_bytes())
        return Tokenizer(path)


def model_folder(folder: Path, config: SkyEyeConfig = SKYEYE, seed: int = 0) -> Path:
    skyeye(config, seed).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_bytes())
    return folder


def rows(samples: list[Sample], **more) -> PackedDataset:
    return PackedDataset(samples, tokenizer(), VIT.image_size, N, **more)


def picture(path: Path, width: int = 37, height: int = 23, seed: int = 0) -> str:
    """Write a random picture -> its path."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path)


def captions(folder: Path, count: int) -> list[Sample]:
    """`count` pictures with one caption each, all different."""
    words = ("a green ship", "a river", "some white cars", "two airplanes", "a bridge", "a road",
             "a storage tank", "many planes")
    return [Sample((picture(folder / f"{i}.png", seed=i),), (("", words[i % 8]),), "caption",
                   f"row {i}") for i in range(count)]


def conversations(folder: Path, count: int, texts: int = 0) -> Path:
    """`count` conversations about pictures, then `texts` without one, as a LLaVA file."""
    rows = []
    for i in range(count + texts):
        turns = [f"<image>\nis there a road {i} ?" if i < count else f"say {i} !",
                 ("yes", "no", "a green ship", "many planes and a river")[i % 4]]
        rows.append({"conversations": [{"from": who, "value": text} for who, text in
                                       zip(("human", "gpt"), turns, strict=True)]})
        if i < count:
            rows[-1]["image"] = Path(picture(folder / f"{i}.png", seed=i)).name
    (folder / "conversations.json").write_text(json.dumps(rows))
    return folder / "conversations.json"


def refusal(error: type[Exception], function: Callable, *args) -> str:
    """The message of the error that the function raises, which must be one line."""
    try:
        function(*args)
    except error as caught:
        message = str(caught)
    else:
        raise AssertionError(f"no {error.__name__}")
    assert "\n" not in message
    return message
