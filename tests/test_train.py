"""Training: the schedule, what learns and what stays, and runs that must come out the same."""
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import tiny
import train
from data import collate
from examples.miniworld import write_world
from lora import MOE_LORA, LoRAConfig
from projector import SkyEyeGPT
from support.training.checkpoints import complete_checkpoints
from support.training.distributed import BatchSchedule
from support.training.log import NaNGuard
from train import TrainConfig, build_model, learning_rate, make_optimizer, parse_args, train_step

DROPPING = dataclasses.replace(tiny.SKYEYE, lora=LoRAConfig(r=7, alpha=11.0, dropout=0.3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.model_folder(tmp_path_factory.mktemp("model"), DROPPING))


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return str(tiny.talks(tmp_path_factory.mktemp("talks"), count=6, texts=3))


def settings(folder, **more):
    given = dict(model=folder, tune="lora", max_steps=6, batch_size=2, lr=1e-2, min_lr=1e-3,
                 warmup_steps=2, log_steps=1, device="cpu")
    return TrainConfig(**given | more)


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def step(model, batches, optimizer, config):
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return train_step(model, batches, optimizer, scaler, config, "cpu", torch.float32, NaNGuard())


# ---- schedule and flags --------------------------------------------------------------------------

@pytest.mark.parametrize("t, lr", [(0, 1e-6), (500, 5.5e-6), (999, 9.991e-6), (1000, 9.99112e-6),
                                   (25_000, 5.5e-6), (49_999, 1.0000000089e-6)])
def test_the_learning_rate_is_upstreams(t, lr):
    assert learning_rate(t, TrainConfig()) == pytest.approx(lr, rel=1e-6 if t != 49_999 else 1e-9)


def test_the_defaults_are_minigpt_v2s_recipe():
    wanted = dict(lr=1e-5, min_lr=1e-6, warmup_lr=1e-6, warmup_steps=1000, max_steps=50_000,
                  weight_decay=0.05, beta2=0.999, clip=0.0, grad_accum=1, batch_size=6, seed=42,
                  max_tokens=1024, lora_r=64, lora_alpha=16.0, lora_dropout=0.05,
                  train_vit=False, augment=False, questions_per_image=1)
    config = dataclasses.asdict(TrainConfig())
    assert {name: config[name] for name in wanted} == wanted


def test_a_large_model_gets_the_defaults_and_a_small_one_its_recipe():
    large, small = parse_args(["--preset", "skyeyegpt"]), parse_args([])
    assert (large.max_steps, large.lr, large.beta2, large.train_vit) == (50_000, 1e-5, 0.999, False)
    assert large.tune == small.tune == "full"
    for name, value in train.SMALL_MODEL_DEFAULTS[1].items():
        assert getattr(small, name) == value


def test_a_flag_that_is_given_wins_over_the_recipe():
    config = parse_args(["--lr", "0.25", "--no-train-vit", "--max_steps", "50000"])
    assert (config.lr, config.train_vit, config.max_steps) == (0.25, False, 50_000)
    assert config.beta2 == train.SMALL_MODEL_DEFAULTS[1]["beta2"]


def test_flags_are_written_with_either_dash(folder):
    flags = ["--model", folder, "--batch_size", "7", "--train_vit", "--save_steps", "9"]
    lined, dashed = parse_args(flags), parse_args([flag.replace("_", "-") if flag[:2] == "--"
                                                   else flag for flag in flags])
    assert lined == dashed
    assert (lined.batch_size, lined.train_vit, lined.save_steps) == (7, True, 9)
    assert lined.tune == "lora"


def test_several_data_sets_and_ratios_are_taken():
    config = parse_args(["--data", "a", "b", "--ratio", "b=0.5", "a=2"])
    assert (config.data, config.ratio) == (["a", "b"], ["b=0.5", "a=2"])


# ---- what learns ---------------------------------------------------------------------------------

def names_that_learn(folder, **more):
    model, _ = build_model(settings(folder, **more), "cpu")
    return {name for name, p in model.named_parameters() if p.requires_grad}, model


def test_what_learns_is_what_tune_names(folder):
    adapter, model = names_that_learn(folder)
    everything = {name for name, _ in model.named_parameters()}
    eye = {name for name in everything if name.startswith("visual_encoder.")}
    assert adapter == {n for n in everything if ".lora_" in n or n.startswith("llama_proj.")}
    assert len(adapter) == 2 + 2 * 2 * tiny.TALKER.depth
    projector = {"llama_proj.weight", "llama_proj.bias"}
    assert names_that_learn(folder, tune="projector")[0] == projector
    assert names_that_learn(folder, tune="projector", train_vit=True)[0] == projector | eye
    assert names_that_learn(folder, tune="full")[0] == everything - eye
    assert names_that_learn(folder, tune="full", train_vit=True)[0] == everything


@pytest.mark.parametrize("tune", ["lora", "projector", "full"])
@pytest.mark.parametrize("train_vit", [False, True])
def test_what_is_frozen_keeps_every_bit_and_what_learns_moves(folder, tmp_path, tune, train_vit):
    config = settings(folder, tune=tune, train_vit=train_vit)
    model, _ = build_model(config, "cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = tiny.rows(tiny.captions(tmp_path, 4))
    optimizer = make_optimizer(model, config)
    for i in range(2):
        step(model.train(), [collate([rows[0, 2 * i], rows[0, 2 * i + 1]])], optimizer, config)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


def test_moe_lora_learns_projector_attention_loras_experts_and_routers(tmp_path):
    plain = dataclasses.replace(tiny.SKYEYE, lora=None)
    names, model = names_that_learn(str(tiny.model_folder(tmp_path, plain)), tune="moe-lora")
    assert model.config.lora == MOE_LORA
    thin = [*(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))]
    added = [f"{name}.lora_{x}.weight" for name in thin for x in "AB"]
    added += ["mlp.lora_router.weight", "mlp.lora_router.bias"]
    assert names == {"llama_proj.weight", "llama_proj.bias", *(
        f"llama_model.model.layers.{i}.{name}" for i in range(tiny.TALKER.depth) for name in added)}


def test_a_moe_lora_is_saved_beside_its_base_and_comes_back(tmp_path):
    base = tiny.model_folder(tmp_path / "base", dataclasses.replace(tiny.SKYEYE, lora=None))
    train.train(settings(
        str(base), tune="moe-lora", data=(str(tiny.talks(tmp_path, 3)),), max_steps=2, batch_size=2,
        output_dir=str(tmp_path / "out")))
    back = SkyEyeGPT.from_pretrained(tmp_path / "out")
    assert back.config.lora == MOE_LORA
    routers = [t for n, t in back.state_dict().items() if "lora_router.weight" in n]
    assert len(routers) == tiny.TALKER.depth and all(t.abs().sum() > 0 for t in routers)
    assert (tmp_path / "out" / "adapter.safetensors").is_file()
    shares = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])["experts"]
    assert len(shares) == 3 and sum(shares) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("tune", ["lora", "moe-lora", "full", "projector"])
def test_llava_trains_with_vicunas_prompt(tmp_path, tune):
    """CLIP's eye, two layers of projector, a padded picture, several questions in a row."""
    clip = dataclasses.replace(tiny.VIT, clip=True)
    base = tiny.model_folder(tmp_path / "base", dataclasses.replace(
        tiny.SKYEYE, vit=clip, lora=None, joined=1, projector="mlp2x_gelu", prompt="vicuna_v1",
        llama=dataclasses.replace(tiny.TALKER, max_positions=512)))
    train.train(settings(str(base), tune=tune, data=(str(tiny.talks(tmp_path, 3)),), max_steps=2,
                         batch_size=2, questions_per_image=2, output_dir=str(tmp_path / "out")))
    first, after = SkyEyeGPT.from_pretrained(base), SkyEyeGPT.from_pretrained(tmp_path / "out")
    moved = {n for n, t in after.state_dict().items()
             if ".lora_" not in n and not torch.equal(t, first.state_dict()[n])}
    assert {"llama_proj.linear_1.weight", "llama_proj.linear_2.bias"} <= moved
    assert (tune == "full") == ("llama_model.lm_head.weight" in moved)


@pytest.mark.parametrize("tune", ["lora", "moe-lora", "full"])
def test_recomputed_layers_give_the_same_loss_and_gradients(tmp_path, tune):
    folder = str(tiny.model_folder(tmp_path / "m", dataclasses.replace(tiny.SKYEYE, lora=None)))
    batch = collate([tiny.rows(tiny.captions(tmp_path, 4), questions=2)[0, i] for i in range(2)])
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model, _ = build_model(settings(folder, tune=tune, grad_checkpoint=recompute), "cpu")
        tiny.randomize(model)
        torch.manual_seed(1)                                    # dropout
        loss = model.train()(**batch)
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in model.named_parameters()
                                    if p.grad is not None}))
    (one, plain), (two, recomputed) = found
    assert one == two and plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_a_step_recomputes_with_the_attention_it_computed_with(folder, tmp_path):
    """Without padding the attention is plainly causal, and there is more than one kernel."""
    config = settings(folder, grad_checkpoint=True)
    model, _ = build_model(config, "cpu")
    batch = collate([tiny.rows(tiny.captions(tmp_path, 1))[0, 0]])
    loss, norm = step(model.train(), [batch], make_optimizer(model, config), config)
    assert 0 < loss < 100 and norm > 0


def test_what_is_frozen_is_kept_in_the_type_that_is_computed_with(folder):
    model, _ = build_model(settings(folder), "cpu", torch.bfloat16)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16), name
    whole, _ = build_model(settings(folder, tune="full"), "cpu", torch.bfloat16)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


def test_only_a_new_model_starts_with_ordered_numbers(tmp_path):
    tokenizer = tiny.ROOT / "weights" / "nano" / "tokenizer.model"
    new, pieces = build_model(TrainConfig(tokenizer=str(tokenizer)), "cpu")
    ids = pieces.model.piece_to_id(["<50>", "<51>", "<90>"])
    near, far = new.llama_model.lm_head.weight[ids[1:]] @ new.llama_model.lm_head.weight[ids[0]]
    assert near > 0.8 > 0.5 > far
    torch.nn.init.ones_(new.llama_model.lm_head.weight)
    new.save_pretrained(tmp_path)
    shutil.copyfile(tokenizer, tmp_path / "tokenizer.model")
    again, _ = build_model(TrainConfig(model=str(tmp_path)), "cpu")
    assert (again.llama_model.lm_head.weight == 1).all()


def test_a_model_without_lora_gets_one_that_changes_nothing_yet(tmp_path):
    plain = dataclasses.replace(tiny.SKYEYE, lora=None)
    folder = tiny.model_folder(tmp_path, plain)
    config = settings(str(folder), lora_r=3, lora_alpha=5.0, lora_dropout=0.2)
    model, _ = build_model(config, "cpu")
    assert model.config.lora == LoRAConfig(r=3, alpha=5.0, dropout=0.2)
    ids = tiny.ids(1, 9, tiny.VOCAB)
    assert torch.equal(model.eval()(ids), SkyEyeGPT.from_pretrained(folder)(ids))


def test_matrices_decay_and_biases_and_norms_do_not(folder):
    config = settings(folder, tune="full", train_vit=True, weight_decay=0.3)
    model, _ = build_model(config, "cpu")
    names = {p: name for name, p in model.named_parameters()}
    decay, plain = make_optimizer(model, config).param_groups
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert decay["betas"] == (0.9, 0.999)
    assert len(decay["params"]) + len(plain["params"]) == len(names)
    for p in plain["params"]:
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


def run(folder, talks, out, **more):
    """Train in this process -> the log, and the tensors that were written."""
    given = {"data": (talks,), "output_dir": str(out)} | more
    train.train(settings(folder, **given))
    return log(out), load_file(next(out.glob("*.safetensors")))


def test_two_small_batches_make_the_step_of_a_large_one(talks, tmp_path):
    """Rows have answers of different lengths, so a mean of means would be something else."""
    folder = str(tiny.model_folder(tmp_path / "model"))             # without dropout
    more = dict(tune="full", train_vit=True, lr=1e-3, max_steps=3)
    one, tensors = run(folder, talks, tmp_path / "a", batch_size=4, **more)
    two, others = run(folder, talks, tmp_path / "b", batch_size=2, grad_accum=2, **more)
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-5)
        assert a["norm"] == pytest.approx(b["norm"], rel=1e-3)
    moved = [(tensors[name] - others[name]).abs().max().item() for name in tensors]
    assert sum(m > 1e-4 for m in moved) <= len(moved) // 10 and max(moved) < 3e-3


def test_the_loss_of_a_step_is_the_mean_over_all_its_tokens(folder, tmp_path):
    rows = tiny.rows(tiny.captions(tmp_path, 4))
    items = [rows[0, i] for i in range(4)]
    config = settings(folder, tune="full")
    model, _ = build_model(config, "cpu")
    with torch.no_grad():
        whole = model(**collate(items)).item()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    batches = [collate(items[:1]), collate(items[1:])]
    assert step(model, batches, optimizer, config)[0] == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("world, accum", [(1, 1), (2, 1), (3, 2)])
def test_the_processes_share_the_rows_out_and_none_is_left_or_taken_twice(world, accum):
    feeds = [BatchSchedule(range(7), 2, accum, 7, rank, world) for rank in range(world)]
    keys = [list(feed.keys(0)) for feed in feeds]
    together = [key for micro in zip(*keys, strict=True) for batch in micro for key in batch]
    assert together == [divmod(i, 7) for i in range(7 * 2 * accum * world)]
    for rank, feed in enumerate(feeds):
        assert list(feed.keys(3)) == keys[rank][3 * accum:]


@pytest.mark.parametrize("flags", [["--bands", "4,x"], ["--bands", "0,1,2"], ["--tune", "some"],
                                   ["--step", "3"], ["--max_steps", "many"]])
def test_a_flag_that_cannot_be_read_is_told_in_a_line(flags, capsys):
    with pytest.raises(SystemExit) as told:
        parse_args(flags)
    assert told.value.code == 2 and flags[0] in capsys.readouterr().err
    assert parse_args(["--bands", "4,3,2"]).bands == (4, 3, 2)


# ---- checkpoints ---------------------------------------------------------------------------------

def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(folder, talks, tmp_path):
    """With dropout and augmentation on, and over the end of an epoch."""
    more = dict(save_steps=3, augment=True)
    unbroken, _ = run(folder, talks, tmp_path / "unbroken", **more)
    shutil.copytree(tmp_path / "unbroken" / "checkpoint-3", tmp_path / "new" / "checkpoint-3")
    resumed, _ = run(folder, talks, tmp_path / "new", resume="auto", **more)
    assert [line["step"] for line in resumed] == [4, 5, 6]
    for line, wanted in zip(resumed, unbroken[3:], strict=True):
        assert (line["loss"], line["lr"]) == (wanted["loss"], wanted["lr"])
    name = "adapter.safetensors"
    stored = (tmp_path / "unbroken" / name).read_bytes()
    assert (tmp_path / "new" / name).read_bytes() == stored
    assert (tmp_path / "new" / "checkpoint-3" / name).read_bytes() != stored


def test_resume_auto_without_a_checkpoint_starts_from_the_beginning(folder, talks, tmp_path):
    fresh, _ = run(folder, talks, tmp_path / "a", max_steps=2)
    auto, _ = run(folder, talks, tmp_path / "b", max_steps=2, resume="auto")
    assert [line["loss"] for line in fresh] == [line["loss"] for line in auto]


def test_a_run_with_the_same_seed_is_the_same_and_another_seed_is_another(folder, talks, tmp_path):
    one, two, other = ([line["loss"] for line in run(folder, talks, tmp_path / str(i), seed=seed,
                                                     max_steps=3)[0]]
                       for i, seed in enumerate((1, 1, 2)))
    assert one == two != other


def test_the_newest_checkpoints_are_kept_and_each_is_a_model_folder(folder, talks, tmp_path):
    run(folder, talks, tmp_path, save_steps=1, save_total_limit=2, max_steps=12)
    found = complete_checkpoints(tmp_path)
    assert [path.name for path in found] == ["checkpoint-10", "checkpoint-11"]
    (tmp_path / "checkpoint-99.tmp").mkdir()
    assert complete_checkpoints(tmp_path) == found
    for path in (*found, tmp_path):
        model = SkyEyeGPT.from_pretrained(path)
        assert model.config.lora == DROPPING.lora
        assert (path / "tokenizer.model").read_bytes() == tiny.tokenizer_bytes()


@pytest.mark.parametrize("tune", ["lora", "projector", "full"])
@pytest.mark.parametrize("train_vit", [False, True])
def test_the_folder_that_is_written_holds_everything_that_learned(
        folder, talks, tmp_path, monkeypatch, tune, train_vit):
    built = []

    def build(*args):
        built.append(build_model(*args))
        return built[0]

    monkeypatch.setattr(train, "build_model", build)
    run(folder, talks, tmp_path, tune=tune, train_vit=train_vit, max_steps=2)
    learned = built[0][0].state_dict()
    for name, tensor in SkyEyeGPT.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(tensor, learned[name]), name


# ---- processes -----------------------------------------------------------------------------------

def start(*command, path="", **more):
    """path: where Python looks for packages first; more: of the environment."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                                "PYTHONPATH": str(path)} | more
    return subprocess.run([sys.executable, *command], cwd=tiny.ROOT, env=environment,
                          capture_output=True, text=True, timeout=120)


def test_two_processes_learn_what_one_learns(folder, talks, tmp_path):
    """Pictures, clips and text alone: a process may have rows without any picture."""
    world = write_world(tmp_path / "world", train=3, val=1, test=1, clips=1, size=64, workers=1)
    plain = tiny.model_folder(tmp_path / "model")
    flags = ("--model", str(plain), "--data", str(world), talks, "--tune", "full", "--train_vit",
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
    """What train.py says on its way out: status 2, no traceback."""
    done = start("train.py", *flags, **more)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
    return done.stderr.strip().splitlines()


def test_missing_data_is_one_line(folder, tmp_path):
    (line,) = refusal("--model", folder, "--data", str(tmp_path / "gone"),
                      "--output_dir", str(tmp_path / "out"))
    assert line.startswith("train.py: ") and str(tmp_path / "gone") in line
    assert not (tmp_path / "out").exists()


def test_a_ratio_of_no_data_set_is_one_line_before_anything_is_read(tmp_path):
    gone = str(tmp_path / "gone")
    (line,) = refusal("--data", gone, "--ratio", "rsicd=2", "--output_dir", str(tmp_path / "out"))
    assert line == "train.py: --ratio rsicd: no such data set; there are gone"


def test_the_ratio_that_is_named_says_how_many_rows_an_epoch_has(folder, talks, tmp_path, capfd):
    more = str(tiny.talks(tmp_path, count=0, texts=5))
    run(folder, talks, tmp_path / "out", data=(talks, more), ratio=(f"{more}=0.6",), max_steps=1)
    assert "14 samples in 12 rows an epoch" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_not_there_is_one_line_before_anything_is_read(tmp_path, name):
    """A folder of its name, such as W&B leaves, is none."""
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed here")
    (tmp_path / "wandb").mkdir()
    (line,) = refusal("--data", str(tmp_path / "gone"), "--log_to", name, path=tmp_path)
    assert line == (f"train.py: --log_to {name}: the package {name} is not installed; "
                    f"pip install {name}")


STAND_IN = """
import json, os, sys
def note(*told): print(json.dumps(told), file=open(os.environ["TOLD"], "a"), flush=True)
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
    """A tensorboard and a wandb that write down what they are told."""
    for name in ("tensorboard", "wandb"):
        (tmp_path / f"{name}.py").write_text(STAND_IN)
    (tmp_path / "sitecustomize.py").write_text("import tensorboard")
    return tmp_path


def test_who_is_asked_for_is_told_the_numbers_of_the_log(folder, talks, tmp_path, stand_ins):
    out, told = tmp_path / "out", tmp_path / "told"
    done = start("train.py", "--model", folder, "--data", talks, "--output_dir", str(out),
                 "--max_steps", "3", "--log_steps", "2", "--log_to", "wandb", "tensorboard",
                 path=stand_ins, TOLD=str(told))
    assert done.returncode == 0, done.stderr
    notes = [json.loads(line) for line in told.read_text().splitlines()]
    assert ["run", str(out), 42] in notes and ["writer", str(out / "tensorboard")] in notes
    lines = log(out)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        step, numbers = line.pop("step"), {}
        for who, *rest in notes:
            numbers |= rest[1] if who == "tensorboard" and rest[0] == step else {}
        assert ["wandb", step, line] in notes and numbers == line
        assert {"loss", "lr", "norm", "samples_per_s", "mfu", "tflops"} <= line.keys()
        assert line["tflops"] > 0 and line["mfu"] > 0
    assert notes[-1] == ["flushed"]


def test_nobody_is_told_anything_unasked(folder, talks, tmp_path, stand_ins):
    done = start("train.py", "--model", folder, "--data", talks, "--output_dir",
                 str(tmp_path / "out"), "--max_steps", "1", path=stand_ins,
                 TOLD=str(tmp_path / "told"))
    assert done.returncode == 0 and not (tmp_path / "told").exists()


def test_a_run_that_weights_and_biases_refuses_is_one_line(tmp_path, stand_ins):
    (line,) = refusal("--data", str(tmp_path / "gone"), "--log_to", "wandb", "--output_dir",
                      str(tmp_path / "out"), path=stand_ins, LOGGED_OUT="1")
    assert line == "train.py: --log_to wandb: not logged in at all; or set WANDB_MODE=offline"


def test_a_missing_model_is_one_line(tmp_path):
    (line,) = refusal("--model", str(tmp_path / "gone"), "--data", str(tmp_path))
    assert line.startswith("train.py: ") and str(tmp_path / "gone") in line


def test_a_missing_picture_ends_the_run_with_one_line_also_out_of_a_loader_process(
        folder, tmp_path):
    file = tiny.talks(tmp_path, count=2)
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
