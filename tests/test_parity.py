"""The same numbers as transformers and peft, at random weights that leave nothing out.

Needs both (pip install transformers peft); skipped without them. Everything is float32.
"""
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import golden
import layouts
import tiny
from data import Tokenizer, encode_conversation, preprocess
from downloads import convert
from llama import Llama, LlamaConfig
from projector import SkyEyeConfig, SkyEyeGPT
from support.checkpoints.load import load_llama, load_vit
from support.inference.generation import generate
from support.tools.convert import main
from tiny import SKYEYE_LLAMA
from vit import ViT, ViTConfig

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

NEAR = {"rtol": 0, "atol": 1e-4}
CLIP = ViTConfig(image_size=30, patch_size=5, width=24, depth=2, heads=3, mlp_width=40,
                 variant="clip")
EVA = dataclasses.replace(CLIP, variant="eva")
# LLaMA-2's vocabulary: LLaVA's further rows are cut off.
LLAVA_LLAMA = dataclasses.replace(SKYEYE_LLAMA, vocab_size=32000)


def hf_llama(config=SKYEYE_LLAMA, **more):
    return transformers.LlamaConfig(**layouts.hf_json(config, **more))


def random(model, seed=3):
    """Every parameter counts, biases, norms and a LoRA's B too."""
    return tiny.randomize(model, seed).float()


def hf_vision(kind, extra_block=0):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2 + extra_block, "num_attention_heads": 3,
             "intermediate_size": 40, "patch_size": 5, "image_size": 30}
    return kind(**sizes)


def greedy(model, ids, tokens, **inputs):
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=9999,
                         pad_token_id=0, **inputs)
    return out[0].tolist()


# ---- the language model --------------------------------------------------------------------------

@pytest.fixture(scope="module")
def their_llama():
    return random(transformers.LlamaForCausalLM(hf_llama()))


@pytest.mark.parametrize("shards", ["1GB", "100KB"])
def test_llamas_logits_and_greedy_tokens(their_llama, tmp_path, shards):
    their_llama.save_pretrained(tmp_path, max_shard_size=shards)
    assert len(list(tmp_path.glob("*.safetensors"))) > (shards == "100KB")
    ours, ids = load_llama(tmp_path), tiny.ids(3, 41, SKYEYE_LLAMA.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), their_llama(ids).logits, **NEAR)
    x, cache = ours.model.embed_tokens(ids[:1]), ours.new_cache(1, 100)
    batched = [i.item() for i in generate(ours, x, torch.tensor([41]), cache, 40, stop=-1)]
    wanted = greedy(their_llama, ids[:1], 40)
    assert ids[0].tolist() + batched == wanted
    assert ids[0].tolist() + list(ours.generate(ids[0], 40, stop=-1)) == wanted


def test_a_merged_model_is_a_llama_that_transformers_loads(tmp_path):
    model = tiny.skyeye(dataclasses.replace(tiny.SKYEYE, prompt="minigpt_v2")).requires_grad_(False)
    model.save_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / "tokenizer.model").write_bytes(tiny.tokenizer_bytes())
    main(["--model", str(tmp_path / "ours"), "--out", str(tmp_path / "llama"),
                    "--form", "llama", "--dtype", "fp32"])
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "llama").eval()
    ids = tiny.ids(2, 30, SKYEYE_LLAMA.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, **NEAR)


# ---- LoRA ----------------------------------------------------------------------------------------

def their_lora(model, **more):
    settings = {"r": 7, "lora_alpha": 11, "target_modules": ["q_proj", "v_proj"],
                "lora_dropout": 0.05}
    model = peft.get_peft_model(model, peft.LoraConfig(**settings | more, task_type="CAUSAL_LM"))
    for i, (name, p) in enumerate(model.named_parameters()):
        if ".lora_" in name:
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 3
    return model.eval()


def test_a_lora_exported_as_a_peft_folder_is_what_peft_loads(tmp_path):
    model = tiny.skyeye().requires_grad_(False)
    tiny.model_folder(tmp_path / "ours")
    for form in ("llama", "peft"):
        main(["--model", str(tmp_path / "ours"), "--out", str(tmp_path / form),
              "--form", form, "--dtype", "fp32"])
    base = transformers.LlamaForCausalLM(hf_llama()).eval()
    base.load_state_dict({k.removeprefix("llama_model."): v for k, v in model.state_dict().items()
                          if k.startswith("llama_model.") and ".lora_" not in k})
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    ids = tiny.ids(2, 30, SKYEYE_LLAMA.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, **NEAR)
        with theirs.disable_adapter():
            assert (model(ids) - theirs(ids).logits).abs().max() > 0.1


# ---- vision --------------------------------------------------------------------------------------

def test_clips_features_after_the_last_but_one_block(tmp_path):
    theirs = random(transformers.CLIPVisionModel(hf_vision(transformers.CLIPVisionConfig, 1)))
    save_vision(theirs, tmp_path / "clip")
    images = tiny.images(3)
    with torch.no_grad():
        found = theirs(images, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(load_vit(tmp_path / "clip", CLIP)(images), found, **NEAR)


def their_eva():
    """BLIP-2's vision tower -> it, and what it computes before its own last norm."""
    theirs = random(transformers.Blip2VisionModel(hf_vision(transformers.Blip2VisionConfig)))
    for layer in theirs.encoder.layers:
        width = layer.self_attn.qkv.bias.shape[0] // 3
        layer.self_attn.qkv.bias.data[width:2 * width] = 0          # as BLIP-2's checkpoint has it

    def features(images):
        seen = []
        hook = theirs.post_layernorm.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        theirs(images)
        hook.remove()
        return F.layer_norm(seen[0], (24,), eps=1e-5)[:, 1:]

    return theirs, features


def save_vision(model, folder):
    """Under the names that CLIP's and BLIP-2's repositories have."""
    folder.mkdir()
    layouts.write_sharded(folder, {f"vision_model.{k}": v for k, v in model.state_dict().items()})


def test_blip2s_vision_tower(tmp_path):
    theirs, features = their_eva()
    save_vision(theirs, tmp_path / "blip2")
    with torch.no_grad():
        torch.testing.assert_close(load_vit(tmp_path / "blip2", EVA)(tiny.images(3)),
                                   features(tiny.images(3)), **NEAR)


# ---- whole models --------------------------------------------------------------------------------

def random_picture(seed=0, size=(61, 43)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_skyeyegpt_from_its_three_downloads_to_its_tokens(tmp_path):
    """BLIP-2's vision encoder, four patches joined, a linear layer, LLaMA with peft's LoRA:
    upstream's own libraries, put together by hand, against `python projector.py` and its model."""
    torch.manual_seed(5)
    encoder, features = their_eva()
    save_vision(encoder, tmp_path / "blip2")
    language = random(transformers.LlamaForCausalLM(hf_llama()))
    language.save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.model").write_bytes(tiny.tokenizer_bytes())
    tuned = their_lora(language, lora_alpha=16)
    projector = random(torch.nn.Linear(4 * 24, SKYEYE_LLAMA.width), 6)
    tensors = {f"llama_model.{k}": v for k, v in tuned.state_dict().items() if ".lora_" in k}
    tensors |= {f"llama_proj.{k}": v for k, v in projector.state_dict().items()}
    assert ".lora_A.default.weight" in next(iter(tensors))
    torch.save({"model": tensors, "epoch": 1}, tmp_path / "SkyEyeGPT.pth")
    places = {"llama": tmp_path / "llama", "vit": tmp_path / "blip2",
              "adapter": tmp_path / "SkyEyeGPT.pth"}
    ours = convert(places, tmp_path / "out", vit_config=EVA)

    images = torch.stack([preprocess(random_picture(i), 30) for i in range(2)])
    tokenizer = Tokenizer(tmp_path / "out" / "tokenizer.model")
    turns = [("[vqa] is there a road ?", None)]
    ids = torch.tensor(encode_conversation(tokenizer, turns, 9, 2, ours.config.prompt)[0])
    with torch.no_grad():
        visual = projector(features(images).reshape(2, 9, 96)).flatten(0, 1)
        x = language.get_input_embeddings()(ids.clamp(min=0))
        x[ids < 0] = visual
        theirs = tuned(inputs_embeds=x[None]).logits
        torch.testing.assert_close(ours(ids[None], images), theirs, **NEAR)
    tokens = greedy(tuned, None, 30, inputs_embeds=x[None])
    assert list(ours.generate(ids, images, 30, stop=-1)) == tokens


@pytest.mark.parametrize("size", [(61, 43), (30, 57), (48, 48)])
def test_llava_from_a_picture_to_logits_and_tokens(tmp_path, size):
    config = transformers.LlavaConfig(
        vision_config=hf_vision(transformers.CLIPVisionConfig, 1).to_dict(),
        text_config=hf_llama(dataclasses.replace(LLAVA_LLAMA, vocab_size=32064)).to_dict(),
        image_token_index=32000, vision_feature_layer=-2)
    torch.manual_seed(7)
    theirs = random(transformers.LlavaForConditionalGeneration(config))
    write_as_published(theirs, tmp_path / "llava")
    ours = convert({"llama": tmp_path / "llava"}, tmp_path / "out", vit_config=CLIP)
    assert ours.config == SkyEyeConfig(CLIP, LLAVA_LLAMA, None, 1, "mlp2x_gelu", "vicuna_v1",
                                       "../llava")

    picture = random_picture(1, size)
    pixels = their_pixels(picture)
    images = preprocess(picture, 30, style="vicuna_v1")[None]
    torch.testing.assert_close(images, pixels, rtol=0, atol=1e-6)
    tokenizer = Tokenizer(tmp_path / "out" / "tokenizer.model")
    turns = [("is there a road ?", None)]
    ids = torch.tensor(encode_conversation(tokenizer, turns, 36, 1, "vicuna_v1")[0])
    marked = torch.where(ids < 0, 32000, ids)[None]
    with torch.no_grad():
        logits = theirs(input_ids=marked, pixel_values=pixels).logits[..., :32000]
        torch.testing.assert_close(ours(ids[None], images), logits, **NEAR)
        for _ in range(10):
            marked = torch.cat([marked, logits[:, -1:].argmax(-1)], dim=1)
            logits = theirs(input_ids=marked, pixel_values=pixels).logits[..., :32000]
    assert list(ours.generate(ids, images, 10, stop=-1)) == marked[0, len(ids):].tolist()


def write_as_published(model, folder):
    """The names of llava-hf/llava-1.5-7b-hf, which transformers has since changed inside."""
    names = (("model.language_model.", "language_model.model."), ("model.vision_tower.",
             "vision_tower."), ("model.multi_modal_projector.", "multi_modal_projector."))
    tensors = {"language_model." + k if k.startswith("lm_head") else k: v for k, v in
               layouts.renamed(model.state_dict(), *names).items()}
    tensors = {k if "vision_tower." not in k or "vision_model" in k else
               k.replace("vision_tower.", "vision_tower.vision_model."): v
               for k, v in tensors.items()}
    layouts.write_sharded(folder, tensors)
    (folder / "tokenizer.model").write_bytes(layouts.tokenizer(32000))
    model.config.save_pretrained(folder)


def their_pixels(picture):
    """LLaVA pads to a square of the mean color; then CLIP's image processor."""
    mean, std = transformers.image_utils.OPENAI_CLIP_MEAN, transformers.image_utils.OPENAI_CLIP_STD
    width, height = picture.size
    square = Image.new("RGB", (max(width, height),) * 2, tuple(int(x * 255) for x in mean))
    square.paste(picture, ((max(0, height - width)) // 2, max(0, width - height) // 2))
    process = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}, resample=3,
        image_mean=mean, image_std=std)
    return torch.tensor(np.array(process(square)["pixel_values"]))


def test_llama_7b_and_clip_l_have_as_many_parameters_as_theirs():
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            **layouts.hf_json(LlamaConfig())))
        assert sum(p.numel() for p in theirs.parameters()) == 6_738_415_616
        ours = Llama(LlamaConfig())
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()}


# ---- the golden numbers --------------------------------------------------------------------------

def their_language():
    model = transformers.LlamaForCausalLM(hf_llama(golden.LANGUAGE)).double().eval()
    model.load_state_dict(golden.wave(Llama(golden.LANGUAGE)).state_dict())
    return model(golden.ids()).logits


def their_encoder(kind, config, layout, ours=None):
    """What goes into the last norm of theirs, at our weights."""
    model = kind(config).double().eval()
    if ours is None:
        ours = golden.wave(ViT(golden.EVA if layout is layouts.blip2 else golden.CLIP)).state_dict()
    model.load_state_dict({k.removeprefix("vision_model."): v for k, v in layout(ours, 2).items()
                           if k.startswith("vision_model.")})
    return model(golden.pictures().double(), output_hidden_states=True).hidden_states


def their_features(variant, ours=None):
    if variant == "clip":
        return their_encoder(transformers.CLIPVisionModel, hf_vision(
            transformers.CLIPVisionConfig, 1), layouts.clip, ours)[-2][:, 1:]
    return F.layer_norm(their_encoder(transformers.Blip2VisionModel, hf_vision(
        transformers.Blip2VisionConfig), layouts.blip2, ours)[-1], (24,), eps=1e-5)[:, 1:]


def their_whole(config, with_labels):
    """The logits or the loss of a model that is put together of their parts, at our weights."""
    ours = {k: v.double() for k, v in golden.wave(SkyEyeGPT(config)).state_dict().items()}

    def of(prefix):
        return {k.removeprefix(prefix): v for k, v in ours.items() if k.startswith(prefix)}

    model = transformers.LlamaForCausalLM(hf_llama(golden.LANGUAGE)).double().eval()
    model.load_state_dict({k: v for k, v in of("llama_model.").items() if ".lora_" not in k})
    ids, labels = golden.rows(config)
    x = model.get_input_embeddings()(ids.clamp(min=0))
    visual, linear = their_features(config.vit.variant, of("visual_encoder.")), of("llama_proj.")
    if config.lora:
        model = their_lora(model).double()
        for name, p in model.named_parameters():
            if ".lora_" in name:
                name = name.replace("base_model.model.", "").replace(".default", "")
                p.data = of("llama_model.")[name]
        visual = F.linear(visual.reshape(2, 9, 96), linear["weight"], linear["bias"])
    else:
        visual = F.linear(visual, linear["linear_1.weight"], linear["linear_1.bias"])
        visual = F.linear(F.gelu(visual), linear["linear_2.weight"], linear["linear_2.bias"])
    x[ids < 0] = visual.flatten(0, 1)
    out = model(inputs_embeds=x, labels=labels)
    return out.loss if with_labels else out.logits


@pytest.mark.parametrize("name", golden.GOLDEN)
def test_transformers_still_gives_the_golden_numbers(name):
    with torch.no_grad():
        if name == "language":
            found = their_language()
        elif name in ("clip", "eva"):
            found = their_features(name)
        else:
            found = their_whole(golden.WHOLE[name.split()[0]], name.endswith("loss"))
    torch.testing.assert_close(golden.picked(found).float(), torch.tensor(golden.GOLDEN[name]),
                               rtol=0, atol=2e-6)
