"""A person reads words and whole boxes; what is broken is left out and told, piece by piece too."""
import random
import time

import pytest

from support.terminal.answers import readable_pieces, readable_text

BOX = "{<1><2><30><40>}"


@pytest.mark.parametrize(("answer", "shown"), [
    ("a ship", "a ship"), (BOX, BOX), ("{<1><2><30><40>|<-5>}", "{<1><2><30><40>|<-5>}"),
    (f"<p>tennis courts</p> {BOX}<delim>{BOX}", f"tennis courts {BOX} {BOX}"),
    (f"<p>two ships</p> {BOX} in a <p>harbor</p>, {BOX}.", f"two ships {BOX} in a harbor, {BOX}."),
    ("from 3 < 5 to {\"a\": 1}", "from 3 < 5 to {\"a\": 1}"), ("a <b> c", "a <b> c"), ("", "")])
def test_words_and_whole_boxes_are_shown_without_their_tags(answer, shown):
    assert readable_text(answer) == (shown, False)


@pytest.mark.parametrize(("answer", "shown"), [
    ("a ship</p>", "a ship"), ("<p>a ship", "a ship"), ("a <38> ship", "a ship"), ("</p>", ""),
    ("a {<1><2><30>", "a"), ("a {<1><2><30><40> b", "a b"), ("{<1><2><30><400>} b", "b"),
    (f"{BOX}<delim>", BOX), ("a<delim>b", "a b"), ("a <deli", "a"), ("a {", "a"),
    ("<1><2><30><40>", "")])
def test_pieces_of_boxes_and_tags_that_fit_nowhere_are_left_out_and_told(answer, shown):
    assert readable_text(answer) == (shown, True)


def test_what_is_shown_piece_by_piece_is_what_the_whole_answer_shows():
    rng = random.Random(0)
    parts = ["<p>", "</p>", "<delim>", "{", "}", "<1>", "<38>", BOX, "ship", " ", " in ", "<", "</",
             "{<1><2>", "|<", "{<1><2><3><4>|<-5>}", "<400>", ".", "\n"]
    for _ in range(3000):
        answer = "".join(rng.choice(parts) for _ in range(rng.randint(0, 9)))
        pieces, start = [], 0
        while start < len(answer):
            end = start + rng.randint(1, 4)
            pieces.append(answer[start:end])
            start = end
        assert "".join(readable_pieces(pieces)) == readable_text(answer)[0], answer


def test_words_are_shown_at_once():
    assert list(readable_pieces(["a", " ship", " <", "p>in", " a"])) == ["a", " ship", "", " in",
                                                                         " a", ""]


def test_a_long_answer_is_shown_in_time():
    for part in ("word ", "<1>", "{", "{<1>", "<", "<p>", BOX):
        start = time.perf_counter()
        readable_text(part * 2000)
        assert time.perf_counter() - start < 5
