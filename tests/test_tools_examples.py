"""What `python vit.py` and the others print without arguments: an example in a screenful, whose
numbers are those of the models."""
import contextlib
import io
import re
import subprocess
import sys

import pytest
import torch

import llama
import tiny
import vit
from data import Tokenizer
from lora import LoRAConfig, add_lora, lora_state_dict
from projector import PRESETS, SkyEyeGPT
from support.tools import model_examples, row_examples


def printed(show):
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        show()
    text = screen.getvalue()
    assert len(text.splitlines()) <= 30 and max(map(len, text.splitlines())) <= 110
    return text


def parameters(text):
    """The table of parameters -> {part: [of nano, of the full size]}."""
    lines = text[text.index("\nparameters"):].strip().splitlines()[1:]
    table = [re.split(r"  +", line) for line in lines]
    return {name: [int(n.replace(",", "")) for n in numbers] for name, *numbers in table}


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", ["vit", "llama", "lora", "data", "projector"])
def test_a_file_that_is_run_without_arguments_prints_its_example(name):
    show = getattr(row_examples if name in ("data", "projector") else model_examples,
                   f"show_{name}")
    done = subprocess.run([sys.executable, f"{name}.py"], cwd=tiny.ROOT, capture_output=True,
                          text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == printed(show)
    assert done.stdout.startswith(f"{name}.py: ")


def test_the_vision_encoders_shapes_and_parameters_are_its_own():
    text, config = printed(model_examples.show_vit), vit.PRESETS["nano"]
    models = []
    with torch.device("meta"):
        models = [vit.ViT(vit.PRESETS[name]) for name in ("nano", "eva_vit_g")]
        features = models[0](torch.randn(1, 3, 128, 128))
    table = parameters(text)
    assert table["all"] == [size(model) for model in models]
    assert table["one block"] == [size(model.blocks[5]) for model in models]
    for part in (0, 1):
        assert table["all"][part] == sum(table[name][part] for name in (
            "patch_embed", "class token, positions", "all blocks"))
    assert f"features       float{list(features.shape)}" in text
    assert f"{config.depth} times" in text and f"{config.heads} heads" in text


def test_the_language_models_shapes_and_parameters_are_its_own():
    text = printed(model_examples.show_llama)
    with torch.device("meta"):
        models = [llama.Llama(llama.PRESETS[name]) for name in ("nano", "llama2_7b")]
        logits, cache = models[0](torch.zeros(1, 5, dtype=torch.long)), models[0].new_cache(1, 5)
    table = parameters(text)
    assert table["all"] == [size(model) for model in models]
    assert table["one block's MLP"] == [size(model.model.layers[0].mlp) for model in models]
    assert f"logits        float{list(logits.shape)}" in text
    assert f"KV cache      float{list(cache.k.shape)}" in text
    assert f"{2 * cache.k.numel():,} numbers" in text
    assert float(re.search(r"within (\S+)", text)[1]) < 1e-4


def test_the_adapters_numbers_are_those_of_lora():
    text = printed(model_examples.show_lora)
    with torch.device("meta"):
        models = [llama.Llama(llama.PRESETS[name]) for name in ("nano", "llama2_7b")]
    for model in models:
        add_lora(model, LoRAConfig())
    added = [sum(t.numel() for t in lora_state_dict(model).values()) for model in models]
    assert parameters(text)["LoRA on q_proj, v_proj of all blocks"] == added
    assert f"{64 * (192 + 512):,}  " in text and "0e+00" in text
    trained, merged = (float(re.search(rf"{name}\s+(\S+)", text)[1])
                       for name in ("B has learned", "merged"))
    assert trained > 0.01 and merged < 1e-5


def test_the_rows_ids_and_labels_are_the_questions_and_the_answers():
    text = printed(row_examples.show_data)
    tokenizer = Tokenizer(row_examples.MODEL / "tokenizer.model")
    shared, first, second = re.split(r"\nsegment \d, positions [^\n]*\n", text)[1:]

    def numbers(block, name):
        cells = " ".join(re.findall(rf"^{name} +(.*)$", block, re.MULTILINE)).split()
        return [-100 if cell == "." else int(cell) for cell in cells]

    answers = set()
    for block in (first, second):
        ids, labels = numbers(block, "ids"), numbers(block, "labels")
        assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))
        assert labels[-1] == tokenizer.eos
        answers.add(tokenizer.decode([label for label in labels if label >= 0]))
        assert "[/INST]" in tokenizer.decode(ids)
    assert answers == {"yes", "{<53><77><76><97>}"}        # 272 of 512 pixels is 53 hundredths
    assert numbers(shared, "ids").count(-1) == PRESETS["nano"].visual_tokens
    assert set(numbers(shared, "labels")) == {-100}
    ids = numbers(text, "ids")
    learned = sum(label >= 0 for label in numbers(text, "labels"))
    assert f"{len(ids)} tokens, {learned} of them learned" in text


def test_the_assembled_models_shapes_parameters_and_loss_are_its_own():
    text = printed(row_examples.show_projector)
    model = SkyEyeGPT.from_pretrained(row_examples.MODEL)
    table = parameters(text)
    assert table["all"][0] == size(model) == sum(table[name][0] for name in table if name != "all")
    assert table["llama_proj"] == [size(model.llama_proj), 23_072_768]
    assert table["llama_model"][1] == 6_738_415_616 and table["its LoRA"] == [0, 33_554_432]
    loss = float(re.search(r"^loss +(\S+)", text, re.MULTILINE)[1])
    assert 0 < loss < 1 and "answer          'yes'" in text
    assert f"llama_proj      float[{model.config.visual_tokens}, 192]" in text
