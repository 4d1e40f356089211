"""What --explain says of memory is what PyTorch allocates, at a size at which that can be tried."""
import dataclasses
import re

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import tiny
from lora import LoRAConfig
from projector import PRESETS, SkyEyeGPT
from support.checkpoints.files import ModelError
from support.common import UserError
from support.explain import sizes
from support.explain.walk import watch_forward
from support.inference.quantization import QuantizedTensor
from support.tools import convert
from support.training.flops import is_trained

LLAMA = dataclasses.replace(tiny.SKYEYE_LLAMA, depth=4)
CONFIG = dataclasses.replace(tiny.SKYEYE, llama=LLAMA, lora=None)
ROWS, TEXT, ANSWER = 3, 34, 11


@pytest.fixture(autouse=True)
def small_methods(monkeypatch):
    """LoRAs of a size that fits the tiny model."""
    monkeypatch.setitem(sizes.METHODS, "lora", LoRAConfig(r=7))
    monkeypatch.setitem(sizes.METHODS, "moe-lora", LoRAConfig(r=7, targets=("q_proj",), experts=3))


def make_batch(config):
    """A picture, a question and an answer of ANSWER tokens in each row."""
    ids = tiny.ids(ROWS, config.visual_tokens + TEXT, tiny.VOCAB)
    ids[:, 1:1 + config.visual_tokens] = -1
    labels = torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - ANSWER, -100, ids)
    return {"ids": ids, "labels": labels}


def allocated(run):
    """-> the bytes that are allocated and not freed while something runs, and what it returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages()), result


@pytest.mark.parametrize("tune, own", [*((tune, None) for tune in sizes.METHODS),
                                       ("projector", LoRAConfig(r=7))])
def test_a_training_step_allocates_what_is_foretold(tune, own):
    """In float32. Of the forward pass nothing is left but what autograd saved, and the loss."""
    config = dataclasses.replace(CONFIG, lora=own)
    told = sizes.step_memory(config, tune, ROWS, TEXT, ANSWER, torch.float32)
    model = tiny.randomize(SkyEyeGPT(sizes.with_method(config, tune))).train()
    for name, p in model.named_parameters():
        p.requires_grad = is_trained(name, tune)
    assert told.weights == sum(p.nbytes for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert told.trained == sum(p.numel() for p in trained)
    batch = make_batch(CONFIG)
    with torch.no_grad():
        patches = model.visual_encoder(tiny.images(ROWS))
    activations, loss = allocated(lambda: model(**batch, images=patches))
    # Beside what is counted: the loss, the masks and places, a few hundred numbers a row.
    assert told.activations == pytest.approx(activations, rel=0.02)
    loss.backward()
    assert told.gradients == sum(p.grad.nbytes for p in trained)
    optimizer = torch.optim.AdamW(trained)
    state, _ = allocated(optimizer.step)
    counters = 4 * len(trained)                 # a step counter each
    assert told.optimizer + counters == sum(
        tensor.nbytes for state in optimizer.state.values() for tensor in state.values())
    assert state >= told.optimizer


@pytest.mark.parametrize("tune", sizes.METHODS)
def test_so_does_a_step_in_bf16(tune):
    """As train.py stores the weights: frozen ones in bf16 where adapters are trained."""
    told = sizes.step_memory(CONFIG, tune, ROWS, TEXT, ANSWER)
    model = tiny.randomize(SkyEyeGPT(sizes.with_method(CONFIG, tune))).train()
    for name, p in model.named_parameters():
        p.requires_grad = is_trained(name, tune)
        p.data = p.data.to(torch.float32 if p.requires_grad or tune == "full" else torch.bfloat16)
    assert told.weights == sum(p.nbytes for p in model.parameters())
    with torch.no_grad():
        patches = model.visual_encoder(tiny.images(ROWS).to(model.visual_encoder.pos_embed.dtype))

    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return model(**make_batch(CONFIG), images=patches)

    activations, _ = allocated(forward)
    assert told.activations == pytest.approx(activations, rel=0.03)


@pytest.mark.parametrize("tune", sizes.METHODS)
def test_two_depths_give_every_other(tune):
    args = (tune, 2, 13, 5, torch.bfloat16)
    config = sizes.with_method(dataclasses.replace(
        CONFIG, llama=dataclasses.replace(LLAMA, depth=7)), tune)
    assert sizes.activation_bytes(config, *args) == sizes.fake_activations(config, *args)


@pytest.mark.parametrize("variant", ["eva", "clip"])
def test_one_block_of_each_stack_gives_the_steps_of_all(variant):
    config = dataclasses.replace(CONFIG, vit=dataclasses.replace(tiny.VIT, variant=variant))
    ids = torch.zeros(1, config.visual_tokens + sizes.TEXT_TOKENS, dtype=torch.long, device="meta")
    side = config.vit.image_size
    told = watch_forward(sizes.on_meta(config), ids, torch.zeros(1, 3, side, side, device="meta"))
    shown = [step for step in told if step.level == 0 or "blocks.0" in step.name or
             "layers.0" in step.name]
    assert sizes.all_steps(config) == shown and len(shown) > 4 + config.vit.depth + LLAMA.depth


def test_a_lora_of_the_same_kind_stays_another_is_replaced():
    own = dataclasses.replace(CONFIG, lora=LoRAConfig(r=3))
    assert sizes.with_method(own, "lora").lora.r == 3
    assert sizes.with_method(own, "moe-lora").lora.experts == 3
    assert sizes.with_method(own, "full") == sizes.with_method(own, "projector") == own
    assert sizes.with_method(CONFIG, "full").lora is None


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_weights_take_what_a_loaded_model_takes(bits, tmp_path):
    folder = tiny.model_folder(tmp_path, CONFIG)
    model = SkyEyeGPT.from_pretrained(folder, dtype=torch.bfloat16, bits=bits)
    loaded = sum(p.q.nbytes + p.scale.nbytes if isinstance(p, QuantizedTensor) else p.nbytes
                 for p in model.parameters())
    assert sizes.weight_bytes(CONFIG, bits) == loaded


def test_the_cache_of_a_token_is_its_keys_and_values():
    model = tiny.skyeye(CONFIG)
    cache = model.llama_model.new_cache(1, 9)
    assert sizes.cache_bytes(CONFIG, 4) * 9 == cache.k.nbytes + cache.v.nbytes


@pytest.mark.parametrize("name", ["skyeyegpt", "folder"])
def test_the_command_prints_the_sizes_of_presets_and_folders(name, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    if name == "folder":
        name, config = str(tiny.model_folder(tmp_path)), tiny.SKYEYE
        (tmp_path / "model.safetensors").unlink()               # weights are not needed
    else:
        config = PRESETS[name]
    convert.main(["--explain", name])
    text = capsys.readouterr().out
    with torch.device("meta"):
        model = SkyEyeGPT(config)
    total = sum(p.numel() for p in model.parameters())
    assert f"in all {total:,} parameters, " in text
    assert f"[1, {config.visual_tokens + sizes.TEXT_TOKENS}, {config.llama.vocab_size}]" in text
    for tune in sizes.METHODS:
        assert len(re.findall(rf"^{tune} +[\d,]+ .*$", text, re.MULTILINE)) == 1
    assert max(map(len, text.splitlines())) <= 130


def test_a_name_that_is_neither_is_refused(tmp_path):
    assert "neither a preset (skyeyegpt, nano) nor a model folder" in tiny.refusal(
        ModelError, convert.main, ["--explain", "skyeye"])
    assert "no such file" in tiny.refusal(UserError, convert.main, ["--explain", str(tmp_path)])
