"""The step from one token to the next can be recorded, replayed and compiled.

No GPU is needed: `meta` is a device that holds no numbers, so reading one there fails, and so does
mixing it with the CPU. The recorder of CUDA graphs has a stand-in.
"""
import contextlib

import pytest
import torch

import tiny
from llama import Llama, LlamaConfig
from support.inference.cuda_graphs import CUDAGraphStep, StaticStep, accelerate_decoding
from support.inference.generation import LOOKAHEAD, decode, generate
from support.inference.quantization import quantize

CONFIG = LlamaConfig(vocab_size=61, width=48, depth=3, heads=4, mlp_width=72, max_positions=64)
STOP = 7


@pytest.fixture
def llama():
    return tiny.randomize(Llama(CONFIG)).requires_grad_(False)


def answer(llama, lengths=(9,), new=12, stop=-1, capacity=64):
    x = torch.randn(len(lengths), max(lengths), 48, generator=torch.Generator().manual_seed(5))
    cache = llama.new_cache(len(lengths), capacity)
    tokens = list(generate(llama, x, torch.tensor(lengths), cache, new, stop))
    return torch.stack(tokens, dim=1), cache.length


def same(one, other):
    return one[0].equal(other[0]) and one[1] == other[1]


def some_stop(llama, lengths):
    """A token after which some rows have ended and others have not."""
    tokens = answer(llama, lengths)[0]
    return next(t for t in tokens.unique().tolist()
                if 0 < (tokens[:, 2:6] == t).any(1).sum() < 3)


@pytest.mark.parametrize("lengths", [(9,), (9, 4, 6)])
def test_a_step_over_all_slots_of_the_cache_gives_the_same_tokens(llama, lengths):
    plain = answer(llama, lengths)
    llama.decode_step = StaticStep(llama.decode_step)
    assert same(answer(llama, lengths), plain)


def test_rows_that_end_are_dropped_from_a_static_step_too(llama):
    stop = some_stop(llama, (9, 4, 6))
    plain = answer(llama, (9, 4, 6), stop=stop)
    assert (plain[0] == stop).any()
    llama.decode_step = StaticStep(llama.decode_step)
    assert same(answer(llama, (9, 4, 6), stop=stop), plain)


def test_tokens_that_are_asked_for_after_all_rows_have_ended_are_the_stop(llama):
    x, lengths = torch.randn(1, 5, 48).expand(2, -1, -1), torch.tensor([5, 5])
    first = next(decode(llama, x, lengths, llama.new_cache(2, 30), 1, -1, 0, []))[0].item()
    tokens = list(decode(llama, x, lengths, llama.new_cache(2, 30), 6, first, 0, []))
    assert len(tokens) == 6 and torch.stack(tokens).eq(first).all()


def test_a_conversation_continues_after_a_static_step(llama):
    x = torch.randn(1, 5, 48)
    static, plain = llama.new_cache(1, 40), llama.new_cache(1, 40)
    ids, at = torch.tensor([[3]]), torch.tensor([[5]])
    with torch.inference_mode():
        for cache, step in ((static, StaticStep(llama.decode_step)), (plain, llama.decode_step)):
            llama(x, cache=cache)
            step(ids, at, cache)
        more = torch.arange(6, 11)[None]
        torch.testing.assert_close(llama(x, more, cache=static), llama(x, more, cache=plain))


def test_an_interrupted_step_leaves_the_cache_as_it_was(llama):
    def stopped(*_):
        raise KeyboardInterrupt

    cache = llama.new_cache(1, 40)
    with pytest.raises(KeyboardInterrupt):
        StaticStep(stopped)(None, None, cache)
    assert cache.length == 0


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("bits", [16, 8])
def test_nothing_in_a_step_waits_for_the_device(llama, batch, bits):
    for layer in llama.model.layers if bits < 16 else ():
        layer.mlp.up_proj.weight = torch.nn.Parameter(
            quantize(layer.mlp.up_proj.weight, bits), requires_grad=False)
    llama = llama.to("meta")
    cache = llama.new_cache(batch, 40)
    tokens = torch.zeros(batch, 1, dtype=torch.long, device="meta")
    logits = StaticStep(llama.decode_step)(tokens, tokens, cache)
    assert logits.is_meta and logits.shape == (batch, 61)
    with pytest.raises(RuntimeError, match="meta"):
        logits.argmax().item()


def test_nothing_in_the_token_loop_waits_for_the_device_between_checks(llama):
    llama = llama.to("meta")
    x, lengths = torch.zeros(3, 9, 48, device="meta"), torch.zeros(3, 1, device="meta")[:, 0].long()
    llama.decode_step = StaticStep(llama.decode_step)
    tokens = decode(llama, x, lengths, llama.new_cache(3, 40), 20, STOP, 0, [])
    assert [next(tokens).shape for _ in range(4 * LOOKAHEAD)] == [(3,)] * 4 * LOOKAHEAD
    with pytest.raises(RuntimeError, match="meta"):                 # the rows that have ended
        next(tokens)
    one = decode(llama, x[:1], lengths[:1], llama.new_cache(1, 40), 12, STOP, 0, [],
                 temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.1)
    assert len(list(one)) == 12


def test_a_step_compiles_whole_and_not_again_for_each_token(llama, monkeypatch):
    plain, longer = answer(llama), answer(llama, (11,), capacity=50)
    compiled, compiles = torch.compile, []

    def counting(graph, _):
        compiles.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda step, fullgraph=False: fullgraph and compiled(
        step, fullgraph=True, backend=counting))
    accelerate_decoding(llama, compile=True)
    assert same(answer(llama), plain)
    assert len(compiles) == 1
    for capacity in (50, 41, 57):                                      # of another conversation
        assert answer(llama, (11,), capacity=capacity)[0].equal(longer[0])
    assert len(compiles) == 2


def test_on_a_cpu_a_step_stays_as_it_is_unless_it_is_compiled(llama):
    accelerate_decoding(llama)
    assert "decode_step" not in vars(llama)


# ---- CUDA graphs, by a stand-in ------------------------------------------------------------------

@pytest.fixture
def records(llama, monkeypatch):
    """Gives the model a recorded step -> the records that were made.

    Where CUDA would run the kernels again, the stand-in calls the step again: on the same places,
    whatever the caller has."""
    made, caches, plain = [], [], llama.decode_step

    class Record:
        def __init__(self):
            made.append(self)

        def replay(self):
            length = caches[-1].length
            graph.logits.copy_(StaticStep(plain)(graph.ids, graph.positions, caches[-1]))
            caches[-1].length = length                                # Python's numbers stay

    class Stream:
        def wait_stream(self, other):
            pass

    def step(ids, positions, cache):
        caches.append(cache)
        return plain(ids, positions, cache)

    for name, value in {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Record,
                        "stream": contextlib.nullcontext, "graph": contextlib.nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    llama.decode_step = graph = CUDAGraphStep(step)
    return made


@pytest.mark.parametrize("lengths", [(9,), (9, 4, 6)])
def test_a_recorded_step_gives_the_same_tokens_and_is_recorded_once(llama, records, lengths):
    recorded = answer(llama, lengths)
    assert len(records) == 1
    del llama.decode_step
    assert same(recorded, answer(llama, lengths))


def test_a_step_is_recorded_again_for_other_rows_and_another_cache(llama, records):
    graph = llama.__dict__.pop("decode_step")
    stop = some_stop(llama, (9, 4, 6))
    plain = answer(llama, (9, 4, 6), stop=stop), answer(llama)
    llama.decode_step = graph
    assert same(answer(llama, (9, 4, 6), stop=stop), plain[0]) and len(records) > 1
    before = len(records)
    assert same(answer(llama), plain[1]) and len(records) == before + 1


def test_the_next_answer_of_a_conversation_is_not_recorded_again(llama, records):
    cache, x, length = llama.new_cache(1, 40), torch.randn(1, 5, 48), torch.tensor([5])
    for start in (0, 8):
        cache.length = start
        assert len(list(generate(llama, x, length, cache, 4, -1, start))) == 4
    assert len(records) == 1
