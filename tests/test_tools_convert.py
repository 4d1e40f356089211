"""Downloads to a model folder, and a model folder to what other programs read; whatever is wrong
with a download is named."""
import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import layouts
import projector
import tiny
from downloads import CLIP, WHOLE, convert, resized, same, write_downloads
from lora import LoRAConfig
from projector import SkyEyeConfig, SkyEyeGPT
from support.checkpoints.files import ModelError
from support.checkpoints.load import load_llama
from support.tools.convert import FORMS, main
from tiny import SKYEYE_LLAMA


@pytest.fixture
def downloads(tmp_path):
    """-> where they are, and the model that they make."""
    return write_downloads(tmp_path)


# ---- downloads to a model folder -----------------------------------------------------------------

@pytest.mark.parametrize("default", ["", ".default"])
@pytest.mark.parametrize("copy", [False, True])
def test_three_downloads_become_the_model_they_are(downloads, tmp_path, copy, default, capsys):
    places, model = downloads
    torch.save(layouts.minigpt_v2(model.state_dict(), default), places["adapter"])
    before = {file: file.stat().st_mtime_ns for file in places["llama"].iterdir()}
    loaded = convert(places, tmp_path / "out", copy)
    assert same(loaded, resized(model))
    base = "" if copy else os.path.relpath(places["llama"], tmp_path / "out")
    assert loaded.config == dataclasses.replace(WHOLE, base=base)
    assert {file: file.stat().st_mtime_ns for file in places["llama"].iterdir()} == before
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "tokenizer.model", "vit.safetensors", "adapter.safetensors",
                     *(["llama.safetensors"] if copy else [])}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and "minigpt_v2" in lines[3]
    assert all(sum(str(place) in line for line in lines) == 1 for place in places.values())


def test_weights_keep_the_type_they_were_published_in(downloads, tmp_path):
    places, model = downloads
    half = {k: v.half() for k, v in torch.load(places["vit"], weights_only=True).items()}
    torch.save(half, places["vit"])
    convert(places, tmp_path / "out")
    kinds = {k: v.dtype for k, v in load_file(tmp_path / "out" / "vit.safetensors").items()}
    positions = kinds.pop("visual_encoder.pos_embed")                   # resized in float32
    assert set(kinds.values()) == {torch.float16} and positions == torch.float32


@pytest.mark.parametrize("dtype", projector.DTYPES.values())
def test_a_model_loads_in_any_type_and_its_lora_in_float32(downloads, tmp_path, dtype):
    places, model = downloads
    convert(places, tmp_path / "out")
    loaded = SkyEyeGPT.from_pretrained(tmp_path / "out", dtype=dtype)
    assert same(loaded, {k: v if ".lora_" in k else v.to(dtype)
                         for k, v in resized(model).items()})


def test_without_an_adapter_the_projector_is_new_and_there_is_no_lora(downloads, tmp_path, capsys):
    places, model = downloads
    del places["adapter"]
    loaded = convert(places, tmp_path / "out")
    assert loaded.config.lora is None and loaded.config.prompt == "skyeye"
    assert "new, to be trained" in capsys.readouterr().err
    assert 0.01 < loaded.llama_proj.weight.std() < 0.03


def test_a_model_trained_on_a_converted_one_finds_all_three_places(downloads, tmp_path):
    places, model = downloads
    tuned = convert(places, tmp_path / "base")
    tuned.llama_proj.weight += 1
    tuned.save_pretrained(tmp_path / "tuned", base=str(tmp_path / "base"))
    assert same(SkyEyeGPT.from_pretrained(tmp_path / "tuned"), tuned.state_dict())


def test_nothing_is_written_over_a_folder_that_holds_something(downloads, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    places, _ = downloads
    for busy in (tmp_path / "out", places["llama"], places["vit"]):
        with pytest.raises(ModelError, match="something already"):
            convert(places, busy)
    convert(places, tmp_path / "new")
    for form in FORMS:
        with pytest.raises(ModelError, match="something already"):
                main(["--model", str(tmp_path / "new"), "--form", form,
                  "--out", str(places["llama"])])


# ---- LLaVA-1.5 -----------------------------------------------------------------------------------

LLAVA = SkyEyeConfig(CLIP, dataclasses.replace(SKYEYE_LLAMA, vocab_size=32000, depth=1), None, 1,
                     "mlp2x_gelu", "vicuna_v1")
HF_LLAVA = (("llama_model.", "language_model."), ("llama_proj.", "multi_modal_projector."))
FIRST_LLAVA = (("llama_model.", ""), ("llama_proj.linear_1.", "model.mm_projector.0."),
               ("llama_proj.linear_2.", "model.mm_projector.2."))


def parts_of(model):
    """-> the vision encoder's tensors under CLIP's names, everything else under ours."""
    tensors = model.state_dict()
    encoder = {k.removeprefix("visual_encoder."): v for k, v in tensors.items() if "visual" in k}
    return encoder, {k: v for k, v in tensors.items() if "visual" not in k}


def write_llava(folder, tensors, **more):
    layouts.write_sharded(folder, tensors, 3)
    (folder / "tokenizer.model").write_bytes(layouts.tokenizer(32000))
    (folder / "config.json").write_text(json.dumps(layouts.hf_json(LLAVA.llama, **more)))


def test_hugging_faces_llava_is_a_model_as_it_lies(tmp_path):
    model = tiny.skyeye(LLAVA)
    encoder, rest = parts_of(model)
    rest = {k: torch.cat([v, torch.randn(64, v.shape[1])]) if len(v) == 32000 else v
            for k, v in layouts.renamed(rest, *HF_LLAVA).items()}
    write_llava(tmp_path / "llava", rest | layouts.clip(encoder, CLIP.depth, "vision_tower."),
                model_type="llava", vocab_size=32064)
    loaded = convert({"llama": tmp_path / "llava"}, tmp_path / "out", vit_config=CLIP)
    assert same(loaded, model.state_dict())
    assert loaded.config == dataclasses.replace(LLAVA, base="../llava")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"config.json", "tokenizer.model"}


def test_the_first_llava_takes_its_vision_encoder_from_clip(tmp_path):
    model = tiny.skyeye(LLAVA)
    encoder, rest = parts_of(model)
    write_llava(tmp_path / "llava", layouts.renamed(rest, *FIRST_LLAVA), model_type="llava_llama")
    (tmp_path / "clip").mkdir()
    torch.save(layouts.clip_with_text_tower(encoder, CLIP.depth),
               tmp_path / "clip" / "pytorch_model.bin")
    places = {"llama": tmp_path / "llava", "vit": tmp_path / "clip"}
    assert same(convert(places, tmp_path / "out", vit_config=CLIP), model.state_dict())


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_a_lora_folder_of_llavas_training_fits_vicuna_and_clip(tmp_path, prefix):
    lora = LoRAConfig(8, 16.0, 0.05, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj",
                                      "up_proj", "v_proj"))
    model = tiny.skyeye(dataclasses.replace(LLAVA, lora=lora))
    encoder, rest = parts_of(model)
    added = {k: v for k, v in rest.items() if ".lora_" in k}
    write_llava(tmp_path / "vicuna", {k.removeprefix("llama_model."): v for k, v in rest.items()
                                      if "llama_model" in k and k not in added})
    save_file(layouts.clip_with_text_tower(encoder, CLIP.depth), tmp_path / "clip.safetensors")
    folder = tmp_path / "llava-lora"
    folder.mkdir()
    torch.save(layouts.renamed(added, ("llama_model.", "base_model.model.")),
               folder / "adapter_model.bin")
    projector_tensors = {k: v for k, v in rest.items() if "llama_proj" in k}
    torch.save(layouts.renamed(projector_tensors, *FIRST_LLAVA, prefix=prefix),
               folder / "non_lora_trainables.bin")
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none",
         "target_modules": list(lora.targets), "modules_to_save": None}))
    places = {"llama": tmp_path / "vicuna", "vit": tmp_path / "clip.safetensors", "adapter": folder}
    loaded = convert(places, tmp_path / "out", vit_config=CLIP)
    assert same(loaded, model.state_dict()) and loaded.config.lora == lora


def test_llava_answers_about_a_padded_picture(tmp_path):
    """Two layers behind the vision encoder, a visual token for each patch."""
    model = tiny.skyeye(LLAVA)
    assert LLAVA.visual_tokens == 36
    patches = model.visual_encoder(tiny.images(2))
    first, second = model.llama_proj.linear_1, model.llama_proj.linear_2
    x = patches @ first.weight.T + first.bias
    x = x * 0.5 * (1 + torch.erf(x / 2 ** 0.5)) @ second.weight.T + second.bias
    torch.testing.assert_close(model.encode_images(tiny.images(2)), x.flatten(0, 1))


# ---- files that are not what they should be ------------------------------------------------------

class Harmful:
    """Unpickled without care, it would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def cut_off(file, part=0.6):
    file.write_bytes(file.read_bytes()[:int(file.stat().st_size * part)])


def change_adapter(places, change):
    content = torch.load(places["adapter"], weights_only=True)
    content["model"] = {k: v for old, v in content["model"].items() if (k := change(old))}
    torch.save(content, places["adapter"])


def shard(places):
    return places["llama"] / "model-00002-of-00002.safetensors"


def swap(places, part, other):
    places[part] = places[other]


FAULTS = {     # what is done to the downloads: (where, which file the line names, the reason)
    "a truncated shard": (lambda p: cut_off(shard(p)), shard, "the download was interrupted"),
    "a shard of 5 bytes": (lambda p: shard(p).write_bytes(b"12345"), shard, "cut off"),
    "a missing shard": (lambda p: shard(p).unlink(), shard, "download is not complete"),
    "an empty shard": (lambda p: shard(p).write_bytes(b""), shard, "empty"),
    "a git-lfs pointer": (lambda p: shard(p).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9976576152\n"), shard,
        "git lfs pull"),
    "a web page": (lambda p: p["vit"].write_text("<!DOCTYPE html><html>404"), "vit", "web page"),
    "a broken index": (lambda p: (p["llama"] / "model.safetensors.index.json").write_text("{"),
                       lambda p: p["llama"] / "model.safetensors.index.json", "not valid JSON"),
    "no config": (lambda p: (p["llama"] / "config.json").unlink(), "llama", "neither config.json"),
    "no tokenizer": (lambda p: (p["llama"] / "tokenizer.model").unlink(), "llama", "tokenizer"),
    "a broken tokenizer": (lambda p: cut_off(p["llama"] / "tokenizer.model"), "llama", "tokenizer"),
    "another tokenizer": (
        lambda p: (p["llama"] / "tokenizer.model").write_bytes(layouts.tokenizer(350)),
        lambda p: p["llama"] / "tokenizer.model", "350 pieces for the 340 embeddings"),
    "a truncated .pth": (lambda p: cut_off(p["vit"]), "vit", "damaged, or cut off"),
    "a text for a .pth": (lambda p: p["adapter"].write_text("hello"), "adapter", "damaged"),
    "a LoRA by other names": (
        lambda p: change_adapter(p, lambda k: k.replace("lora_A", "lora_down")), "adapter",
        "no LoRA that has .*lora_down"),
    "a LoRA of another tree": (
        lambda p: change_adapter(p, lambda k: k.replace("base_model.model.model", "encoder")),
        "adapter", "missing"),
    "a LoRA on q alone": (lambda p: change_adapter(p, lambda k: "v_proj" not in k and k), "adapter",
                          "missing: llama_model.model.layers.0.self_attn.v_proj.lora_A"),
    "a LoRA of one layer": (lambda p: change_adapter(p, lambda k: "layers.1." not in k and k),
                            "adapter", "4 missing"),
    "no projector": (lambda p: change_adapter(p, lambda k: "llama_proj" not in k and k), "adapter",
                     "2 missing: llama_proj.weight"),
    "no LoRA": (lambda p: change_adapter(p, lambda k: "llama_proj" in k and k), "adapter",
                "a projector and no LoRA"),
    "another key": (lambda p: change_adapter(p, lambda k: k.replace("llama_proj.bias", "ln.bias")),
                    "adapter", "1 unknown names: ln.bias"),
    "the adapter for the vision encoder": (lambda p: swap(p, "vit", "adapter"), "vit",
                                           "unknown names"),
    "the vision encoder for the adapter": (lambda p: swap(p, "adapter", "vit"), "adapter",
                                           "unknown names"),
    "LLaMA for the vision encoder": (lambda p: swap(p, "vit", "llama"), "vit", "unknown names"),
    "a file for LLaMA": (lambda p: swap(p, "llama", "vit"), "llama", "neither config.json"),
    "nothing there": (lambda p: p["adapter"].unlink(), "adapter", "no such file"),
    "no vision encoder": (lambda p: p.pop("vit"), None, "--vit"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_download_is_named_in_one_line(downloads, tmp_path, fault):
    places, _ = downloads
    damage, named, reason = FAULTS[fault]
    damage(places)
    with pytest.raises(ModelError, match=reason) as caught:
        convert(places, tmp_path / "out")
    message = str(caught.value)
    place = named(places) if callable(named) else places.get(named, "")
    assert str(place) in message and "\n" not in message and len(message) < 600
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["vit", "adapter", "llama"])
def test_code_in_a_pickle_is_not_run(downloads, tmp_path, part):
    places, _ = downloads
    mark, file = tmp_path / "it_ran", places[part]
    if part == "llama":
        for old in file.glob("model*"):
            old.unlink()
        file = file / "pytorch_model.bin"
    torch.save({"model": {"llama_proj.weight": Harmful(mark)}}, file)
    with pytest.raises(ModelError, match="it would run") as caught:
        convert(places, tmp_path / "out")
    assert str(file) in str(caught.value) and "system" in str(caught.value)
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_an_index_cannot_name_a_file_outside_its_folder(downloads, tmp_path):
    places, _ = downloads
    index = places["llama"] / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    name = next(iter(entries["weight_map"]))
    save_file({name: torch.zeros(1)}, tmp_path / "outside.safetensors")
    entries["weight_map"][name] = "../outside.safetensors"
    index.write_text(json.dumps(entries))
    with pytest.raises(ModelError, match="outside.safetensors: no such file"):
        convert(places, tmp_path / "out")


def edit_peft_config(places, tmp_path, entries):
    """The LoRA of the downloads as a peft folder, which replaces it, with these entries."""
    convert(places, tmp_path / "out")
    written(tmp_path, "peft")
    file = tmp_path / "written" / "peft" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    places["adapter"] = file.parent
    return file


@pytest.mark.parametrize("entries", [
    {"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"peft_type": "LOHA"},
    {"modules_to_save": ["lm_head"]}, {"alpha_pattern": {"v_proj": 56}},
    {"alpha_pattern": {"layers.1.self_attn.q_proj": 3}}, {"rank_pattern": {"q_proj": 3}},
    {"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa_niter_16"},
    {"init_lora_weights": "olora"}, {"init_lora_weights": "loftq"}, {"lora_bias": True},
    {"layers_to_transform": [0]}, {"layers_pattern": "layers"}, {"fan_in_fan_out": True},
    {"exclude_modules": ["k_proj"]}, {"trainable_token_indices": [3]},
    {"megatron_config": {"a": 1}}, {"an_entry_to_come": 2}, {"target_modules": ["q_proj"]},
    {"target_modules": ["q_proj", "v_proj", "o_proj"]}, {"target_modules": ".*[.]q_proj"},
    {"target_modules": "(q_proj"}, {"target_modules": 5}, {"r": "7"}])
def test_a_peft_folder_with_more_than_plain_lora_is_refused(downloads, tmp_path, entries):
    places, _ = downloads
    file = edit_peft_config(places, tmp_path, entries)
    with pytest.raises(ModelError) as caught:
        convert(places, tmp_path / "again")
    line = str(caught.value).removeprefix(f"{file}: ")
    key = next(iter(entries))
    named = {"target_modules": "target_modules|pattern|unterminated|iterable"}
    assert line != str(caught.value) and "\n" not in line
    assert re.search(named.get(key, key), line), line


@pytest.mark.parametrize("entries", [
    {"target_modules": r".*[.]self_attn[.](q_proj|v_proj)"}, {"target_modules": "all-linear"},
    {"target_modules": r"^(model[.]layers.*[.](q_proj|v_proj))$"},
    {"target_modules": [f"model.layers.{i}.self_attn.{x}_proj" for i in range(
        WHOLE.llama.depth) for x in "qv"]},
    {"alpha_pattern": {"q_proj": WHOLE.lora.alpha, "v_proj": WHOLE.lora.alpha}},
    {"alpha_pattern": {"[qv]_proj": WHOLE.lora.alpha}, "lora_alpha": 99},
    {"rank_pattern": {"q_proj": WHOLE.lora.r}}, {"init_lora_weights": "gaussian"}])
def test_a_plain_lora_is_loaded_however_peft_names_its_layers(downloads, tmp_path, entries):
    places, _ = downloads
    edit_peft_config(places, tmp_path, entries)
    convert(places, tmp_path / "again")
    one, two = (SkyEyeGPT.from_pretrained(tmp_path / name) for name in ("out", "again"))
    assert two.config.lora == one.config.lora
    assert same(two, one.state_dict())


def test_a_base_whose_shard_is_gone_is_named_when_the_model_is_used(downloads, tmp_path):
    places, _ = downloads
    convert(places, tmp_path / "out")
    shard(places).unlink()
    with pytest.raises(ModelError) as caught:
        SkyEyeGPT.from_pretrained(tmp_path / "out")
    assert str(shard(places)) in str(caught.value)


def test_the_command_ends_with_one_line_and_exit_code_2(downloads, tmp_path):
    """With the released sizes: a tiny encoder is not ViT-g."""
    places, _ = downloads
    done = subprocess.run(
        [sys.executable, "projector.py", "--llama", places["llama"], "--vit", places["vit"],
         "--adapter", places["adapter"], "--out", tmp_path / "out"],
        capture_output=True, text=True, cwd=tiny.ROOT)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("projector.py: ") and done.stderr.count("\n") == 1
    assert str(places["vit"]) in done.stderr and "not [1, 1, 1408]" in done.stderr


# ---- back to other forms -------------------------------------------------------------------------

def written(tmp_path, form, *more):
    main(["--model", str(tmp_path / "out"), "--out", str(tmp_path / "written" / form),
          "--form", form, *more])
    return tmp_path / "written" / form


def test_an_adapter_written_for_minigpt_v2_has_its_names_and_comes_back(downloads, tmp_path):
    places, model = downloads
    convert(places, tmp_path / "out")
    file = written(tmp_path, "minigpt_v2") / "SkyEyeGPT.pth"
    theirs = torch.load(file, weights_only=True)["model"]
    first = layouts.minigpt_v2(model.state_dict())["model"]
    buffers = {name for name in first if "inv_freq" in name}
    assert theirs.keys() == first.keys() - buffers
    assert all(torch.equal(theirs[name], first[name]) for name in theirs)
    places["adapter"] = file
    assert same(convert(places, tmp_path / "again"), resized(model))


def test_an_adapter_written_as_a_peft_folder_comes_back(downloads, tmp_path):
    places, model = downloads
    first = convert(places, tmp_path / "out")
    places["adapter"] = written(tmp_path, "peft")
    names = load_file(places["adapter"] / "adapter_model.safetensors")
    assert len(names) == 2 * 2 * SKYEYE_LLAMA.depth
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    again = convert(places, tmp_path / "again")
    assert same(again, resized(model)) and again.config.lora == first.config.lora


def test_what_is_given_away_names_no_whole_path(downloads, tmp_path):
    convert(downloads[0], tmp_path / "out")
    tiny.skyeye().save_pretrained(tmp_path / "tuned", base=tmp_path / "out")
    entries = json.loads((written(tmp_path, "peft") / "adapter_config.json").read_text())
    assert entries["base_model_name_or_path"] == "llama"
    for file in (*tmp_path.glob("*/*.json"), *tmp_path.glob("written/*/*.json")):
        assert str(tmp_path.parent) not in file.read_text() and '"/' not in file.read_text(), file


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_merged_folder_is_what_merging_in_memory_gives(downloads, tmp_path, dtype):
    model = convert(downloads[0], tmp_path / "out")
    model.merge()
    merged = SkyEyeGPT.from_pretrained(written(tmp_path, "merged", "--dtype", dtype))
    assert merged.config == dataclasses.replace(model.config, base="")
    near = {"rtol": 0.01, "atol": 1e-5} if dtype == "bf16" else {}
    torch.testing.assert_close(dict(merged.state_dict()), dict(model.state_dict()), **near)


def test_a_merged_language_model_is_a_plain_llama_folder(downloads, tmp_path):
    model = convert(downloads[0], tmp_path / "out")
    model.merge()
    loaded = load_llama(written(tmp_path, "llama", "--dtype", "fp32"))
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.llama_model.state_dict()))


def test_without_a_lora_there_is_no_adapter_to_write(downloads, tmp_path):
    places, _ = downloads
    del places["adapter"]
    convert(places, tmp_path / "out")
    for form in ("peft", "minigpt_v2"):
        with pytest.raises(ModelError, match="no LoRA"):
            written(tmp_path, form)
