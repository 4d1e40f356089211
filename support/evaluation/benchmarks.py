"""support/evaluation/benchmarks.py"""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.common import UserError

# ---- jobs ----------------------------------------------------------------------------------------
# What an evaluation is to do: which split of which benchmark, where it lies, where results go.

@dataclass(frozen=True)
class Benchmark:
    task: str                       # the one that is scored
    splits: tuple[str, ...]         # those that the papers report
    folder: str                     # in ROOT, for --benchmark all; any case, - or _
    types: tuple[str, ...] = ()     # of questions that the papers average; none: all


@dataclass(frozen=True)
class Job:
    benchmark: str                  # "": none, every task of the data is scored
    split: str
    places: tuple[str, ...]
    folder: Path                    # for results

    @property
    def name(self) -> str:
        return f"{self.benchmark or ' '.join(self.places)} {self.split}"


def plan_jobs(name: str, split: str, places: Sequence[str], out: Path | None,
         benchmarks: Mapping[str, Benchmark]) -> tuple[list[Job], list[str]]:
    """name: of a benchmark, "all" or ""; split: "" for what the papers report; out: for results.
    -> what to do, and of "all" the benchmarks that are not there."""
    for place in places:
        if not Path(place).exists():
            raise UserError(f"{place}: no such file or folder")
    root, absent, found = out or Path("out/eval"), [], {name: tuple(places)}
    if not name:
        return [Job("", split or "test", tuple(places), root)], []
    if name == "all":
        folders = {one: benchmark_folder(Path(places[0]), one, benchmarks[one]) for one in benchmarks}
        found = {one: (str(path),) for one, path in folders.items() if path}
        absent = [f"{one} ({benchmarks[one].folder})" for one in benchmarks if one not in found]
    if not found:
        raise UserError(f"{places[0]}: no folder in it is called as a benchmark's: "
                       f"{', '.join(absent)}")
    pairs = [(one, part) for one in found
             for part in ([split] if split else benchmarks[one].splits)]
    return [Job(one, part, found[one], root if out and len(pairs) == 1 else root / f"{one}-{part}")
            for one, part in pairs], absent


def benchmark_folder(root: Path, name: str, benchmark: Benchmark) -> Path | None:
    """The one that is called as the benchmark, or as it was published."""
    wanted = {folder_key(name), folder_key(benchmark.folder)}
    folders = sorted(path for path in root.glob("*") if path.is_dir())
    return next((path for path in folders if folder_key(path.name) in wanted), None)


def folder_key(name: str) -> str:
    return name.lower().replace("_", "-")


# ---- counts --------------------------------------------------------------------------------------
# How much the benchmarks have, as published, and whether that is what was found.
#
# Sources: the papers and repositories of the data sets; UCM, Sydney, RSICD, RSITMD, CapERA and
# DIOR-RSVG were counted in their files too. RSVQA-HR's questions for training, NWPU-Captions and
# RSICD's test split are as others repeat them.

PUBLISHED_COUNTS = {
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


COUNT_UNITS = {"caption": "captions", "video": "captions", "vqa": "questions", "refer": "expressions"}


def count_rows(rows: Iterable[dict]) -> dict[str, int]:
    """Rows of one task, as predictions.jsonl has them -> what there is of each unit."""
    found, seen = {}, set()
    for row in rows:
        seen.add(("clips" if row["task"] == "video" else "pictures", *row["image"]))
        unit, references = COUNT_UNITS.get(row["task"], "rows"), len(row["references"])
        found[unit] = found.get(unit, 0) + (references if unit == "captions" else 1)
    return {unit: sum(s[0] == unit for s in seen) for unit in sorted({s[0] for s in seen})} | found


def compare_counts(benchmark: str, split: str, found: dict[str, int]) -> str:
    """"": as published, or nothing is. A line for the report: a difference is never an error."""
    name = table_name(benchmark, split)
    wrong = [f"{n:,} {unit} published, {found[unit]:,} found" for unit, n in
             PUBLISHED_COUNTS.get(name, {}).items() if unit in found and found[unit] != n]
    return f"{name}: {'; '.join(wrong)}" if wrong else ""


# ---- papers --------------------------------------------------------------------------------------

SPLIT_ALIASES = {"test_phili": "test2"}        # RSVQA-HR: Philadelphia, the papers' test set 2


def table_name(benchmark: str, split: str) -> str:
    return f"{benchmark} {SPLIT_ALIASES.get(split, split)}"


# ---- eval ----------------------------------------------------------------------------------------

BENCHMARKS = {      # name: task, the papers' splits, its folder in ROOT, the types they average
    "ucm":       Benchmark("caption", ("test",), "UCM_captions"),
    "sydney":    Benchmark("caption", ("test",), "Sydney_captions"),
    "rsicd":     Benchmark("caption", ("test",), "RSICD"),
    "nwpu":      Benchmark("caption", ("test",), "NWPU-Captions"),
    "rsitmd":    Benchmark("caption", ("test",), "RSITMD"),
    "capera":    Benchmark("video", ("test",), "CapERA"),
    "rsvqa-lr":  Benchmark("vqa", ("test",), "RSVQA_LR", ("presence", "comp", "rural_urban")),
    "rsvqa-hr":  Benchmark("vqa", ("test", "test2"), "RSVQA_HR", ("presence", "comp")),
    "rsivqa":    Benchmark("vqa", ("test",), "RSIVQA"),
    "floodnet":  Benchmark("vqa", ("test",), "FloodNet"),
    "rsvg":      Benchmark("refer", ("val", "test"), "RSVG"),
    "dior-rsvg": Benchmark("refer", ("test",), "DIOR_RSVG"),
    "rspg":      Benchmark("detection", ("test",), "SkyEye-968k"),
    "aid":       Benchmark("scene", ("test",), "AID"),
    "resisc45":  Benchmark("scene", ("test",), "NWPU-RESISC45"),
    "rsscn7":    Benchmark("scene", ("test",), "RSSCN7"),
    "ucm-scene": Benchmark("scene", ("test",), "UCMerced_LandUse"),
}
