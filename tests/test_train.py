"""Training: the schedule, what is trained and what is frozen, runs that must come out the same."""
import dataclasses
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
import train
from data import collate
from examples.miniworld import write_world
from lora import MOE_LORA, LoRAConfig
from pictures import save_tiff16_by_hand
from projector import SkyEyeGPT
from support.common import UserError
from support.training.checkpoints import complete_checkpoints
from train import TrainConfig, build_model, learning_rate, make_optimizer, parse_args, train_step

WITH_DROPOUT = dataclasses.replace(tiny.SKYEYE, lora=LoRAConfig(r=7, alpha=11.0, dropout=0.3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.model_folder(tmp_path_factory.mktemp("model"), WITH_DROPOUT))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(tiny.conversations(tmp_path_factory.mktemp("data"), count=6, texts=3))


def settings(folder, **more):
    fields = dict(model=folder, tune="lora", max_steps=6, batch_size=2, lr=1e-2, min_lr=1e-3,
                  warmup_steps=2, log_steps=1, device="cpu")
    return TrainConfig(**fields | more)


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def step(model, batches, optimizer, config):
    """-> loss and norm of the gradient"""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss, norm, skipped = train_step(model, batches, optimizer, scaler, config)
    assert not skipped
    return loss, norm


# ---- schedule and flags --------------------------------------------------------------------------

@pytest.mark.parametrize("t, lr", [(0, 1e-6), (500, 5.5e-6), (999, 9.991e-6), (1000, 9.99112e-6),
                                   (25_000, 5.5e-6), (49_999, 1.0000000089e-6)])
def test_the_learning_rate_is_upstreams(t, lr):
    assert learning_rate(t, TrainConfig()) == pytest.approx(lr, rel=1e-6 if t != 49_999 else 1e-9)


def test_the_defaults_are_minigpt_v2s_recipe():
    wanted = dict(lr=1e-5, min_lr=1e-6, warmup_lr=1e-6, warmup_steps=1000, max_steps=50_000,
                  weight_decay=0.05, beta2=0.999, clip=0.0, grad_accum=1, batch_size=6, seed=42,
                  max_tokens=1024, train_vit=False, augment=False, questions_per_image=1)
    config = dataclasses.asdict(TrainConfig())
    assert {name: config[name] for name in wanted} == wanted
    assert train.new_lora(TrainConfig(tune="lora")) == LoRAConfig(
        r=64, alpha=16.0, dropout=0.05, targets=("q_proj", "v_proj"))


def test_a_large_model_gets_the_defaults_and_a_small_one_its_own():
    large, small = parse_args(["--preset", "skyeyegpt"]), parse_args([])
    assert (large.max_steps, large.lr, large.beta2, large.train_vit) == (50_000, 1e-5, 0.999, False)
    assert large.tune == small.tune == "full"
    for name, value in train.SMALL_MODEL_DEFAULTS[1].items():
        assert getattr(small, name) == value


def test_a_flag_that_is_given_wins_over_the_defaults_of_a_small_model():
    config = parse_args(["--lr", "0.25", "--no-train-vit", "--max_steps", "50000"])
    assert (config.lr, config.train_vit, config.max_steps) == (0.25, False, 50_000)
    assert config.beta2 == train.SMALL_MODEL_DEFAULTS[1]["beta2"]


@pytest.mark.parametrize("stage", ["1", "2"])
@pytest.mark.parametrize("steps", [5, 20, 150, 1100, 50_000])
def test_the_learning_rate_falls_smoothly_after_the_warm_up_however_few_the_steps(
        stage, steps, folder):
    """A large model's warm-up of 1,000 steps and a small one's of 100 are made shorter."""
    for model in (["--preset", "skyeyegpt"], [] if stage == "1" else ["--model", folder]):
        if stage == "2" and model[0] == "--preset":
            model = ["--model", folder, *model]
        config = parse_args(["--stage", stage, *model, "--max_steps", str(steps)])
        rates = [learning_rate(step, config) for step in range(steps)]
        assert max(rates) > 0.8 * config.lr
        peak = rates.index(max(rates))
        assert peak <= steps / 4
        assert all(a - b < 0.05 * config.lr + 2 / steps * config.lr
                   for a, b in zip(rates[peak:], rates[peak + 1:], strict=False))


def test_a_warm_up_is_shortened_only_where_it_is_not_given_and_over_a_tenth_of_the_steps():
    large = ["--preset", "skyeyegpt"]
    assert parse_args(large).warmup_steps == 1000
    assert parse_args([*large, "--max_steps", "10000"]).warmup_steps == 1000
    assert parse_args([*large, "--max_steps", "500"]).warmup_steps == 50
    assert parse_args([]).warmup_steps == 100
    assert parse_args(["--max_steps", "150"]).warmup_steps == 15
    assert parse_args(["--max_steps", "150", "--warmup_steps", "90"]).warmup_steps == 90
    assert parse_args(["--max_steps", "3"]).warmup_steps == 1


def test_flags_are_written_with_either_dash(folder):
    flags = ["--model", folder, "--batch_size", "7", "--train_vit", "--save_steps", "9"]
    config = parse_args(flags)
    assert config == parse_args([flag.replace("_", "-") if flag.startswith("--") else flag
                                 for flag in flags])
    assert (config.batch_size, config.train_vit, config.save_steps) == (7, True, 9)


def test_a_small_model_is_trained_in_full_and_a_large_one_gets_a_lora(folder, tmp_path):
    """Unless --tune says otherwise; q and v alone of a small model need larger steps."""
    large = dataclasses.replace(tiny.SKYEYE, llama=dataclasses.replace(
        tiny.SKYEYE_LLAMA, width=1024, heads=8))
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(large)))
    for stage in ("1", "2"):
        config = parse_args(["--stage", stage, "--model", str(tmp_path)])
        assert (config.tune, config.optimizer, config.lr) == ("lora", "adamw", 1e-5)
        assert parse_args(["--stage", stage, "--model", folder]).tune == "full"
    config = parse_args(["--stage", "2", "--model", folder])
    assert (config.optimizer, config.train_vit) == ("adamw", False)
    assert config.lr == train.SMALL_MODEL_DEFAULTS[2]["lr"]
    lora = parse_args(["--stage", "2", "--model", folder, "--tune", "lora"])
    assert lora.lr == train.SMALL_LORA_LR > config.lr


def test_one_batch_is_trained_on_for_200_steps_in_a_folder_of_its_own(folder):
    for model in (["--model", folder], [], ["--preset", "skyeyegpt"]):
        config = parse_args([*model, "--overfit_one_batch"])
        assert (config.max_steps, config.output_dir) == (200, "out/overfit_one_batch")
    assert parse_args(["--overfit_one_batch", "--max_steps", "9"]).max_steps == 9


def test_there_may_be_several_data_sets_and_ratios():
    config = parse_args(["--data", "a", "b", "--ratio", "b=0.5", "a=2"])
    assert (config.data, config.ratio) == (("a", "b"), ("b=0.5", "a=2"))


def test_the_help_names_the_defaults_that_depend_on_the_model_and_on_tune(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "stage 1: --lr 0.0005" in text and "stage 2: --lr 0.0005" in text
    assert "rank of a new LoRA (default: 64, with --tune moe-lora 32)" in text
    assert "alpha / r (default: 16, with --tune moe-lora 64)" in text
    assert "v_proj, with --tune moe-lora q_proj k_proj v_proj o_proj)" in text


# ---- what is trained -----------------------------------------------------------------------------

def trained_names(folder, **more):
    model, _ = build_model(settings(folder, **more), "cpu")
    return {name for name, p in model.named_parameters() if p.requires_grad}, model


def test_tune_says_what_is_trained(folder):
    adapter, model = trained_names(folder)
    everything = {name for name, _ in model.named_parameters()}
    vit = {name for name in everything if name.startswith("visual_encoder.")}
    assert adapter == {n for n in everything if ".lora_" in n or n.startswith("llama_proj.")}
    assert len(adapter) == 2 + 2 * 2 * tiny.SKYEYE_LLAMA.depth
    projector = {"llama_proj.weight", "llama_proj.bias"}
    assert trained_names(folder, tune="projector")[0] == projector
    assert trained_names(folder, tune="projector", train_vit=True)[0] == projector | vit
    assert trained_names(folder, tune="full")[0] == everything - vit
    assert trained_names(folder, tune="full", train_vit=True)[0] == everything


@pytest.mark.parametrize("tune", ["lora", "projector", "full"])
@pytest.mark.parametrize("train_vit", [False, True])
def test_frozen_parameters_keep_every_bit_and_trained_ones_move(folder, tmp_path, tune, train_vit):
    config = settings(folder, tune=tune, train_vit=train_vit)
    model, _ = build_model(config, "cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = tiny.rows(tiny.captions(tmp_path, 4))
    optimizer = make_optimizer(model, config)
    for i in range(2):
        step(model.train(), [collate([rows[0, 2 * i], rows[0, 2 * i + 1]])], optimizer, config)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


def test_moe_lora_trains_projector_attention_loras_experts_and_routers(tmp_path):
    base = tiny.model_folder(tmp_path, dataclasses.replace(tiny.SKYEYE, lora=None))
    names, model = trained_names(str(base), tune="moe-lora")
    assert model.config.lora == MOE_LORA
    layers = [*(f"self_attn.{x}_proj" for x in "qkvo"),
              *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))]
    added = [f"{name}.lora_{x}.weight" for name in layers for x in "AB"]
    added += ["mlp.lora_router.weight", "mlp.lora_router.bias"]
    assert names == {"llama_proj.weight", "llama_proj.bias", *(
        f"llama_model.model.layers.{i}.{name}" for i in range(tiny.SKYEYE_LLAMA.depth)
        for name in added)}


@pytest.mark.parametrize("tune", ["lora", "moe-lora"])
def test_the_flags_change_a_new_lora_of_either_kind(tmp_path, tune):
    base = str(tiny.model_folder(tmp_path, dataclasses.replace(tiny.SKYEYE, lora=None)))
    flags = ["--model", base, "--tune", tune]
    default = {"lora": LoRAConfig(), "moe-lora": MOE_LORA}[tune]
    for more, fields in ((["--seed", "1"], {}), (["--lora_r", "3"], {"r": 3}),
                         (["--lora_alpha", "5"], {"alpha": 5.0}),
                         (["--lora_dropout", "0"], {"dropout": 0.0}),
                         (["--lora_targets", "o_proj", "k_proj"],
                          {"targets": ("o_proj", "k_proj")})):
        model, _ = build_model(parse_args(flags + more), "cpu")
        lora = dataclasses.replace(default, **fields)
        assert model.config.lora == lora
        layer = model.llama_model.model.layers[0]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear = getattr(layer.self_attn, name)
            assert hasattr(linear, "lora_A") == (name in lora.targets)
            if name in lora.targets:
                assert linear.lora_A.weight.shape[0] == lora.r
                assert (linear.scale, linear.dropout) == (lora.alpha / lora.r, lora.dropout)
        if tune == "moe-lora":
            assert layer.mlp.up_proj.lora_A.weight.shape[0] == 3 * lora.r


def test_a_moe_lora_is_saved_beside_its_base_and_comes_back(tmp_path):
    base = tiny.model_folder(tmp_path / "base", dataclasses.replace(tiny.SKYEYE, lora=None))
    data = str(tiny.conversations(tmp_path, 3))
    train.train(settings(str(base), tune="moe-lora", data=(data,), max_steps=2, batch_size=2,
                         output_dir=str(tmp_path / "out")))
    back = SkyEyeGPT.from_pretrained(tmp_path / "out")
    assert back.config.lora == MOE_LORA
    routers = [t for n, t in back.state_dict().items() if "lora_router.weight" in n]
    assert len(routers) == tiny.SKYEYE_LLAMA.depth and all(t.abs().sum() > 0 for t in routers)
    assert (tmp_path / "out" / "adapter.safetensors").is_file()
    shares = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])["experts"]
    assert len(shares) == 3 and sum(shares) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("tune", ["lora", "moe-lora", "full", "projector"])
def test_llava_trains_with_vicunas_prompt(tmp_path, tune):
    """CLIP's encoder, two layers of projector, a padded picture, several questions in a row."""
    config = dataclasses.replace(
        tiny.SKYEYE, vit=dataclasses.replace(tiny.VIT, variant="clip"), lora=None,
        llama=dataclasses.replace(tiny.SKYEYE_LLAMA, max_positions=512), patches_per_token=1,
        projector="mlp2x_gelu", prompt="vicuna_v1")
    base = tiny.model_folder(tmp_path / "base", config)
    data = str(tiny.conversations(tmp_path, 3))
    train.train(settings(str(base), tune=tune, data=(data,), max_steps=2, batch_size=2,
                         questions_per_image=2, output_dir=str(tmp_path / "out")))
    first, after = SkyEyeGPT.from_pretrained(base), SkyEyeGPT.from_pretrained(tmp_path / "out")
    moved = {n for n, t in after.state_dict().items()
             if ".lora_" not in n and not torch.equal(t, first.state_dict()[n])}
    assert {"llama_proj.linear_1.weight", "llama_proj.linear_2.bias"} <= moved
    assert (tune == "full") == ("llama_model.lm_head.weight" in moved)


@pytest.mark.parametrize("tune", ["lora", "moe-lora", "full"])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(tmp_path, tune):
    folder = str(tiny.model_folder(tmp_path / "m", dataclasses.replace(tiny.SKYEYE, lora=None)))
    rows = tiny.rows(tiny.captions(tmp_path, 4), questions_per_row=2)
    batch = collate([rows[0, i] for i in range(2)])
    found = []
    for grad_checkpoint in (False, True):
        torch.manual_seed(0)
        model, _ = build_model(settings(folder, tune=tune, grad_checkpoint=grad_checkpoint), "cpu")
        tiny.randomize(model)
        torch.manual_seed(1)                                    # dropout
        loss = model.train()(**batch)
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in model.named_parameters()
                                    if p.grad is not None}))
    (one, stored), (two, recomputed) = found
    assert one == two and stored.keys() == recomputed.keys()
    assert all(torch.equal(stored[name], recomputed[name]) for name in stored)


def test_gradient_checkpointing_recomputes_with_the_same_attention_kernel(folder, tmp_path):
    """Without padding attention is causal without a mask, and there is more than one kernel."""
    config = settings(folder, grad_checkpoint=True)
    model, _ = build_model(config, "cpu")
    batch = collate([tiny.rows(tiny.captions(tmp_path, 1))[0, 0]])
    loss, norm = step(model.train(), [batch], make_optimizer(model, config), config)
    assert 0 < loss < 100 and norm > 0


def test_frozen_parameters_have_the_dtype_of_the_arithmetic_and_trained_ones_float32(folder):
    model, _ = build_model(settings(folder), "cpu", torch.bfloat16)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16), name
    whole, _ = build_model(settings(folder, tune="full"), "cpu", torch.bfloat16)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def test_only_a_new_model_starts_with_similar_tokens_for_near_numbers(tmp_path):
    tokenizer = tiny.ROOT / "weights" / "nano" / "tokenizer.model"
    new, own_tokenizer = build_model(TrainConfig(tokenizer=str(tokenizer)), "cpu")
    ids = own_tokenizer.model.piece_to_id(["<50>", "<51>", "<90>"])
    near, far = new.llama_model.lm_head.weight[ids[1:]] @ new.llama_model.lm_head.weight[ids[0]]
    assert near > 0.8 > 0.5 > far
    torch.nn.init.ones_(new.llama_model.lm_head.weight)
    new.save_pretrained(tmp_path)
    shutil.copyfile(tokenizer, tmp_path / "tokenizer.model")
    again, _ = build_model(TrainConfig(model=str(tmp_path)), "cpu")
    assert (again.llama_model.lm_head.weight == 1).all()


def test_a_model_without_lora_gets_one_that_changes_nothing_yet(tmp_path):
    folder = tiny.model_folder(tmp_path, dataclasses.replace(tiny.SKYEYE, lora=None))
    config = settings(str(folder), lora_r=3, lora_alpha=5.0, lora_dropout=0.2)
    model, _ = build_model(config, "cpu")
    assert model.config.lora == LoRAConfig(r=3, alpha=5.0, dropout=0.2)
    ids = tiny.ids(1, 9, tiny.VOCAB)
    assert torch.equal(model.eval()(ids), SkyEyeGPT.from_pretrained(folder)(ids))


def test_matrices_decay_and_biases_and_norms_do_not(folder):
    config = settings(folder, tune="full", train_vit=True, weight_decay=0.3)
    model, _ = build_model(config, "cpu")
    names = {p: name for name, p in model.named_parameters()}
    decay, no_decay = make_optimizer(model, config).param_groups
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.3, 0.0)
    assert decay["betas"] == (0.9, 0.999)
    assert len(decay["params"]) + len(no_decay["params"]) == len(names)
    for p in no_decay["params"]:
        assert "bias" in names[p] or "norm" in names[p], names[p]
    for p in decay["params"]:
        assert "bias" not in names[p] and "norm" not in names[p], names[p]


# ---- learning ------------------------------------------------------------------------------------

def test_a_tiny_model_learns_four_samples_by_heart(tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    config = settings(str(folder), tune="full", train_vit=True, lr=3e-3, clip=1.0)
    model, _ = build_model(config, "cpu")
    rows = tiny.rows(tiny.captions(tmp_path, 4))
    batch = collate([rows[0, i] for i in range(4)])
    optimizer = make_optimizer(model, config)
    losses = [step(model, [batch], optimizer, config)[0] for _ in range(60)]
    assert losses[0] > 3 and losses[-1] < 0.1


def test_clipping_bounds_the_gradient_and_reports_its_norm(folder, tmp_path):
    """With plain gradient descent, the step is as long as the clipped gradient."""
    rows = tiny.rows(tiny.captions(tmp_path, 2))
    batch = collate([rows[0, 0], rows[0, 1]])
    config = settings(folder, clip=0.01)
    model, _ = build_model(config, "cpu")
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    _, norm = step(model, [batch], torch.optim.SGD(trained, lr=1.0), config)
    moved = sum((p - b).square().sum() for p, b in zip(trained, before, strict=True)).sqrt()
    assert norm > 0.1 and abs(moved.item() - 0.01) < 1e-4


def run(folder, data, out, more_data=(), **more):
    """Train in this process -> the log, and the tensors that were written."""
    train.train(settings(folder, data=(data, *more_data), output_dir=str(out), **more))
    return log(out), load_file(next(out.glob("*.safetensors")))


def test_two_small_batches_make_the_step_of_a_large_one(data, tmp_path):
    """Rows have answers of different lengths, so a mean of means would be something else."""
    folder = str(tiny.model_folder(tmp_path / "model"))             # without dropout
    more = dict(tune="full", train_vit=True, lr=1e-3, max_steps=3)
    one, tensors = run(folder, data, tmp_path / "a", batch_size=4, **more)
    two, others = run(folder, data, tmp_path / "b", batch_size=2, grad_accum=2, **more)
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-5)
        assert a["norm"] == pytest.approx(b["norm"], rel=1e-3)
    moved = [(tensors[name] - others[name]).abs().max().item() for name in tensors]
    assert sum(m > 1e-4 for m in moved) <= len(moved) // 10 and max(moved) < 3e-3


@pytest.mark.parametrize("factor", [1.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("of", ["loss", "gradient"])
def test_a_step_whose_loss_or_gradient_is_not_finite_is_skipped(folder, tmp_path, of, factor):
    config = settings(folder)
    model, _ = build_model(config, "cpu")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    if of == "gradient":
        model.llama_proj.weight.register_hook(lambda gradient: gradient * factor)
    else:
        model.register_forward_hook(lambda module, inputs, loss: loss * factor)
    batch = collate([tiny.rows(tiny.captions(tmp_path, 1))[0, 0]])
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss, norm, skipped = train_step(model.train(), [batch], optimizer, scaler, config)
    finite = math.isfinite(factor)
    assert skipped != finite and math.isfinite(norm) == finite
    assert math.isfinite(loss) == (finite or of == "gradient")
    moved = [name for name, p in trained.items() if not torch.equal(p, before[name])]
    assert bool(moved) == finite and all(p.grad is None for p in trained.values())


def test_the_loss_of_a_step_is_the_mean_over_all_its_tokens(folder, tmp_path):
    rows = tiny.rows(tiny.captions(tmp_path, 4))
    items = [rows[0, i] for i in range(4)]
    config = settings(folder, tune="full")
    model, _ = build_model(config, "cpu")
    with torch.no_grad():
        mean = model(**collate(items)).item()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    batches = [collate(items[:1]), collate(items[1:])]
    assert step(model, batches, optimizer, config)[0] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("flags", [["--bands", "4,x"], ["--bands", "0,1,2"], ["--tune", "some"],
                                   ["--step", "3"], ["--max_steps", "many"]])
def test_a_value_that_cannot_be_read_is_refused_by_the_name_of_its_flag(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(flags)
    assert caught.value.code == 2 and flags[0] in capsys.readouterr().err
    assert parse_args(["--bands", "4,3,2"]).bands == (4, 3, 2)


# ---- checkpoints ---------------------------------------------------------------------------------

def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(folder, data, tmp_path):
    """With dropout and augmentation on, and over the end of an epoch."""
    more = dict(save_steps=3, augment=True)
    unbroken, _ = run(folder, data, tmp_path / "unbroken", **more)
    shutil.copytree(tmp_path / "unbroken" / "checkpoint-3", tmp_path / "new" / "checkpoint-3")
    resumed, _ = run(folder, data, tmp_path / "new", resume="auto", **more)
    assert [line["step"] for line in resumed] == [4, 5, 6]
    for line, wanted in zip(resumed, unbroken[3:], strict=True):
        assert (line["loss"], line["lr"]) == (wanted["loss"], wanted["lr"])
    name = "adapter.safetensors"
    stored = (tmp_path / "unbroken" / name).read_bytes()
    assert (tmp_path / "new" / name).read_bytes() == stored
    assert (tmp_path / "new" / "checkpoint-3" / name).read_bytes() != stored


def test_resume_auto_without_a_checkpoint_starts_from_the_beginning(folder, data, tmp_path):
    fresh, _ = run(folder, data, tmp_path / "a", max_steps=2)
    auto, _ = run(folder, data, tmp_path / "b", max_steps=2, resume="auto")
    assert [line["loss"] for line in fresh] == [line["loss"] for line in auto]


def test_the_seed_decides_every_loss(folder, data, tmp_path):
    one, two, other = ([line["loss"] for line in run(folder, data, tmp_path / str(i), seed=seed,
                                                     max_steps=3)[0]]
                       for i, seed in enumerate((1, 1, 2)))
    assert one == two != other


def test_the_newest_checkpoints_are_kept_and_each_is_a_model_folder(folder, data, tmp_path):
    run(folder, data, tmp_path, save_steps=1, save_total_limit=2, max_steps=12)
    found = complete_checkpoints(tmp_path)
    assert [path.name for path in found] == ["checkpoint-10", "checkpoint-11"]
    (tmp_path / "checkpoint-99.tmp").mkdir()
    assert complete_checkpoints(tmp_path) == found
    for path in (*found, tmp_path):
        model = SkyEyeGPT.from_pretrained(path)
        assert model.config.lora == WITH_DROPOUT.lora
        assert (path / "tokenizer.model").read_bytes() == tiny.tokenizer_bytes()


@pytest.mark.parametrize("tune", ["lora", "projector", "full"])
@pytest.mark.parametrize("train_vit", [False, True])
def test_the_result_holds_everything_that_was_trained(
        folder, data, tmp_path, monkeypatch, tune, train_vit):
    built = []

    def build(*args):
        built.append(build_model(*args))
        return built[0]

    monkeypatch.setattr(train, "build_model", build)
    run(folder, data, tmp_path, tune=tune, train_vit=train_vit, max_steps=2)
    trained = built[0][0].state_dict()
    for name, tensor in SkyEyeGPT.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(tensor, trained[name]), name


# ---- processes -----------------------------------------------------------------------------------

def start(*command, path="", **more):
    """path: where Python searches for packages first; more: environment variables."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                                "PYTHONPATH": str(path)} | more
    return subprocess.run([sys.executable, *command], cwd=tiny.ROOT, env=environment,
                          capture_output=True, text=True, timeout=600)


def test_two_processes_learn_what_one_learns(data, tmp_path):
    """Pictures, clips and text alone: a process may have rows without any picture."""
    world = write_world(tmp_path / "world", train=3, val=1, test=1, clips=1, size=64, workers=1)
    model = tiny.model_folder(tmp_path / "model")
    flags = ("--model", str(model), "--data", str(world), data, "--tune", "full", "--train_vit",
             "--max_steps", "6", "--lr", "1e-3", "--warmup_steps", "1", "--log_steps", "1",
             "--questions_per_image", "2", "--device", "cpu", "--clip", "0")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = start(*torchrun, "train.py", *flags, "--batch_size", "2",
                "--output_dir", str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    train.train(parse_args([*flags, "--batch_size", "4", "--output_dir", str(tmp_path / "one")]))
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == 6
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5 * max(1, a["loss"]))
        assert a["norm"] == pytest.approx(b["norm"], rel=1e-3)
    assert one[-1]["loss"] < one[0]["loss"]


def refusal(*flags, **more):
    """-> the lines of stderr, where train.py ends with code 2 and without a traceback."""
    done = start("train.py", *flags, **more)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
    return done.stderr.strip().splitlines()


def test_missing_data_is_one_line(folder, tmp_path):
    (line,) = refusal("--model", folder, "--data", str(tmp_path / "gone"),
                      "--output_dir", str(tmp_path / "out"))
    assert line.startswith("train.py: ") and str(tmp_path / "gone") in line
    assert not (tmp_path / "out").exists()


def test_a_ratio_of_an_unknown_data_set_is_one_line_before_anything_is_read(tmp_path):
    gone = str(tmp_path / "gone")
    (line,) = refusal("--data", gone, "--ratio", "rsicd=2", "--output_dir", str(tmp_path / "out"))
    assert line == "train.py: --ratio rsicd: no such data set; there are gone"


def test_a_ratio_changes_how_many_rows_an_epoch_has(folder, data, tmp_path, capfd):
    more = str(tiny.conversations(tmp_path, count=0, texts=5))
    run(folder, data, tmp_path / "out", (more,), ratio=(f"{more}=0.6",), max_steps=1)
    assert "14 samples in 12 rows an epoch" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_line_before_anything_is_read(tmp_path, name):
    """A folder of its name, such as W&B leaves behind, is not a package."""
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed here")
    (tmp_path / "wandb").mkdir()
    (line,) = refusal("--data", str(tmp_path / "gone"), "--log_to", name, path=tmp_path)
    assert line == (f"train.py: --log_to {name}: the package {name} is not installed; "
                    f"pip install {name}")


STAND_IN = """
import json, os, sys
def note(*call): print(json.dumps(call), file=open(os.environ["CALLS"], "a"), flush=True)
class Error(Exception): pass
def init(dir, config):
    if "LOGGED_OUT" in os.environ: raise Error("not logged in\\nat all")
    note("run", dir, config["seed"])
    return sys.modules[__name__]
def log(numbers, step): note("wandb", step, numbers)
class SummaryWriter:
    def __init__(self, place): note("writer", place)
    def add_scalar(self, name, value, step): note("tensorboard", step, {name: value})
    def flush(self): note("flushed")
sys.modules["torch.utils.tensorboard"] = sys.modules[__name__]
"""


@pytest.fixture
def stand_ins(tmp_path):
    """A tensorboard and a wandb that write down how they are called."""
    for name in ("tensorboard", "wandb"):
        (tmp_path / f"{name}.py").write_text(STAND_IN)
    (tmp_path / "sitecustomize.py").write_text("import tensorboard")
    return tmp_path


def test_log_to_sends_the_numbers_of_the_log(folder, data, tmp_path, stand_ins):
    out, calls = tmp_path / "out", tmp_path / "calls"
    done = start("train.py", "--model", folder, "--data", data, "--output_dir", str(out),
                 "--max_steps", "3", "--log_steps", "2", "--log_to", "wandb", "tensorboard",
                 path=stand_ins, CALLS=str(calls))
    assert done.returncode == 0, done.stderr
    notes = [json.loads(line) for line in calls.read_text().splitlines()]
    assert ["run", str(out), 42] in notes and ["writer", str(out / "tensorboard")] in notes
    lines = log(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        step, numbers = line.pop("step"), {}
        for who, *rest in notes:
            numbers |= rest[1] if who == "tensorboard" and rest[0] == step else {}
        assert ["wandb", step, line] in notes and numbers == line
        assert {"loss", "lr", "norm", "samples_per_s", "mfu", "tflops"} <= line.keys()
        assert line["tflops"] > 0 and line["mfu"] > 0
    assert notes[-1] == ["flushed"]


def test_without_log_to_nothing_is_sent(folder, data, tmp_path, stand_ins):
    done = start("train.py", "--model", folder, "--data", data, "--output_dir",
                 str(tmp_path / "out"), "--max_steps", "1", path=stand_ins,
                 CALLS=str(tmp_path / "calls"))
    assert done.returncode == 0 and not (tmp_path / "calls").exists()


def test_a_run_that_weights_and_biases_refuses_is_one_line(tmp_path, stand_ins):
    (line,) = refusal("--data", str(tmp_path / "gone"), "--log_to", "wandb", "--output_dir",
                      str(tmp_path / "out"), path=stand_ins, LOGGED_OUT="1")
    assert line == "train.py: --log_to wandb: not logged in at all; or set WANDB_MODE=offline"


def test_a_missing_model_is_one_line(tmp_path):
    (line,) = refusal("--model", str(tmp_path / "gone"), "--data", str(tmp_path))
    assert line.startswith("train.py: ") and str(tmp_path / "gone") in line


def test_a_missing_picture_ends_the_run_with_one_line_also_out_of_a_loader_process(
        folder, tmp_path):
    file = tiny.conversations(tmp_path, count=2)
    (tmp_path / "1.png").unlink()
    for workers in ("0", "1"):
        lines = refusal("--model", folder, "--data", str(file), "--num_workers", workers,
                        "--output_dir", str(tmp_path / "out"), "--device", "cpu")
        assert lines[-1].startswith("train.py: ") and str(tmp_path / "1.png") in lines[-1]


@pytest.mark.parametrize("flags", [["--lr", "fast"], ["--tune", "everything"], ["--stage", "3"],
                                   ["--dtype", "int8"], ["--learning", "1"]])
def test_a_flag_that_makes_no_sense_is_refused_by_name(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(flags)
    assert caught.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error:" in line and flags[0] in line


# ---- every kind of faulty row --------------------------------------------------------------------

def write_faulty(folder):
    """-> a file of 24 sound rows, then one of each kind that is faulty; the kinds that the start
    finds, and those that show when a row is loaded, by the words that the log has for them."""
    sound = [folder / f"{i}.png" for i in range(24)]
    for i, path in enumerate(sound):
        tiny.picture(path, seed=i)
    content = sound[0].read_bytes()
    (folder / "damaged.png").write_bytes(content[:200] + b"\x55" * 900 + content[1100:])
    (folder / "cut.jpg").write_bytes(Path(tiny.picture(folder / "a.jpg")).read_bytes()[:700])
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(folder / "nan.tif")
    save_tiff16_by_hand(folder / "eight.tif", np.ones((20, 20, 8)))
    rows = [(path.name, f"is there a road {i} ?", {}) for i, path in enumerate(sound)]
    at_start = {
        "outside the picture": ("1.png", "<bbox> ?", {"objects": {"bbox": [[90, 90, 95, 95]]}}),
        "not nan": ("2.png", "<bbox> ?", {"objects": {"bbox": [[math.nan, 1, 2, 3]]}}),
        "cut.jpg: cut off": ("cut.jpg", "what ?", {}), "no such": ("gone.png", "what ?", {})}
    later = {"over --max_tokens": ("3.png", "is " * 900, {}),
             "damaged.png: cannot be read": ("damaged.png", "what ?", {}),
             "nan.tif: no pixel has a value": ("nan.tif", "what ?", {}),
             "eight.tif: 8 bands": ("eight.tif", "what ?", {})}
    rows += [*at_start.values(), *later.values()]
    (folder / "rows.json").write_text(json.dumps([
        {"image": name, "conversations": [{"from": "human", "value": question},
                                          {"from": "gpt", "value": "yes"}], **more}
        for name, question, more in rows]))
    return folder / "rows.json", list(at_start), list(later)


def test_with_skip_bad_every_kind_of_faulty_row_is_named_and_a_resumed_run_is_the_same(
        folder, tmp_path, capsys):
    data, at_start, later = write_faulty(tmp_path)
    shared = dict(data=(str(data),), max_steps=14, max_tokens=300, skip_bad=True, save_steps=7,
                  stage=2)
    assert train.train(settings(folder, output_dir=str(tmp_path / "one"), **shared)) == 0
    named = [line for row in log(tmp_path / "one") for line in row.get("left_out", ())]
    assert all(any(kind in line for line in named) for kind in at_start + later)
    assert log(tmp_path / "one")[0]["step"] == 0
    assert len(log(tmp_path / "one")[0]["left_out"]) >= len(at_start)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two/adapter.safetensors").unlink()
    assert train.train(settings(folder, output_dir=str(tmp_path / "two"), resume="auto",
                                **shared)) == 0
    first, second = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sum(row["step"] == 0 for row in log(tmp_path / "two")) == 1


def test_without_skip_bad_the_first_faulty_row_is_named_and_the_steps_so_far_are_saved(
        folder, tmp_path):
    data, at_start, later = write_faulty(tmp_path)
    rows = json.loads(data.read_text())
    config = settings(folder, data=(str(data),), max_steps=14, max_tokens=300, stage=2,
                      output_dir=str(tmp_path / "out"))
    for i, kind in enumerate([*at_start, *later]):
        data.write_text(json.dumps([*rows[:24], rows[24 + i]]))
        with pytest.raises(UserError) as error:
            train.train(config)
        assert kind in str(error.value) and "\n" not in str(error.value)
        if (tmp_path / "out").exists():
            assert list((tmp_path / "out").glob("checkpoint-*")) or not log(tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
