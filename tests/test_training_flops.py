"""The FLOPs of a training step, counted on paper and by PyTorch's own counter."""
import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny
from data import collate
from llama import packed_mask
from lora import LoRAConfig
from projector import SkyEyeGPT
from support.training.flops import count_flops, is_trained, matmul_rate
from train import TrainConfig

LLAMA = dataclasses.replace(tiny.SKYEYE_LLAMA, depth=3)
CONFIGS = {
    "q v": dataclasses.replace(tiny.SKYEYE, llama=LLAMA),
    "mlp": dataclasses.replace(tiny.SKYEYE, llama=LLAMA,
                               lora=LoRAConfig(r=7, targets=("o_proj", "down_proj"))),
    "k up": dataclasses.replace(tiny.SKYEYE, llama=LLAMA,
                                lora=LoRAConfig(r=7, targets=("k_proj", "up_proj"))),
    "experts": dataclasses.replace(tiny.SKYEYE, llama=LLAMA,
                                   lora=LoRAConfig(r=7, targets=("q_proj",), experts=3)),
    "none": dataclasses.replace(tiny.SKYEYE, llama=LLAMA, lora=None),
    "llava": dataclasses.replace(tiny.SKYEYE, llama=LLAMA, lora=None, patches_per_token=1,
                                 projector="mlp2x_gelu",
                                 vit=dataclasses.replace(tiny.VIT, variant="clip")),
}


def make_batch(config, kind):
    """Three rows of 43 tokens, 11 of them supervised in each; packed: two questions in a row."""
    T, N = 43, config.visual_tokens
    ids = tiny.ids(3, T, tiny.VOCAB)
    labels = torch.where(torch.arange(T) < T - 11, -100, ids)
    batch = {"ids": ids, "labels": labels, "images": None}
    if kind != "text":
        ids[:, 1:1 + N], batch["images"] = -1, tiny.images(3)
    if kind == "packed":
        segments = torch.tensor([0] * (T - 19) + [1] * 12 + [2] * 7)
        positions = torch.tensor([*range(T - 7), *range(T - 19, T - 12)])
        batch |= {"segments": segments.expand(3, -1), "positions": positions.expand(3, -1)}
    return batch


def counted(config, batch, tune, train_vit):
    """What PyTorch sees being computed, attention as plain products."""
    with torch.device("meta"):
        model = SkyEyeGPT(config)
    model = tiny.randomize(model.to_empty(device="cpu")).train()
    settings = TrainConfig(tune=tune, train_vit=train_vit)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = is_trained(name, settings.tune, settings.train_vit)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = model(**batch)
        if loss.requires_grad:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name, tune, train_vit, kind", [
    ("q v", "lora", False, "text"), ("q v", "lora", False, "packed"),
    ("q v", "lora", True, "pictures"), ("q v", "projector", False, "text"),
    ("q v", "projector", False, "pictures"), ("q v", "full", True, "packed"),
    ("mlp", "lora", False, "text"), ("k up", "lora", False, "text"),
    ("experts", "moe-lora", False, "text"), ("experts", "moe-lora", False, "pictures"),
    ("experts", "projector", False, "pictures"), ("none", "full", False, "text"),
    ("none", "full", True, "pictures"), ("none", "projector", True, "pictures"),
    ("llava", "full", True, "pictures"), ("llava", "projector", False, "packed")])
def test_every_product_is_counted_but_for_attention_to_masked_keys(name, tune, train_vit, kind):
    """PyTorch's counter includes all T x T scores. With the last position at every token ours does
    so too, and the two are equal to the last product."""
    config = CONFIGS[name]
    batch = make_batch(config, kind)
    everywhere = torch.full_like(batch["ids"], batch["ids"].shape[1] - 1)
    assert count_flops(config, batch | {"positions": everywhere}, tune, train_vit) == counted(
        config, batch, tune, train_vit)


@pytest.mark.parametrize("kind", ["text", "packed"])
def test_attention_is_counted_for_the_keys_that_the_mask_leaves(kind):
    """Full training: 2 FLOPs a pair and width for scores and for sums, 4 for gradients of each."""
    config = CONFIGS["none"]
    batch = make_batch(config, kind)
    T, D, depth = batch["ids"].shape[1], config.llama.width, config.llama.depth
    mask = packed_mask(batch.get("segments", torch.zeros_like(batch["ids"])))[:, 0]    # [B, T, T]
    supervised = (batch["labels"][:, 1:] != -100)[..., None]
    hidden = (depth - 1) * (~mask).sum() + (~mask[:, :-1] & supervised).sum()
    everywhere = torch.full_like(batch["ids"], T - 1)
    less = (count_flops(config, batch | {"positions": everywhere}, "full")
            - count_flops(config, batch, "full"))
    assert less == 12 * D * hidden > 0


def test_padding_counts_nothing(tmp_path):
    config = tiny.SKYEYE
    rows = tiny.rows(tiny.captions(tmp_path, 4), questions_per_row=2)
    items = [rows[0, i] for i in range(4)]
    assert len({len(item["ids"]) for item in items}) > 1
    together = count_flops(config, collate(items), "lora")
    assert together == sum(count_flops(config, collate([item]), "lora") for item in items)


def test_the_rate_of_a_matrix_product_is_measured_without_the_runs_random_numbers():
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    assert 1e7 < matmul_rate("cpu", torch.float32) < 1e16
    assert torch.equal(torch.randn(2), expected)
