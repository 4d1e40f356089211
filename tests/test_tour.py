"""docs/tour.md: every line that it tells to type gives what stands below it, in one session; the
lines that it tells to open are there, and each chapter has what the page promises."""
import doctest
import importlib
import re

import pytest
import torch

import tiny
from test_readme import fenced_blocks

TOUR = (tiny.ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
CHAPTERS = re.split(r"^## ", TOUR, flags=re.MULTILINE)[1:]


def typed(text):
    """What is typed, and what is below it."""
    return "\n".join(block for block in fenced_blocks(text) if block.startswith(">>> "))


def test_the_tour_runs_line_by_line(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    examples = doctest.DocTestParser().get_doctest(typed(TOUR), {}, "docs/tour.md", None, 0)
    assert len(examples.examples) > 100
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report = []
    try:
        runner.run(examples, out=report.append)
    finally:
        torch.set_grad_enabled(True)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda text: text.splitlines()[0])
def test_a_chapter_has_lines_to_open_and_to_type_one_thing_to_break_and_an_exercise(chapter):
    number = chapter.split()[0]
    assert chapter.startswith(f"{number} ") and f"](#{number}-" in TOUR
    assert len(re.findall(r"^>>> ", typed(chapter), re.MULTILINE)) >= 8
    for once in ("**Break it.**", "**Exercise.**", "<details><summary>Answer</summary>"):
        assert chapter.count(once) == 1
    opened = re.search(r"^Open (.+?)\n\n", chapter, re.MULTILINE | re.DOTALL)[1]
    files = re.split(r"\[(\w+)\.py\]\(\.\./\w+\.py\)", opened)
    assert len(files) > 2
    for name, text in zip(files[1::2], files[2::2], strict=True):
        module, last = importlib.import_module(name), None
        for span in re.findall(r"`(\w+)`", text):
            last = getattr(module, span, None) or getattr(last, span)


def test_the_notes_for_readers_who_stumble_are_there():
    for note in ("Which four.", "Why k has no bias.", "Why right padding.", "Why two `<s>`.",
                 "Two layouts are in use"):
        assert note in TOUR
