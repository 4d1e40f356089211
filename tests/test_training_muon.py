"""Muon: orthogonal updates of matrices, AdamW for the rest, and a run that goes on as unbroken."""
import dataclasses

import pytest
import torch

import tiny
from support.readers.common import DataError
from support.training.muon import MOMENTUM, RATE, Muon, orthogonalize
from train import TrainConfig, build_model, make_optimizer


@pytest.mark.parametrize("shape", [(7, 19), (19, 7), (5, 5)])
def test_an_update_keeps_its_singular_vectors_and_makes_its_values_alike(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ orthogonalize(x) @ v.mT                # diagonal, in the same basis
    values = inner.diagonal()
    assert torch.allclose(inner, torch.diag(values), atol=1e-9)
    assert values.min() > 0.6 and values.max() < 1.25


def groups_of(*pairs):
    return [{"params": [p], "weight_decay": decay, "muon": is_muon} for p, decay, is_muon in pairs]


def test_a_step_is_the_orthogonalized_momentum_and_adamw_of_the_others():
    torch.manual_seed(0)
    matrix, vector = (torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (5,)))
    alone = torch.nn.Parameter(vector.detach().clone())
    optimizer = Muon(groups_of((matrix, 0.1, True), (vector, 0.0, False)), lr=0.01)
    adamw = torch.optim.AdamW([alone], lr=0.01, weight_decay=0.0)
    momentum, wanted, rate = torch.zeros(4, 6), matrix.detach().clone(), 0.01 * RATE
    for _ in range(3):
        matrix.grad, vector.grad = torch.randn(4, 6), torch.randn(5)
        alone.grad = vector.grad.clone()
        momentum = MOMENTUM * momentum + matrix.grad
        update = orthogonalize(matrix.grad + MOMENTUM * momentum)
        wanted = wanted * (1 - rate * 0.1) - rate * update
        optimizer.step()
        adamw.step()
    assert torch.allclose(matrix, wanted, atol=1e-6) and torch.equal(vector, alone)


def test_a_saved_state_goes_on_bit_for_bit():
    def run(steps, saved=None):
        torch.manual_seed(1)
        p = torch.nn.Parameter(torch.randn(6, 4))
        optimizer = Muon(groups_of((p, 0.1, True)), lr=0.01)
        if saved:
            optimizer.load_state_dict(saved[0])
            p.data.copy_(saved[1])
        for step in steps:
            p.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return optimizer.state_dict(), p.detach().clone()
    assert torch.equal(run(range(6))[1], run(range(3, 6), run(range(3)))[1])


def test_blocks_and_projector_learn_with_it_and_embeddings_and_vectors_do_not(tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    config = TrainConfig(model=str(folder), tune="full", train_vit=True, optimizer="muon")
    model, _ = build_model(config, "cpu")
    optimizer = make_optimizer(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert len(set.union(*groups)) == sum(map(len, groups)) == len(names)
    hidden = groups[2]
    assert "llama_proj.weight" in hidden and optimizer.param_groups[2]["muon"]
    assert "llama_model.model.layers.0.self_attn.q_proj.weight" in hidden
    assert not hidden & {"llama_model.lm_head.weight", "llama_model.model.embed_tokens.weight",
                         "visual_encoder.pos_embed", "visual_encoder.patch_embed.proj.weight"}
    assert all(p.ndim == 2 for p in optimizer.param_groups[2]["params"])


@pytest.mark.parametrize("change", [{"tune": "lora"}, {"shard": True}])
def test_it_is_refused_where_it_does_not_fit(tmp_path, change):
    folder = tiny.model_folder(tmp_path / "model")
    config = TrainConfig(model=str(folder), tune="full", optimizer="muon")
    message = tiny.refusal(DataError, build_model, dataclasses.replace(config, **change), "cpu")
    assert "--optimizer muon" in message
