"""Published weights: every layout gives the same model, whatever is wrong is named, and back."""
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import layouts
import projector
import tiny
from formats.released import store
from formats.released.files import open_checkpoint
from formats.released.tensors import ModelError
from llama import Llama
from lora import LoRAConfig
from projector import SkyEyeConfig, SkyEyeGPT
from tiny import LLAMA, TALKER, VIT
from vit import ViT, resize_positions

CLIP = dataclasses.replace(VIT, clip=True)
SMALL = dataclasses.replace(VIT, image_size=15)             # 3 x 3 patches, as the file has them
EYES = {"eva": layouts.eva, "timm": layouts.timm, "open_clip": layouts.open_clip,
        "blip2": layouts.blip2}


def eye(config, seed=1):
    return tiny.randomize(ViT(config), seed)


def speaker(config=LLAMA, seed=2):
    return tiny.randomize(Llama(config), seed)


def same(model, tensors):
    found = model.state_dict()
    assert found.keys() == tensors.keys()
    return all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


# ---- vision --------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", EYES)
def test_every_layout_of_eva_gives_the_same_encoder(tmp_path, layout, suffix):
    tensors = eye(SMALL).state_dict()
    theirs = {k: v.contiguous() for k, v in EYES[layout](tensors, SMALL.depth).items()}
    file = tmp_path / f"eye{suffix}"
    (torch.save if suffix == ".pth" else save_file)(theirs, file)
    assert same(ViT.load(file, SMALL), tensors)
    large = tensors | {"pos_embed": resize_positions(tensors["pos_embed"], VIT.grid)}
    assert same(ViT.load(file, VIT), large)


@pytest.mark.parametrize("layout", [layouts.clip, layouts.whole_clip])
def test_clip_gives_the_same_encoder_without_its_keys_bias(tmp_path, layout):
    tensors = eye(CLIP).state_dict()
    save_file(layout(tensors, CLIP.depth), tmp_path / "clip.safetensors")
    assert same(ViT.load(tmp_path / "clip.safetensors", CLIP), tensors)


def test_blip2s_trained_last_norm_is_not_loaded(tmp_path):
    """Two files that differ in post_layernorm alone give the same features."""
    tensors, images = eye(SMALL).state_dict(), torch.randn(1, 3, 15, 15)
    found = []
    for _ in range(2):
        theirs = layouts.blip2(tensors, SMALL.depth)        # draws its post_layernorm anew
        save_file(theirs, tmp_path / "blip2.safetensors")
        found.append(ViT.load(tmp_path / "blip2.safetensors", SMALL)(images))
    assert torch.equal(*found)
    features = found[0]
    torch.testing.assert_close(features.mean(-1), torch.zeros(1, 9), atol=0.5, rtol=0)


def test_which_of_the_two_released_encoders_a_file_holds_shows_in_its_names(tmp_path):
    for config, layout, found in ((SMALL, layouts.eva, "[1, 1, 24], not [1, 1, 1408]"),
                                  (CLIP, layouts.clip, "[1, 1, 24], not [1, 1, 1024]")):
        save_file(layout(eye(config).state_dict(), config.depth), tmp_path / "a.safetensors")
        with pytest.raises(ModelError) as caught:
            ViT.load(tmp_path / "a.safetensors")
        assert f"cls_token is {found}" in str(caught.value)


# ---- language ------------------------------------------------------------------------------------

def test_hugging_faces_shards_give_the_same_model(tmp_path):
    tensors = speaker().state_dict()
    layouts.llama_folder(tmp_path, layouts.hf(tensors), LLAMA, 350)
    model = Llama.load(tmp_path)
    assert same(model, tensors) and model.config == LLAMA


def test_metas_file_gives_the_same_model(tmp_path):
    tensors = speaker().state_dict()
    torch.save(layouts.meta(tensors, LLAMA.heads), tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(layouts.params_json(LLAMA)))
    model = Llama.load(tmp_path)
    assert same(model, tensors)
    assert model.config == dataclasses.replace(LLAMA, max_positions=4096)


def test_metas_order_of_rows_matters():
    """Left as they are, q and k of Meta's file give other text: RoPE pairs other numbers."""
    tensors = speaker().state_dict()
    theirs = layouts.meta(tensors, LLAMA.heads)["layers.0.attention.wq.weight"]
    ours = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(ours, theirs) and torch.equal(ours.sort(0)[0], theirs.sort(0)[0])


def test_llavas_extra_rows_are_cut_off(tmp_path):
    config = dataclasses.replace(LLAMA, vocab_size=32000, depth=1)
    tensors = speaker(config).state_dict()
    theirs = {k: torch.cat([v, torch.randn(64, v.shape[1])]) if len(v) == 32000 else v
              for k, v in tensors.items()}
    theirs = {f"language_model.{k}": v for k, v in theirs.items()}
    told = {"model_type": "llava", "text_config": layouts.hf_json(config) | {"vocab_size": 32064}}
    layouts.write_sharded(tmp_path, theirs)
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert same(Llama.load(tmp_path), tensors)


@pytest.mark.parametrize("told, reason", [
    ({"num_key_value_heads": 1}, "fewer keys"), ({"model_type": "mistral"}, "mistral"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE"),
    ({"num_hidden_layers": 5}, "missing"),
    ({"hidden_size": 40}, "mis-shaped"),
])
def test_another_architecture_is_refused(tmp_path, told, reason):
    layouts.llama_folder(tmp_path, speaker().state_dict(), LLAMA, 350, **told)
    with pytest.raises(ModelError, match=reason) as caught:
        Llama.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# ---- downloads to a model folder -----------------------------------------------------------------

WHOLE = SkyEyeConfig(VIT, TALKER, LoRAConfig(r=7, alpha=11.0, dropout=0.05), prompt="minigpt_v2")


@pytest.fixture
def downloads(tmp_path):
    """LLaMA's folder, eva_vit_g.pth and SkyEyeGPT.pth in small -> their places, the model."""
    model = tiny.skyeye(dataclasses.replace(WHOLE, vit=SMALL))
    tensors = model.state_dict()
    language = {k.removeprefix("llama_model."): v for k, v in tensors.items()
                if k.startswith("llama_model.") and ".lora_" not in k}
    eye = {k.removeprefix("visual_encoder."): v for k, v in tensors.items()
           if k.startswith("visual_encoder.")}
    layouts.llama_folder(tmp_path / "llama", layouts.hf(language), TALKER)
    torch.save(layouts.eva(eye, VIT.depth), tmp_path / "eva_vit_g.pth")
    torch.save(layouts.minigpt_v2(tensors), tmp_path / "SkyEyeGPT.pth")
    return {"llama": tmp_path / "llama", "vit": tmp_path / "eva_vit_g.pth",
            "adapter": tmp_path / "SkyEyeGPT.pth"}, model


def convert(places, out, copy=False, eye=VIT, prompt=""):
    base = "" if copy else str(places["llama"])
    store.convert(places, out, copy, lambda *parts: projector.build(*parts, prompt, base, eye))
    return SkyEyeGPT.from_pretrained(out)


def resized(model):
    """Its tensors, the positions for the larger picture."""
    tensors = model.state_dict()
    name = "visual_encoder.pos_embed"
    return tensors | {name: resize_positions(tensors[name], VIT.grid)}


@pytest.mark.parametrize("default", ["", ".default"])
@pytest.mark.parametrize("copy", [False, True])
def test_three_downloads_become_the_model_they_are(downloads, tmp_path, copy, default, capsys):
    places, model = downloads
    torch.save(layouts.minigpt_v2(model.state_dict(), default), places["adapter"])
    before = {file: file.stat().st_mtime_ns for file in places["llama"].iterdir()}
    loaded = convert(places, tmp_path / "out", copy)
    assert same(loaded, resized(model))
    base = "" if copy else str(places["llama"])
    assert loaded.config == dataclasses.replace(WHOLE, base=base)
    assert {file: file.stat().st_mtime_ns for file in places["llama"].iterdir()} == before
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "tokenizer.model", "vit.safetensors", "adapter.safetensors",
                     *(["llama.safetensors"] if copy else [])}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and "minigpt_v2" in said[3]
    assert all(sum(str(place) in line for line in said) == 1 for place in places.values())


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
    with pytest.raises(ModelError, match="not empty"):
        convert(downloads[0], tmp_path / "out")


# ---- LLaVA-1.5 -----------------------------------------------------------------------------------

LLAVA = SkyEyeConfig(CLIP, dataclasses.replace(TALKER, vocab_size=32000, depth=1), None, 1,
                     "mlp2x_gelu", "vicuna_v1")
HF_LLAVA = (("llama_model.", "language_model."), ("llama_proj.", "multi_modal_projector."))
FIRST_LLAVA = (("llama_model.", ""), ("llama_proj.linear_1.", "model.mm_projector.0."),
               ("llama_proj.linear_2.", "model.mm_projector.2."))


def parts_of(model):
    """-> the vision encoder's tensors under CLIP's names, everything else under ours."""
    tensors = model.state_dict()
    eye = {k.removeprefix("visual_encoder."): v for k, v in tensors.items() if "visual" in k}
    return eye, {k: v for k, v in tensors.items() if "visual" not in k}


def write_llava(folder, tensors, **more):
    layouts.write_sharded(folder, tensors, 3)
    (folder / "tokenizer.model").write_bytes(layouts.tokenizer(32000))
    (folder / "config.json").write_text(json.dumps(layouts.hf_json(LLAVA.llama, **more)))


def test_hugging_faces_llava_is_a_model_as_it_lies(tmp_path):
    model = tiny.skyeye(LLAVA)
    eye, rest = parts_of(model)
    rest = {k: torch.cat([v, torch.randn(64, v.shape[1])]) if len(v) == 32000 else v
            for k, v in layouts.renamed(rest, *HF_LLAVA).items()}
    write_llava(tmp_path / "llava", rest | layouts.clip(eye, CLIP.depth, "vision_tower."),
                model_type="llava", vocab_size=32064)
    loaded = convert({"llama": tmp_path / "llava"}, tmp_path / "out", eye=CLIP)
    assert same(loaded, model.state_dict())
    assert loaded.config == dataclasses.replace(LLAVA, base=str(tmp_path / "llava"))
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"config.json", "tokenizer.model"}


def test_the_first_llava_takes_its_eye_from_clip(tmp_path):
    model = tiny.skyeye(LLAVA)
    eye, rest = parts_of(model)
    write_llava(tmp_path / "llava", layouts.renamed(rest, *FIRST_LLAVA), model_type="llava_llama")
    (tmp_path / "clip").mkdir()
    torch.save(layouts.whole_clip(eye, CLIP.depth), tmp_path / "clip" / "pytorch_model.bin")
    places = {"llama": tmp_path / "llava", "vit": tmp_path / "clip"}
    assert same(convert(places, tmp_path / "out", eye=CLIP), model.state_dict())


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_a_lora_folder_of_llavas_training_fits_vicuna_and_clip(tmp_path, prefix):
    lora = LoRAConfig(8, 16.0, 0.05, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj",
                                      "up_proj", "v_proj"))
    model = tiny.skyeye(dataclasses.replace(LLAVA, lora=lora))
    eye, rest = parts_of(model)
    added = {k: v for k, v in rest.items() if ".lora_" in k}
    write_llava(tmp_path / "vicuna", {k.removeprefix("llama_model."): v for k, v in rest.items()
                                      if "llama_model" in k and k not in added})
    save_file(layouts.whole_clip(eye, CLIP.depth), tmp_path / "clip.safetensors")
    folder = tmp_path / "llava-lora"
    folder.mkdir()
    torch.save(layouts.renamed(added, ("llama_model.", "base_model.model.")),
               folder / "adapter_model.bin")
    bridge = {k: v for k, v in rest.items() if "llama_proj" in k}
    torch.save(layouts.renamed(bridge, *FIRST_LLAVA, prefix=prefix),
               folder / "non_lora_trainables.bin")
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none",
         "target_modules": list(lora.targets), "modules_to_save": None}))
    places = {"llama": tmp_path / "vicuna", "vit": tmp_path / "clip.safetensors", "adapter": folder}
    loaded = convert(places, tmp_path / "out", eye=CLIP)
    assert same(loaded, model.state_dict()) and loaded.config.lora == lora


def test_llava_answers_about_a_padded_picture(tmp_path):
    """Two layers behind the eye, a visual token a patch."""
    model = tiny.skyeye(LLAVA)
    assert LLAVA.visual_tokens == 36
    patches = model.visual_encoder(tiny.images(2))
    first, second = model.llama_proj.linear_1, model.llama_proj.linear_2
    x = patches @ first.weight.T + first.bias
    x = x * 0.5 * (1 + torch.erf(x / 2 ** 0.5)) @ second.weight.T + second.bias
    torch.testing.assert_close(model.encode_images(tiny.images(2)), x.flatten(0, 1))
