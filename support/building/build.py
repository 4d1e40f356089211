"""`python data.py --build OUT --data PLACES`: public data sets -> one training set.

    read        the train split of each data set into a temporary database, and the names of the
                pictures in val and test
    examine     each picture once: two hashes, its size, whether it can be read
    clean       pictures of train that are also in val or test, in any of the data sets, are left
                out; copies of one picture are put together
    build       picture by picture, by several processes: samples, descriptions, a conversation
    choose      --balance and --limit, from the counts of all rows
    write       rows, linked pictures, manifest.json, report.md; the folder appears when complete
"""
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from support.building.clean import PictureFacts, examine
from support.building.completions import parse_address, read_key
from support.building.expressions import singular
from support.building.output import LAYOUTS, report_text, write_manifest
from support.building.samples import DataSet, Plan, Rejections, build_groups
from support.building.store import EXAMPLES, Store, chunks
from support.building.writer import WriterSettings
from support.building.writing import Stratum, choose, spool_row, write_all
from support.building.written import write_about
from support.common import UserError, commit, in_range, option, parse_config
from support.images.common import parse_bands
from support.readers import (
    FORMATS,
    check_image_folder,
    find_format,
    parse_ratios,
    read_rows,
    short_name,
)
from support.readers.common import ROW_ERRORS, DataError, MissingSplit, SampleTable, describe_error

DESCRIPTION = "Build a training set from the data sets that are on disk."


@dataclass(frozen=True)
class BuildConfig:
    build: str = option("", "folder to write; it must not exist", metavar="OUT", nargs="?")
    data: tuple[str, ...] = option((), "data sets, in any layout that is read; pictures of their "
                                   "val and test splits are kept out", metavar="PLACE")
    layout: str = option("skyeye", "layout of OUT: SkyEye-968k's folder, or one LLaVA JSON",
                         choices=LAYOUTS)
    conversations: float = option(0.25, "part of the pictures that have a multi-turn conversation",
                                  type=in_range(float, 0, 1))
    turns: tuple[int, ...] = option((2, 6), "turns of a conversation, least and most",
                                    type=in_range(int, 2, 20), nargs=2, metavar=("LEAST", "MOST"))
    describe: bool = option(False, "also write descriptions of the objects and of the whole")
    writer: str = option("", "URL of a server with OpenAI's chat completions interface, whose "
                         "model writes a description and a dialogue for each picture, checked "
                         "against its annotations; the key is read from the environment variable "
                         "WRITER_API_KEY", metavar="URL")
    writer_model: str = option("", "the model that the server is to use", metavar="NAME")
    writer_parallel: int = option(4, "requests at once", type=in_range(int, 1, 64))
    balance: bool = option(False, "even out answers and classes by leaving rows out: as many yes "
                           "as no, no class over twice the median")
    ratio: tuple[str, ...] = option((), "part of the rows of a data set that is taken, NAME=NUMBER "
                                    "from 0 to 1, or a number for each")
    license: tuple[str, ...] = option((), "NAME=TEXT of a data set, for the manifest")
    copy: bool = option(False, "copy the pictures; otherwise they are hard links")
    limit: int = option(0, "write so many samples, drawn from all; 0: all",
                        type=in_range(int, 0))
    seed: int = option(42, "of every random choice")
    workers: int = option(0, "processes; 0: one for each core; the result is the same",
                          type=in_range(int, 0))
    image_folder: str = option("", "folder of the pictures that a .json or .jsonl names; empty: "
                               "the file's own", metavar="FOLDER")
    bands: tuple[int, ...] = option((), "which bands of a multispectral picture are red, green and "
                                    "blue, as in 4,3,2", type=parse_bands, nargs=None)
    tokenizer: str = option("weights/nano/tokenizer.model", "tokenizer that lengths are measured "
                            "with", is_shipped=True)
    max_tokens: int = option(1024, "longer samples are left out")
    dry_run: bool = option(False, "print the report and write nothing")


def parse_args(argv: Sequence[str] | None = None) -> BuildConfig:
    return parse_config(BuildConfig, argv, DESCRIPTION)


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code: 0 fine, 2 something is wrong with the command or the data."""
    args = parse_args(argv)
    try:
        check_settings(args)
        build(args)
    except (UserError, OSError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.py: stopped; nothing was written, but the answers to --writer are kept",
              file=sys.stderr)
        return 130
    return 0


def check_settings(args: BuildConfig) -> None:
    """UserError: what can be seen to be wrong before anything is read."""
    if not args.build:
        raise UserError("--build: name the folder to write, as in --build out/mine")
    if not args.data:
        raise UserError("--data: name the data sets to build from")
    if os.path.lexists(args.build) and not args.dry_run:
        raise UserError(f"--build {args.build}: exists; name another folder, or remove it")
    if args.turns[0] > args.turns[1]:
        raise UserError(f"--turns {args.turns[0]} {args.turns[1]}: the least is over the most")
    if max(parse_ratios(args.ratio, args.data), default=1) > 1:
        raise UserError(f"--ratio {' '.join(args.ratio)}: at most 1 here; train.py's --ratio "
                        "repeats rows")
    if args.writer:
        parse_address(args.writer)
        read_key()
    if bool(args.writer) != bool(args.writer_model):
        raise UserError("--writer URL and --writer_model NAME go together")
    if not Path(args.tokenizer).is_file():
        raise UserError(f"--tokenizer {args.tokenizer}: no such file")
    places = [os.path.realpath(place) for place in args.data]
    for place in args.data:
        if places.count(os.path.realpath(place)) > 1:
            raise UserError(f"--data {place}: named twice")
    check_image_folder(args.image_folder, args.data)
    parse_licenses(args.license, args.data)


def build(args: BuildConfig) -> None:
    """Write the folder. UserError, OSError."""
    out = Path(args.build)
    parent = Path(tempfile.gettempdir()) if args.dry_run else out.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    store = Store(folder / "rows.sqlite")
    try:
        build_in(folder, store, args)
        store.close()
        if not args.dry_run:
            (folder / "rows.sqlite").unlink()
            folder.chmod(0o777 & ~current_umask())
            folder.rename(out)
    finally:
        store.close()
        shutil.rmtree(folder, ignore_errors=True)


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def build_in(folder: Path, store: Store, args: BuildConfig) -> None:
    rejections = Rejections()
    sets = read_all(store, args, rejections)
    with Workers(args.workers) as workers:
        examine_all(store, args, workers)
        pictures = {"in all splits of the data sets": store.count("pictures")}
        for reason, count, rows, examples in store.leave_out():
            pictures[f"of train left out: {reason}"] = count
            rejections.counts[f"picture: {reason}"] = rows
            rejections.examples += [(f"picture: {reason}", example) for example in examples]
        pictures |= {f"of train put together with another: {reason}": count
                     for reason, count in store.merge_copies().items() if count}
        store.index_groups()
        plan = Plan(tuple(sets), args.layout, args.conversations, args.turns, args.describe,
                    args.seed, args.tokenizer, args.max_tokens)
        spool = folder / "rows.txt"
        found = build_all(store, plan, spool, workers, rejections)
    if args.writer and not args.dry_run:
        settings = WriterSettings(args.writer, args.writer_model, args.writer_parallel)
        kept = Path(f"{os.path.normpath(args.build)}.writer.jsonl")
        with spool.open("a", encoding="utf-8") as file:
            for row in write_about(store, plan, settings, kept, rejections):
                spool_row(file, row, found)
    chosen = choose(found, args.balance)
    counts, labels = write_all(folder, spool, found, chosen, plan, args.limit, args.copy,
                               args.dry_run)
    spool.unlink()
    count_choices(rejections, found, chosen, counts)
    if not sum(map(Counter.total, counts.values())):
        raise DataError(f"--data {' '.join(args.data)}: no samples are left; "
                        + "; ".join(f"{n:,} {reason}" for reason, n in rejections.counts.items()))
    sizes = [store.sizes(number) for number in range(len(sets))]
    manifest = make_manifest(args, sets, sizes, counts, pictures, rejections)
    report = report_text(manifest, labels)
    print(report)
    if not args.dry_run:
        write_manifest(folder, manifest)
        (folder / "report.md").write_text(report, encoding="utf-8")


# ---- processes -----------------------------------------------------------------------------------

Item, Answer = TypeVar("Item"), TypeVar("Answer")
AHEAD = 4               # chunks for each process that are under way: what is in memory at once


class Workers:
    """`with Workers(2) as workers:` functions are called in two processes, results in order."""

    def __init__(self, count: int):
        """count: 0 is one for each core; 1 works in this process."""
        self.count = count or os.cpu_count() or 1
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self.count > 1:
            self.pool = ProcessPoolExecutor(self.count)
        return self

    def __exit__(self, *_) -> None:
        if self.pool:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        """function(item) of each, items taken only a little ahead of the results."""
        if not self.pool:
            yield from map(function, items)
            return
        items, pending = iter(items), deque()
        try:
            for item in items:
                pending.append(self.pool.submit(function, item))
                if len(pending) >= AHEAD * self.count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError("--workers: a process was killed; was the memory used up?") from None


# ---- reading -------------------------------------------------------------------------------------

def read_all(store: Store, args: BuildConfig, rejections: Rejections
             ) -> list[DataSet]:
    ratios = parse_ratios(args.ratio, args.data) or (1.0,) * len(args.data)
    sets: list[DataSet] = []
    for number, (place, ratio) in enumerate(zip(args.data, ratios, strict=True)):
        own = DataSet(unique_name(place, [other.name for other in sets]), place,
                      str(Path(place) if Path(place).is_dir()
                          else Path(args.image_folder or Path(place).parent)),
                      format_of(Path(place)), ratio, {})
        store.begin()
        labels, digest = read_train(store, own, number, args, rejections)
        for split in ("val", "test", "test2") if own.format == "rsvqa" else ("val", "test"):
            hold_out_split(store, own, number, split, digest, args)
        store.end()
        sets.append(replace(own, labels=dict(sorted(labels.items()))))
    return sets


def format_of(place: Path) -> str:
    reader = find_format(place)
    return next(name for name, other in FORMATS.items() if other is reader)


def unique_name(place: str, taken: Sequence[str]) -> str:
    """RSICD; RSICD_2 where another data set has that name."""
    stem = re.sub(r"[^\w-]+", "_", short_name(os.path.normpath(place))).strip("_") or "data"
    names = [stem, *(f"{stem}_{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def read_train(store: Store, own: DataSet, number: int, args: BuildConfig, rejections: Rejections
               ) -> tuple[Counter, bytes]:
    """-> in how many pictures each class is, and a digest of all rows."""
    labels: Counter = Counter()
    digest = hashlib.sha256()
    for row in tqdm(split_rows(own, "train", args, rejections), desc=own.name, unit="row",
                    disable=None):
        store.add_row(row, number)
        digest.update(row_digest(row))
        if own.is_exhaustive and row["task"] == "detection":
            labels[singular(row["turns"][0][0])] += 1
    return labels, digest.digest()


def split_rows(own: DataSet, split: str, args: BuildConfig, rejections: Rejections | None
               ) -> Iterator[dict]:
    """The rows of a split that are right; nothing where there is no such split. DataError."""
    errors: list[str] = []
    try:
        for row in read_rows(Path(own.place), split, "", errors, args.image_folder):
            try:
                SampleTable([row])
            except ROW_ERRORS as error:
                errors.append(describe_error("", error).removeprefix(": "))
            else:
                yield row
    except MissingSplit:
        pass
    for line in errors if rejections else ():
        rejections.add("a wrong row", line)


def row_digest(row: dict) -> bytes:
    return repr((tuple(row["images"]), row["task"], row["turns"], row.get("boxes"))).encode()


def hold_out_split(store: Store, own: DataSet, number: int, split: str, digest: bytes,
                   args: BuildConfig) -> None:
    """Mark the pictures of val or test, unless this split has the same rows as train: then the data
    set has no splits."""
    found, latest = hashlib.sha256(), ()
    for row in split_rows(own, split, args, None):
        found.update(row_digest(row))
        images = tuple(row["images"])
        if images and images != latest:
            store.may_hold_out(images)
            latest = images
    if found.digest() == digest:
        store.forget()
    else:
        store.hold_out(number, f"{own.name}'s {split} split")


# ---- pictures ------------------------------------------------------------------------------------

CHUNK = 64              # pictures, or groups of rows, that a process is given at once


def examine_chunk(paths: list[tuple[str, ...]], bands: tuple[int, ...]) -> list[PictureFacts]:
    return [examine(names, bands) for names in paths]


def examine_all(store: Store, args: BuildConfig, workers: Workers) -> None:
    listed = chunks(store.pictures(), CHUNK)
    numbers: deque[list[int]] = deque()

    def paths() -> Iterator[list[tuple[str, ...]]]:
        for chunk in listed:
            numbers.append([number for number, _ in chunk])
            yield [names for _, names in chunk]

    function = partial(examine_chunk, bands=args.bands)
    with tqdm(total=store.count("pictures"), desc="pictures", unit="picture", disable=None) as bar:
        for facts in workers.map(function, paths()):
            store.set_facts(zip(numbers.popleft(), facts, strict=True))
            bar.update(len(facts))


# ---- samples -------------------------------------------------------------------------------------

def build_all(store: Store, plan: Plan, spool: Path, workers: Workers, rejections: Rejections
              ) -> dict[Stratum, Counter]:
    """Write a line for each row to `spool` -> how often each label is in each stratum."""
    found: dict[Stratum, Counter] = {}
    function = partial(build_groups, plan=plan)
    with spool.open("w", encoding="utf-8") as file, tqdm(desc="samples", unit="sample",
                                                         disable=None) as bar:
        for result in workers.map(function, chunks(store.groups(), CHUNK)):
            for row in result.rows:
                spool_row(file, row, found)
            for reason, source in result.examples:
                if sum(other == reason for other, _ in rejections.examples) < EXAMPLES:
                    rejections.examples.append((reason, source))
            rejections.counts.update(result.rejected)
            bar.update(len(result.rows))
    return found


# ---- the manifest --------------------------------------------------------------------------------

def count_choices(rejections: Rejections, found: dict[Stratum, Counter],
                  chosen: dict[Stratum, Counter], counts: dict[str, Counter]) -> None:
    """What --balance and --limit left out."""
    made, balanced, written = (sum(map(Counter.total, counters.values()))
                               for counters in (found, chosen, counts))
    rejections.counts |= Counter({"left out by --balance": made - balanced,
                                  "left out by --limit": balanced - written})


def make_manifest(args: BuildConfig, sets: Sequence[DataSet], sizes: Sequence[tuple[int, int]],
                  counts: dict[str, Counter], pictures: dict[str, int], rejections: Rejections
                  ) -> dict:
    licenses = parse_licenses(args.license, [own.place for own in sets])
    settings = {name: value for name, value in asdict(args).items()
                if name not in ("build", "workers", "dry_run", "seed")}
    return {
        "sources": [{"name": own.name, "place": own.place, "format": own.format, "rows": rows,
                     "pictures": own_pictures, "license": license}
                    for own, (rows, own_pictures), license in
                    zip(sets, sizes, licenses, strict=True)],
        "samples": {name: dict(sorted(tasks.items())) for name, tasks in counts.items()},
        "pictures": pictures,
        "rejected": {reason: {"rows": count, "examples": [
            source for other, source in rejections.examples if other == reason]}
            for reason, count in sorted(rejections.counts.items()) if count},
        "settings": settings, "seed": args.seed, "commit": commit()}


def parse_licenses(texts: Sequence[str], places: Sequence[str]) -> list[str]:
    """The values of --license -> one for each data set, "" where none is given. UserError."""
    found = dict.fromkeys(places, "")
    for text in texts:
        name, _, license = text.partition("=")
        fits = [place for place in places if name in (place, short_name(place))]
        if len(fits) != 1 or not license:
            names = ", ".join(map(short_name, places))
            raise UserError(f"--license {text}: as in NAME=TEXT, NAME one of {names}")
        found[fits[0]] = license
    return [found[place] for place in places]
