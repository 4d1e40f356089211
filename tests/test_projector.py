"""The assembled model: joining, slots, loss, packed questions, answers, and its folders."""
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import tiny
from data import collate
from llama import packed_mask
from projector import PRESETS, LinearProjector, SkyEyeConfig, SkyEyeGPT
from support.checkpoints.files import ModelError
from tiny import SKYEYE_LLAMA, VOCAB, N


@pytest.fixture(scope="module")
def model():
    return tiny.skyeye().requires_grad_(False)


def image_row(*parts):
    """Ids from numbers of random tokens and "image": image_row(3, "image", 4)."""
    pieces = [torch.full((N,), -1) if part == "image" else tiny.ids(1, part, VOCAB, seed=i)[0]
              for i, part in enumerate(parts)]
    return torch.cat(pieces)


# ---- joining and slots ---------------------------------------------------------------------------

def test_the_projector_has_23_072_768_parameters():
    with torch.device("meta"):
        projector = LinearProjector(PRESETS["skyeyegpt"])
    assert sum(p.numel() for p in projector.parameters()) == 23_072_768
    assert projector.weight.shape == (4096, 5632)
    assert PRESETS["skyeyegpt"].visual_tokens == 256


def test_four_neighbors_in_a_row_are_joined_in_order():
    """A patch whose two channels tell its number: what does each visual token hold?"""
    config = dataclasses.replace(
        tiny.SKYEYE, vit=dataclasses.replace(tiny.VIT, image_size=40, width=2),
        llama=dataclasses.replace(SKYEYE_LLAMA, width=8))
    projector = LinearProjector(config)
    torch.nn.init.eye_(projector.weight)
    torch.nn.init.zeros_(projector.bias)
    numbers = torch.arange(128.0).view(2, 64, 1)                    # 8 x 8 patches, two images
    joined = projector(torch.cat([numbers, 1000 + numbers], dim=-1))
    assert joined.shape == (2, 16, 8)
    assert joined[0, 0].tolist() == [0, 1000, 1, 1001, 2, 1002, 3, 1003]
    assert joined[0, 2, ::2].tolist() == [8, 9, 10, 11]             # the second row of patches
    assert joined[..., ::2].flatten().tolist() == list(range(128))


def test_slots_are_filled_in_order_over_a_batch_with_several_images(model):
    rows = [image_row(2, "image", 3, "image", 1), image_row(8), image_row(1, "image")]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    images = tiny.images(3)
    found = model.embed(ids, images)
    tokens = [model.encode_images(image[None]) for image in images]
    for (row, start), visual in zip([(0, 2), (0, 5 + N), (2, 1)], tokens, strict=True):
        torch.testing.assert_close(found[row, start:start + N], visual, rtol=1e-4, atol=1e-5)
    embedded = model.llama_model.model.embed_tokens(ids.clamp(min=0))
    assert torch.equal(found[ids >= 0], embedded[ids >= 0])


@pytest.mark.parametrize("images", [0, 1, 3])
def test_slots_that_do_not_fit_the_images_are_refused(model, images):
    ids = image_row(2, "image", "image", 3)[None]
    with pytest.raises(ValueError, match=f"18 image slots do not fit {images} images of 9"):
        model(ids, tiny.images(images) if images else None)


def test_an_image_without_slots_is_refused(model):
    with pytest.raises(ValueError, match="0 image slots do not fit 1 images"):
        model(image_row(5)[None], tiny.images(1))


def test_the_image_reaches_the_answer(model):
    ids = image_row(3, "image", 4)[None]
    one, other = model(ids, tiny.images(1)), model(ids, tiny.images(1, seed=1))
    assert torch.equal(one[:, :3], other[:, :3])
    assert (one - other)[:, 3:].abs().amax(-1).min() > 1e-3


def test_text_alone_is_the_language_model_alone(model):
    ids = tiny.ids(2, 9, VOCAB)
    assert torch.equal(model(ids), model.llama_model(ids))


def test_no_gradient_is_computed_for_a_frozen_vision_encoder():
    model = tiny.skyeye().requires_grad_(False)
    model.llama_proj.requires_grad_(True)
    model.encode_images(tiny.images(1)).sum().backward()
    assert model.llama_proj.weight.grad.abs().sum() > 0
    model.visual_encoder.pos_embed.requires_grad_(True)
    model.encode_images(tiny.images(1)).sum().backward()
    assert model.visual_encoder.pos_embed.grad.abs().sum() > 0


# ---- loss ----------------------------------------------------------------------------------------

def labeled_batch():
    ids = torch.stack([image_row(3, "image", 10), image_row(2, "image", 11)])
    labels = torch.full_like(ids, -100)
    labels[0, -4:] = ids[0, -4:]
    labels[1, -9:-7], labels[1, -2:] = ids[1, -9:-7], ids[1, -2:]
    return ids, tiny.images(2), labels


def test_the_loss_is_the_mean_cross_entropy_over_the_labels(model):
    ids, images, labels = labeled_batch()
    logits = model(ids, images)
    losses = [-math.log(logits[b, t - 1].double().softmax(-1)[labels[b, t]])
              for b in range(2) for t in range(1, ids.shape[1]) if labels[b, t] != -100]
    assert len(losses) == 8
    assert abs(model(ids, images, labels).item() - sum(losses) / 8) < 1e-5


def test_what_follows_the_last_label_changes_nothing(model):
    ids, images, labels = labeled_batch()
    before = model(ids, images, labels)
    longer = torch.cat([ids, tiny.ids(2, 7, VOCAB, seed=9)], dim=1)
    padded = F.pad(labels, (0, 7), value=-100)
    torch.testing.assert_close(model(longer, images, padded), before, rtol=1e-6, atol=1e-6)


def test_the_model_does_not_learn_the_questions():
    """The head's gradient is that of the answers' positions alone."""
    model = tiny.skyeye().requires_grad_(False)
    ids, images, labels = labeled_batch()
    head = model.llama_model.lm_head.weight.requires_grad_(True)
    model(ids, images, labels).backward()
    h = model.llama_model.model(model.embed(ids, images)).detach()
    wanted = torch.zeros_like(head)
    for b, t in (labels != -100).nonzero().tolist():
        error = (h[b, t - 1] @ head.detach().T).softmax(-1)
        error[labels[b, t]] -= 1
        wanted += error[:, None] * h[b, t - 1] / 8
    torch.testing.assert_close(head.grad, wanted, rtol=1e-3, atol=1e-5)


# ---- several questions behind one picture --------------------------------------------------------

def test_a_segment_sees_the_prefix_and_itself_and_no_later_token():
    mask = packed_mask(torch.tensor([[0, 0, 1, 1, 2, 2, -1]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0, 0, 0],
                    [1, 1, 0, 0, 0, 0, 0],
                    [1, 1, 1, 0, 0, 0, 0],
                    [1, 1, 1, 1, 0, 0, 0],
                    [1, 1, 0, 0, 1, 0, 0],
                    [1, 1, 0, 0, 1, 1, 0],
                    [1, 1, 0, 0, 0, 0, 1]]


QUESTIONS = [("a", [("[caption] briefly describe the image", "a green ship")]),
             ("b", [("[vqa] is there a road ?", "no")]),
             ("c", [("[refer] where is the leftmost airplane ?", "{<12><34><56><78>}"),
                    ("what is it ?", "a storage tank")])]


def packed_and_separate():
    rows = tiny.rows([])
    images = tiny.images(2)
    packed = [rows.pack(QUESTIONS, 1), rows.pack(QUESTIONS[1:2] + QUESTIONS[:1], 1)]
    packed = collate([row | {"images": images[i:i + 1]} for i, row in enumerate(packed)])
    single = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 0)]               # picture, question
    separate = [collate([rows.pack([QUESTIONS[q]], 1) | {"images": images[i:i + 1]}])
                for i, q in single]
    return packed, separate


def loss_and_gradients(model, batches):
    """Of the mean over all labels of all batches, whatever batch they stand in."""
    counts = [int((batch["labels"] != -100).sum()) for batch in batches]
    model.zero_grad()
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        loss = model(**batch) * (count / sum(counts))
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_questions_that_share_a_picture_learn_what_they_would_learn_alone():
    packed, separate = packed_and_separate()
    assert "segments" in packed and all("segments" not in batch for batch in separate)
    model = tiny.skyeye()
    loss, gradients = loss_and_gradients(model, [packed])
    wanted_loss, wanted = loss_and_gradients(model, separate)
    assert abs(loss - wanted_loss) < 1e-5
    assert all(g.abs().max() > 0 for g in wanted.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_without_segments_the_packed_questions_would_disturb_each_other(model):
    packed, separate = packed_and_separate()
    wanted = loss_and_gradients(tiny.skyeye(), separate)[0]
    for name in ("segments", "positions"):
        assert abs(model(**{**packed, name: None}).item() - wanted) > 1e-3


def test_hidden_states_at_some_places_give_the_logits_there(model):
    packed, _ = packed_and_separate()
    at = torch.tensor([[3, 0, 12], [2, 2, 15]])[:len(packed["ids"])]
    inputs = {name: packed[name] for name in ("positions", "segments")}
    h = model.hidden_states(packed["ids"], packed["images"], at, **inputs)
    wanted = model(packed["ids"], packed["images"], **inputs)
    wanted = wanted[torch.arange(len(at))[:, None], at]
    torch.testing.assert_close(model.llama_model.lm_head(h), wanted, rtol=1e-4, atol=1e-5)


# ---- answers -------------------------------------------------------------------------------------

def test_a_conversation_continues_in_the_cache_as_if_it_were_computed_again(model):
    """Three turns, the second and third with the cache; the last brings a second image."""
    cache, images = model.llama_model.new_cache(1, 200), tiny.images(2)
    ids = image_row(3, "image", 4)
    for new, all_images, later in ((images[:1], images[:1], (5,)),
                             (None, images[:1], (4, "image", 2)),
                             (images[1:], images, (1,))):
        answer = list(model.generate(ids, new, 6, stop=-1, cache=cache))
        assert answer == list(model.generate(ids, all_images, 6, stop=-1))
        assert cache.length == len(ids) + 5                           # all but the last token
        ids = torch.cat([ids, torch.tensor(answer), image_row(*later)])


def test_generate_stops_at_stop_and_does_not_yield_it(model):
    ids = image_row(3, "image", 4)
    answer = list(model.generate(ids, tiny.images(1), 12, stop=-1))
    stop = answer[5]
    assert list(model.generate(ids, tiny.images(1), 12, stop=stop)) == answer[:answer.index(stop)]


def questions(lead, *tails):
    """Prompts that begin alike."""
    return [torch.cat([image_row(*lead), tiny.ids(1, n, seed=n)[0]]) for n in tails]


@pytest.mark.parametrize("lead, counts", [((3, "image", 2), (1, 3, 2)), ((4,), (4, 1)),
                                          ((1, "image", "image"), (2, 1)), ((0,), (3,))])
def test_all_answers_about_all_images_are_the_answers_one_by_one(model, lead, counts):
    """Rows of several lengths, which stop at different times."""
    groups = [questions(lead, *range(5 + i, 5 + i + count)) for i, count in enumerate(counts)]
    each, prefix_len = lead.count("image"), len(groups[0][0]) - 5
    images = tiny.images(each * len(counts)) if each else None
    owns = [images[i * each:i * each + each] if each else None for i in range(len(counts))]

    def singles(stop):
        return [list(model.generate(ids, own, 12, stop=stop))
                for group, own in zip(groups, owns, strict=True) for ids in group]

    free = model.answer_batch(groups, images, prefix_len, 12, stop=-1)
    assert free == singles(-1)
    stop = next(t for t in free[0][1:] if t != free[0][0])
    assert model.answer_batch(groups, images, prefix_len, 12, stop=stop) == singles(stop)
    assert len({len(answer) for answer in singles(stop)}) > 1


# ---- folders -------------------------------------------------------------------------------------

def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, tensors):
    found = model.state_dict()
    return found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in found)


def test_a_saved_model_comes_back_bit_for_bit(model, tmp_path):
    model.save_pretrained(tmp_path / "new" / "model")
    loaded = SkyEyeGPT.from_pretrained(tmp_path / "new" / "model")
    assert loaded.config == model.config
    assert same(loaded, bits(model))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert not list((tmp_path / "new" / "model").glob("*.tmp"))


def test_beside_a_base_folder_only_projector_and_lora_are_written(model, tmp_path):
    model.save_pretrained(tmp_path / "base")
    tuned = tiny.skyeye(seed=0)
    with torch.no_grad():
        tuned.llama_proj.weight += 1
        for name, p in tuned.named_parameters():
            p += 2 * (".lora_" in name)
    tuned.save_pretrained(tmp_path / "tuned", base=tmp_path / "base")
    written = load_file(tmp_path / "tuned" / "adapter.safetensors")
    assert set(written) == {k for k in bits(model) if ".lora_" in k or k.startswith("llama_proj")}
    assert [f.name for f in (tmp_path / "tuned").glob("*.safetensors")] == ["adapter.safetensors"]
    assert same(SkyEyeGPT.from_pretrained(tmp_path / "tuned"), bits(tuned))


def test_a_base_without_lora_serves_a_model_with_one(tmp_path):
    plain = tiny.skyeye(dataclasses.replace(tiny.SKYEYE, lora=None))
    plain.save_pretrained(tmp_path / "base")
    tuned = tiny.skyeye()
    tuned.load_state_dict(bits(tuned) | bits(plain))
    tuned.save_pretrained(tmp_path / "tuned", base=str(tmp_path / "base"))
    assert same(SkyEyeGPT.from_pretrained(tmp_path / "tuned"), bits(tuned))


def test_in_16_bits_the_lora_stays_float32(model, tmp_path):
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    half = SkyEyeGPT.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    for name, tensor in bits(model).items():
        kept = tensor if ".lora_" in name else tensor.bfloat16()
        assert stored[name].dtype == half[name].dtype == kept.dtype
        assert torch.equal(stored[name], kept) and torch.equal(half[name], kept)


def test_merging_keeps_the_outputs_and_drops_the_lora(tmp_path):
    model = tiny.skyeye().requires_grad_(False)
    ids, images = image_row(3, "image", 4)[None], tiny.images(1)
    before = model(ids, images)
    model.merge()
    torch.testing.assert_close(model(ids, images), before, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = SkyEyeGPT.from_pretrained(tmp_path)
    assert loaded.config.lora is None and same(loaded, bits(model))


def test_a_configuration_survives_json():
    for config in (tiny.SKYEYE, *PRESETS.values()):
        text = json.dumps(dataclasses.asdict(config))
        assert SkyEyeConfig.from_dict(json.loads(text)) == config


# ---- folders that cannot be used -----------------------------------------------------------------

def refusal(folder):
    """The one line that from_pretrained refuses a folder with."""
    with pytest.raises(ModelError) as caught:
        SkyEyeGPT.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_missing_folder_is_named(tmp_path):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def test_a_missing_tensor_is_named(folder):
    change_tensors(folder, lambda tensors: tensors.pop("llama_proj.bias"))
    message = refusal(folder)
    assert str(folder) in message and "1 missing: llama_proj.bias" in message


def test_an_unexpected_tensor_is_named(folder):
    name = "llama_model.model.layers.2.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(2)}))
    message = refusal(folder)
    assert str(folder) in message and f"1 unexpected: {name}" in message


def test_a_mis_shaped_tensor_is_named_with_both_shapes(folder):
    name = "visual_encoder.pos_embed"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(1, 17, 24)}))
    message = refusal(folder)
    assert str(folder) in message and f"{name} is [1, 17, 24], not [1, 37, 24]" in message


def test_all_tensors_missing_makes_one_short_line(folder):
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert "missing" in message and len(message) < 500


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_truncated_file_is_named(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert str(file) in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"vit": {"width": 3}}'])
def test_a_broken_config_is_named(folder, text):
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(folder)


@pytest.mark.parametrize("part, key", [("vit", "widht"), ("llama", "widht"), ("lora", "rank")])
def test_an_unknown_entry_of_a_config_is_named(folder, part, key):
    config = json.loads((folder / "config.json").read_text())
    config[part][key] = 7
    (folder / "config.json").write_text(json.dumps(config))
    message = refusal(folder)
    assert str(folder / "config.json") in message and key in message


def test_a_base_that_is_gone_is_named(model, tmp_path):
    model.save_pretrained(tmp_path / "tuned", base=tmp_path / "gone")
    message = refusal(tmp_path / "tuned")
    assert str(tmp_path / "tuned" / "config.json") in message and str(tmp_path / "gone") in message


def test_a_config_with_the_keys_of_earlier_versions_is_read_as_the_same_config():
    for config in (tiny.SKYEYE, dataclasses.replace(
            tiny.SKYEYE, vit=dataclasses.replace(tiny.VIT, variant="clip"), lora=None)):
        entries = json.loads(json.dumps(dataclasses.asdict(config)))
        entries["joined"] = entries.pop("patches_per_token")
        entries["vit"]["mlp"] = entries["vit"].pop("mlp_width")
        entries["vit"]["clip"] = entries["vit"].pop("variant") == "clip"
        entries["llama"]["mlp"] = entries["llama"].pop("mlp_width")
        assert SkyEyeConfig.from_dict(entries) == config


def test_init_weights_draws_all_that_a_new_model_needs():
    torch.manual_seed(0)
    model = SkyEyeGPT(dataclasses.replace(tiny.SKYEYE, lora=None))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.constant_(parameter, torch.nan)
    with torch.no_grad():
        model.visual_encoder.cls_token.zero_()
        model.visual_encoder.pos_embed.zero_()
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
