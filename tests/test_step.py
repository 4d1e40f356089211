"""The step from one word to the next can be recorded, replayed and compiled, and be looked at late.

No GPU is needed: `meta` is a device that holds no numbers, so whoever asks for one there fails, and
so does whoever mixes it with the CPU. The recorder of CUDA graphs has a stand-in.
"""
import contextlib

import pytest
import torch

import tiny
from llama import Llama, LlamaConfig
from support.inference.cuda_graphs import CUDAGraphStep, StaticStep, accelerate_decoding
from support.inference.generation import LOOKAHEAD, stop_when_finished
from support.inference.quantization import quantize

CONFIG = LlamaConfig(vocab_size=61, width=48, depth=3, heads=4, mlp=72, max_positions=64)
STOP = 7


@pytest.fixture
def llama():
    return tiny.randomize(Llama(CONFIG)).requires_grad_(False)


def say(llama, lengths=(9,), new=12, stop=-1, slots=64):
    x = torch.randn(len(lengths), max(lengths), 48, generator=torch.Generator().manual_seed(5))
    cache = llama.cache(len(lengths), slots)
    said = list(llama.generate(x, torch.tensor(lengths), cache, new, stop))
    return torch.stack(said, dim=1), cache.used


def same(one, other):
    return one[0].equal(other[0]) and one[1] == other[1]


def some_stop(llama, lengths):
    """A word after which some rows have ended and others have not."""
    words = say(llama, lengths)[0]
    return next(w for w in words.unique().tolist() if 0 < (words[:, 2:6] == w).any(1).sum() < 3)


@pytest.mark.parametrize("lengths", [(9,), (9, 4, 6)])
def test_a_step_over_all_slots_of_the_cache_says_the_same(llama, lengths):
    plain = say(llama, lengths)
    llama.step = StaticStep(llama.step)
    assert same(say(llama, lengths), plain)


def test_rows_that_end_are_dropped_from_a_fixed_step_too(llama):
    stop = some_stop(llama, (9, 4, 6))
    plain = say(llama, (9, 4, 6), stop=stop)
    assert (plain[0] == stop).any()
    llama.step = StaticStep(llama.step)
    assert same(say(llama, (9, 4, 6), stop=stop), plain)


def test_words_that_are_asked_for_after_all_rows_have_ended_are_the_stop(llama):
    x, lengths = torch.randn(1, 5, 48).expand(2, -1, -1), torch.tensor([5, 5])
    first = next(llama.words(x, lengths, llama.cache(2, 30), 1, -1, 0, []))[0].item()
    words = list(llama.words(x, lengths, llama.cache(2, 30), 6, first, 0, []))
    assert len(words) == 6 and torch.stack(words).eq(first).all()


def test_a_conversation_goes_on_after_a_fixed_step(llama):
    x = torch.randn(1, 5, 48)
    fixed, plain = llama.cache(1, 40), llama.cache(1, 40)
    ids, at = torch.tensor([[3]]), torch.tensor([[5]])
    with torch.inference_mode():
        for cache, step in ((fixed, StaticStep(llama.step)), (plain, llama.step)):
            llama(x, cache=cache)
            step(ids, at, cache)
        more = torch.arange(6, 11)[None]
        torch.testing.assert_close(llama(x, more, cache=fixed), llama(x, more, cache=plain))


def test_an_interrupted_step_leaves_the_cache_as_it_was(llama):
    def stopped(*_):
        raise KeyboardInterrupt

    cache = llama.cache(1, 40)
    with pytest.raises(KeyboardInterrupt):
        StaticStep(stopped)(None, None, cache)
    assert not cache.fixed and cache.used == 0


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("bits", [16, 8])
def test_nothing_in_a_step_waits_for_the_device(llama, batch, bits):
    for layer in llama.model.layers if bits < 16 else ():
        layer.mlp.up_proj.weight = torch.nn.Parameter(
            quantize(layer.mlp.up_proj.weight, bits), requires_grad=False)
    llama = llama.to("meta")
    cache, words = llama.cache(batch, 40), torch.zeros(batch, 1, dtype=torch.long, device="meta")
    logits = StaticStep(llama.step)(words, words, cache)
    assert logits.is_meta and logits.shape == (batch, 61)
    with pytest.raises(RuntimeError, match="meta"):
        logits.argmax().item()


def test_nothing_in_the_token_loop_waits_for_the_device_between_looks(llama):
    llama = llama.to("meta")
    x, lengths = torch.zeros(3, 9, 48, device="meta"), torch.zeros(3, 1, device="meta")[:, 0].long()
    llama.step = StaticStep(llama.step)
    words = llama.words(x, lengths, llama.cache(3, 40), 20, STOP, 0, [])
    assert [next(words).shape for _ in range(4 * LOOKAHEAD)] == [(3,)] * 4 * LOOKAHEAD
    with pytest.raises(RuntimeError, match="meta"):                 # the rows that have ended
        next(words)
    one = llama.words(x[:1], lengths[:1], llama.cache(1, 40), 12, STOP, 0, [], temperature=0.7,
                      top_k=5, top_p=0.9, repetition_penalty=1.1)
    assert len(list(one)) == 12


def test_a_step_compiles_whole_and_not_anew_for_each_word(llama, monkeypatch):
    plain, longer, compiled, compiles = say(llama), say(llama, (11,), slots=50), torch.compile, []

    def counting(graph, _):
        compiles.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda step, fullgraph=False: fullgraph and compiled(
        step, fullgraph=True, backend=counting))
    accelerate_decoding(llama, compile=True)
    assert same(say(llama), plain)
    assert len(compiles) == 1
    for slots in (50, 41, 57):                                      # of another conversation
        assert say(llama, (11,), slots=slots)[0].equal(longer[0])
    assert len(compiles) == 2


def test_on_a_cpu_a_step_stays_as_it_is_unless_it_is_compiled(llama):
    accelerate_decoding(llama)
    assert "step" not in vars(llama)


# ---- CUDA graphs, by a stand-in ------------------------------------------------------------------

@pytest.fixture
def records(llama, monkeypatch):
    """Gives the model a recorded step -> the records that were made.

    Where CUDA would run the kernels again, the stand-in calls the step again: on the same places,
    whatever the caller has."""
    made, caches, plain = [], [], llama.step

    class Record:
        def __init__(self):
            made.append(self)

        def replay(self):
            used = caches[-1].used
            graph.logits.copy_(StaticStep(plain)(graph.ids, graph.positions, caches[-1]))
            caches[-1].used = used                                  # Python's numbers stay

    class Stream:
        def wait_stream(self, other):
            pass

    for name, value in {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Record,
                        "stream": contextlib.nullcontext, "graph": contextlib.nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    llama.step = graph = CUDAGraphStep(lambda *own: caches.append(own[-1]) or plain(*own))
    return made


@pytest.mark.parametrize("lengths", [(9,), (9, 4, 6)])
def test_a_recorded_step_says_the_same_and_is_recorded_once(llama, records, lengths):
    recorded = say(llama, lengths)
    assert len(records) == 1
    del llama.step
    assert same(recorded, say(llama, lengths))


def test_a_step_is_recorded_anew_for_other_rows_and_another_cache(llama, records):
    graph = llama.__dict__.pop("step")
    stop = some_stop(llama, (9, 4, 6))
    plain = say(llama, (9, 4, 6), stop=stop), say(llama)
    llama.step = graph
    assert same(say(llama, (9, 4, 6), stop=stop), plain[0]) and len(records) > 1
    before = len(records)
    assert same(say(llama), plain[1]) and len(records) == before + 1


def test_the_next_answer_of_a_conversation_is_not_recorded_again(llama, records):
    cache, x, length = llama.cache(1, 40), torch.randn(1, 5, 48), torch.tensor([5])
    for start in (0, 8):
        cache.used = start
        assert len(list(llama.generate(x, length, cache, 4, -1, start))) == 4
    assert len(records) == 1


# ---- words looked at late ------------------------------------------------------------------------

@pytest.mark.parametrize("ahead", [0, 1, 4, 20])
def test_words_looked_at_late_are_the_same_and_end_with_the_last_row(ahead):
    asked, rows = [], [(5, 6), (STOP, 6), (STOP, 8), (STOP, STOP), (STOP, STOP), (STOP, STOP)]

    def words():
        for row in rows:
            asked.append(row)
            yield torch.tensor(row)

    said = stop_when_finished(words(), STOP, ahead)
    assert tuple(next(said).tolist()) == rows[0] and len(asked) == min(1 + ahead, len(rows))
    assert [tuple(ids.tolist()) for ids in said] == rows[1:4]
    assert len(asked) == min(4 + ahead, len(rows))


def test_words_end_where_they_end_when_no_row_stops():
    words = [torch.tensor([i]) for i in range(6)]
    assert list(stop_when_finished(iter(words), STOP, 4)) == words
