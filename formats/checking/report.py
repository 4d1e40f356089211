"""What was found in a data set, for people and as JSON."""
import json
from collections import Counter, defaultdict

from formats.checking.rows import FAULTS, NOTES

SHOWN = 20              # examples of each kind in the JSON, three of them on the screen


class Report:
    """Findings by kind, and what there is."""

    def __init__(self):
        self.count, self.examples = Counter(), defaultdict(list)
        self.samples, self.lengths = Counter(), Counter()
        self.pictures = 0

    def add(self, kind: str, where: str, what: str = "") -> None:
        self.count[kind] += 1
        if len(self.examples[kind]) < SHOWN:
            self.examples[kind].append(f"{where}: {what}" if what else where)

    def faults(self) -> int:
        return sum(self.count[kind] for kind in FAULTS)

    def text(self) -> str:
        lines = [f"{n:>10,}  {name}" for name, n in sorted(self.samples.items())]
        lines.append(f"{self.pictures:>10,}  pictures")
        for length, n in sorted(self.lengths.items()):
            lines.append(f"{n:>10,}  of {sum(self.lengths.values()):,} samples that were measured "
                         f"have {length} to {length + 63} tokens")
        for kind in (*FAULTS, *NOTES):
            if self.count[kind]:
                mark = "FAULT" if kind in FAULTS else "note"
                lines.append(f"{mark}: {kind}, {self.count[kind]:,}")
                lines += [f"    {example}" for example in self.examples[kind][:3]]
        return "\n".join([*lines, f"{self.faults():,} faults"])

    def json(self) -> str:
        return json.dumps({"faults": self.faults(), "samples": self.samples, "found": self.count,
                           "examples": self.examples, "tokens": self.lengths,
                           "pictures": self.pictures}, indent=1, ensure_ascii=False)
