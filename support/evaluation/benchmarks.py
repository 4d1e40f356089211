"""The benchmarks: what each scores, which splits are evaluated, and how large they were published.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.common import UserError


@dataclass(frozen=True)
class Benchmark:
    task: str                       # the one that is scored
    splits: tuple[str, ...]         # those that the papers report
    folder: str                     # its folder below ROOT, for --benchmark all
    types: tuple[str, ...] = ()     # question types that the papers average; empty: all


BENCHMARKS = {
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


# ---- jobs ----------------------------------------------------------------------------------------

DEFAULT_OUTPUT = Path("out/eval")


@dataclass(frozen=True)
class Job:
    """One split of one benchmark to evaluate."""
    benchmark: str                  # "": none, every task of the data is scored
    split: str
    places: tuple[str, ...]         # folders or files of data
    folder: Path                    # for results

    @property
    def name(self) -> str:
        return f"{self.benchmark or ' '.join(self.places)} {self.split}"


def plan_jobs(name: str, split: str, places: Sequence[str], out: Path | None, model: str,
              limit: int = 0) -> tuple[list[Job], list[str]]:
    """-> the jobs, and for "all" the benchmarks whose folders are missing. UserError.

    name: a benchmark, "all" or "". split: "" for those that the papers report. out: folder for
    results; None: out/eval/MODEL/DATA-SPLIT, by the names of the model's folder and the data, with
    -LIMIT behind it where there is a limit, whose answers are none of the whole split.
    """
    part = f"-{limit}" if limit and not out else ""
    root = out or DEFAULT_OUTPUT / Path(model).resolve().name
    for place in places:
        if not Path(place).exists():
            raise UserError(f"{place}: no such file or folder")
    if not name:
        data = "+".join(Path(place).resolve().stem for place in places)
        folder = out or root / f"{data}-{split or 'test'}{part}"
        return [Job("", split or "test", tuple(places), folder)], []
    found, missing = {name: tuple(places)}, []
    if name == "all":
        found, missing = find_benchmarks(Path(places[0]))
    pairs = [(benchmark, own_split) for benchmark in found
             for own_split in ([split] if split else BENCHMARKS[benchmark].splits)]
    jobs = []
    for benchmark, own_split in pairs:
        folder = root / f"{benchmark}-{own_split}{part}"
        if out and len(pairs) == 1:
            folder = out
        jobs.append(Job(benchmark, own_split, found[benchmark], folder))
    return jobs, missing


def find_benchmarks(root: Path) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """-> {benchmark: its folder below root}, and those that are missing. UserError: all are."""
    found, missing = {}, []
    for name, benchmark in BENCHMARKS.items():
        folder = benchmark_folder(root, name, benchmark)
        if folder:
            found[name] = (str(folder),)
        else:
            missing.append(f"{name} ({benchmark.folder})")
    if not found:
        raise UserError(f"{root}: no folder in it has a benchmark's name: {', '.join(missing)}")
    return found, missing


def benchmark_folder(root: Path, name: str, benchmark: Benchmark) -> Path | None:
    """The folder named as the benchmark or as it was published, in any case, with - or _."""
    wanted = {folder_key(name), folder_key(benchmark.folder)}
    folders = sorted(path for path in root.glob("*") if path.is_dir())
    return next((path for path in folders if folder_key(path.name) in wanted), None)


def folder_key(name: str) -> str:
    return name.lower().replace("_", "-")


# ---- published sizes -----------------------------------------------------------------------------

# Sources: the papers and repositories of the data sets; UCM, Sydney, RSICD, RSITMD, CapERA and
# DIOR-RSVG were counted in their files too. The numbers of RSVQA-HR's training questions, of
# NWPU-Captions and of RSICD's test split are as later papers repeat them.
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

COUNT_UNITS = {"caption": "captions", "video": "captions", "vqa": "questions",
               "refer": "expressions"}
SPLIT_ALIASES = {"test_phili": "test2"}        # RSVQA-HR: Philadelphia, the papers' test set 2


def count_rows(rows: Iterable[dict]) -> dict[str, int]:
    """Rows of one task, as in predictions.jsonl -> the number of each unit in them."""
    counts: dict[str, int] = {}
    images: dict[str, set] = {"clips": set(), "pictures": set()}
    for row in rows:
        images["clips" if row["task"] == "video" else "pictures"].add(tuple(row["image"]))
        unit = COUNT_UNITS.get(row["task"], "rows")
        number = len(row["references"]) if unit == "captions" else 1
        counts[unit] = counts.get(unit, 0) + number
    return {unit: len(own) for unit, own in images.items() if own} | counts


def compare_counts(benchmark: str, split: str, found: dict[str, int]) -> str:
    """A line for the report on what differs from the published numbers; "" where nothing does.

    A difference is not an error: people evaluate on parts.
    """
    key = published_key(benchmark, split)
    differing = [f"{number:,} {unit} published, {found[unit]:,} found"
                 for unit, number in PUBLISHED_COUNTS.get(key, {}).items()
                 if unit in found and found[unit] != number]
    return f"{key}: {'; '.join(differing)}" if differing else ""


def published_key(benchmark: str, split: str) -> str:
    """The key of a split in PUBLISHED_COUNTS and in papers.json."""
    return f"{benchmark} {SPLIT_ALIASES.get(split, split)}"
