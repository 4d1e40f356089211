"""The walk's shapes, parameters and FLOPs are those of the model, its lines those of the files."""
import dataclasses
import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import llama
import tiny
import vit
from lora import LoRAConfig
from projector import PRESETS, SkyEyeGPT
from support.explain.attention import read_answer
from support.explain.walk import (
    answer_rows,
    line_of,
    print_steps,
    prompt_cells,
    reading_to_json,
    short,
    step_rows,
    walk,
    watch_forward,
)
from support.inference.generation import pack_if_possible

N = tiny.N
IDS = [1, 5, *[-1] * N, 17, 33, 8]
CONFIGS = {
    "lora": tiny.SKYEYE,
    "plain": dataclasses.replace(tiny.SKYEYE, lora=None),
    "experts": dataclasses.replace(tiny.SKYEYE, lora=LoRAConfig(
        r=7, dropout=0.0, targets=("q_proj", "down_proj"), experts=3)),
    "llava": dataclasses.replace(tiny.SKYEYE, lora=None, patches_per_token=1,
                                 projector="mlp2x_gelu",
                                 vit=dataclasses.replace(tiny.VIT, variant="clip")),
}


def stages(steps):
    return [step for step in steps if step.level == 0]


def ids_for(config, pictures=1):
    return [1, *[-1] * pictures * config.visual_tokens, 17, 33, 8]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_flops_and_parameters_add_up_to_those_of_the_model(name, pictures):
    config = CONFIGS[name]
    model = tiny.skyeye(config)
    ids, images = ids_for(config, pictures), tiny.images(pictures) if pictures else None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.tensor([ids]), images)
    steps = walk(model, ids, images)
    assert sum(step.flops for step in stages(steps)) == counter.get_total_flops()
    used = [p for part, p in model.named_parameters()
            if pictures or part.startswith("llama_model.")]
    assert sum(step.parameters for step in stages(steps)) == sum(p.numel() for p in used)
    for stack, depth in (("visual_encoder.blocks", config.vit.depth if pictures else 0),
                         ("llama_model.model.layers", config.llama.depth)):
        for i in range(depth):
            inside = [step for step in steps if step.level == 1
                      and step.name.startswith(f"{stack}.{i}.")]
            [whole] = [step for step in steps if step.name == f"{stack}.{i}"]
            assert len(inside) == 4
            assert sum(step.flops for step in inside) == whole.flops
            assert sum(step.parameters for step in inside) == whole.parameters


def test_a_part_of_the_model_has_the_flops_that_pytorch_counts_in_it():
    model = tiny.skyeye()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.tensor([IDS]), tiny.images(1))
    counted = counter.get_flop_counts()
    steps = [step for step in walk(model, IDS, tiny.images(1))
             if f"SkyEyeGPT.{step.name}" in counted and step.level < 2
             and step.name != "visual_encoder"]
    assert len(steps) > 12
    for step in steps:
        assert step.flops == sum(counted[f"SkyEyeGPT.{step.name}"].values()), step.name


def test_shapes_and_statistics_are_those_of_the_tensors_in_order():
    model, images = tiny.skyeye(), tiny.images(1)
    steps = walk(model, IDS, images)
    shapes = {step.name: step.shape for step in steps}
    P, D, T, d = tiny.VIT.grid ** 2, tiny.VIT.width, len(IDS), 50 // 5
    assert shapes["visual_encoder.patch_embed"] == (1, P, D)
    assert shapes["visual_encoder.blocks.0.attn.weights"] == (1, 3, P + 1, P + 1)
    assert shapes["visual_encoder.blocks.0.mlp.fc1"] == (1, P + 1, 40)
    assert shapes["llama_proj"] == (1, N, 50)
    assert shapes["llama_model.model.layers.0.self_attn.q"] == (1, 5, T, d)
    assert shapes["llama_model.model.layers.0.mlp.gate_up"] == (1, T, 44)
    assert shapes["llama_model.lm_head"] == (1, T, tiny.VOCAB)
    [last] = [step for step in steps if step.name == "llama_model.lm_head"]
    with torch.no_grad():
        logits = model(torch.tensor([IDS]), images)
    assert last.mean == pytest.approx(logits.mean().item(), abs=1e-5)
    assert last.std == pytest.approx(logits.std().item(), abs=1e-5)
    names = [step.name for step in stages(steps)]
    assert names[0] == "picture" and names[-1] == "llama_model.lm_head"
    assert names.index("llama_proj") < names.index("llama_model.model.embed_tokens")
    assert all(step.seconds is None or step.seconds >= 0 for step in steps)
    assert not any(module._forward_hooks or module._forward_pre_hooks
                   for module in model.modules())


def test_packed_weights_are_walked_through_like_others():
    config = PRESETS["nano"]
    model, images = tiny.skyeye(config), torch.zeros(1, 3, 128, 128)
    ids = ids_for(config)
    before = [(step.name, step.shape, step.parameters, step.flops)
              for step in walk(model, ids, images)]
    pack_if_possible(model)
    assert before == [(step.name, step.shape, step.parameters, step.flops)
                      for step in walk(model, ids, images)]


def test_on_the_meta_device_the_walk_is_the_same_without_numbers():
    model, images = tiny.skyeye(), tiny.images(1)
    real = walk(model, IDS, images)
    with torch.device("meta"):
        meta = SkyEyeGPT(tiny.SKYEYE).eval()
        found = watch_forward(meta, torch.zeros(1, len(IDS), dtype=torch.long),
                              torch.zeros_like(images))
    bare = [dataclasses.replace(step, seconds=None, mean=None, std=None) for step in real]
    assert found == bare


def test_every_line_that_is_named_is_the_one_that_does_it():
    steps = walk(tiny.skyeye(), IDS, tiny.images(1))
    told = {step.name.split(".")[-1]: step.where for step in steps}
    for name, text in (("patch_embed", "self.proj(images)"), ("pos_embed", "+ self.pos_embed"),
                       ("llama_proj", "x.reshape("), ("embed_tokens", "masked_scatter"),
                       ("lm_head", "self.lm_head("), ("gate_up", "F.silu"),
                       ("self_attn", "self.o_proj(")):
        file, number = told[name].split(":")
        assert text in (tiny.ROOT / file).read_text().splitlines()[int(number) - 1], name
    with pytest.raises(ValueError, match="has no line"):
        line_of(vit.ViT.forward, "no such text")
    assert line_of(llama.attention).startswith("llama.py:")


def test_the_table_shows_the_first_block_in_full_and_the_others_in_a_line(capsys):
    model = tiny.skyeye()
    steps = walk(model, IDS, tiny.images(1))
    names = [row[0].strip() for row in step_rows(steps)]
    assert names.count("attn") == names.count("self_attn") == names.count("gate_up") == 1
    assert "blocks.1" in names and "layers.1" in names
    print_steps(steps)
    text = capsys.readouterr().out
    total = sum(p.numel() for p in model.parameters())
    assert text.splitlines()[-1].startswith(f"in all {total:,} parameters, ")
    meta = [dataclasses.replace(step, seconds=None, mean=None, std=None) for step in steps]
    rows = step_rows(meta)
    assert "blocks.1" not in [row[0] for row in rows] and rows[0][4:] == ("line", "")
    assert any(row[-1].endswith("2 such blocks") for row in rows)


def test_numbers_are_short():
    assert [short(n) for n in (None, 0, 7, 999, 1000, 45_678, 1_234_567, 6.29e12)] == [
        "", "0", "7", "999", "1K", "45.7K", "1.23M", "6.29T"]


def test_image_slots_are_one_cell_and_alternatives_stand_beside_the_answers_tokens():
    tokenizer, model = tiny.tokenizer(), tiny.skyeye()
    ids, answer = [1, 5, *[-1] * N, 17, *[-1] * N, 8], [40, 2]
    pieces, numbers = prompt_cells(tokenizer, ids)
    assert numbers == ["1", "5", "-1", "17", "-1", "8"]
    assert pieces[2] == pieces[4] == f"{N} x image" and pieces[0] == "<s>"
    reading = read_answer(model, ids, answer, tiny.images(2))
    rows = answer_rows(tokenizer, reading)
    assert [row[1] for row in rows[1:]] == ["40", "2"]
    assert all(len(re.findall(r"\d\.\d{3}", row[3])) == 5 for row in rows[1:])
    found = reading_to_json(tokenizer, reading)
    assert [i for i, _ in found["prompt"]] == ids and found["prompt"][2] == [-1, None]
    assert [token["id"] for token in found["tokens"]] == answer
    assert [len(token["layers"]) for token in found["tokens"]] == [tiny.SKYEYE.llama.depth] * 2
    for token in found["tokens"]:
        assert token["layers"][-1] == token["likeliest"][0]
