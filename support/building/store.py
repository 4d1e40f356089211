"""What is read, on disk and in the order it is wanted: by picture, over all data sets.

A million questions about a hundred thousand pictures do not have to be in memory for that: they are
in a temporary SQLite database, which is deleted afterwards.
"""
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from support.building.clean import HELD_OUT_BITS, PictureFacts, PrintIndex, find_copies

TABLES = """
CREATE TABLE pictures (id INTEGER PRIMARY KEY, paths TEXT UNIQUE, data_set INTEGER, held TEXT,
                       content BLOB, print BLOB, width INTEGER, height INTEGER, fault TEXT,
                       same INTEGER, reason TEXT);
CREATE TABLE waiting (paths TEXT);
CREATE TABLE rows (id INTEGER PRIMARY KEY, picture INTEGER, data_set INTEGER, text TEXT);
"""
EXAMPLES = 5            # of each reason to leave something out, that are named in the manifest
SAME_SHAPE = 0.02       # how far the ratio of the sides may differ where pictures are put together


class StoredPicture(NamedTuple):
    """paths is the picture that is used; others were found to show the same."""
    paths: tuple[str, ...]
    data_set: int
    width: int
    height: int


class StoredRow(NamedTuple):
    fields: dict            # task, turns, boxes (in pixels of `picture`), kind, source
    data_set: int
    picture: StoredPicture          # that the row was written for


class Group(NamedTuple):
    """All that is known of one picture."""
    number: int
    picture: StoredPicture
    rows: list[StoredRow]


class LeftOut(NamedTuple):
    reason: str
    pictures: int           # of train
    rows: int
    examples: list[str]


class Store:
    def __init__(self, file: Path):
        self.database = sqlite3.connect(file, isolation_level=None)
        self.database.execute("PRAGMA journal_mode = OFF")
        self.database.execute("PRAGMA synchronous = OFF")
        self.database.executescript(TABLES)
        self.numbers: tuple[tuple[str, ...], int] = ((), 0)     # of the latest pictures

    def close(self) -> None:
        self.database.close()

    # ---- reading in ------------------------------------------------------------------------------

    def begin(self) -> None:
        self.database.execute("BEGIN")

    def end(self) -> None:
        self.database.execute("COMMIT")

    def picture_number(self, paths: tuple[str, ...], data_set: int) -> int:
        if self.numbers[0] != paths or not self.numbers[1]:
            text = json.dumps(paths)
            self.database.execute("INSERT OR IGNORE INTO pictures (paths, data_set) VALUES (?, ?)",
                                  (text, data_set))
            [number] = self.database.execute("SELECT id FROM pictures WHERE paths = ?",
                                             (text,)).fetchone()
            self.numbers = paths, number
        return self.numbers[1]

    def add_row(self, fields: dict, data_set: int) -> None:
        """fields: a reader's. Rows without a picture have the picture 0."""
        images = tuple(fields["images"])
        number = self.picture_number(images, data_set) if images else 0
        text = json.dumps([fields["task"], fields["turns"], fields.get("boxes") or (),
                           fields.get("kind", ""), fields["source"]])
        self.database.execute("INSERT INTO rows (picture, data_set, text) VALUES (?, ?, ?)",
                              (number, data_set, text))

    def may_hold_out(self, paths: tuple[str, ...]) -> None:
        """Remember pictures of val or test until `hold_out` or `forget` is called."""
        self.database.execute("INSERT INTO waiting (paths) VALUES (?)", (json.dumps(paths),))

    def forget(self) -> None:
        self.database.execute("DELETE FROM waiting")

    def hold_out(self, data_set: int, where: str) -> None:
        """Mark the remembered pictures as those of `where`, the split of a data set."""
        run = self.database.execute
        run("INSERT OR IGNORE INTO pictures (paths, data_set) SELECT paths, ? FROM waiting",
            (data_set,))
        run("UPDATE pictures SET held = ? WHERE held IS NULL AND paths IN (SELECT paths FROM "
            "waiting)", (where,))
        self.forget()

    # ---- pictures --------------------------------------------------------------------------------

    def pictures(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        for number, paths in self.database.cursor().execute(
                "SELECT id, paths FROM pictures ORDER BY id"):
            yield number, tuple(json.loads(paths))

    def count(self, table: str) -> int:
        return self.database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]

    def set_facts(self, facts: Iterable[tuple[int, PictureFacts]]) -> None:
        self.begin()
        for number, fact in facts:
            self.database.execute("UPDATE pictures SET content = ?, print = ?, width = ?, "
                                  "height = ?, fault = ? WHERE id = ?", (*fact, number))
        self.end()

    def leave_out(self) -> list[LeftOut]:
        """Mark the pictures of train that are broken, or the same as one that is held out."""
        run = self.database.execute
        run("CREATE INDEX by_content ON pictures (content)")
        self.begin()
        run("UPDATE pictures SET reason = 'in ' || held WHERE held IS NOT NULL")
        run("UPDATE pictures SET reason = 'cannot be read' WHERE reason IS NULL AND fault != ''")
        run("UPDATE pictures SET reason = (SELECT 'the same file is in ' || held FROM pictures p "
            "WHERE p.content = pictures.content AND p.held IS NOT NULL) WHERE reason IS NULL AND "
            "content != x'' AND EXISTS (SELECT 1 FROM pictures p WHERE p.content = "
            "pictures.content AND p.held IS NOT NULL)")
        held = run("SELECT id, print, held FROM pictures WHERE held IS NOT NULL AND print != x'' "
                   "ORDER BY id").fetchall()
        index = PrintIndex([row[1] for row in held], range(len(held)))
        for number, print_ in self.database.cursor().execute(
                "SELECT id, print FROM pictures WHERE reason IS NULL ORDER BY id").fetchall():
            owner, bits = index.nearest(print_)
            if bits <= HELD_OUT_BITS:
                run("UPDATE pictures SET reason = ? WHERE id = ?",
                    (f"a copy is in {held[owner][2]}", number))
        self.end()
        return [LeftOut(reason, pictures, rows, self.examples(reason)) for reason, pictures, rows in
                run("SELECT reason, COUNT(DISTINCT pictures.id), COUNT(*) FROM pictures JOIN rows "
                    "ON rows.picture = pictures.id WHERE reason IS NOT NULL "
                    "GROUP BY reason ORDER BY reason").fetchall()]

    def examples(self, reason: str) -> list[str]:
        """A line for some of the pictures that are left out for this reason."""
        found = self.database.execute(
            "SELECT paths, fault FROM pictures WHERE reason = ? AND id IN (SELECT picture FROM "
            "rows) ORDER BY id LIMIT ?", (reason, EXAMPLES))
        return [fault or json.loads(paths)[0] for paths, fault in found]

    def sizes(self, data_set: int) -> tuple[int, int]:
        """-> rows of train, and the pictures that they are about."""
        return self.database.execute(
            "SELECT COUNT(*), COUNT(DISTINCT NULLIF(picture, 0)) FROM rows WHERE data_set = ?",
            (data_set,)).fetchone()

    def merge_copies(self) -> Counter:
        """Give all pictures of train that show the same the number of the first of them: those with
        the same file, and copies in different data sets. In one data set, pictures that are nearly
        the same may be overlapping parts of one scene, with boxes of their own.

        -> how many have the same file as an earlier one, and how many are copies of one.
        """
        run, merged = self.database.execute, Counter()
        self.begin()
        run("UPDATE pictures SET same = id")
        run("UPDATE pictures SET same = (SELECT MIN(id) FROM pictures p WHERE p.content = "
            "pictures.content AND p.reason IS NULL) WHERE reason IS NULL")
        merged["the same file"] = run("SELECT COUNT(*) FROM pictures WHERE same != id "
                                      "AND reason IS NULL").fetchone()[0]
        own = run("SELECT id, print, width, height, data_set FROM pictures WHERE reason IS NULL "
                  "AND same = id AND print != x'' ORDER BY id").fetchall()
        first_of: dict[int, int] = {}
        for i, j in sorted(find_copies([row[1] for row in own])):
            ratios = [own[k][2] / own[k][3] for k in (i, j)]
            if (own[i][4] != own[j][4] and j not in first_of
                    and abs(ratios[0] / ratios[1] - 1) <= SAME_SHAPE):
                first_of[j] = first_of.get(i, i)
        for j, i in first_of.items():
            run("UPDATE pictures SET same = ? WHERE same = ?", (own[i][0], own[j][0]))
        merged["a copy in another size or encoding"] = len(first_of)
        self.end()
        return merged

    # ---- groups ----------------------------------------------------------------------------------

    def groups(self) -> Iterator[Group]:
        """What is known of each picture of train that stays, in the order of reading; a row without
        a picture is a group of its own."""
        empty = StoredPicture((), 0, 1, 1)
        for number, data_set, text in self.database.cursor().execute(
                "SELECT id, data_set, text FROM rows WHERE picture = 0 ORDER BY id"):
            yield Group(-number, empty, [StoredRow(row_fields(text), data_set, empty)])
        rows = self.database.cursor().execute(
            "SELECT p.same, p.id, p.paths, p.data_set, p.width, p.height, rows.data_set, rows.text "
            "FROM pictures p JOIN rows ON rows.picture = p.id WHERE p.reason IS NULL "
            "ORDER BY p.same, rows.id")
        group: Group | None = None
        for same, number, paths, owner, width, height, data_set, text in rows:
            picture = StoredPicture(tuple(json.loads(paths)), owner, width, height)
            if group is None or group.number != same:
                if group:
                    yield group
                group = Group(same, picture if number == same else self.picture(same), [])
            group.rows.append(StoredRow(row_fields(text), data_set, picture))
        if group:
            yield group

    def picture(self, number: int) -> StoredPicture:
        paths, *rest = self.database.execute(
            "SELECT paths, data_set, width, height FROM pictures WHERE id = ?",
            (number,)).fetchone()
        return StoredPicture(tuple(json.loads(paths)), *rest)

    def index_groups(self) -> None:
        self.database.execute("CREATE INDEX by_picture ON rows (picture)")
        self.database.execute("CREATE INDEX by_same ON pictures (same)")


def row_fields(text: str) -> dict:
    task, turns, boxes, kind, source = json.loads(text)
    return {"task": task, "turns": tuple(map(tuple, turns)), "boxes": tuple(map(tuple, boxes)),
            "kind": kind, "source": source}


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items each, the last one shorter."""
    chunk: list = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
