"""The conversations of a session, one for each set of pictures; the last few keep their caches."""
from collections.abc import Callable, Sequence
from pathlib import Path

from formats.talking.names import Stamp, expand, stamp

KEPT = 3        # conversations that keep their KV cache; visual tokens are kept of every picture


class Shelf:
    def __init__(self, start: Callable[[list[str]], object]):
        """start: makes the conversation about these paths."""
        self.start = start
        self.talks: dict[tuple[Stamp, ...], object] = {}        # in the order they were begun
        self.recent: list[tuple[Stamp, ...]] = []               # the one spoken with comes last

    def open(self, names: Sequence[str]):
        """The conversation about these pictures, or the one with that number; new or as it was.

        Raises what `start` raises, and then nothing has changed.
        """
        number = int(names[0]) if len(names) == 1 and names[0].isdecimal() else 0
        if 1 <= number <= len(self.talks) and not Path(names[0]).exists():
            key = list(self.talks)[number - 1]
        else:
            paths = expand(names)
            key = tuple(map(stamp, paths))
        if key not in self.talks:
            self.talks[key] = self.start(paths)
        self.recent = [other for other in self.recent if other != key] + [key]
        for other in self.recent[:-KEPT]:
            self.talks[other].rest()
        return self.talks[key]

    def listing(self) -> str:
        """All sets of pictures with their numbers; * the one spoken about."""
        lines = []
        for number, (key, talk) in enumerate(self.talks.items(), start=1):
            mark = "*" if key == self.recent[-1] else " "
            cache = f", cache {talk.bytes / 1e6:,.1f} MB" if talk.bytes else ""
            lines.append(f"{mark} {number}  {describe(talk)}; asked {len(talk.turns)}{cache}")
        return "\n".join([*lines, "  kept: the visual tokens of each picture, and the KV cache of "
                          f"the last {KEPT} conversations"])


def describe(talk) -> str:
    """examples/harbor.png 512 x 512, examples/river.png 512 x 512; a clip in one."""
    pictures = []
    for path in dict.fromkeys(talk.paths):
        own = [picture for name, picture in zip(talk.paths, talk.pictures, strict=True)
               if name == path]
        clip = f"{len(own)} pictures of " if len(own) > 1 else ""
        pictures.append(f"{clip}{path} {own[0].size[0]} x {own[0].size[1]}")
    return ", ".join(pictures) or "no picture"
