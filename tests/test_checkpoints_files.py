"""Weight files: tensors one by one, nothing else unpickled, strict loading, shards."""
import json
import os
import zipfile
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import layouts
import tiny
from support.checkpoints import files
from support.checkpoints.files import (
    LazyTensor,
    ModelError,
    cast_copy,
    check_inflation,
    check_names_and_shapes,
    check_safetensors,
    in_memory,
    load_strict,
    open_checkpoint,
    read_json,
    require_empty,
    write_json,
    write_shards,
)

TENSORS = {f"{letter}.weight": torch.arange(6.0).reshape(2, 3) + i
           for i, letter in enumerate("abcde")}


def values(tensors):
    return {name: tensor.read().tolist() for name, tensor in tensors.items()}


# ---- lazy tensors --------------------------------------------------------------------------------

def test_a_lazy_tensor_is_read_and_mapped_only_when_its_turn_comes():
    reads = []

    def read():
        reads.append(1)
        return torch.ones(2, 3)

    doubled = LazyTensor((2, 3), read).map([3, 2], lambda x: 2 * x.T)
    assert doubled.shape == (3, 2) and not reads
    assert torch.equal(doubled.read(), torch.full((3, 2), 2.0)) and len(reads) == 1
    doubled.read()
    assert len(reads) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "a.pth"])
def test_a_file_gives_its_shapes_at_once_and_its_tensors_when_read(tmp_path, name):
    file = tmp_path / name
    (save_file if name.endswith(".safetensors") else torch.save)(TENSORS, file)
    found = open_checkpoint(file)
    assert {name: tensor.shape for name, tensor in found.items()} == dict.fromkeys(TENSORS, (2, 3))
    assert values(found) == values(in_memory(TENSORS))
    if not name.endswith(".pth"):
        assert values(open_checkpoint(tmp_path)) == values(found)       # its folder


def test_a_pickled_file_is_mapped_anew_and_still_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(files.PickledFile, "REMAP_AFTER", 1)
    torch.save({"model": TENSORS, "optimizer": {"step": 3}}, tmp_path / "a.pth")
    found = open_checkpoint(tmp_path / "a.pth")
    assert values(found) == values(found) == values(in_memory(TENSORS))


def test_an_index_names_the_shards_and_never_one_outside_its_folder(tmp_path):
    layouts.write_sharded(tmp_path / "model", TENSORS)
    assert values(open_checkpoint(tmp_path / "model")) == values(in_memory(TENSORS))
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "outside.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {"a.weight": "../outside.safetensors"}}))
    with pytest.raises(ModelError, match="model/outside.safetensors: no such file"):
        open_checkpoint(tmp_path / "model")


# ---- files that are no weights -------------------------------------------------------------------

class Harmful:
    """Unpickled without care, it would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


refusal = partial(tiny.refusal, ModelError)


def test_code_in_a_pickle_is_not_run(tmp_path):
    file = tmp_path / "a.pth"
    torch.save({"model": {"a": Harmful(tmp_path / "it_ran")}}, file)
    message = refusal(open_checkpoint, file)
    assert message.startswith(f"{file}: not loaded, it would run ") and "system" in message
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("content, reason", [
    ([torch.ones(1)], "a dict of tensors is expected, not list"),
    ({"epoch": 3, "lr": 0.1}, "holds epoch, lr; tensors are expected"),
])
def test_a_pickle_of_something_else_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "a.pth")
    assert reason in refusal(open_checkpoint, tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content, reason", [
    (None, "no such file; the download is not complete"), (b"", "the file is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "run git lfs pull"),
    (b"\n <!DOCTYPE html><html>404", "a web page"), (b"hello", "")])
def test_what_a_failed_download_leaves_behind_is_named(tmp_path, suffix, content, reason):
    file = tmp_path / f"a{suffix}"
    if content is not None:
        file.write_bytes(content)
    message = refusal(open_checkpoint, file)
    assert message.startswith(f"{file}: ") and reason in message


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 60, -1])
def test_a_safetensors_file_of_another_length_than_its_header_says_is_refused(tmp_path, size):
    file = tmp_path / "a.safetensors"
    save_file(TENSORS, file)
    check_safetensors(file)
    file.write_bytes(file.read_bytes()[:size])
    refusal(check_safetensors, file)
    save_file(TENSORS, file)
    file.write_bytes(file.read_bytes() + b"x")
    assert "the download was interrupted" in refusal(check_safetensors, file)


@pytest.mark.parametrize("header", [b"{", b"[]", b"3", b'{"a": {}}', b'{"a": {"data_offsets": 3}}',
                                    b'{"a": {"data_offsets": [0, "9"]}}'])
def test_a_safetensors_header_that_cannot_be_read_is_refused(tmp_path, header):
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "not a safetensors file" in refusal(check_safetensors, file)


def test_json_beside_weights_must_be_an_object(tmp_path):
    file = tmp_path / "config.json"
    assert "no such file" in refusal(read_json, file)
    file.write_text("{")
    assert "not valid JSON" in refusal(read_json, file)
    file.write_text("[]")
    assert "a JSON object is expected" in refusal(read_json, file)
    write_json(file, {"a": 1})
    assert read_json(file) == {"a": 1}


# ---- strict loading ------------------------------------------------------------------------------

def test_missing_unexpected_and_misshaped_tensors_are_all_named():
    wanted = {"a": (2,), "b": (3,), **{f"c{i}": (1,) for i in range(4)}}
    found = in_memory({"a": torch.ones(2), "b": torch.ones(2), "d": torch.ones(1)})
    assert refusal(check_names_and_shapes, "a.pth", wanted, found) == (
        "a.pth: the weights do not fit the model; 4 missing: c0, c1, c2, ..; 1 unexpected: d; "
        "1 mis-shaped: b is [2], not [3]")


def test_a_model_on_the_meta_device_is_filled_and_its_lora_stays_in_float32():
    with torch.device("meta"):
        model = nn.ModuleDict({"q": nn.Linear(3, 2, bias=False)})
        model["q"].lora_A = nn.Linear(3, 1, bias=False)
    tensors = {"q.weight": torch.randn(2, 3), "q.lora_A.weight": torch.randn(1, 3)}
    load_strict(model, in_memory(tensors), "a.pth", "cpu", torch.bfloat16)
    assert torch.equal(model["q"].weight, tensors["q.weight"].bfloat16())
    assert torch.equal(model["q"].lora_A.weight, tensors["q.lora_A.weight"])
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float32])
def test_a_cast_copy_is_what_to_gives_and_shares_no_memory(source, target):
    x = torch.randn(700, 401, generator=torch.Generator().manual_seed(0)).to(source).T
    y = cast_copy(x, "cpu", target)
    assert torch.equal(y, x.to(target)) and y.data_ptr() != x.data_ptr()


# ---- writing -------------------------------------------------------------------------------------

def test_a_small_model_is_one_file_and_a_large_one_shards_with_an_index(tmp_path, monkeypatch):
    write_shards(tmp_path / "one", "model", in_memory(TENSORS))
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    monkeypatch.setattr(files, "SHARD_NUMEL", 12)
    write_shards(tmp_path / "many", "model", in_memory(TENSORS), torch.float16)
    names = sorted(file.name for file in (tmp_path / "many").iterdir())
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + [
        "model.safetensors.index.json"]
    index = read_json(tmp_path / "many" / names[-1])
    assert index["metadata"]["total_size"] == 5 * 6 * 2
    assert index["weight_map"] == {f"{letter}.weight": names[i // 2]
                                   for i, letter in enumerate("abcde")}
    for place in ("one", "many"):
        assert values(open_checkpoint(tmp_path / place)) == values(in_memory(TENSORS))


def test_a_lora_is_written_in_float32_whatever_the_rest_is(tmp_path):
    tensors = {"q.weight": torch.ones(2), "q.lora_A.weight": torch.ones(2)}
    write_shards(tmp_path, "model", in_memory(tensors), torch.bfloat16)
    dtypes = {name: x.dtype for name, x in load_file(tmp_path / "model.safetensors").items()}
    assert dtypes == {"q.weight": torch.bfloat16, "q.lora_A.weight": torch.float32}


def test_weights_that_are_not_plain_tensors_are_not_written(tmp_path):
    class Packed(torch.Tensor):
        pass

    tensors = {"a": nn.Parameter(torch.ones(2)), "b": torch.ones(2).as_subclass(Packed)}
    message = refusal(write_shards, tmp_path, "model", in_memory(tensors))
    assert message.startswith(f"{tmp_path}: b is in 8 or 4 bits") and not list(tmp_path.iterdir())


def test_a_full_disk_is_named_before_anything_is_written(tmp_path, monkeypatch):
    free = files.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: free)
    message = refusal(write_shards, tmp_path, "model", in_memory(TENSORS))
    assert message.endswith("model.safetensors: 120 bytes to write, 100 free")
    assert not list(tmp_path.iterdir())


def test_a_model_is_written_only_where_nothing_is(tmp_path):
    require_empty(tmp_path / "new")
    require_empty(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "mine.txt"):
        assert "something already" in refusal(require_empty, place)


def test_a_pickled_file_that_was_compressed_again_is_read_right(tmp_path):
    tensors = {f"w{i}": torch.randn(500) for i in range(3)}
    torch.save(tensors, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(
            tmp_path / "compressed_again.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    found = open_checkpoint(tmp_path / "compressed_again.pth")
    assert all(torch.equal(found[name].read(), tensor) for name, tensor in tensors.items())


def test_a_pickled_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    torch.save({"w": torch.zeros(2**18)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(
            tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    check_inflation(tmp_path / "bomb.pth")                      # 1 MB is no matter
    monkeypatch.setattr(files, "HARMLESS_BYTES", 2**16)
    check_inflation(tmp_path / "a.pth")
    message = refusal(open_checkpoint, tmp_path / "bomb.pth")
    assert "bomb.pth: not loaded, it would unpack to 0.0 GB" in message


@pytest.mark.parametrize("weight_map", [None, [], {"a": []}, {"a": 3}, "a", {}])
def test_an_index_that_names_no_files_is_refused(tmp_path, weight_map):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="index.json: no weight_map"):
        open_checkpoint(tmp_path)
