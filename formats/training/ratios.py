"""--ratio: how much of each data set an epoch has."""
import math
from collections.abc import Sequence
from pathlib import PurePath

from formats.training.flags import FlagError


def parse_ratios(given: Sequence[str], places: Sequence[str]) -> tuple[float, ...]:
    """NAME=NUMBER of some data sets, 1 for the others, or the numbers of all in their order
    -> a ratio for each of `places`, () where none is given. Raises FlagError.

    NAME is an entry of `places`, or its last part without .json or .jsonl.
    """
    pairs = [text.rpartition("=") for text in given if "=" in text]
    if pairs and len(pairs) < len(given):
        raise FlagError(f"--ratio {' '.join(given)}: numbers alone or NAME=NUMBER alone")
    if given and not pairs and len(given) != len(places):
        raise FlagError(f"--ratio has {len(given)} numbers for {len(places)} data sets")
    ratios = [1.0] * len(places) if pairs else [number(text) for text in given]
    named: dict[int, str] = {}
    for name, _, value in pairs:
        place = find(name, places)
        if place in named:
            raise FlagError(f"--ratio {named[place]} and {name}: the same data set")
        named[place], ratios[place] = name, number(value)
    if given and not any(ratios):
        raise FlagError(f"--ratio {' '.join(given)}: nothing is left to learn")
    return tuple(ratios)


def find(name: str, places: Sequence[str]) -> int:
    """The number of the one data set that the name fits."""
    names = [short(place) for place in places]
    fits = ([i for i, place in enumerate(places) if place == name]
            or [i for i, own in enumerate(names) if own == name])
    if not fits:
        raise FlagError(f"--ratio {name}: no such data set; there are {', '.join(names)}")
    if len(fits) > 1:
        raise FlagError(f"--ratio {name}: fits {' and '.join(places[i] for i in fits)}; give one "
                        "of them as it stands in --data")
    return fits[0]


def short(place: str) -> str:
    path = PurePath(place)
    return path.stem if path.suffix in (".json", ".jsonl") else path.name


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise FlagError(f"--ratio {text}: not a number from 0 up")
    return value
