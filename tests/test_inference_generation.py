"""The batched token loop against the textbook one; look-ahead; constraints."""
import dataclasses

import pytest
import torch

import tiny
from llama import Llama
from support.inference.generation import generate, stop_when_finished

CONFIG = tiny.LLAMA
V, STOP = CONFIG.vocab_size, 7


@pytest.fixture(scope="module")
def llama():
    return tiny.randomize(Llama(CONFIG)).requires_grad_(False)


def answers(llama, prompts, steps, stop=-1, capacity=64, **sampling):
    """-> the ids each prompt is answered with, generated together, right-padded."""
    lengths = torch.tensor([len(p) for p in prompts])
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=5)
    cache = llama.new_cache(len(prompts), capacity)
    x = llama.model.embed_tokens(ids)
    tokens = list(generate(llama, x, lengths, cache, steps, stop, **sampling))
    return torch.stack(tokens, dim=1).tolist()


def prompts_of_different_lengths():
    return [tiny.ids(1, n, seed=n)[0] for n in (9, 1, 14, 6)]


def test_a_batch_of_one_gives_what_the_textbook_loop_gives(llama):
    for prompt in prompts_of_different_lengths():
        tokens = answers(llama, [prompt], 12)[0]
        assert tokens == list(llama.generate(prompt, 12, stop=-1)) and len(set(tokens)) > 2


@pytest.mark.parametrize("sampling", [{"temperature": 1.5, "top_k": 9, "top_p": 0.9},
                                      {"repetition_penalty": 1.8}])
def test_it_does_so_with_every_way_of_sampling(llama, sampling):
    def seeded():
        return sampling | {"generator": torch.Generator().manual_seed(4)}

    for prompt in prompts_of_different_lengths():
        tokens = answers(llama, [prompt], 12, **seeded())[0]
        assert tokens == list(llama.generate(prompt, 12, -1, **seeded()))


def test_a_batch_of_different_lengths_gives_token_for_token_what_single_prompts_give(llama):
    prompts = prompts_of_different_lengths()
    singles = [answers(llama, [p], 20)[0] for p in prompts]
    assert answers(llama, prompts, 20) == singles
    assert len({tuple(row) for row in singles}) == 4


def test_a_row_that_has_stopped_repeats_stop_and_the_loop_ends_with_the_last(llama):
    prompts = prompts_of_different_lengths()
    free = answers(llama, prompts, 20)
    stop = next(t for t in range(V) if len({row.index(t) for row in free if t in row}) > 1)
    stopping = [i for i, row in enumerate(free) if stop in row]
    ends = [free[i].index(stop) for i in stopping]
    stopped = answers(llama, [prompts[i] for i in stopping], 20, stop)
    assert stopped == [free[i][:end] + [stop] * (max(ends) + 1 - end)
                       for i, end in zip(stopping, ends, strict=True)]


def test_a_full_context_ends_the_answer_and_changes_no_token_of_it():
    """With 64 positions and a prompt of 60, five tokens: the fifth needs no slot of its own."""
    llama = tiny.randomize(Llama(CONFIG))
    wide = Llama(dataclasses.replace(CONFIG, max_positions=200)).eval()
    wide.load_state_dict(llama.state_dict())
    prompt = tiny.ids(1, 60)[0]
    tokens = answers(llama, [prompt], 20, capacity=80)[0]
    assert len(tokens) == 5
    assert tokens == answers(wide, [prompt], 20, capacity=80)[0][:5]


def test_decoding_stops_after_max_new_tokens(llama):
    assert len(answers(llama, [tiny.ids(1, 4)[0]], 3)[0]) == 3


def test_the_penalty_counts_what_each_row_has_generated_itself(llama):
    """A penalty this strong forbids any repetition, as long as there is another token."""
    tokens = answers(llama, prompts_of_different_lengths(), 20, repetition_penalty=1e6)
    assert all(len(set(row)) == 20 for row in tokens)
    assert any(len(set(row)) < 20 for row in answers(llama, prompts_of_different_lengths(), 20))


# ---- look-ahead ----------------------------------------------------------------------------------

@pytest.mark.parametrize("lookahead", [0, 1, 4, 20])
def test_tokens_read_late_are_the_same_and_end_with_the_last_row(lookahead):
    requested, rows = [], [(5, 6), (STOP, 6), (STOP, 8), (STOP, STOP), (STOP, STOP), (STOP, STOP)]

    def tokens():
        for row in rows:
            requested.append(row)
            yield torch.tensor(row)

    found = stop_when_finished(tokens(), STOP, lookahead)
    assert tuple(next(found).tolist()) == rows[0]
    assert len(requested) == 1                          # the first one is read at once
    assert tuple(next(found).tolist()) == rows[1]
    assert len(requested) == min(2 + lookahead, len(rows))
    assert [tuple(ids.tolist()) for ids in found] == rows[2:4]
    assert len(requested) == min(4 + lookahead, len(rows))


def test_tokens_end_where_they_end_when_no_row_stops():
    tokens = [torch.tensor([i]) for i in range(6)]
    assert list(stop_when_finished(iter(tokens), STOP, 4)) == tokens
