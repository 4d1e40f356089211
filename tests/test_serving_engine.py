"""The batch of chat.py --serve: each question gets what it gets alone, whatever comes and goes."""
import time

import pytest
import torch

import tiny
from data import encode_conversation, preprocess
from serving import alone, tiny_model
from support.images.read import read_picture
from support.inference.generation import BoxConstraint, BoxGrammar
from support.serving.cache import PrefixStore, shared_length
from support.serving.engine import Closing, EncodedPicture, Ended, Engine, Question, QueueFull
from support.terminal.questions import sampling_for

MODEL, TOKENIZER = tiny_model()
GRAMMAR = BoxGrammar(TOKENIZER.model.id_to_piece(list(range(len(TOKENIZER)))))
DEFAULTS = {"temperature": None, "top_p": 0.9, "top_k": 50, "repetition_penalty": None}
QUESTIONS = ("[vqa] is there a road ?", "[detection] ships", "tell me about the river and planes",
             "[refer] where is the plane ?", "hello", "[caption] briefly describe the image")


@pytest.fixture
def paths(tmp_path):
    return [tiny.picture(tmp_path / f"{i}.png", 20 + i, 30, seed=i) for i in range(4)]


def encoded(path):
    picture = read_picture(path)
    return EncodedPicture(str(path), picture.size, preprocess(picture.image, tiny.VIT.image_size))


def question(turns, paths=(), most=24, pictures=None, seed=42, **more):
    """turns: texts, the last one a question."""
    pictures = tuple(map(encoded, paths)) if pictures is None else pictures
    pairs = list(zip(turns[::2], [*turns[1::2], None], strict=True))
    ids, _, prefix_len = encode_conversation(TOKENIZER, pairs, tiny.N, len(pictures))
    sampling = sampling_for(turns[-1], DEFAULTS | more)
    return Question(ids, prefix_len, pictures, BoxConstraint.for_question(GRAMMAR, turns[-1]),
                    sampling, seed, most)


def answer(own):
    """Wait for it -> the text, and why it ended."""
    tokens = []
    while not isinstance(event := own.events.get(timeout=60), Ended):
        tokens += event
    if event.error:
        raise event.error
    return TOKENIZER.decode(tokens).rstrip("\ufffd"), event.reason


@pytest.fixture
def engine():
    own = Engine(MODEL, 5, 64)
    own.start()
    yield own
    own.close()


def run_all(engine, questions):
    for own in questions:
        engine.submit(own)
    return [answer(own)[0] for own in questions]


def test_each_answer_of_a_batch_is_the_answer_alone(engine, paths):
    asked = [(text, paths[i:i + 1 + j]) for j in range(2) for i in range(2) for text in QUESTIONS]
    asked += [(text, []) for text in QUESTIONS]
    answers = run_all(engine, [question([text], own) for text, own in asked])
    expected = [alone(MODEL, TOKENIZER, own, [text], auto_task=False)[0] for text, own in asked]
    assert answers == expected
    assert len({len(text) for text in answers}) > 5 and len(set(answers)) > 10


def test_confidences_are_those_alone(engine, paths):
    asked = [question([text], paths[:1]) for text in QUESTIONS]
    run_all(engine, asked)
    for own, text in zip(asked, QUESTIONS, strict=True):
        single = question([text], paths[:1])
        run_all(engine, [single])
        assert torch.allclose(torch.tensor(own.constraint.log_probs),
                              torch.tensor(single.constraint.log_probs), atol=1e-4)


def test_a_question_joins_others_that_are_under_way(engine, paths):
    long = question(["tell me everything"], paths[:1], most=100, temperature=0.0)
    long.stop = -1                                      # never
    engine.submit(long)
    assert long.events.get(timeout=60)
    short = [question([text], paths[:2]) for text in QUESTIONS[:4]]
    answers = run_all(engine, short)
    assert engine.load() == {"answering": 1, "waiting": 0}
    assert answers == [alone(MODEL, TOKENIZER, paths[:2], [text], auto_task=False)[0]
                       for text in QUESTIONS[:4]]
    long.cancel()


def test_equal_pictures_are_encoded_once_and_their_keys_computed_once(engine, paths, monkeypatch):
    seen, fresh = [], encoded(paths[0])
    encode = MODEL.encode_images
    monkeypatch.setattr(MODEL, "encode_images", lambda x: seen.append(len(x)) or encode(x))
    first = [question([text], pictures=(fresh,)) for text in QUESTIONS]
    run_all(engine, first)
    assert seen == [1] and fresh.image is None
    assert all(own.cached_tokens >= own.prefix_len for own in first)


def test_a_conversation_that_goes_on_computes_its_new_turn_alone(engine, paths):
    picture = (encoded(paths[0]),)
    begun = question([QUESTIONS[1]], pictures=picture)
    [said] = run_all(engine, [begun])
    again = question([QUESTIONS[1], said, QUESTIONS[0]], pictures=picture)
    [text] = run_all(engine, [again])
    assert again.cached_tokens >= len(begun.ids)
    expected, _ = alone(MODEL, TOKENIZER, paths[:1], [QUESTIONS[1], QUESTIONS[0]],
                        auto_task=False)
    assert text == expected
    other = question([QUESTIONS[1], "no", QUESTIONS[0]], pictures=picture)
    [text] = run_all(engine, [other])
    assert len(begun.ids) <= other.cached_tokens < len(other.ids) - 5
    assert text == alone(MODEL, TOKENIZER, paths[:1], [QUESTIONS[1], QUESTIONS[0]], ["no"],
                         auto_task=False)[0]


def test_without_memory_for_what_is_kept_answers_are_the_same(paths):
    engine = Engine(MODEL, 5, 64, cache_bytes=1)
    engine.start()
    asked = [(text, paths[i:i + 2]) for i in range(2) for text in QUESTIONS]
    answers = run_all(engine, [question([text], own) for text, own in asked])
    engine.close()
    assert answers == [alone(MODEL, TOKENIZER, own, [text], auto_task=False)[0]
                       for text, own in asked]
    assert engine.store.nbytes == 0


def test_kept_and_used_memory_together_stay_within_the_limit(paths):
    limit = 1_500_000
    engine, most = Engine(MODEL, 5, 64, cache_bytes=limit), 0
    choose = engine.next_ids

    def watched():
        nonlocal most
        most = max(most, engine.store.nbytes + engine.slots.nbytes)
        return choose()
    engine.next_ids = watched
    engine.start()
    asked = [question([f"{text} {i}"], paths[i % 4:i % 4 + 1]) for i in range(12)
             for text in QUESTIONS]
    for own in asked[:36]:                              # one row, so that much is kept
        run_all(engine, [own])
    run_all(engine, asked[36:])
    engine.close()
    assert limit / 2 < most <= limit


def test_an_answer_ends_where_the_context_does_as_it_does_alone(engine, paths):
    turns = [QUESTIONS[2], "many planes and a river " * 9, QUESTIONS[0]]
    own = question(turns, paths[:1], most=1000)
    own.stop = -1
    engine.submit(own)
    text, reason = answer(own)
    assert reason == "length"
    assert len(own.constraint.texts) == tiny.SKYEYE_LLAMA.max_positions - len(own.ids) + 1
    own = question([QUESTIONS[0]], paths[:1], most=3)
    own.stop = -1
    engine.submit(own)
    assert answer(own)[1] == "length" and len(own.constraint.texts) == 3


def test_samples_come_from_each_questions_own_seed(engine, paths):
    asked = [question([QUESTIONS[2]], paths[:1], seed=seed, temperature=1.3)
             for seed in (1, 2, 3, 1, 2)]
    answers = run_all(engine, asked)
    assert answers[:2] == answers[3:] and len(set(answers)) == 3
    generator = torch.Generator().manual_seed(2)
    assert answers[1] == alone(MODEL, TOKENIZER, paths[:1], [QUESTIONS[2]], auto_task=False,
                               temperature=1.3, generator=generator)[0]


def test_who_has_gone_leaves_the_batch_and_the_queue(paths):
    engine = Engine(MODEL, 2, 64)
    engine.start()
    forever = [question([QUESTIONS[2]], paths[:1], most=200) for _ in range(4)]
    for own in forever:
        own.stop = -1
        engine.submit(own)
    for own in forever[:2]:
        own.events.get(timeout=60)
    for own in forever:
        own.cancel()
    assert run_all(engine, [question([QUESTIONS[0]], paths[:1])]) == [
        alone(MODEL, TOKENIZER, paths[:1], [QUESTIONS[0]], auto_task=False)[0]]
    for own in forever:
        with pytest.raises(Closing):
            answer(own)
        assert len(own.constraint.texts) < 100
    engine.close()


def test_as_many_wait_as_may():
    engine = Engine(MODEL, 2, 3)                        # not started
    asked = [question([text]) for text in QUESTIONS]
    for own in asked[:3]:
        engine.submit(own)
    with pytest.raises(QueueFull) as full:
        engine.submit(asked[3])
    assert 1 <= full.value.seconds <= 60
    assert [engine.place(own) for own in asked[:4]] == [1, 2, 3, 0]
    engine.start()
    assert [answer(own)[1] for own in asked[:3]]
    engine.submit(asked[3])
    answer(asked[3])
    engine.close()


def test_the_end_finishes_what_is_under_way_and_takes_nothing_new(paths):
    engine = Engine(MODEL, 2, 64)
    engine.start()
    asked = [question([text], paths[:1]) for text in QUESTIONS]
    for own in asked:
        engine.submit(own)
    assert engine.close(60)
    assert [answer(own)[0] for own in asked] == [
        alone(MODEL, TOKENIZER, paths[:1], [text], auto_task=False)[0] for text in QUESTIONS]
    with pytest.raises(Closing):
        engine.submit(asked[0])


def test_a_fault_is_told_to_those_it_hits_and_the_next_is_answered(paths, monkeypatch, capsys):
    engine = Engine(MODEL, 2, 64)
    engine.start()
    decode = MODEL.llama_model.decode_step

    def broken(*_):
        raise RuntimeError("out of order")
    monkeypatch.setattr(MODEL.llama_model, "decode_step", broken)
    own = question([QUESTIONS[0]], paths[:1])
    own.stop = -1
    engine.submit(own)
    with pytest.raises(RuntimeError):
        answer(own)
    monkeypatch.setattr(MODEL.llama_model, "decode_step", decode)
    assert run_all(engine, [question([QUESTIONS[0]], paths[:1])])
    engine.close()
    assert "out of order" in capsys.readouterr().err


def test_the_store_finds_the_longest_beginning_and_forgets_the_oldest():
    pair = (torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2))
    size = 2 * pair[0].nbytes
    store = PrefixStore(3 * size)
    texts = [(1, 2, 3, 9), (1, 2, 4), (1, 5), (1, 2, 3, 4, 5)]
    for number, ids in enumerate(texts):
        store.add(("a",), ids, tuple(x + number for x in pair))
    assert store.nbytes == 3 * size and texts[0] not in store.sorted_ids[("a",)]
    found, shared = store.find(("a",), (1, 2, 3, 4, 6))
    assert shared == 4 and found[0][0, 0, 0, 0] == 3
    assert store.find(("a",), (1, 2, 4))[1] == 2        # the last one's logits are needed
    assert store.find(("b",), (1, 2, 4)) == (None, 0) and store.find(("a",), (7,)) == (None, 0)
    store.add(("a",), (1, 2, 3, 4, 5, 6), pair)         # continues one
    assert len(store.pairs) == 3 and (1, 2, 3, 4, 5) not in store.sorted_ids[("a",)]
    store.clear()
    assert store.nbytes == 0 and not store.pairs and not store.sorted_ids


def test_the_longest_beginning_is_found_among_many():
    generator = torch.Generator().manual_seed(0)
    store, pair = PrefixStore(1 << 30), (torch.zeros(1, 1, 1, 1),) * 2
    texts = {tuple(torch.randint(0, 3, (8,), generator=generator).tolist()) for _ in range(60)}
    for ids in texts:
        store.add((), ids, pair)
    for _ in range(200):
        ids = tuple(torch.randint(0, 3, (9,), generator=generator).tolist())
        assert store.find((), ids)[1] == max(shared_length(ids, other) for other in texts)


def test_rows_that_leave_give_their_places_to_others(engine, paths):
    """The lengths differ, so that rows leave from every place."""
    asked = [question([text], paths[:1], most=most) for most in (1, 9, 2, 7, 3, 12, 5)
             for text in QUESTIONS[:3]]
    answers = run_all(engine, asked)
    for own, text in zip(asked, answers, strict=True):
        single = question([QUESTIONS[asked.index(own) % 3]], paths[:1], most=own.max_new_tokens)
        assert run_all(engine, [single]) == [text]
    assert engine.slots.nbytes == 0


def test_the_thread_sleeps_while_nothing_is_asked(engine, paths):
    run_all(engine, [question([QUESTIONS[0]], paths[:1])])
    before = time.thread_time_ns(), time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before[1] < 0.1
