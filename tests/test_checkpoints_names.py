"""Published names: each part is taken out of what a file holds, under our names."""
import pytest
import torch

import layouts
import tiny
from downloads import CLIP, llama_model, vit_model
from support.checkpoints.files import in_memory
from support.checkpoints.names import extract_adapter, extract_llama, extract_vit, is_adapter_name
from tiny import LLAMA


@pytest.mark.parametrize("default", ["", ".default"])
def test_an_adapter_has_the_models_own_names_whatever_version_of_peft_wrote_it(default):
    tensors = tiny.skyeye().state_dict()
    added = {name: tensor for name, tensor in tensors.items() if is_adapter_name(name)}
    theirs = in_memory(layouts.minigpt_v2(tensors, default)["model"])
    found = extract_adapter(theirs)
    assert not theirs and found.keys() == added.keys()
    assert all(torch.equal(found[name].read(), tensor) for name, tensor in added.items())


def test_what_is_extracted_is_taken_out_and_the_rest_is_left():
    parts = {"llama": layouts.hf(llama_model().state_dict()),
             "vit": layouts.clip(vit_model(CLIP).state_dict(), CLIP.depth, "vision_tower."),
             "adapter": {"multi_modal_projector.linear_1.weight": torch.randn(3, 3)}}
    tensors = in_memory(parts["llama"] | parts["vit"] | parts["adapter"]
                        | {"something.else": torch.randn(2)})
    extract_llama(tensors, LLAMA.heads)
    assert tensors.keys() == {*parts["vit"], *parts["adapter"], "something.else"}
    extract_vit(tensors)
    assert tensors.keys() == {*parts["adapter"], "something.else"}
    assert extract_adapter(tensors).keys() == {"llama_proj.linear_1.weight"}
    assert tensors.keys() == {"something.else"}
