"""What an evaluation is to do: which split of which benchmark, where it lies, where results go."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from formats.scoring.predictions import RunError


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


def plan(name: str, split: str, places: Sequence[str], out: Path | None,
         benchmarks: Mapping[str, Benchmark]) -> tuple[list[Job], list[str]]:
    """name: of a benchmark, "all" or ""; split: "" for what the papers report; out: for results.
    -> what to do, and of "all" the benchmarks that are not there."""
    for place in places:
        if not Path(place).exists():
            raise RunError(f"{place}: no such file or folder")
    root, absent, found = out or Path("out/eval"), [], {name: tuple(places)}
    if not name:
        return [Job("", split or "test", tuple(places), root)], []
    if name == "all":
        folders = {one: folder_of(Path(places[0]), one, benchmarks[one]) for one in benchmarks}
        found = {one: (str(path),) for one, path in folders.items() if path}
        absent = [f"{one} ({benchmarks[one].folder})" for one in benchmarks if one not in found]
    if not found:
        raise RunError(f"{places[0]}: no folder in it is called as a benchmark's: "
                       f"{', '.join(absent)}")
    pairs = [(one, part) for one in found
             for part in ([split] if split else benchmarks[one].splits)]
    return [Job(one, part, found[one], root if out and len(pairs) == 1 else root / f"{one}-{part}")
            for one, part in pairs], absent


def folder_of(root: Path, name: str, benchmark: Benchmark) -> Path | None:
    """The one that is called as the benchmark, or as it was published."""
    wanted = {plain(name), plain(benchmark.folder)}
    folders = sorted(path for path in root.glob("*") if path.is_dir())
    return next((path for path in folders if plain(path.name) in wanted), None)


def plain(name: str) -> str:
    return name.lower().replace("_", "-")
