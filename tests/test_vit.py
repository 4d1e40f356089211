"""The vision encoder against a version in loops, and against the numbers of the released one."""
import math

import pytest
import torch
import torch.nn.functional as F

import tiny
from vit import PRESETS, ViT, factorize, resize_positions, sine_positions


def layer_norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def naive_patches(vit, image):
    """-> [P, D], one patch after the other, row by row."""
    size, proj = vit.config.patch_size, vit.patch_embed.proj
    cut = [image[:, y:y + size, x:x + size].reshape(-1)
           for y in range(0, vit.config.image_size, size)
           for x in range(0, vit.config.image_size, size)]
    return torch.stack(cut) @ proj.weight.flatten(1).T + proj.bias


def naive_attention(attn, x, k_bias):
    D = x.shape[1]
    d = D // attn.heads
    w_q, w_k, w_v = attn.qkv.weight.split(D)
    q, k, v = x @ w_q.T + attn.q_bias, x @ w_k.T + k_bias, x @ w_v.T + attn.v_bias
    out = torch.zeros_like(x)
    for head in range(attn.heads):
        part = slice(head * d, head * d + d)
        for i in range(len(x)):
            scores = torch.stack([(q[i, part] * d ** -0.5) @ k[j, part] for j in range(len(x))])
            weights = scores.exp() / scores.exp().sum()
            out[i, part] = sum(w * v[j, part] for j, w in enumerate(weights))
    return out @ attn.proj.weight.T + attn.proj.bias


def naive_vit(vit, image, k_bias=0.0):
    x = torch.cat([vit.cls_token[0], naive_patches(vit, image)]) + vit.pos_embed[0]
    for block in vit.blocks:
        normed = layer_norm(x, block.norm1.weight, block.norm1.bias, 1e-6)
        x = x + naive_attention(block.attn, normed, k_bias)
        normed = layer_norm(x, block.norm2.weight, block.norm2.bias, 1e-6)
        hidden = normed @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    return layer_norm(x, 1.0, 0.0, 1e-5)[1:]


@pytest.fixture(scope="module")
def vit():
    return tiny.randomize(ViT(tiny.VIT)).requires_grad_(False)


def test_eva_vit_g_at_448_pixels_has_986_975_872_parameters():
    with torch.device("meta"):
        vit = ViT(PRESETS["eva_vit_g"])
    assert sum(p.numel() for p in vit.parameters()) == 986_975_872
    assert vit.pos_embed.shape == (1, 1025, 1408)


def test_tensor_names_and_shapes_are_those_of_the_released_file():
    D, mlp = 24, 40
    wanted = {"cls_token": (1, 1, D), "pos_embed": (1, 37, D),
              "patch_embed.proj.weight": (D, 3, 5, 5), "patch_embed.proj.bias": (D,)}
    block = {"norm1.weight": (D,), "norm1.bias": (D,), "norm2.weight": (D,), "norm2.bias": (D,),
             "attn.q_bias": (D,), "attn.v_bias": (D,), "attn.qkv.weight": (3 * D, D),
             "attn.proj.weight": (D, D), "attn.proj.bias": (D,),
             "mlp.fc1.weight": (mlp, D), "mlp.fc1.bias": (mlp,),
             "mlp.fc2.weight": (D, mlp), "mlp.fc2.bias": (D,)}
    wanted |= {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    found = {name: tuple(t.shape) for name, t in ViT(tiny.VIT).state_dict().items()}
    assert found == wanted


def test_forward_is_what_the_loops_say(vit):
    image = tiny.images(1)
    torch.testing.assert_close(vit(image)[0], naive_vit(vit, image[0]), rtol=1e-4, atol=1e-5)


def test_the_inner_norms_have_eps_1e_6_and_the_last_one_1e_5(vit):
    """With a residual stream this small the eps decides what comes out."""
    shrunk = ("patch_embed", "cls_token", "pos_embed", "attn.proj", "mlp.fc2")
    small = ViT(tiny.VIT)
    small.load_state_dict({k: v * (1e-3 if any(part in k for part in shrunk) else 1)
                           for k, v in vit.state_dict().items()})
    image = tiny.images(1)
    torch.testing.assert_close(small(image)[0], naive_vit(small, image[0]), rtol=1e-3, atol=1e-4)


def test_a_bias_on_k_would_change_nothing(vit):
    image, k_bias = tiny.images(1)[0], 3 * torch.randn(24)
    without = naive_vit(vit, image)
    torch.testing.assert_close(naive_vit(vit, image, k_bias), without, rtol=1e-3, atol=1e-4)


def test_patches_come_row_by_row(vit):
    """Without positions, shuffling the squares of a picture shuffles the outputs alike."""
    blind = ViT(tiny.VIT)
    blind.load_state_dict(vit.state_dict() | {"pos_embed": torch.zeros(1, 37, 24)})
    image = tiny.images(1)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(5))
    squares = [image[..., 5 * r:5 * r + 5, 5 * c:5 * c + 5] for r in range(6) for c in range(6)]
    moved = [squares[i] for i in order]
    shuffled = torch.cat([torch.cat(moved[6 * r:6 * r + 6], dim=-1) for r in range(6)], dim=-2)
    torch.testing.assert_close(blind(shuffled), blind(image)[:, order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(blind(shuffled), blind(image), atol=0.1)


def test_a_batch_gives_what_single_pictures_give(vit):
    images = tiny.images(4)
    singles = torch.cat([vit(image[None]) for image in images])
    torch.testing.assert_close(vit(images), singles, rtol=1e-4, atol=1e-5)


def test_output_keeps_the_type_of_the_weights(vit):
    half = ViT(tiny.VIT).bfloat16()
    assert half(tiny.images(1).bfloat16()).dtype == torch.bfloat16


def test_resizing_to_the_same_grid_returns_the_same_tensor():
    pos_embed = torch.randn(1, 37, 24)
    assert resize_positions(pos_embed, 6) is pos_embed


def test_resizing_keeps_the_row_of_the_class_token():
    pos_embed = torch.randn(1, 37, 24)
    resized = resize_positions(pos_embed, 12)
    assert resized.shape == (1, 145, 24)
    assert torch.equal(resized[:, 0], pos_embed[:, 0])


@pytest.mark.parametrize("direction", ["rows", "columns"])
def test_resizing_has_the_impulse_response_of_plain_bicubic(direction):
    grid = torch.zeros(8, 8, 3)
    grid[4] = torch.tensor([1.0, 10.0, 100.0])
    if direction == "columns":
        grid = grid.transpose(0, 1)
    resized = resize_positions(torch.cat([torch.ones(1, 3), grid.reshape(64, 3)])[None], 16)
    resized = resized[0, 1:].view(16, 16, 3)
    line = resized[:, 7] if direction == "rows" else resized[7]
    half = [-0.0352, -0.1055, 0.2617, 0.8789]
    wanted = torch.zeros(16)
    wanted[5:13] = torch.tensor(half + half[::-1])
    wanted = wanted[:, None] * torch.tensor([1.0, 10.0, 100.0])
    torch.testing.assert_close(line, wanted, rtol=1e-2, atol=1e-4)


def test_the_sine_position_of_a_patch_tells_row_and_column():
    waves = sine_positions(6, 24).view(6, 6, 24)
    assert torch.equal(waves[4, 1, :12], waves[4, 5, :12])
    assert torch.equal(waves[4, 1, 12:], waves[2, 1, 12:])
    assert len(waves.reshape(36, 24).unique(dim=0)) == 36


def test_factorize_gives_the_best_approximation_of_its_rank():
    matrix = torch.randn(12, 12)
    a, b = factorize(matrix, 5)
    assert a.shape == b.shape == (5, 12)
    error = torch.linalg.svdvals(matrix)[5:].square().sum().sqrt()
    torch.testing.assert_close((matrix - a.T @ b).norm(), error, rtol=1e-4, atol=1e-5)


def test_a_patch_of_a_new_vit_attends_to_itself_first():
    torch.manual_seed(0)
    vit = ViT(tiny.VIT)
    vit.init_weights()
    x = F.layer_norm(vit.pos_embed[0, 1:], (24,))
    for block in vit.blocks:
        q, k, _ = (x @ block.attn.qkv.weight.T).split(24, dim=1)
        scores = q @ k.T
        assert scores.diagonal().mean() > scores.mean() + scores.std()


def test_building_a_vit_draws_no_random_numbers_and_init_weights_does():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    vit = ViT(tiny.VIT)
    assert torch.equal(torch.get_rng_state(), before)
    vit.init_weights()
    assert not torch.equal(torch.get_rng_state(), before)
    assert 0.015 < vit.patch_embed.proj.weight.std() < 0.025
    assert not vit.patch_embed.proj.bias.any() and not vit.blocks[0].mlp.fc1.bias.any()
