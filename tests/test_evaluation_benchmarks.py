"""Benchmarks are found by their names, and their sizes compared with the published ones."""
import json
import re
from pathlib import Path

import pytest

import tiny
from facts import FACTS, facts_tables
from support.evaluation.benchmarks import (
    BENCHMARKS,
    PUBLISHED_COUNTS,
    compare_counts,
    count_rows,
    plan_jobs,
)

# ---- jobs ----------------------------------------------------------------------------------------

def test_a_job_writes_to_a_folder_of_its_own_or_to_the_given_one(tmp_path):
    for name in ("UCM-Captions", "rsvg"):
        (tmp_path / name).mkdir()
    jobs, missing = plan_jobs("all", "", [str(tmp_path)], None, "weights/nano/")
    assert [str(job.folder) for job in jobs] == [
        "out/eval/nano/ucm-test", "out/eval/nano/rsvg-val", "out/eval/nano/rsvg-test"]
    assert len(missing) == len(BENCHMARKS) - 2
    [job], _ = plan_jobs("ucm", "", [str(tmp_path)], tmp_path / "out", "weights/nano")
    assert (job.folder, job.split, job.name) == (tmp_path / "out", "test", "ucm test")
    places = [str(tmp_path / "UCM-Captions"), str(tmp_path / "a.json")]
    (tmp_path / "a.json").touch()
    [job], _ = plan_jobs("", "val", places, None, "out/stage1")
    assert job.folder == Path("out/eval/stage1/UCM-Captions+a-val")
    [job], _ = plan_jobs("", "val", places, None, "out/stage1", limit=20)
    assert job.folder == Path("out/eval/stage1/UCM-Captions+a-val-20")
    jobs, _ = plan_jobs("all", "val", [str(tmp_path)], None, "weights/nano", limit=20)
    assert [job.folder.name for job in jobs] == ["ucm-val-20", "rsvg-val-20"]
    [job], _ = plan_jobs("", "val", places, tmp_path / "out", "out/stage1", limit=20)
    assert job.folder == tmp_path / "out"


# ---- published sizes -----------------------------------------------------------------------------

def test_a_split_that_differs_from_the_published_one_is_named_and_an_equal_one_is_not():
    rows = [{"task": "vqa", "image": [f"{i % 100}.tif"], "references": ["yes"]}
            for i in range(9990)]
    found = count_rows(rows)
    assert found == {"pictures": 100, "questions": 9990}
    assert compare_counts("rsvqa-lr", "test", found) == (
        "rsvqa-lr test: 10,004 questions published, 9,990 found")
    assert compare_counts("rsvqa-lr", "test", found | {"questions": 10004}) == ""
    more = compare_counts("rsvqa-lr", "test", {"pictures": 101, "questions": 10005})
    assert more == ("rsvqa-lr test: 100 pictures published, 101 found; "
                    "10,004 questions published, 10,005 found")
    assert compare_counts("mine", "test", found) == ""
    assert "105,647" in compare_counts("rsvqa-hr", "test_phili", found)


def test_captions_clips_and_expressions_are_counted_as_such():
    rows = [{"task": "video", "image": ["a.mp4"], "references": list("abc")},
            {"task": "video", "image": ["b.mp4"], "references": list("ab")}]
    assert count_rows(rows) == {"clips": 2, "captions": 5}
    rows = [{"task": "refer", "image": ["a.jpg"], "references": ["x"]}] * 3
    assert count_rows(rows) == {"pictures": 1, "expressions": 3}


TEXTS = tiny.DATA / "captions_text.json"


@pytest.mark.skipif(not TEXTS.exists(), reason="needs the data beside the repository")
def test_the_published_counts_are_those_of_the_files():
    compared = 0
    for name, splits in json.loads(TEXTS.read_text()).items():
        for split, pictures in splits.items():
            wanted = PUBLISHED_COUNTS.get(f"{name} {split}")
            if wanted:
                assert list(wanted.values()) == [len(pictures), sum(map(len, pictures.values()))]
                compared += 1
    assert compared == 12


@pytest.mark.skipif(not FACTS.exists(), reason="needs the documents beside the repository")
def test_the_published_counts_are_those_of_the_fact_sheet():
    [table] = facts_tables("### 6.3", "## 7.")
    published = {name.lower(): [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d", text)]
            for name, text, *_ in table}
    spelled = {"ucm": "ucm-captions", "sydney": "sydney-captions", "nwpu": "nwpu-captions"}
    counted_here = {1050, 290, 5470, 5465, 6955, 4291, 452, 58}    # not in the sheet
    for name, units in PUBLISHED_COUNTS.items():
        benchmark = name.split()[0]
        assert set(units.values()) <= {*published[spelled.get(benchmark, benchmark)], *counted_here}
