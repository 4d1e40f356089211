"""Attention written out is the attention that the model computes; what is read of an answer is what
the model gives."""
import dataclasses

import pytest
import torch

import tiny
from lora import LoRAConfig
from projector import PRESETS
from support.explain.attention import (
    causal,
    covered,
    llama_heads,
    over_patches,
    patch_attention,
    read_answer,
    share_inside,
    softmax_attention,
    vit_heads,
    without_lora,
)
from support.inference.cpu_kernels import PackedWeight
from support.inference.generation import pack_if_possible
from support.inference.quantization import quantize

N = tiny.N
IDS = [1, 5, *[-1] * N, 17, 33, 8]
ANSWER = [40, 7, 61, 2]


def weights_in(model, bits):
    """The model with its language model's linear layers in so many bits."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name and "lora_" not in name:
            module.weight = torch.nn.Parameter(quantize(module.weight.detach(), bits),
                                               requires_grad=False)
    return model


MODELS = {
    "plain": lambda: tiny.skyeye(dataclasses.replace(tiny.SKYEYE, lora=None)),
    "lora": tiny.skyeye,
    "experts": lambda: tiny.skyeye(dataclasses.replace(tiny.SKYEYE, lora=LoRAConfig(
        r=7, alpha=11.0, dropout=0.0, targets=("q_proj", "k_proj"), experts=3))),
    "bf16": lambda: tiny.skyeye().bfloat16(),
    "8 bits": lambda: weights_in(tiny.skyeye(), 8),
    "4 bits": lambda: weights_in(tiny.skyeye(), 4),
    "packed": lambda: pack_if_possible(tiny.skyeye(PRESETS["nano"])),
}


def inputs_of(layers, run):
    """What each layer is given, and what it gives, while something runs."""
    found = []
    handles = [layer.register_forward_hook(lambda own, inputs, output: found.append(
        (own, inputs, output))) for layer in layers]
    with torch.inference_mode():
        run()
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_weights_sum_to_one_and_reproduce_the_fused_kernels_output(name):
    model = MODELS[name]()
    tolerance = 2e-2 if name == "bf16" else 1e-5
    ids = torch.tensor([[1, 5, *[-1] * model.config.visual_tokens, 17, 33, 8, *ANSWER]])
    side = model.config.vit.image_size
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    images = images.to(model.visual_encoder.pos_embed.dtype)
    assert (name == "packed") == any(isinstance(p, PackedWeight) for p in model.parameters())
    layers = [block.attn for block in model.visual_encoder.blocks] + [
        block.self_attn for block in model.llama_model.model.layers]
    seen = inputs_of(layers, lambda: model(ids, images))
    assert len(seen) == len(layers)
    for layer, inputs, output in seen:
        x, B, P = inputs[0], 1, inputs[0].shape[1]
        if hasattr(layer, "qkv") and hasattr(layer, "proj"):
            q, k, v = vit_heads(layer, x)
            weights, sums = softmax_attention(q, k, v)
            mixed = layer.proj(sums.to(x.dtype).transpose(1, 2).reshape(B, P, -1))
        else:
            q, k, v = llama_heads(layer, x, inputs[1])
            weights, sums = softmax_attention(q, k, v, causal(torch.arange(P), P))
            mixed = layer.o_proj(sums.to(x.dtype).transpose(1, 2).flatten(2))
            assert weights.triu(1).abs().max() == 0
        assert weights.shape == (B, layer.heads, P, P)
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        assert (mixed - output).abs().max() <= tolerance * output.abs().max()


@torch.inference_mode()
def test_what_is_read_of_an_answer_is_what_the_model_gives_at_the_places_before_its_tokens():
    model, images = tiny.skyeye(), tiny.images(1)
    reading = read_answer(model, IDS, ANSWER, images)
    logits = model(torch.tensor([[*IDS, *ANSWER]]), images)[0]                # [T, V]
    p = logits[len(IDS) - 1:-1].softmax(-1)                                   # [A, V]
    depth = model.config.llama.depth
    assert reading.attention.shape == (depth, len(ANSWER), len(IDS) + len(ANSWER) - 1)
    assert torch.allclose(reading.attention.sum(-1), torch.ones(()), atol=1e-5)
    for i in range(len(ANSWER)):            # nothing behind the place is seen
        assert reading.attention[:, i, len(IDS) + i:].sum() == 0
        assert (reading.attention[:, i, :len(IDS) + i] > 0).all()
    assert torch.allclose(reading.probability, p[range(len(ANSWER)), ANSWER], atol=1e-6)
    assert torch.equal(reading.likeliest[:, 0], p.argmax(-1))
    assert torch.allclose(reading.probabilities, p.topk(5).values, atol=1e-6)
    # The last layer of the lens is the model itself; an earlier one is the model cut off there.
    assert torch.equal(reading.lens_ids[-1], p.argmax(-1))
    body = model.llama_model.model
    cut = body.layers[:1]
    body.layers = cut
    first = model(torch.tensor([[*IDS, *ANSWER]]), images)[0, len(IDS) - 1:-1].softmax(-1)
    assert torch.equal(reading.lens_ids[0], first.argmax(-1))
    assert torch.allclose(reading.lens[0], first.max(-1).values, atol=1e-6)


def test_reading_leaves_no_hook_behind():
    model = tiny.skyeye()
    read_answer(model, IDS, ANSWER, tiny.images(1))
    patch_attention(model.visual_encoder, tiny.images(1)[0], 7)
    assert not any(module._forward_hooks or module._forward_pre_hooks
                   for module in model.modules())


@torch.inference_mode()
def test_without_its_lora_a_model_is_its_base_and_afterwards_itself_again():
    model, ids = tiny.skyeye(), torch.tensor([[1, 5, 17, 33, 8]])
    base = tiny.skyeye(dataclasses.replace(tiny.SKYEYE, lora=None))
    base.load_state_dict({name: tensor for name, tensor in model.state_dict().items()
                          if ".lora_" not in name})
    with_lora = model(ids)
    with without_lora(model) as layers:
        assert layers == 2 * model.config.llama.depth
        assert torch.equal(model(ids), base(ids)) and not torch.allclose(with_lora, base(ids))
    assert torch.equal(model(ids), with_lora)
    with without_lora(base) as layers:
        assert layers == 0


@torch.inference_mode()
def test_a_patch_looks_everywhere_and_at_the_class_token():
    model = tiny.skyeye()
    rows = patch_attention(model.visual_encoder, tiny.images(1)[0], 7)
    assert rows.shape == (tiny.VIT.depth, tiny.VIT.grid ** 2)
    assert ((rows > 0).all() and (rows.sum(-1) < 1).all())
    layers = [block.attn for block in model.visual_encoder.blocks]
    seen = inputs_of(layers, lambda: model.visual_encoder(tiny.images(1)))
    for row, (layer, inputs, _) in zip(rows, seen, strict=True):
        weights, _ = softmax_attention(*vit_heads(layer, inputs[0]))          # [1, H, 1 + P, 1 + P]
        assert torch.allclose(row, weights[0].mean(dim=0)[1 + 7, 1:], atol=1e-6)


def test_a_visual_tokens_attention_is_spread_over_its_own_four_patches():
    config, grid = tiny.SKYEYE, tiny.VIT.grid                                 # 6 x 6, 9 tokens
    slots = [False, *[True] * 2 * N, False]
    weights = torch.rand(3, len(slots), generator=torch.Generator().manual_seed(0))
    heat = over_patches(weights, slots, config, picture=1)
    assert heat.shape == (3, grid, grid)
    assert torch.allclose(heat.sum((-1, -2)), weights[:, 1 + N:1 + 2 * N].sum(-1))
    only = torch.zeros(len(slots))
    only[1 + N + 4] = 1                                                       # patches 16 to 19
    heat = over_patches(only, slots, config, picture=1).flatten()
    assert heat.nonzero()[:, 0].tolist() == [16, 17, 18, 19] and heat.max() == 0.25


def test_the_share_inside_a_box_is_its_area_where_attention_is_even():
    even = torch.ones(5, 7)
    for box in ((0, 0, 1, 1), (0.1, 0.2, 0.35, 0.9), (0.5, 0.5, 0.51, 0.52)):
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert share_inside(even, box).item() == pytest.approx(area, rel=1e-4)
    one = torch.zeros(5, 7)
    one[2, 3] = 0.2                                     # x 3/7 to 4/7, y 2/5 to 3/5
    assert share_inside(one, (3 / 7, 0.4, 4 / 7, 0.6)).item() == pytest.approx(1)
    assert share_inside(one, (3 * 10, 40, 35, 60), 70, 100).item() == pytest.approx(0.5)
    assert share_inside(one, (0, 0, 1, 0.4)).item() == pytest.approx(0)
    assert covered(4, 0.5, 2.25).tolist() == [0.5, 1, 0.25, 0]
