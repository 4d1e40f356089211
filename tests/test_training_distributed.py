"""Several processes: which rows each gets; sharded, a model learns what it learns otherwise."""
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import tiny
import train
from data import collate
from support.checkpoints.files import ModelError
from support.training.checkpoints import complete_checkpoints
from support.training.distributed import check_shardable, with_dummy_image

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
               "PYTHONPATH": str(tiny.ROOT)}
# A sharded run has no Muon and no feature cache, which encodes each picture by itself.
TUNES = {"full": ("--tune", "full", "--train_vit", "--optimizer", "adamw"),
         "lora": ("--tune", "lora", "--feature_cache", "0"),
         "bf16": ("--tune", "lora", "--feature_cache", "0", "--dtype", "bf16", "--grad_checkpoint")}


def start(*command):
    return subprocess.run([sys.executable, *command], cwd=tiny.ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=600)


def flags(place, out, *more, data="pictures", batch=2):
    return ["--model", str(place / "model"), "--data", str(place / data / "conversations.json"),
            "--max_steps", "4", "--batch_size", str(batch), "--lr", "1e-3", "--warmup_steps", "1",
            "--log_steps", "1", "--clip", "0.5", "--device", "cpu", "--output_dir",
            str(place / out), *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the results of every run of two processes, unsharded (plain) and sharded."""
    place = tmp_path_factory.mktemp("place")
    tiny.model_folder(place / "model", dataclasses.replace(tiny.SKYEYE, lora=None))
    tiny.conversations(place / "pictures", count=6, texts=3)
    tiny.conversations(place / "texts", count=1, texts=7)
    runs = []
    for name, sharded in (("plain", ()), ("sharded", ("--shard",))):
        for tune, own in TUNES.items():
            own = (*own, "--save_steps", "2", "--grad_accum", "2", *sharded)
            runs.append(flags(place, f"{tune}-{name}", *own))
        runs.append(flags(place, f"texts-{name}", *TUNES["full"], *sharded, data="texts"))
    for tune in ("full", "lora"):
        for out, source, sharded in (("resumed", "sharded", ("--shard",)),
                                     ("unsharded", "sharded", ()),
                                     ("resharded", "plain", ("--shard",))):
            checkpoint = str(place / f"{tune}-{source}" / "checkpoint-2")
            runs.append(flags(place, f"{tune}-{out}", *TUNES[tune], "--save_steps", "2",
                              "--grad_accum", "2", "--resume", checkpoint, *sharded))
    done = start("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                 "tests/processes.py", json.dumps(runs))
    assert done.returncode == 0, done.stderr
    return place


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(next(out.glob("*.safetensors")))


def assert_same(one, two, part=1e-6):
    """The losses and norms of the last steps, and the tensors."""
    lines = log(one)[-len(log(two)):]
    for a, b in zip(lines, log(two), strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=part)
        assert a["norm"] == pytest.approx(b["norm"], rel=part)
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).norm() <= part * one[name].norm(), name


@pytest.mark.parametrize("tune", TUNES)
def test_a_sharded_model_learns_what_an_unsharded_one_learns(place, tune):
    """Frozen weights are sharded too; with bf16 their type is not that of the LoRA."""
    assert_same(place / f"{tune}-plain", place / f"{tune}-sharded")
    assert len(log(place / f"{tune}-sharded")) == 4


@pytest.mark.parametrize("tune", TUNES)
def test_each_process_stores_half_of_the_numbers_and_never_gathers_all(place, tune):
    """The largest unit are the embeddings, the head and what else is in no block."""
    for rank in range(2):
        stored, count, unit = json.loads((place / f"{tune}-sharded/rank-{rank}.json").read_text())
        assert 0.45 * count < stored < 0.55 * count and unit < 0.52 * count
        stored, count, unit = json.loads((place / f"{tune}-plain/rank-{rank}.json").read_text())
        assert stored == count == unit


@pytest.mark.parametrize("tune", TUNES)
def test_a_checkpoint_of_a_sharded_run_is_complete_and_as_of_an_unsharded_one(place, tune):
    one, two = (place / f"{tune}-{name}" / "checkpoint-2" for name in ("plain", "sharded"))
    assert complete_checkpoints(one.parent) == [one] and complete_checkpoints(two.parent) == [two]
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    a, b = (torch.load(folder / "trainer.pt", weights_only=True) for folder in (one, two))
    assert a.keys() == b.keys() and a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    pairs = [(a["parameters"][name], b["parameters"][name]) for name in a["parameters"]]
    pairs += [(a["optimizer"]["state"][i][key], b["optimizer"]["state"][i][key])
              for i in a["optimizer"]["state"] for key in a["optimizer"]["state"][i]]
    assert len(pairs) == 4 * len(a["parameters"])
    for x, y in pairs:
        assert type(x) is type(y) is torch.Tensor and x.shape == y.shape and x.dtype == y.dtype
        assert (x - y).norm() <= 1e-5 * x.norm()


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_resumed_sharded_run_ends_with_the_bits_of_an_unbroken_one(place, tune):
    assert_same(place / f"{tune}-sharded", place / f"{tune}-resumed", 0)
    assert [line["step"] for line in log(place / f"{tune}-resumed")] == [3, 4]


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_sharded_run_resumes_unsharded_and_the_other_way_around(place, tune):
    for out in ("unsharded", "resharded"):
        assert_same(place / f"{tune}-sharded", place / f"{tune}-{out}")


def test_one_process_resumes_what_two_have_begun(place):
    out = place / "full-one"
    train.train(train.parse_args(flags(
        place, out, *TUNES["full"], "--save_steps", "2", "--grad_accum", "2", "--force", "--resume",
        str(place / "full-sharded" / "checkpoint-2"), batch=4)))
    assert_same(place / "full-sharded", out, 1e-4)


def test_a_process_whose_batches_have_no_picture_keeps_up(place):
    """There is one picture among eight rows, so at least one of the two has none."""
    assert_same(place / "texts-plain", place / "texts-sharded")
    train.train(train.parse_args(flags(place, "texts-one", *TUNES["full"], data="texts", batch=4)))
    assert_same(place / "texts-one", place / "texts-sharded", 1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_a_dummy_image_changes_no_loss_and_no_gradient(tmp_path, shared):
    samples = [dataclasses.replace(sample, images=()) for sample in tiny.captions(tmp_path, 2)]
    rows = tiny.rows(samples)
    batch = collate([rows[0, 0], rows[0, 1]])
    if shared:                      # rows with several questions
        slots = torch.arange(batch["ids"].shape[1]).expand(batch["ids"].shape)
        batch |= {"segments": slots // 5, "positions": slots % 7}
    assert batch["images"] is None
    found = []
    for inputs in (batch, with_dummy_image(batch, tiny.VIT.image_size, tiny.N)):
        model = tiny.skyeye().train()
        loss = model(**inputs)
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    (one, without), (two, gradients) = found
    assert torch.allclose(one, two, rtol=1e-6)
    for name, gradient in gradients.items():
        if name.startswith("llama_model."):
            assert (gradient - without[name]).norm() <= 1e-5 * gradient.norm(), name
        else:
            assert without[name] is None and not gradient.any(), name


def test_a_batch_with_a_picture_gets_no_dummy_image(tmp_path):
    batch = collate([tiny.rows(tiny.captions(tmp_path, 1))[0, 0]])
    assert with_dummy_image(batch, tiny.VIT.image_size, tiny.N) is batch


def test_to_shard_without_torchrun_is_refused_in_one_line(place):
    done = start("train.py", *flags(place, "none", "--shard"))
    assert done.returncode == 2
    assert done.stderr == ("train.py: --shard spreads the model over several processes: start it "
                           "with torchrun\n")


@pytest.mark.parametrize("arguments, word", [((2, "mps", torch.float32, 16), "mps"),
                                             ((2, "cpu", torch.float16, 16), "bf16"),
                                             ((2, "cpu", torch.bfloat16, 8), "bits")])
def test_what_cannot_be_sharded_is_refused_in_one_line(arguments, word):
    with pytest.raises(ModelError, match=word) as caught:
        check_shardable(*arguments)
    assert "--shard" in str(caught.value) and "\n" not in str(caught.value)
    check_shardable(2, "cuda", torch.bfloat16, 16)
