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
from support.checkpoints.files import ModelError
from support.checkpoints.load import load_llama, load_vit
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
    ({"num_hidden_layers": 5}, "missing"),
    ({"hidden_size": 40}, "mis-shaped"),
])
def test_another_architecture_is_refused(tmp_path, entries, reason):
    layouts.llama_folder(tmp_path, llama_model().state_dict(), LLAMA, 350, **entries)
    with pytest.raises(ModelError, match=reason) as caught:
        load_llama(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


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
