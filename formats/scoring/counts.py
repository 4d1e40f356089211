"""How much the benchmarks have, as published, and whether that is what was found.

Sources: the papers and repositories of the data sets; UCM, Sydney, RSICD, RSITMD, CapERA and
DIOR-RSVG were counted in their files too. RSVQA-HR's questions for training, NWPU-Captions and
RSICD's test split are as others repeat them.
"""
from collections.abc import Iterable

from formats.scoring.papers import name_of

PUBLISHED = {
    "ucm train": {"pictures": 1680, "captions": 8400},
    "ucm val": {"pictures": 210, "captions": 1050},
    "ucm test": {"pictures": 210, "captions": 1050},
    "sydney train": {"pictures": 497, "captions": 2485},
    "sydney val": {"pictures": 58, "captions": 290},
    "sydney test": {"pictures": 58, "captions": 290},
    "rsicd train": {"pictures": 8734, "captions": 43670},
    "rsicd val": {"pictures": 1094, "captions": 5470},
    "rsicd test": {"pictures": 1093, "captions": 5465},
    "rsitmd train": {"pictures": 4291, "captions": 21455},
    "rsitmd test": {"pictures": 452, "captions": 2260},
    "nwpu train": {"pictures": 25200, "captions": 126000},
    "capera train": {"clips": 1473, "captions": 7365},
    "capera test": {"clips": 1391, "captions": 6955},
    "rsvg train": {"expressions": 5505},
    "rsvg val": {"expressions": 1201},
    "rsvg test": {"expressions": 1227},
    "dior-rsvg train": {"expressions": 26991},
    "dior-rsvg val": {"expressions": 3829},
    "dior-rsvg test": {"expressions": 7500},
    "rsvqa-lr train": {"pictures": 572, "questions": 57223},
    "rsvqa-lr val": {"pictures": 100, "questions": 10005},
    "rsvqa-lr test": {"pictures": 100, "questions": 10004},
    "rsvqa-hr train": {"questions": 625340},
    "rsvqa-hr val": {"pictures": 1028, "questions": 102843},
    "rsvqa-hr test": {"pictures": 2226, "questions": 222684},
    "rsvqa-hr test2": {"pictures": 1056, "questions": 105647},
}
UNITS = {"caption": "captions", "video": "captions", "vqa": "questions", "refer": "expressions"}


def count(rows: Iterable[dict]) -> dict[str, int]:
    """Rows of one task, as predictions.jsonl has them -> what there is of each unit."""
    found, seen = {}, set()
    for row in rows:
        seen.add(("clips" if row["task"] == "video" else "pictures", *row["image"]))
        unit, references = UNITS.get(row["task"], "rows"), len(row["references"])
        found[unit] = found.get(unit, 0) + (references if unit == "captions" else 1)
    return {unit: sum(s[0] == unit for s in seen) for unit in sorted({s[0] for s in seen})} | found


def compare(benchmark: str, split: str, found: dict[str, int]) -> str:
    """"": as published, or nothing is. A line for the report: a difference is never an error."""
    name = name_of(benchmark, split)
    wrong = [f"{n:,} {unit} published, {found[unit]:,} found" for unit, n in
             PUBLISHED.get(name, {}).items() if unit in found and found[unit] != n]
    return f"{name}: {'; '.join(wrong)}" if wrong else ""
