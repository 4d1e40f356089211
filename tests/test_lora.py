"""LoRA: what it computes, what it leaves alone, and how it goes away again."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import tiny
from llama import PRESETS, Linear, Llama
from lora import (
    MOE_LORA,
    LoRAConfig,
    LoRALinear,
    add_lora,
    expert_load,
    lora_state_dict,
    merge_lora,
)


def with_lora(config=tiny.LORA, seed=0):
    model = Llama(tiny.LLAMA)
    add_lora(model, config)
    return tiny.randomize(model, seed)


def test_a_fresh_lora_changes_no_bit():
    model, ids = tiny.randomize(Llama(tiny.LLAMA)), tiny.ids(2, 9)
    before = model(ids)
    assert add_lora(model, tiny.LORA) == 8
    assert torch.equal(model(ids), before)
    assert all(t.abs().sum() > 0 for n, t in lora_state_dict(model).items() if "lora_A" in n)


def test_on_the_7b_it_has_33_554_432_parameters_in_128_tensors():
    with torch.device("meta"):
        model = Llama(PRESETS["llama2_7b"])
        assert add_lora(model, LoRAConfig()) == 64
    tensors = lora_state_dict(model)
    assert len(tensors) == 128
    assert sum(t.numel() for t in tensors.values()) == 33_554_432
    prefix = "model.layers.31.self_attn.v_proj."
    assert tensors[prefix + "lora_A.weight"].shape == (64, 4096)
    assert tensors[prefix + "lora_B.weight"].shape == (4096, 64)


def test_it_computes_w_x_plus_alpha_over_r_b_a_x():
    layer = tiny.randomize(LoRALinear(torch.nn.Linear(12, 20), LoRAConfig(r=5, alpha=3.0)))
    x = torch.randn(4, 12)
    thin = torch.stack([layer.lora_B.weight @ (layer.lora_A.weight @ row) for row in x])
    wanted = x @ layer.weight.T + layer.bias + 3.0 / 5 * thin
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    assert (0.6 * thin).abs().max() > 0.1


def test_merged_computes_the_same():
    model, ids = with_lora(), tiny.ids(2, 9)
    before = model(ids)
    merge_lora(model)
    assert (model(ids) - before).abs().max() < 1e-5 * before.abs().max()
    assert not lora_state_dict(model)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())


def test_merging_twice_changes_nothing():
    model = with_lora()
    merge_lora(model)
    once = {k: v.clone() for k, v in model.state_dict().items()}
    merge_lora(model)
    assert model.state_dict().keys() == once.keys()
    assert all(torch.equal(v, once[k]) for k, v in model.state_dict().items())


def test_base_weights_load_before_or_after_the_injection():
    base, ids = tiny.randomize(Llama(tiny.LLAMA)), tiny.ids(2, 9)
    late = with_lora(seed=1)
    thin = {k: v.clone() for k, v in lora_state_dict(late).items()}
    late.load_state_dict(base.state_dict() | thin)
    early = Llama(tiny.LLAMA)
    early.load_state_dict(base.state_dict())
    add_lora(early, tiny.LORA)
    early.load_state_dict(early.state_dict() | thin)
    assert torch.equal(early.eval()(ids), late(ids))
    assert not torch.allclose(late(ids), base(ids), atol=0.01)


def test_the_base_weights_keep_their_names():
    model = Llama(tiny.LLAMA)
    names = set(model.state_dict())
    add_lora(model, tiny.LORA)
    thin = set(lora_state_dict(model))
    assert set(model.state_dict()) - thin == names
    assert thin == {f"model.layers.{i}.self_attn.{p}_proj.lora_{ab}.weight"
                    for i in range(4) for p in "qv" for ab in "AB"}


def test_only_the_targets_are_replaced():
    model = Llama(tiny.LLAMA)
    assert add_lora(model, LoRAConfig(r=7, targets=("o_proj", "gate_proj"))) == 8
    found = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    assert found == {"o_proj", "gate_proj"}


def test_a_model_without_a_target_is_refused():
    with pytest.raises(ValueError, match="query_key_value"):
        add_lora(Llama(tiny.LLAMA), LoRAConfig(targets=("query_key_value",)))


def test_it_is_not_put_on_twice():
    model = with_lora()
    with pytest.raises(ValueError):
        add_lora(model, tiny.LORA)


def test_dropout_acts_in_training_alone_and_on_the_thin_path_alone():
    layer = tiny.randomize(LoRALinear(Linear(12, 20), LoRAConfig(r=5, alpha=3.0, dropout=0.5)))
    x = torch.randn(4, 12)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.allclose(layer(x), layer(x))
    torch.nn.init.zeros_(layer.lora_B.weight)
    assert torch.equal(layer(x), x @ layer.weight.T)


def test_the_thin_matrices_stay_float32_beside_a_base_of_16_bits():
    model = tiny.randomize(Llama(tiny.LLAMA)).bfloat16()
    add_lora(model, tiny.LORA)
    assert {t.dtype for t in lora_state_dict(model).values()} == {torch.float32}
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert model(tiny.ids(1, 5)).dtype == torch.bfloat16


def test_a_merged_weight_keeps_the_type_and_the_bias_of_its_base():
    base = torch.nn.Linear(12, 20).bfloat16()
    layer = tiny.randomize(LoRALinear(base, LoRAConfig(r=5)))
    plain = layer.merged()
    assert plain.weight.dtype == torch.bfloat16
    assert torch.equal(plain.bias, base.bias)


# ---- MoE-LoRA ------------------------------------------------------------------------------------

MOE = LoRAConfig(r=5, alpha=3.0, dropout=0.0, targets=("q_proj", "o_proj"), experts=3)


def with_experts(config=MOE, seed=0):
    model = Llama(tiny.LLAMA)
    add_lora(model, config)
    return tiny.randomize(model, seed)


def naive(layer, x, gates):
    """One expert after the other, one token after the other."""
    out = x @ layer.weight.T
    for t in range(len(x)):
        for e, gate in enumerate(gates[t]):
            a, b = layer.lora_A.weight[5 * e:5 * e + 5], layer.lora_B.weight[:, 5 * e:5 * e + 5]
            out[t] += gate * 3.0 / 5 * (b @ (a @ x[t]))
    return out


@pytest.mark.parametrize("dense", [False, True])
@torch.no_grad()
def test_experts_compute_what_the_loops_say(dense):
    mlp = with_experts(replace(MOE, dense=dense)).model.layers[1].mlp
    x = torch.randn(9, tiny.LLAMA.width)
    p = (x @ mlp.lora_router.weight.T + mlp.lora_router.bias).softmax(-1)
    gates = p if dense else torch.eye(3)[p.argmax(-1)]
    assert len(set(p.argmax(-1).tolist())) > 1
    hidden = F.silu(naive(mlp.gate_proj, x, gates)) * naive(mlp.up_proj, x, gates)
    torch.testing.assert_close(mlp(x), naive(mlp.down_proj, hidden, gates), rtol=1e-4, atol=1e-4)


def test_fresh_experts_change_no_bit():
    model, ids = tiny.randomize(Llama(tiny.LLAMA)), tiny.ids(2, 9)
    before = model(ids)
    assert add_lora(model, MOE) == 8
    assert torch.equal(model(ids), before)


def test_the_router_learns_through_the_one_expert_it_chose():
    """Straight through: the gradient is that of the gates p, at the point where g is one-hot."""
    mlp = with_experts().model.layers[0].mlp
    x = torch.randn(7, tiny.LLAMA.width)
    mlp(x).square().sum().backward()
    found = mlp.lora_router.weight.grad
    p = (x @ mlp.lora_router.weight.T + mlp.lora_router.bias).softmax(-1)
    gates = torch.eye(3)[p.argmax(-1)].requires_grad_()
    hidden = F.silu(naive(mlp.gate_proj, x, gates)) * naive(mlp.up_proj, x, gates)
    naive(mlp.down_proj, hidden, gates).square().sum().backward()
    (wanted,) = torch.autograd.grad(p, mlp.lora_router.weight, gates.grad)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert found.abs().max() > 0.01


def test_the_base_keeps_its_names_and_what_is_added_is_called_lora():
    model, plain = with_experts(), Llama(tiny.LLAMA)
    names = set(model.state_dict())
    assert set(plain.state_dict()) <= names
    assert all(".lora_" in name for name in names - set(plain.state_dict()))


def test_each_experts_load_is_counted_in_training():
    model = with_experts().train()
    model(tiny.ids(2, 9))
    mlp = model.model.layers[0].mlp
    assert mlp.load.sum() == 18 and mlp.load.shape == (3,)
    model.eval()(tiny.ids(2, 9))
    assert mlp.load.sum() == 18
    counts = sum(layer.mlp.load for layer in model.model.layers)
    assert expert_load(model) == pytest.approx((counts / counts.sum()).tolist())
    assert expert_load(with_lora()) == []


def test_experts_cannot_be_merged():
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_lora(with_experts())


def test_on_the_7b_the_parameters_of_experts_and_routers_are_counted():
    with torch.device("meta"):
        model = Llama(PRESETS["llama2_7b"])
        add_lora(model, MOE_LORA)
    attention, mlp = 4 * 2 * 32 * 4096, 3 * 3 * 32 * (4096 + 11008)
    router = 3 * 4096 + 3
    found = sum(tensor.numel() for tensor in lora_state_dict(model).values())
    assert found == 32 * (attention + mlp + router)
