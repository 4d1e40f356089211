"""The fact sheet beside the repository, where there is one: what the papers print."""
import re

import tiny

FACTS = tiny.ROOT.parent / "shared" / "docs" / "facts.md"


def facts_tables(start, end):
    """The Markdown tables between two headings -> [[row, ..], ..], the head first."""
    text = FACTS.read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text[text.index(start):text.index(end)], re.M)
    return [[[cell.strip(" *") for cell in line.strip().strip("|").split("|")]
             for line in block.splitlines() if not line.startswith("|-")] for block in blocks]
