"""Frozen weights in 8 and 4 bits: what they lose, what they save, and that they stay frozen."""
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import eval
import tiny
import train
from llama import LlamaConfig
from projector import SkyEyeGPT
from support.checkpoints.files import ModelError, cast_copy
from support.inference.cpu_kernels import pack_for_cpu
from support.inference.quantization import QuantizedTensor, quantize
from support.readers.common import DataError
from train import TrainConfig, build_model, make_optimizer

BOTH = pytest.mark.parametrize("bits", [8, 4])
LOW = 7 * tiny.SKYEYE_LLAMA.depth + 1 + 4 * tiny.VIT.depth      # linear weights of the tiny model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model"))


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


def settings(folder, **more):
    return TrainConfig(**dict(model=str(folder), tune="lora", max_steps=4, batch_size=2, lr=1e-2,
                              warmup_steps=1, log_steps=1, device="cpu") | more)


# ---- the weight ----------------------------------------------------------------------------------

@pytest.mark.parametrize("bits, most, least", [(8, 0.01, 0.005), (4, 0.09, 0.05)])
@pytest.mark.parametrize("n", [50, 1100])
def test_a_product_loses_one_percent_in_8_bits_and_nine_in_4(bits, most, least, n):
    """n: no multiple of a group; 1,100 rows of 1,100 are made, and multiplied, in parts."""
    weight, x = numbers(1100, n), numbers(3, 7, n, seed=1)
    found = F.linear(x, quantize(weight, bits))
    assert found.shape == (3, 7, 1100)
    assert (least if n > 50 else 0) < error(found, x @ weight.T) < most


def test_a_scale_for_each_32_numbers_keeps_a_large_one_from_blurring_the_others():
    weight = numbers(70, 100)
    weight[:, 5] *= 100
    low, rows = quantize(weight, 8, group=32), quantize(weight, 8)
    assert low.scale.shape == (70, 4, 1) and low.dtype == torch.float32
    assert error(low.dequantize()[:, 32:], weight[:, 32:]) < 0.006
    assert error(rows.dequantize()[:, 32:], weight[:, 32:]) > 0.1
    assert quantize(weight.half(), 8, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("bits, step", [(8, 1), (4, 16)])
def test_numbers_on_the_grid_come_back_exactly(bits, step):
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-128 // step, 127 // step + 1, (9, 192), generator=generator) * step
    q[:, ::32] = -128                                       # the one that sets its group's scale
    signs = torch.tensor([1, -1])[torch.arange(9) % 2]      # and may be the positive end
    weight = q * signs[:, None] * 2.0 ** -torch.arange(9)[:, None]
    assert torch.equal(quantize(weight, bits).dequantize(), weight)


@BOTH
def test_rows_of_zeros_stay_and_what_is_no_number_is_not_hidden(bits):
    weight = numbers(5, 70)
    weight[1] = 0
    weight[3, 40] = torch.nan
    low = quantize(weight, bits)
    found = low.dequantize()
    assert low.scale.all() and not found[1].any() and found[[0, 2, 4]].isfinite().all()
    assert found[3, 40].isnan()


@BOTH
def test_the_memory_is_that_of_the_bits(bits):
    low = quantize(numbers(96, 640).bfloat16(), bits)
    held = low.q.nbytes + low.scale.nbytes
    assert 8 * held / low.numel() == pytest.approx({8: 8, 4: 4.5}[bits], abs=0.03)


@BOTH
def test_the_gradient_is_that_of_the_float_weight(bits):
    low, bias = quantize(numbers(20, 70), bits), numbers(20, seed=2)
    x = numbers(2, 3, 70, seed=1).requires_grad_()
    found = F.linear(x, low, bias)
    wanted = x @ low.dequantize().T + bias
    torch.testing.assert_close(found, wanted)
    pull = numbers(2, 3, 20, seed=3)
    torch.testing.assert_close(torch.autograd.grad(found, x, pull), torch.autograd.grad(
        wanted, x, pull))


@BOTH
def test_no_float_weight_is_kept_for_the_backward_pass(bits):
    low, x, kept = quantize(numbers(20, 70), bits), numbers(3, 70).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        y = F.linear(x, low)
    assert not kept and y.requires_grad
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        F.linear(x, low.dequantize())
    assert any(tensor.numel() == 1400 for tensor in kept)       # as an ordinary product does


def test_few_tokens_in_bfloat16_give_what_many_give():
    """A kernel of torch's own multiplies them."""
    low, x = quantize(numbers(64, 192).bfloat16(), 8), numbers(9, 192, seed=1).bfloat16()
    many, few = F.linear(x, low), torch.cat([F.linear(row[None, None], low)[0] for row in x])
    assert error(few, many) < 0.01


@BOTH
def test_a_weight_is_moved_and_read_but_not_written_to(bits):
    low = quantize(numbers(20, 70), bits)
    assert isinstance(low.bfloat16(), QuantizedTensor)
    assert low.bfloat16().scale.dtype == torch.bfloat16
    assert isinstance(torch.nn.Parameter(low, requires_grad=False), QuantizedTensor)
    assert torch.equal(low + 1, low.dequantize() + 1) and "[20, 70]" in repr(low)
    for write in (lambda: low.add_(1), lambda: low[0].zero_(), lambda: low.copy_(numbers(20, 70))):
        with pytest.raises(ValueError, match="cannot be written to"):
            write()


@BOTH
def test_it_is_moved_and_read_in_inference_mode_as_elsewhere(bits):
    low = quantize(numbers(20, 128), bits)
    with torch.inference_mode():
        moved = low.to("cpu", torch.bfloat16)
        assert isinstance(moved, QuantizedTensor) and moved.dtype == torch.bfloat16
        assert torch.equal(low + 1, low.dequantize() + 1)
        assert torch.equal(F.linear(torch.eye(128), low), low.dequantize().t())
        for view in (lambda: low.reshape(-1), lambda: low[0]):
            with pytest.raises(ValueError, match="has no views"):
                view()


# ---- the model -----------------------------------------------------------------------------------

@BOTH
def test_linear_weights_alone_are_in_few_bits_and_the_heads_and_the_eyes_in_8(folder, bits):
    model = SkyEyeGPT.from_pretrained(folder, bits=bits)
    low = {name: p for name, p in model.state_dict().items() if isinstance(p, QuantizedTensor)}
    eye = {name for name in low if name.startswith("visual_encoder.")}
    speaker = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
               "lm_head")
    assert {name.split(".")[-2] for name in eye} == {"qkv", "proj", "fc1", "fc2"}
    assert {name.split(".")[-2] for name in low.keys() - eye} == set(speaker)
    assert len(eye) == 4 * tiny.VIT.depth and len(low) == LOW
    exact = SkyEyeGPT.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, exact[name]) for name, tensor in model.state_dict().items()
               if name not in low)
    assert {name for name, p in low.items() if p.q.dtype == torch.int8 or bits == 8} >= eye | {
        "llama_model.lm_head.weight"}
    assert all(0 < error(p.dequantize(), exact[name]) < (0.01 if p.q.dtype == torch.int8 else 0.1)
               for name, p in low.items())


@BOTH
def test_the_eyes_activations_are_not_rounded_when_it_is_packed(folder, bits):
    """One number of a patch is a thousand times the others, as in large encoders."""
    model = SkyEyeGPT.from_pretrained(folder, bits=bits)
    block, x = model.visual_encoder.blocks[0].attn, numbers(1, 7, tiny.VIT.width)
    x[..., 3] *= 1000
    before = block(x)
    assert torch.equal(pack_for_cpu(model).visual_encoder.blocks[0].attn(x), before)


@BOTH
def test_it_loads_and_answers_in_inference_mode(folder, bits):
    ids = tiny.ids(1, 9)
    with torch.inference_mode():
        logits = SkyEyeGPT.from_pretrained(folder, bits=bits)(ids)
    assert torch.equal(logits, SkyEyeGPT.from_pretrained(folder, bits=bits)(ids))


@BOTH
def test_batches_and_caches_change_nothing(folder, bits):
    model = SkyEyeGPT.from_pretrained(folder, bits=bits)
    slots = torch.full((tiny.N,), -1)
    prompts = [torch.cat([slots, tiny.ids(1, length, tiny.VOCAB, seed=length)[0]])
               for length in (5, 9, 3)]
    images = tiny.images(3)
    groups = [[prompt] for prompt in prompts]
    together = model.answer_batch(groups, images, tiny.N, max_new_tokens=6)
    for prompt, image, answer in zip(prompts, images, together, strict=True):
        assert list(model.generate(prompt, image[None], max_new_tokens=6)) == answer
        logits = model(torch.cat([prompt, torch.tensor(answer)])[None], image[None])[0]
        assert logits[len(prompt) - 1:-1].argmax(-1).tolist() == answer
    assert len(set(map(tuple, together))) == 3


@BOTH
def test_a_lora_is_merged_into_floats(folder, bits):
    model, ids = SkyEyeGPT.from_pretrained(folder, bits=bits), tiny.ids(2, 9)
    before = model(ids)
    model.merge()
    assert error(model(ids), before) < 1e-5
    attention = model.llama_model.model.layers[0].self_attn
    assert not isinstance(attention.q_proj.weight, QuantizedTensor)
    assert isinstance(attention.k_proj.weight, QuantizedTensor)


def test_float16_becomes_bfloat16_as_torch_would_make_it():
    x = torch.arange(1 << 16).to(torch.uint16).view(torch.float16)         # all there are
    x = x[~x.isnan()].expand(9, -1)                                        # 573,444: two parts
    for wanted in (torch.bfloat16, torch.float32):
        found = cast_copy(x, "cpu", wanted)
        assert torch.equal(found, x.to(wanted)) and found.dtype == wanted
    same = x[0].clone()
    assert cast_copy(same, "cpu", torch.float16).data_ptr() != same.data_ptr()


PEAK = """
import re, sys
import torch
from support.inference.quantization import quantize
from projector import SkyEyeGPT
quantize(torch.ones(1, 1), 8).detach()      # torch loads 50 MB of modules then
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
model = SkyEyeGPT.from_pretrained(sys.argv[1], bits=int(sys.argv[2]))
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells the peak there")
def test_the_16_bit_model_is_never_in_memory_as_a_whole(tmp_path):
    """67 million numbers: 128 MiB in 16 bits, 256 MiB in 32, 64 MiB in 8."""
    large = LlamaConfig(vocab_size=61, width=1024, depth=5, heads=4, mlp_width=3000,
                        max_positions=64)
    model = SkyEyeGPT(dataclasses.replace(tiny.SKYEYE, llama=large, lora=None))
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    del model
    strict = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}   # what is freed is given back
    found = {bits: int(subprocess.run([sys.executable, "-c", PEAK, tmp_path, str(bits)],
                                      cwd=tiny.ROOT, capture_output=True, text=True, env=strict,
                                      check=True).stdout) for bits in (16, 8, 4)}
    assert found[16] > 250 and found[8] < 100 and found[4] < 80


# ---- training ------------------------------------------------------------------------------------

@pytest.mark.parametrize("tune", ["lora", "moe-lora"])
@BOTH
def test_a_step_teaches_the_lora_what_it_would_beside_the_float_weights(tmp_path, bits, tune):
    folder = tiny.model_folder(tmp_path, dataclasses.replace(tiny.SKYEYE, lora=None))
    config = settings(folder, tune=tune, bits=bits, lora_dropout=0.0)
    found, ids = [], tiny.ids(2, 12)
    ids[:, :tiny.N] = -1                                        # the eye, in 8 bits, is frozen too
    for dense in (False, True):
        torch.manual_seed(0)
        model, _ = build_model(config, "cpu")
        low = {name: p for name, p in model.named_parameters() if isinstance(p, QuantizedTensor)}
        held = {name: (p.q.clone(), p.scale.clone()) for name, p in low.items()}
        if dense:
            for name, p in low.items():
                stem, _, last = name.rpartition(".")
                weight = torch.nn.Parameter(p.dequantize(), requires_grad=False)
                setattr(model.get_submodule(stem), last, weight)
        optimizer = make_optimizer(model, config)
        model(ids, tiny.images(2), labels=tiny.ids(2, 12)).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        assert all(torch.equal(held[name][0], p.q) and torch.equal(held[name][1], p.scale)
                   for name, p in low.items())
    assert len(low) == LOW and found[0].keys() == found[1].keys()
    learns = [name for name in found[0] if "lora_B" in name]
    assert len(learns) == (2 if tune == "lora" else 7) * tiny.SKYEYE_LLAMA.depth
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-6, rtol=1e-5)


def test_what_was_trained_beside_4_bits_goes_on_and_loads_with_and_without_them(folder, tmp_path):
    data = str(tiny.conversations(tmp_path, count=4, texts=2))
    config = settings(folder, bits=4, data=(data,), save_steps=2, output_dir=str(tmp_path / "out"))
    train.train(config)
    train.train(dataclasses.replace(config, resume=str(tmp_path / "out" / "checkpoint-2"),
                                    output_dir=str(tmp_path / "again")))
    with pytest.raises(ModelError, match="bits 4 -> 8"):
        train.train(dataclasses.replace(config, bits=8, resume="auto"))
    low, again = (SkyEyeGPT.from_pretrained(tmp_path / out, bits=4) for out in ("out", "again"))
    whole, ids = SkyEyeGPT.from_pretrained(tmp_path / "out"), tiny.ids(2, 9)
    assert torch.equal(low(ids), again(ids))
    assert 0 < error(low(ids), whole(ids)) < 0.5
    start = SkyEyeGPT.from_pretrained(folder).state_dict()
    changed = {n for n, tensor in whole.state_dict().items() if not torch.equal(tensor, start[n])}
    assert changed and all(".lora_" in n or n.startswith("llama_proj.") for n in changed)


# ---- refused -------------------------------------------------------------------------------------

@pytest.mark.parametrize("more", [{"tune": "full"}, {"train_vit": True}, {"model": ""}])
def test_what_would_train_low_bits_is_refused_in_a_line(folder, more):
    with pytest.raises(DataError, match="--bits 8: only of a --model") as caught:
        build_model(settings(folder, bits=8, **more), "cpu")
    assert "\n" not in str(caught.value)


def test_a_model_in_few_bits_is_not_saved_as_a_whole(folder, tmp_path):
    model = SkyEyeGPT.from_pretrained(folder, bits=8)
    with pytest.raises(ModelError, match="without --bits") as caught:
        model.save_pretrained(tmp_path / "out")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="3 bits: there are 16, 8 and 4"):
        SkyEyeGPT.from_pretrained(folder, bits=3)


def test_evaluation_takes_the_flag(capsys):
    assert eval.parse_args(["--bits", "4"]).bits == 4 and eval.parse_args([]).bits == 16
    with pytest.raises(SystemExit):
        eval.parse_args(["--bits", "5"])
    assert "--bits" in capsys.readouterr().err.splitlines()[-1]
