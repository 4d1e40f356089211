"""Published weights of one model: every layout gives the same tensors, whatever is wrong is named,
and loading takes the memory of the weights once."""
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import layouts
import tiny
from downloads import CLIP, SMALL, llama_model, same, vit_model
from llama import Llama
from projector import SkyEyeGPT
from support.checkpoints.files import ModelError
from support.checkpoints.load import load_llama, load_vit, read_folder
from tiny import LLAMA, VIT
from vit import resize_positions

EVA_LAYOUTS = {"eva": layouts.eva, "timm": layouts.timm, "open_clip": layouts.open_clip,
               "blip2": layouts.blip2}


# ---- vision encoders -----------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", EVA_LAYOUTS)
def test_every_layout_of_eva_gives_the_same_encoder(tmp_path, layout, suffix):
    tensors = vit_model(SMALL).state_dict()
    theirs = {k: v.contiguous() for k, v in EVA_LAYOUTS[layout](tensors, SMALL.depth).items()}
    file = tmp_path / f"vit{suffix}"
    (torch.save if suffix == ".pth" else save_file)(theirs, file)
    assert same(load_vit(file, SMALL), tensors)
    large = tensors | {"pos_embed": resize_positions(tensors["pos_embed"], VIT.grid)}
    assert same(load_vit(file, VIT), large)


@pytest.mark.parametrize("layout", [layouts.clip, layouts.clip_with_text_tower])
def test_clip_gives_the_same_encoder_without_its_keys_bias(tmp_path, layout):
    tensors = vit_model(CLIP).state_dict()
    save_file(layout(tensors, CLIP.depth), tmp_path / "clip.safetensors")
    assert same(load_vit(tmp_path / "clip.safetensors", CLIP), tensors)


def test_blip2s_trained_last_norm_is_not_loaded(tmp_path):
    """Two files that differ in post_layernorm alone give the same features."""
    tensors, images = vit_model(SMALL).state_dict(), torch.randn(1, 3, 15, 15)
    found = []
    for _ in range(2):
        theirs = layouts.blip2(tensors, SMALL.depth)        # with another random post_layernorm
        save_file(theirs, tmp_path / "blip2.safetensors")
        found.append(load_vit(tmp_path / "blip2.safetensors", SMALL)(images))
    assert torch.equal(*found)
    features = found[0]
    torch.testing.assert_close(features.mean(-1), torch.zeros(1, 9), atol=0.5, rtol=0)


def test_which_of_the_two_released_encoders_a_file_holds_shows_in_its_names(tmp_path):
    for config, layout, found in ((SMALL, layouts.eva, "[1, 1, 24], not [1, 1, 1408]"),
                                  (CLIP, layouts.clip, "[1, 1, 24], not [1, 1, 1024]")):
        save_file(layout(vit_model(config).state_dict(), config.depth), tmp_path / "a.safetensors")
        with pytest.raises(ModelError) as caught:
            load_vit(tmp_path / "a.safetensors")
        assert f"cls_token is {found}" in str(caught.value)


# ---- language models -----------------------------------------------------------------------------

def test_hugging_faces_shards_give_the_same_model(tmp_path):
    tensors = llama_model().state_dict()
    layouts.llama_folder(tmp_path, layouts.hf(tensors), LLAMA, 350)
    model = load_llama(tmp_path)
    assert same(model, tensors) and model.config == LLAMA


def test_shards_of_torch_save_give_the_same_model(tmp_path):
    """Vicuna's. A safetensors folder may have them beside it; they are not read twice."""
    tensors = layouts.hf(llama_model().state_dict())
    place = {k: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, k in enumerate(tensors)}
    for file in set(place.values()):
        torch.save({k: v for k, v in tensors.items() if place[k] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    (tmp_path / "config.json").write_text(json.dumps(layouts.hf_json(LLAMA)))
    assert same(load_llama(tmp_path), llama_model().state_dict())
    other = llama_model(seed=9).state_dict()
    layouts.llama_folder(tmp_path, other, LLAMA, 350)
    assert same(load_llama(tmp_path), other)


def test_metas_file_gives_the_same_model(tmp_path):
    tensors = llama_model().state_dict()
    torch.save(layouts.meta(tensors, LLAMA.heads), tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(layouts.params_json(LLAMA)))
    model = load_llama(tmp_path)
    assert same(model, tensors)
    assert model.config == dataclasses.replace(LLAMA, max_positions=4096)


def test_the_order_of_rows_in_metas_file_matters():
    """Left as they are, q and k of Meta's file give other logits: RoPE pairs other numbers."""
    tensors = llama_model().state_dict()
    theirs = layouts.meta(tensors, LLAMA.heads)["layers.0.attention.wq.weight"]
    ours = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(ours, theirs) and torch.equal(ours.sort(0)[0], theirs.sort(0)[0])


def test_llavas_extra_rows_are_cut_off(tmp_path):
    config = dataclasses.replace(LLAMA, vocab_size=32000, depth=1)
    tensors = llama_model(config).state_dict()
    theirs = {k: torch.cat([v, torch.randn(64, v.shape[1])]) if len(v) == 32000 else v
              for k, v in tensors.items()}
    theirs = {f"language_model.{k}": v for k, v in theirs.items()}
    entries = {"model_type": "llava",
               "text_config": layouts.hf_json(config) | {"vocab_size": 32064}}
    layouts.write_sharded(tmp_path, theirs)
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert same(load_llama(tmp_path), tensors)


@pytest.mark.parametrize("entries, reason", [
    ({"num_key_value_heads": 1}, "fewer keys"), ({"model_type": "mistral"}, "mistral"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "RoPE"),
    ({"rope_parameters": [1]}, "rope_parameters"), ({"hidden_act": "gelu"}, "hidden_act"),
    ({"attention_bias": True}, "attention_bias"), ({"num_hidden_layers": 10 ** 9}, "depth"),
    ({"hidden_size": [4]}, "width"), ({"vocab_size": 10 ** 400}, "vocab_size"),
    ({"num_hidden_layers": 5}, "missing"),
    ({"hidden_size": 40}, "mis-shaped"),
])
def test_another_architecture_is_refused(tmp_path, entries, reason):
    layouts.llama_folder(tmp_path, llama_model().state_dict(), LLAMA, 350, **entries)
    with pytest.raises(ModelError, match=reason) as caught:
        load_llama(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("entries", [
    {"rope_scaling": {"rope_type": "default"}}, {"rope_scaling": {"type": "default"}},
    {"rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    {"hidden_act": "silu"}])
def test_rope_that_is_not_scaled_is_plain(tmp_path, entries):
    layouts.llama_folder(tmp_path, llama_model().state_dict(), LLAMA, 350, **entries)
    assert same(load_llama(tmp_path), llama_model().state_dict())


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_the_embedding_need_not_be_in_the_file(tmp_path, tied):
    tensors = layouts.hf(llama_model().state_dict())
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(
        layouts.hf_json(LLAMA) | {"tie_word_embeddings": tied}))
    if not tied:
        with pytest.raises(ModelError, match="missing: lm_head.weight"):
            load_llama(tmp_path)
        return
    model = load_llama(tmp_path)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize("heads", [0, 3, 7, None, 2.5, {"a": 5}, "5", float("nan"), 10**400])
@pytest.mark.parametrize("file", ["config.json", "params.json"])
def test_heads_that_do_not_fit_the_width_are_named(tmp_path, file, heads):
    if file == "params.json":
        entries = layouts.params_json(LLAMA) | {"n_heads": heads}
    else:
        entries = layouts.hf_json(LLAMA, num_attention_heads=heads)
    (tmp_path / file).write_text(json.dumps(entries))
    with pytest.raises(ModelError, match=f"{tmp_path / file}: .*(heads|fewer keys)"):
        load_llama(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", ""])
def test_names_that_no_file_can_have_are_one_line(tmp_path, name):
    """In an index of shards, in our list of files, as a base."""
    layouts.llama_folder(tmp_path / "llama", llama_model().state_dict(), LLAMA)
    index = tmp_path / "llama" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ModelError, match=f"^{index}: names .*no file's name$"):
        load_llama(tmp_path / "llama")
    for entry, value in (("files", [name]), ("base", name)):
        folder = tiny.model_folder(tmp_path / entry)
        config = json.loads((folder / "config.json").read_text()) | {entry: value}
        (folder / "config.json").write_text(json.dumps(config))
        if entry == "files" or name:            # an empty base is none
            (folder / "model.safetensors").unlink()
            with pytest.raises(ModelError, match="config.json: .*(no file's name|is no path)$"):
                SkyEyeGPT.from_pretrained(folder)


# ---- a folder of ours ----------------------------------------------------------------------------

def test_a_folder_consists_of_the_files_that_its_config_names(tmp_path):
    tiny.model_folder(tmp_path)
    tensors = tiny.skyeye().state_dict()
    assert json.loads((tmp_path / "config.json").read_text())["files"] == ["model.safetensors"]
    save_file({"llama_proj.bias": torch.zeros(3)}, tmp_path / "adapter.safetensors")
    with pytest.raises(ModelError, match="adapter.safetensors is not of this model"):
        SkyEyeGPT.from_pretrained(tmp_path)
    (tmp_path / "adapter.safetensors").unlink()
    assert same(SkyEyeGPT.from_pretrained(tmp_path), tensors)


@pytest.mark.parametrize("names_its_files", [True, False])
def test_what_a_mac_leaves_beside_weights_is_no_part_of_a_model(tmp_path, names_its_files):
    folder = tiny.model_folder(tmp_path / "model")
    wanted = SkyEyeGPT.from_pretrained(folder).state_dict()
    for name in ("model.safetensors", "adapter.safetensors", "config.json", "a.bin"):
        (folder / f"._{name}").write_bytes(b"\0\5\x16\7")
    config = json.loads((folder / "config.json").read_text())
    if not names_its_files:
        del config["files"]
    (folder / "config.json").write_text(json.dumps(config))
    assert same(SkyEyeGPT.from_pretrained(folder), wanted)


def test_a_folder_of_an_earlier_version_loads_unless_two_files_hold_the_same(tmp_path):
    tiny.model_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["files"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = tiny.skyeye().state_dict()
    assert same(SkyEyeGPT.from_pretrained(tmp_path), tensors)
    save_file({"llama_proj.bias": tensors["llama_proj.bias"]}, tmp_path / "adapter.safetensors")
    with pytest.raises(ModelError, match="llama_proj.bias, and so does another"):
        SkyEyeGPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("old, new, word", [
    ('"depth": 2', '"depth": 1000000000', "depth"), ('"base": ""', '"base": 5', "base"),
    ('"base": ""', '"base": "../other"', "whose base it is"),
    ('"width": 50', f'"width": {"9" * 400}', "width"),
    ('"files": [', '"files": [3, ', "files"), ("{", "[" * 100_000, "JSON")])
def test_a_config_of_ours_that_makes_no_sense_is_one_line(tmp_path, old, new, word):
    folder, other = tiny.model_folder(tmp_path / "model"), tiny.model_folder(tmp_path / "other")
    for place, a, b in ((folder, old, new), (other, '"base": ""', '"base": "../model"')):
        text = (place / "config.json").read_text()
        assert a in text
        (place / "config.json").write_text(text.replace(a, b, 1))
    with pytest.raises(ModelError, match=word) as caught:
        SkyEyeGPT.from_pretrained(folder)
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


# ---- bases ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("base, reason", [(".", "names .*as its base"),
                                          ("gone", "its base .*gone is gone")])
def test_a_base_that_cannot_be_read_is_named(tmp_path, base, reason):
    (tmp_path / "config.json").write_text(json.dumps({"llama": {}, "base": base}))
    with pytest.raises(ModelError, match=reason) as caught:
        read_folder(tmp_path, VIT)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")


def test_a_folder_replaces_tensors_of_its_base(tmp_path):
    for name, value in (("base", 1.0), ("tuned", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(
            {"llama": {}, "base": "" if name == "base" else "../base"}))
        tensors = {"llama_proj.weight": torch.tensor([value]), name: torch.tensor([value])}
        save_file(tensors, tmp_path / name / "model.safetensors")
    tensors = {name: lazy.read().item() for name, lazy in
               read_folder(tmp_path / "tuned", VIT).items()}
    assert tensors == {"llama_proj.weight": 2.0, "base": 1.0, "tuned": 2.0}


# ---- memory --------------------------------------------------------------------------------------

MEASURE = """
import resource, sys, torch
from projector import DTYPES
from support.checkpoints.load import load_llama
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
warm = torch.empty(1000, dtype=torch.float16).bfloat16()
load_llama(sys.argv[1] + "/small", dtype=DTYPES[sys.argv[2]])
before = peak()
model = load_llama(sys.argv[1] + "/large", dtype=DTYPES[sys.argv[2]])
print((peak() - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("stored, dtype", [("fp16", "fp16"), ("fp16", "bf16"), ("fp32", "bf16"),
                                           ("fp16", "fp32"), ("meta", "bf16")])
def test_loading_takes_the_weights_memory_once(tmp_path, stored, dtype):
    """Of 60 million parameters; at most 1.15 of the weights' size."""
    for name, width in (("small", 64), ("large", 640)):
        config = dataclasses.replace(LLAMA, vocab_size=4000, width=width, mlp_width=4 * width,
                                     depth=8, heads=4)
        kind = torch.float32 if stored == "fp32" else torch.float16
        with torch.device("meta"):
            tensors = Llama(config).state_dict()
        tensors = {k: torch.zeros(v.shape, dtype=kind) for k, v in tensors.items()}
        (tmp_path / name).mkdir()
        if stored == "meta":
            torch.save(layouts.meta(tensors, config.heads), tmp_path / name / "consolidated.00.pth")
            entries = layouts.params_json(config)
            (tmp_path / name / "params.json").write_text(json.dumps(entries))
        else:
            layouts.llama_folder(tmp_path / name, tensors, config, 340)
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path, dtype], capture_output=True,
                          text=True, cwd=tiny.ROOT, check=True)
    assert float(done.stdout) <= 1.15
