"""The language model against a version in loops; its cache, one answer, sampling; and that what is
there for speed computes the same."""

import pytest
import torch
from torch.nn import functional as F

import llama as llama_module
import tiny
from llama import (
    PRESETS,
    Llama,
    apply_rope,
    attention,
    hidden_states_at,
    packed_mask,
    rope_angles,
    sample,
)
from train import init_number_tokens

CONFIG = tiny.LLAMA
D, H, V = CONFIG.width, CONFIG.heads, CONFIG.vocab_size


@pytest.fixture(scope="module")
def llama():
    return tiny.randomize(Llama(CONFIG)).requires_grad_(False)


# ---- an independent model ------------------------------------------------------------------------

def rotate(x, position):
    """RoPE as the paper has it: complex numbers rotated by position * theta^(-2j/d)."""
    half = x.shape[-1] // 2
    rates = torch.tensor([10000.0 ** (-2 * j / (2 * half)) for j in range(half)])
    rotated = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * position * rates)
    return torch.cat([rotated.real, rotated.imag], dim=-1)


def rms_norm(x, weight):
    return torch.stack([row / torch.sqrt((row * row).sum() / D + 1e-5) for row in x]) * weight


def naive_attention(attn, x, positions):
    d = D // H
    q, k, v = x @ attn.q_proj.weight.T, x @ attn.k_proj.weight.T, x @ attn.v_proj.weight.T
    out = torch.zeros_like(x)
    for head in range(H):
        part = slice(head * d, head * d + d)
        for i, p in enumerate(positions):
            query = rotate(q[i, part], p)
            scores = torch.stack([query @ rotate(k[j, part], positions[j]) for j in range(i + 1)])
            weights = torch.softmax(scores / d ** 0.5, 0)
            out[i, part] = sum(w * v[j, part] for j, w in enumerate(weights))
    return out @ attn.o_proj.weight.T


def naive_llama(model, ids, positions=None):
    positions = positions or range(len(ids))
    h = torch.stack([model.model.embed_tokens.weight[i] for i in ids])
    for layer in model.model.layers:
        normed = rms_norm(h, layer.input_layernorm.weight)
        h = h + naive_attention(layer.self_attn, normed, positions)
        normed = rms_norm(h, layer.post_attention_layernorm.weight)
        gate, up = normed @ layer.mlp.gate_proj.weight.T, normed @ layer.mlp.up_proj.weight.T
        h = h + (gate / (1 + torch.exp(-gate)) * up) @ layer.mlp.down_proj.weight.T
    return rms_norm(h, model.model.norm.weight) @ model.lm_head.weight.T


# ---- the model -----------------------------------------------------------------------------------

@pytest.mark.parametrize("preset, count", [("llama2_7b", 6_738_415_616),
                                           ("llama2_13b", 13_015_864_320)])
def test_parameter_counts_are_those_of_the_released_models(preset, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in Llama(PRESETS[preset]).parameters()) == count


def test_tensor_names_and_shapes_are_those_of_the_released_files():
    wanted = {"model.embed_tokens.weight": (61, 50), "model.norm.weight": (50,),
              "lm_head.weight": (61, 50)}
    layer = {f"self_attn.{p}_proj.weight": (50, 50) for p in "qkvo"}
    layer |= {"mlp.gate_proj.weight": (44, 50), "mlp.up_proj.weight": (44, 50),
              "mlp.down_proj.weight": (50, 44), "input_layernorm.weight": (50,),
              "post_attention_layernorm.weight": (50,)}
    wanted |= {f"model.layers.{i}.{name}": shape for i in range(4)
               for name, shape in layer.items()}
    assert {name: tuple(t.shape) for name, t in Llama(CONFIG).state_dict().items()} == wanted


def test_ordered_start_values_are_nearer_the_nearer_their_numbers_and_no_larger_than_others():
    model, numbers = Llama(CONFIG), [7, 3, 40, 41, 12, 60, 5]     # ids that stand for 0 .. 6
    model.init_weights()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    init_number_tokens(model, numbers)
    others = [i for i in range(61) if i not in numbers]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table = model.state_dict()[name]
        assert torch.equal(table[others], before.pop(name)[others])
        assert abs(table[numbers].norm(dim=1).mean() / table[others].norm(dim=1).mean() - 1) < 0.1
        code = F.normalize(table[numbers], dim=1)
        alike = code @ code.T
        for step in range(1, 4):        # the same for all pairs that are `step` apart, and falling
            assert alike.diagonal(step).std() < 1e-6
            assert alike.diagonal(step).mean() < alike.diagonal(step - 1).mean() - 0.02
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


def test_rope_is_a_rotation_of_complex_numbers():
    x = torch.randn(1, H, 9, D // H)
    positions = torch.tensor([[0, 1, 2, 5, 11, 12, 40, 41, 63]])
    rotated = apply_rope(x, *rope_angles(positions, CONFIG))
    for head in range(H):
        for t, p in enumerate(positions[0].tolist()):
            torch.testing.assert_close(rotated[0, head, t], rotate(x[0, head, t], p),
                                       rtol=1e-4, atol=1e-5)


def test_forward_is_what_the_loops_say(llama):
    ids = tiny.ids(2, 11)
    wanted = torch.stack([naive_llama(llama, row.tolist()) for row in ids])
    torch.testing.assert_close(llama(ids), wanted, rtol=1e-3, atol=1e-4)


def test_given_positions_are_used(llama):
    positions = [0, 1, 2, 7, 8, 30]
    ids = tiny.ids(1, 6)
    wanted = naive_llama(llama, ids[0].tolist(), positions)
    found = llama(ids, torch.tensor([positions]))[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, llama(ids)[0], atol=0.01)


def test_norms_on_tiny_values_use_eps_1e_5(llama):
    small = Llama(CONFIG)
    small.load_state_dict({k: v * (1e-3 if "embed" in k or "o_proj" in k or "down" in k else 1)
                           for k, v in llama.state_dict().items()})
    ids = tiny.ids(1, 5)
    wanted = naive_llama(small, ids[0].tolist())
    torch.testing.assert_close(small(ids)[0], wanted, rtol=1e-3, atol=1e-4)


def test_embeddings_go_in_place_of_ids(llama):
    ids = tiny.ids(2, 7)
    assert torch.equal(llama(llama.model.embed_tokens(ids)), llama(ids))


def test_the_future_cannot_change_the_past(llama):
    ids = tiny.ids(1, 12)
    changed = ids.clone()
    changed[0, 7] = (changed[0, 7] + 1) % V
    before, after = llama(ids)[0], llama(changed)[0]
    assert torch.equal(before[:7], after[:7])
    assert ((before[7:] - after[7:]).abs().amax(1) > 1e-3).all()


# ---- the cache -----------------------------------------------------------------------------------

def in_chunks(llama, ids, *sizes):
    """Logits of ids computed piece by piece with one cache."""
    cache, logits, start = llama.new_cache(len(ids), 20), [], 0
    for size in sizes:
        positions = torch.arange(start, start + size).expand(len(ids), size)
        logits.append(llama(ids[:, start:start + size], positions, cache=cache))
        start += size
    assert cache.length == start == ids.shape[1]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("sizes", [(12,), (7, 1, 1, 1, 1, 1), (1,) * 12, (5, 4, 3), (1, 10, 1)])
def test_with_a_cache_the_logits_are_the_same(llama, rows, sizes):
    ids = tiny.ids(rows, 12)
    torch.testing.assert_close(in_chunks(llama, ids, *sizes), llama(ids), rtol=1e-4, atol=1e-4)


PLACES = torch.tensor([[4, 0, 6], [2, 2, 5]])


@pytest.mark.parametrize("masked", [False, True])
def test_the_last_layer_at_some_places_is_what_it_is_at_all(llama, masked):
    x = tiny.ids(2, 7)
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2, -1]])
    more = {"positions": torch.tensor([[0, 1, 2, 3, 4, 3, 4], [0, 1, 2, 3, 4, 2, 0]]),
            "mask": packed_mask(segments)} if masked else {}
    whole = llama.model(x, **more)
    some = hidden_states_at(llama.model, x, PLACES, **more)
    assert torch.allclose(some, whole[torch.arange(2)[:, None], PLACES], atol=1e-5)


def test_the_last_layer_at_some_places_is_the_same_behind_a_cache(llama):
    x, caches = tiny.ids(2, 11), [llama.new_cache(2, 11) for _ in range(2)]
    for start, end in ((0, 4), (4, 11)):
        part, places = x[:, start:end], PLACES.clamp(max=end - start - 1)
        positions = torch.arange(start, end).expand(2, -1)
        whole = llama.model(part, positions, cache=caches[0])
        some = hidden_states_at(llama.model, part, places, positions, cache=caches[1])
        assert torch.allclose(some, whole[torch.arange(2)[:, None], places], atol=1e-5)
    assert torch.allclose(caches[0].k, caches[1].k, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_attention_in_chunks_is_attention_and_so_are_its_gradients(chunk, monkeypatch):
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4],
                             [0, 0, 1, 1, 1, 2, 2, 2, 2, -1, -1]])
    mask = packed_mask(segments)
    drawn = torch.randn(3, 2, H, 11, D // H, generator=torch.Generator().manual_seed(0))
    whole, parts = drawn.clone().requires_grad_(), drawn.clone().requires_grad_()
    wanted = attention(*whole, mask)
    monkeypatch.setattr(llama_module, "CHUNK", chunk)
    found = attention(*parts, mask)
    assert torch.allclose(found, wanted, atol=1e-6)
    for side in (wanted, found):
        (side * torch.linspace(-1, 1, side.numel()).view_as(side)).sum().backward()
    assert torch.allclose(parts.grad, whole.grad, atol=1e-6)


def test_a_cache_may_name_a_row_twice_and_leave_one_out(llama):
    """Two questions behind the second prompt: as if each were asked behind it alone."""
    prompts, new = tiny.ids(2, 5), tiny.ids(2, 3, seed=1)
    cache = llama.new_cache(2, 5)
    llama.model(prompts, cache=cache)
    cache.select_rows(torch.tensor([1, 1]), 8)
    logits = llama(new, 5 + torch.arange(3).expand(2, -1), cache=cache)
    wanted = llama(torch.cat([prompts[[1, 1]], new], dim=1))[:, 5:]
    assert torch.allclose(logits, wanted, atol=1e-5)


def test_more_tokens_than_the_cache_has_slots_are_refused(llama):
    cache = llama.new_cache(1, 6)
    llama(tiny.ids(1, 5), cache=cache)
    with pytest.raises(ValueError, match="7 tokens do not fit the context of 6"):
        llama(tiny.ids(1, 2), torch.tensor([[5, 6]]), cache=cache)


def test_a_cache_never_has_more_slots_than_the_model_has_positions(llama):
    assert llama.new_cache(1, 1000).capacity == 64
    assert llama.new_cache(1, 63).capacity == 63


# ---- one answer ----------------------------------------------------------------------------------

def greedy_without_cache(llama, prompt, steps):
    ids = prompt
    for _ in range(steps):
        ids = torch.cat([ids, llama(ids[None])[0, -1:].argmax(-1)])
    return ids[len(prompt):].tolist()


@pytest.mark.parametrize("length", [1, 6, 14])
def test_greedy_generation_gives_what_the_whole_forward_gives(llama, length):
    prompt = tiny.ids(1, length, seed=length)[0]
    answer = list(llama.generate(prompt, 12, stop=-1))
    assert answer == greedy_without_cache(llama, prompt, 12) and len(set(answer)) > 2
    assert answer == list(llama.generate(llama.model.embed_tokens(prompt), 12, stop=-1))


def test_generation_ends_before_the_stop_token(llama):
    prompt = tiny.ids(1, 6)[0]
    answer = list(llama.generate(prompt, 12, stop=-1))
    stop = answer[-1]
    assert list(llama.generate(prompt, 12, stop)) == answer[:answer.index(stop)]


def test_a_full_context_ends_the_answer(llama):
    """With 64 positions and a prompt of 60, five tokens: the fifth needs no slot of its own."""
    assert len(list(llama.generate(tiny.ids(1, 60)[0], 20, stop=-1))) == 5


# ---- start values --------------------------------------------------------------------------------

def test_building_a_model_draws_no_random_numbers_and_init_weights_does():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = Llama(CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    model.init_weights()
    assert not torch.equal(torch.get_rng_state(), before)
    assert 0.4 < model.model.embed_tokens.weight.std() < 0.6
    assert 0.8 < model.lm_head.weight.std() * D ** 0.5 < 1.2


# ---- sampling ------------------------------------------------------------------------------------

def logits(rows=6, seed=0):
    return 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def no_ids(logits):
    return torch.zeros_like(logits, dtype=torch.bool)


def draw(scores, count=4000, **options):
    """Many draws from one row of scores -> how often each id came, as a share."""
    scores = torch.as_tensor(scores, dtype=torch.float32).expand(count, -1)
    options = {"temperature": 1.0, "generator": torch.Generator().manual_seed(3)} | options
    ids = sample(scores, no_ids(scores), **options)
    return torch.bincount(ids, minlength=scores.shape[1]) / count


def test_temperature_zero_takes_the_best():
    x = logits()
    assert sample(x, no_ids(x)).tolist() == [max(range(V), key=row.__getitem__) for row in x]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0.0},
                                     {"temperature": 1e-5}, {"temperature": 1e-300}])
def test_top_k_1_a_tiny_top_p_and_a_tiny_temperature_are_greedy(options):
    x = logits(200)
    ids = sample(x, no_ids(x), **{"temperature": 5.0} | options)
    assert torch.equal(ids, x.argmax(-1))


def test_a_seed_reproduces_the_draw():
    x = logits(50)

    def ids(seed):
        return sample(x, no_ids(x), temperature=2.0, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(ids(1), ids(1))
    assert not torch.equal(ids(1), ids(2))


def test_draws_follow_the_softmax_at_the_temperature():
    scores = torch.tensor([0.0, 2.0, 1.0, -1.0])
    for temperature in (0.5, 1.0, 3.0):
        share = draw(scores, 20_000, temperature=temperature)
        wanted = torch.exp(scores / temperature) / torch.exp(scores / temperature).sum()
        assert (share - wanted).abs().max() < 0.02


def test_top_k_leaves_the_k_best():
    share = draw([0.1, 0.5, 0.2, 0.4, 0.3], top_k=3)
    assert (share > 0).tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("top_p, kept", [(0.4, 1), (0.6, 2), (0.75, 2), (0.85, 3), (0.96, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, kept):
    probabilities = torch.tensor([0.15, 0.5, 0.05, 0.3])
    share = draw(probabilities.log(), top_p=top_p)
    best = probabilities.argsort(descending=True)[:kept]
    assert set(share.nonzero()[:, 0].tolist()) == set(best.tolist())
    assert (share[best] - probabilities[best] / probabilities[best].sum()).abs().max() < 0.04


def test_the_penalty_lowers_seen_ids_of_either_sign():
    x = torch.tensor([[2.0, 1.9, -5.0], [-1.0, -1.1, -5.0], [2.0, 1.5, -5.0]])
    seen = torch.tensor([[True, False, False]] * 3)
    assert sample(x, seen, repetition_penalty=1.2).tolist() == [1, 1, 0]
    assert sample(x, ~seen, repetition_penalty=1.2).tolist() == [0, 0, 0]
    assert sample(x, seen).tolist() == [0, 0, 0]


def test_the_penalty_comes_before_temperature_and_top_k():
    x = torch.tensor([[2.0, 1.9, -5.0]]).expand(300, -1)
    seen = torch.tensor([[True, False, False]]).expand(300, -1)
    ids = sample(x, seen, temperature=1.0, top_k=1, repetition_penalty=1.2)
    assert set(ids.tolist()) == {1}


def test_sampling_leaves_the_logits_alone():
    x = logits()
    before = x.clone()
    sample(x, ~no_ids(x), 0.7, 3, 0.5, 1.3)
    assert torch.equal(x, before)
