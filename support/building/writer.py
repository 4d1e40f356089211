"""Descriptions and dialogues written by a model behind a server, checked against annotations.

The model is shown a picture and its annotations as facts, and asked for JSON: one description and a
dialogue, both with boxes. What comes back is taken only if it has that form and says nothing that
the annotations contradict or leave open (see claims.py). Each answer, good or bad, is kept in a
JSON Lines file by the hash of its request before anything is made of it: a run that is ended in any
way goes on where it was and asks nothing twice.

    {"request": hash, "model": .., "image": .., "answer": {"content": .., "finish_reason": .., ..}}
"""
import base64
import hashlib
import io
import json
import os
import queue
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from support.building.claims import check_description, check_turn, place_of
from support.building.completions import Client, NoAnswer, Stopped
from support.building.passages import ONE_BOX, Facts, Truth, Wrong, make_thing, wrong
from support.common import (
    UserError,
    hash_file,
    lock_file,
    parse_json,
    printable,
    require_regular_file,
    without_surrogates,
)
from support.images.read import read_picture
from support.readers.common import class_name


@dataclass(frozen=True)
class WriterSettings:
    """url, model: as the server wants them. options: more fields of each request, such as
    {"temperature": 0.2}. The key of the server is read from the environment, see completions.py."""
    url: str
    model: str
    parallel: int = 4               # requests at once
    timeout: float = 120            # seconds for an answer
    tries: int = 6                  # requests until a question is given up
    first_wait: float = 1           # seconds after the first of them, then twice as many each time
    max_wait: float = 60            # seconds at most, of a Retry-After too
    stop_seconds: float = 30        # in which a run that is stopped waits for answers under way
    longest_side: int = 1024        # pixels of the picture as it is shown
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What is written about one picture, with boxes as text; or why nothing is taken."""
    image: str
    description: str = ""
    turns: tuple[tuple[str, str], ...] = ()         # (question, answer) of the dialogue
    reason: str = ""                                # `kind: why`, such as `wrong count: ..`; or ""


# ---- what is asked -------------------------------------------------------------------------------

MAX_LISTED = 40         # objects of a class whose boxes are told
MIN_TURNS, MAX_TURNS = 2, 8
MAX_LETTERS = {"description": 4000, "question": 500, "answer": 1500}

INSTRUCTIONS = f"""\
You write training texts for a model that answers questions about aerial and satellite pictures.
You see one picture, and you are given facts about it that people have verified. Reply with one
JSON object and nothing else:

{{"description": "...", "dialogue": [{{"question": "...", "answer": "..."}}, ...]}}

description: 4 to 8 sentences in plain English. First the scene as a whole, then the objects, with
what you see of them (color, shape, surroundings, how they are arranged).
dialogue: {MIN_TURNS + 1} to {MAX_TURNS - 2} turns about the same picture. Each question builds on
the turns before it, none repeats one or asks what has been said. At least one asks for a reason
(what the place is used for, why things are where they are) and its answer names what in the picture
shows it.

Every reply is checked against the facts by a program, and one wrong statement discards all of it:
1. An object of the list that you point out is written with its box, copied exactly:
   <p>the ship</p> {{<10><20><30><40>}}, several of one class as
   <p>two ships</p> {{<10><20><30><40>}}<delim>{{<50><20><60><40>}}. No other boxes.
2. Call the listed classes by their names. Do not mention a class that is said to be missing, except
   to say that there is none of it.
3. Numbers only for how many there are of a listed class, and only all of them; or, within <p></p>,
   as many as have boxes. No other numbers: no sizes, distances, shares, lanes or rows.
4. Places (upper left, center, leftmost, largest, near) only of what has its box in the same
   sentence. "Left of", "right of", "above", "below" only from one box to another. No "between",
   "around", "behind" or "closest" of boxes, no foreground, no north or south.
5. Questions may hold a box. An answer to "how many" holds the number."""


def facts_text(facts: Facts, truth: Truth) -> str:
    """The annotations of a picture, as the model is told them."""
    lines = [f"Scene: {class_name(facts.scene)}"] if facts.scene else []
    if truth.things:
        lines.append("Objects: the count of each class, then box {<left><top><right><bottom>} in "
                     "hundredths of the picture's width and height, and place")
    for name, total in truth.count.items():
        lines.append(f"{name}: {total}")
        things = [thing for thing in truth.things if thing.name == name]
        lines += [f"  {thing.text} {place_of(thing.x, thing.y)}" for thing in things[:MAX_LISTED]]
        if total > MAX_LISTED:
            lines.append(f"  .. and {total - MAX_LISTED} more, whose boxes are not listed")
    if not truth.things:
        lines.append("No boxes are known of this picture: write without boxes, numbers and places.")
    missing = sorted(truth.absent - truth.told_names)
    if missing:
        lines.append(f"Missing from the picture: {', '.join(missing)}")
    lines.append(f"Not looked for, do not mention: {', '.join(sorted(truth.unknown))}")
    if facts.captions:
        lines.append("Captions by people:")
        lines += [f"- {' '.join(text.split())}" for text in facts.captions]
    return without_surrogates("\n".join(lines))


def messages(text: str, picture: str) -> list[dict]:
    """Of one request. picture: a data URL; or a hash in its place."""
    return [{"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": [{"type": "text", "text": text},
                                         {"type": "image_url", "image_url": {"url": picture}}]}]


def request_hash(settings: WriterSettings, text: str, picture_hash: str) -> str:
    """Of all that an answer depends on: the same on another machine or at another URL."""
    request = {**settings.options, "model": settings.model,
               "messages": messages(text, f"{picture_hash} {settings.longest_side}")}
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def data_url(path: str, longest_side: int) -> str:
    """The picture as a JPEG, reduced to this many pixels. PictureError: it cannot be read."""
    image = read_picture(path, most=4 * longest_side ** 2).image
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# ---- what is taken -------------------------------------------------------------------------------

def check_answer(facts: Facts, truth: Truth, answer: dict) -> Written:
    """Written without a reason. Wrong: the answer is not taken."""
    if answer["refusal"] or answer["finish_reason"] == "content_filter":
        raise wrong("refused", answer["refusal"] or "by the server's filter")
    if answer["finish_reason"] == "length":
        raise wrong("cut off", "at the server's limit of tokens")
    description, turns = read_reply(answer["content"])
    check_description(truth, description)
    for question, reply in turns:
        check_turn(truth, question, reply)
    return Written(facts.image, description, turns)


def read_reply(content: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """-> description and turns. Wrong: it is not the JSON that was asked for.

    It may stand between ``` and ```, as models like to write JSON.
    """
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", content.strip(), re.DOTALL)
    try:
        reply = parse_json(fenced[1] if fenced else content)
    except ValueError as error:
        raise wrong("not JSON", f"{error}: {content[:80]!r}") from None
    require_form(isinstance(reply, dict) and set(reply) == {"description", "dialogue"},
                 "not an object of description and dialogue")
    rows = reply["dialogue"]
    require_form(isinstance(rows, list) and MIN_TURNS <= len(rows) <= MAX_TURNS,
                 f"the dialogue has not {MIN_TURNS} to {MAX_TURNS} turns")
    require_form(all(isinstance(row, dict) and set(row) == {"question", "answer"} for row in rows),
                 "a turn is not an object of question and answer")
    description = require_line(reply["description"], "description")
    turns = tuple((require_line(row["question"], "question"), require_line(row["answer"], "answer"))
                  for row in rows)
    require_form(len({question.lower() for question, _ in turns}) == len(turns),
                 "a question twice")
    return description, turns


def require_form(holds: bool, fault: str) -> None:
    if not holds:
        raise wrong("wrong form", fault)


def require_line(value: object, name: str) -> str:
    require_form(isinstance(value, str), f"{name} is no text")
    require_form(0 < len(value.strip()) <= MAX_LETTERS[name],
                 f"{name} is empty or has over {MAX_LETTERS[name]} letters")
    return value.strip()


def without_boxes(text: str) -> str:
    """<p>two ships</p> {..}<delim>{..} -> two ships."""
    return re.sub(rf"</?p>| ?(?:<delim>)? ?{ONE_BOX}", "", text)


def as_samples(written: Written, facts: Facts) -> list[dict]:
    """The fields of Samples, source excepted: the description with boxes and without, and the
    dialogue with boxes; none of what was not taken. Boxes become <bbox> and the objects' pixels."""
    if written.reason:
        return []
    things = [make_thing(number, class_name(name), box, facts.size)
              for number, (name, box) in enumerate(facts.objects)]
    pixels = {thing.text: thing.box for thing in things}

    def sample(task: str, turns: Iterable[tuple[str, str]]) -> dict:
        turns = tuple(turns)
        boxes = re.findall(ONE_BOX, " ".join(f"{asked} {answered}" for asked, answered in turns))
        marked = tuple((re.sub(ONE_BOX, "<bbox>", asked), re.sub(ONE_BOX, "<bbox>", answered))
                       for asked, answered in turns)
        return {"images": [facts.image], "task": task, "kind": "", "turns": marked,
                "boxes": tuple(pixels[box] for box in boxes)}

    plain = without_boxes(written.description)
    samples = [sample("conversation", [("Describe this image in detail.", plain)]),
               sample("conversation", written.turns)]
    if plain != written.description:
        samples.insert(0, sample("grounding", [("describe this image in detail",
                                                written.description)]))
    return samples


# ---- what is kept --------------------------------------------------------------------------------

class KeptAnswers:
    """`with KeptAnswers(file) as kept:` the answers of all runs, by the hash of their requests.

    In memory is where each one lies, 100 bytes for each. UserError: another run writes to the file,
    a line of it is damaged, or the disk is full. A last line that is cut off is removed.
    """

    def __init__(self, file: Path):
        self.file, self.descriptor, self.size = Path(file), -1, 0
        self.places: dict[bytes, tuple[int, int]] = {}          # hash -> start and length
        self.asking: set[str] = set()                           # requests that are under way
        self.changed = threading.Condition()

    def __enter__(self) -> "KeptAnswers":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            require_regular_file(self.file)
        self.descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            lock_file(self.descriptor, self.file, "folder")
            self.read_places()
        except BaseException:
            os.close(self.descriptor)
            raise
        return self

    def __exit__(self, *_) -> None:
        with self.changed:
            os.close(self.descriptor)
            self.descriptor = -1

    def read_places(self) -> None:
        with open(self.file, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    print(f"{printable(self.file)}: the last line is cut off, as a run was ended "
                          "while it wrote; removed", file=sys.stderr)
                    os.ftruncate(self.descriptor, self.size)
                    break
                try:
                    key = bytes.fromhex(parse_json(line)["request"])
                except (ValueError, LookupError, TypeError):
                    raise UserError(f"{self.file}:{number}: not an answer that was kept; delete "
                                    "this line") from None
                self.places[key] = self.size, len(line)
                self.size += len(line)

    def begin(self, key: str) -> dict | None:
        """The answer that is kept; or None, after which the caller asks, keeps and ends. Waits
        while another thread asks the same."""
        with self.changed:
            self.changed.wait_for(lambda: key not in self.asking)
            if place := self.places.get(bytes.fromhex(key)):
                line = os.pread(self.descriptor, place[1], place[0])
                return parse_json(line)["answer"]
            self.asking.add(key)
            return None

    def end(self, key: str) -> None:
        with self.changed:
            self.asking.discard(key)
            self.changed.notify_all()

    def keep(self, key: str, row: dict) -> None:
        """On the disk when this returns. UserError: it cannot be written."""
        line = (json.dumps({"request": key, **row}) + "\n").encode()
        with self.changed:
            if self.descriptor < 0:                     # the run has ended without this answer
                return
            try:
                if os.write(self.descriptor, line) < len(line):
                    raise OSError("the disk is full")
                os.fsync(self.descriptor)
            except OSError as error:
                os.ftruncate(self.descriptor, self.size)
                raise UserError(f"{self.file}: cannot be written ({error.strerror or error})"
                                ) from None
            self.places[bytes.fromhex(key)] = self.size, len(line)
            self.size += len(line)


# ---- the run -------------------------------------------------------------------------------------

class Slot:
    """A picture, and what will be written about it."""

    def __init__(self, facts: Facts):
        self.facts, self.done = facts, threading.Event()
        self.written: Written | None = None
        self.error: BaseException | None = None

    def wait(self) -> Written:
        self.done.wait()
        if self.error:
            raise self.error
        return self.written


class Writer:
    """Threads that take slots from a queue and fill them."""

    def __init__(self, settings: WriterSettings, client: Client, kept: KeptAnswers):
        self.settings, self.client, self.kept = settings, client, kept
        self.slots: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self.reading = threading.Lock()                 # Pillow's limits are those of the process
        self.threads = [threading.Thread(target=self.work, daemon=True)
                        for _ in range(settings.parallel)]
        for thread in self.threads:
            thread.start()

    def work(self) -> None:
        while slot := self.slots.get():
            try:
                slot.written = self.write(slot.facts)
            except BaseException as error:              # raised where the slot is waited for
                slot.error = error
            slot.done.set()

    def write(self, facts: Facts) -> Written:
        """UserError: the user can mend it. Stopped: the run ends."""
        if self.client.stopping.is_set():
            raise Stopped
        try:
            truth = Truth(facts)
        except ValueError as error:
            return Written(facts.image, reason=f"wrong facts: {printable(error, 200)}")
        try:
            require_regular_file(facts.image)
            picture_hash = hash_file(Path(facts.image))
        except (OSError, UserError) as error:
            return Written(facts.image, reason=f"picture: {printable(error, 400)}")
        text = facts_text(facts, truth)
        key = request_hash(self.settings, text, picture_hash)
        answer = self.kept.begin(key)
        if answer is None:
            try:
                answer = self.ask(facts, text)
                self.kept.keep(key, {"model": self.settings.model, "image": facts.image,
                                     "answer": answer})
            except NoAnswer as error:
                return Written(facts.image, reason=str(error))
            finally:
                self.kept.end(key)
        try:
            return check_answer(facts, truth, answer)
        except Wrong as error:
            return Written(facts.image, reason=str(error))

    def ask(self, facts: Facts, text: str) -> dict[str, str]:
        """NoAnswer: the picture cannot be read, or the server does not answer."""
        try:
            with self.reading:
                picture = data_url(facts.image, self.settings.longest_side)
        except UserError as error:
            raise NoAnswer(f"picture: {error}") from None
        body = {**self.settings.options, "model": self.settings.model,
                "messages": messages(text, picture)}
        return self.client.ask(json.dumps(body).encode())

    def stop(self, at_once: bool) -> None:
        """at_once: with requests under way, which get some seconds to be answered and kept."""
        self.client.stopping.set()
        for _ in self.threads:
            self.slots.put(None)
        try:
            if at_once and self.client.sockets:
                print(f"waiting for {len(self.client.sockets)} answers under way, at most "
                      f"{self.settings.stop_seconds:g} s; once more to quit", file=sys.stderr)
            end = time.monotonic() + self.settings.stop_seconds
            for thread in self.threads:
                thread.join(max(0, end - time.monotonic()))
        finally:
            self.client.cut_off()


def write_dialogues(pictures: Iterable[Facts], settings: WriterSettings, kept: Path
                    ) -> Iterator[Written]:
    """What the server's model writes about each picture, in the order of the pictures.

    kept: the JSON Lines file of the answers. Pictures are taken from the iterator as they are
    needed. When the iterator that this returns is closed, or Ctrl-C ends it, no further request is
    sent, and answers under way are waited for and kept. UserError: the URL, the key, the model or
    the file is wrong; what the server does to single requests is a reason in Written.
    """
    if not settings.model:
        raise UserError("--writer_model: name the model that the server is to use")
    client = Client(settings.url, settings.timeout, settings.tries, settings.first_wait,
                    settings.max_wait)
    return run_writer(pictures, settings, client, kept)


def run_writer(pictures: Iterable[Facts], settings: WriterSettings, client: Client, kept: Path
               ) -> Iterator[Written]:
    with KeptAnswers(kept) as answers:
        writer, slots = Writer(settings, client, answers), deque()
        finished = False
        try:
            for facts in pictures:
                slots.append(Slot(facts))
                writer.slots.put(slots[-1])
                if len(slots) > 8 * settings.parallel:
                    yield slots.popleft().wait()
            while slots:
                yield slots.popleft().wait()
            finished = True
        finally:
            writer.stop(at_once=not finished)
