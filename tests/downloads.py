"""Downloads in small: LLaMA's folder, a vision encoder and an adapter, as they are published."""
import dataclasses

import torch

import layouts
import support.tools.convert as convert_tool
import tiny
from llama import Llama
from lora import LoRAConfig
from projector import SkyEyeConfig, SkyEyeGPT
from support.tools.convert import ConvertConfig
from tiny import LLAMA, SKYEYE_LLAMA, VIT
from vit import ViT, resize_positions

CLIP = dataclasses.replace(VIT, variant="clip")
SMALL = dataclasses.replace(VIT, image_size=15)             # 3 x 3 patches, as the file has them


def vit_model(config, seed=1):
    return tiny.randomize(ViT(config), seed)


def llama_model(config=LLAMA, seed=2):
    return tiny.randomize(Llama(config), seed)


def same(model, tensors):
    found = model.state_dict()
    assert found.keys() == tensors.keys()
    return all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


WHOLE = SkyEyeConfig(VIT, SKYEYE_LLAMA, LoRAConfig(r=7, alpha=11.0, dropout=0.05),
                     prompt="minigpt_v2")


def write_downloads(folder):
    """LLaMA's folder, eva_vit_g.pth and SkyEyeGPT.pth in small -> their places, the model."""
    model = tiny.skyeye(dataclasses.replace(WHOLE, vit=SMALL))
    tensors = model.state_dict()
    language = {k.removeprefix("llama_model."): v for k, v in tensors.items()
                if k.startswith("llama_model.") and ".lora_" not in k}
    encoder = {k.removeprefix("visual_encoder."): v for k, v in tensors.items()
           if k.startswith("visual_encoder.")}
    layouts.llama_folder(folder / "llama", layouts.hf(language), SKYEYE_LLAMA)
    torch.save(layouts.eva(encoder, VIT.depth), folder / "eva_vit_g.pth")
    torch.save(layouts.minigpt_v2(tensors), folder / "SkyEyeGPT.pth")
    return {"llama": folder / "llama", "vit": folder / "eva_vit_g.pth",
            "adapter": folder / "SkyEyeGPT.pth"}, model


def convert(places, out, copy=False, vit_config=VIT, prompt=""):
    """Run the conversion on these downloads -> the model that it wrote."""
    flags = {part: str(place) for part, place in places.items()}
    config = ConvertConfig(**flags, out=str(out), copy=copy, prompt=prompt)
    convert_tool.convert(config, vit_config)
    return SkyEyeGPT.from_pretrained(out)


def resized(model):
    """Its tensors, the positions for the larger image."""
    tensors = model.state_dict()
    name = "visual_encoder.pos_embed"
    return tensors | {name: resize_positions(tensors[name], VIT.grid)}
