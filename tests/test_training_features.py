"""A frozen vision encoder: what it makes of a picture is computed once; a model starts with one."""
import dataclasses
import json
from pathlib import Path

import pytest
import torch

import tiny
import train
from data import collate
from support.checkpoints.files import in_memory, write_shards
from support.checkpoints.load import load_vit
from support.readers.common import DataError
from support.training.features import FeatureCache, feature_cache
from support.training.flops import count_flops
from train import TrainConfig, build_model, resolve_defaults


def batch_of(tmp_path, count=5):
    rows = tiny.rows(tiny.captions(tmp_path, count))
    return collate([rows[0, i] for i in range(count)])


def count_calls(model):
    calls = []
    model.visual_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    return calls


def test_loss_and_gradients_are_those_of_the_pixels(tmp_path):
    model, batch = tiny.skyeye(), batch_of(tmp_path)
    model.visual_encoder.requires_grad_(False)
    cached = FeatureCache(model, 1e6).encode(batch)
    assert cached["images"].shape == (5, tiny.VIT.grid ** 2, tiny.VIT.width)
    losses = []
    for rows in (batch, cached):
        model.zero_grad()
        losses.append(model(**rows))
        losses[-1].backward()
        losses.append(model.llama_proj.weight.grad.clone())
    torch.testing.assert_close(losses[0], losses[2])
    torch.testing.assert_close(losses[1], losses[3])


def test_each_picture_is_encoded_once_and_alone(tmp_path):
    model, batch = tiny.skyeye(), batch_of(tmp_path)
    calls, cache = count_calls(model), FeatureCache(model, 1e6)
    first = cache.encode(batch)["images"]
    again = cache.encode(batch | {"images": batch["images"].flip(0)})["images"]
    assert calls == [1] * 5 and torch.equal(first.flip(0), again)
    assert torch.equal(first[2], model.visual_encoder(batch["images"][2:3])[0])
    changed = batch["images"][:1].clone()
    changed[0, 0, 0, 0] += 1e-3                     # another picture
    cache.encode(batch | {"images": changed})
    assert len(calls) == 7                          # the comparison's own, and one


def test_memory_is_bounded_and_a_text_has_no_picture(tmp_path):
    model, batch = tiny.skyeye(), batch_of(tmp_path)
    size = tiny.VIT.grid ** 2 * tiny.VIT.width * 4
    calls, cache = count_calls(model), FeatureCache(model, 2 * size + 1)
    assert torch.equal(cache.encode(batch)["images"], cache.encode(batch)["images"])
    assert len(cache.features) == 2 and len(calls) == 5 + 3
    assert cache.encode(batch | {"images": None})["images"] is None


def test_half_precision_keeps_half_the_memory(tmp_path):
    model, batch = tiny.skyeye().bfloat16(), batch_of(tmp_path)
    cache = FeatureCache(model, 1e6, torch.bfloat16)
    assert cache.encode(batch)["images"].dtype == torch.bfloat16
    assert cache.bytes == 5 * tiny.VIT.grid ** 2 * tiny.VIT.width * 2


def test_the_encoder_is_not_counted_where_its_output_is_there(tmp_path):
    model, batch = tiny.skyeye(), batch_of(tmp_path)
    cached = FeatureCache(model, 1e6).encode(batch)
    with_pixels, without = (count_flops(model.config, rows, "lora") for rows in (batch, cached))
    vit, P = tiny.VIT, tiny.VIT.grid ** 2
    linear = 2 * vit.depth * (P + 1) * vit.width * (4 * vit.width + 2 * vit.mlp_width)
    patches = 2 * P * 3 * vit.patch_size ** 2 * vit.width
    attention = 4 * vit.depth * (P + 1) ** 2 * vit.width
    assert with_pixels - without == 5 * (linear + patches + attention)


@pytest.mark.parametrize("more, cached", [
    ({}, True), ({"feature_cache": 0.0}, False), ({"augment": True}, False),
    ({"train_vit": True}, False), ({"shard": True}, False)])
def test_it_is_used_where_the_output_stays_what_it_is(more, cached):
    found = feature_cache(dataclasses.asdict(TrainConfig(**more)), tiny.skyeye(), torch.float32)
    assert (found is not None) == cached


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def run(tmp_path, name, **more):
    model = tmp_path / "model"
    if not model.exists():
        tiny.model_folder(model)
        tiny.conversations(tmp_path, 4, texts=1)
    settings = dict(model=str(model), data=(str(tmp_path / "conversations.json"),), tune="lora",
                    max_steps=6, batch_size=2, lr=1e-2, warmup_steps=1, log_steps=1, device="cpu",
                    output_dir=str(tmp_path / name), stage=2)
    assert train.train(TrainConfig(**settings | more)) == 0
    return losses(tmp_path / name)


def test_a_training_learns_the_same_with_and_without_it_and_a_resumed_one_bit_for_bit(tmp_path):
    whole = run(tmp_path, "whole", save_steps=3)
    assert run(tmp_path, "without", feature_cache=0.0) == pytest.approx(whole, rel=1e-4)
    resumed = run(tmp_path, "resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed == whole[3:]


# ---- a taught encoder ----------------------------------------------------------------------------

@pytest.fixture
def taught(tmp_path, monkeypatch):
    """A vision encoder as examples/teach_encoder.py writes it, and a preset of its size."""
    config = dataclasses.replace(tiny.SKYEYE, lora=None)
    monkeypatch.setitem(train.PRESETS, "tiny", config)
    vit = tiny.skyeye(config).visual_encoder
    write_shards(tmp_path / "vit", "model", in_memory(vit.state_dict()))
    (tmp_path / "tokenizer.model").write_bytes(tiny.tokenizer_bytes())
    settings = resolve_defaults({"preset": "tiny", "vit": str(tmp_path / "vit"),
                                 "tokenizer": str(tmp_path / "tokenizer.model")})
    return vit, settings


def test_a_new_model_starts_with_it_and_leaves_it_as_it_is(taught):
    vit, settings = taught
    assert settings.tune == "full" and not settings.train_vit
    model, _ = build_model(settings, "cpu")
    for name, tensor in vit.state_dict().items():
        assert torch.equal(model.visual_encoder.state_dict()[name], tensor)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"visual_encoder." + name for name, _ in vit.named_parameters()}
    plain, _ = build_model(dataclasses.replace(settings, vit="", train_vit=True), "cpu")
    assert not torch.equal(plain.visual_encoder.pos_embed, vit.pos_embed)


def test_it_may_learn_on_and_may_be_one_file(taught, tmp_path):
    vit, settings = taught
    file = str(tmp_path / "vit" / "model.safetensors")
    assert torch.equal(load_vit(file, tiny.VIT).pos_embed, vit.pos_embed)
    model, _ = build_model(dataclasses.replace(settings, vit=file, train_vit=True), "cpu")
    assert all(p.requires_grad for p in model.parameters())


def test_it_takes_the_place_of_a_models_own_where_all_is_saved(taught, tmp_path):
    vit, settings = taught
    folder = str(tiny.model_folder(tmp_path / "model"))
    beside = dataclasses.replace(settings, model=folder)
    model, _ = build_model(beside, "cpu")
    assert torch.equal(model.visual_encoder.pos_embed, vit.pos_embed)
    message = tiny.refusal(DataError, build_model, dataclasses.replace(
        beside, tune="lora", optimizer="adamw"), "cpu")
    assert str(tmp_path / "vit") in message and "--tune full" in message


def test_one_of_another_size_is_refused_in_a_line(taught, tmp_path):
    _, settings = taught
    message = tiny.refusal(Exception, build_model, dataclasses.replace(settings, preset="nano"),
                           "cpu")
    assert str(tmp_path / "vit") in message


def test_nano_starts_with_the_taught_encoder_unless_told_otherwise():
    assert resolve_defaults({}).vit == train.TAUGHT_VIT and not resolve_defaults({}).train_vit
    fresh = resolve_defaults({"vit": "none"})
    assert fresh.vit == "" and fresh.train_vit
    assert resolve_defaults({"preset": "skyeyegpt"}).vit == ""
    assert resolve_defaults({"model": "weights/nano"}).vit == ""
    assert resolve_defaults({}).optimizer == "muon"
    assert resolve_defaults({"shard": True}).optimizer == "adamw"
    assert resolve_defaults({"model": "weights/nano", "stage": 2}).optimizer == "adamw"
    assert Path(train.TAUGHT_VIT, "model.safetensors").is_file()
