"""Many questions at once: one model, one thread that owns it, one batch.

A question that arrives joins the batch at the next token; one that has ended, or whose asker has
gone, leaves it. Each gets the tokens that it gets alone. Questions about the same pictures share
the pictures' keys and values, a conversation that goes on continues those it had (`PrefixStore`),
and no picture is encoded twice.

    asker's thread    submit(question) .. for tokens in question.events ..
    engine's thread   admit those that wait -> a token for each row -> let those ended go -> again

Shapes: R rows, T tokens of the longest new prompt, D width, V vocabulary.
"""
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from llama import hidden_states_at, sample
from projector import SkyEyeGPT
from support.common import is_out_of_memory
from support.inference.generation import BoxConstraint, mask_logits, observe
from support.serving.cache import Pair, PrefixStore, Slots, pairs_of, token_ids

PREFILL_TOKENS = 4096           # of prompts that are computed between two tokens of the others


class QueueFull(Exception):
    """As many wait as may; `seconds`: about how long until there is room."""

    def __init__(self, seconds: int):
        super().__init__(f"too many questions wait; try again in {seconds} s")
        self.seconds = seconds


class Closing(Exception):
    """The server ends, or the question's asker has gone; nothing more is answered."""


@dataclass
class EncodedPicture:
    """A picture as the model gets it; `tokens` once the vision encoder has seen it."""
    key: str                                    # a hash of its bytes
    size: tuple[int, int]                       # width and height of the whole picture
    image: Tensor | None                        # float[3, S, S]
    note: str = ""                              # "" or what the user should know
    tokens: Tensor | None = None                # float[N, D]


@dataclass
class Ended:
    """The last event of a question. reason: "stop" or "length", or what went wrong."""
    reason: str
    error: Exception | None = None


@dataclass(eq=False)
class Question:
    """What is asked, and where the answer's tokens arrive: lists of ids, then `Ended`."""
    ids: list[int]                              # up to the answer, -1 in an image slot
    prefix_len: int                             # ids up to the end of the pictures
    pictures: tuple[EncodedPicture, ...]
    constraint: BoxConstraint
    sampling: dict                              # temperature, top_p, top_k, repetition_penalty
    seed: int
    max_new_tokens: int
    stop: int = 2
    each_token: bool = True                     # or all of them at the end
    events: SimpleQueue = field(default_factory=SimpleQueue)
    cancelled: bool = False
    cached_tokens: int = 0                      # of the prompt, that were not computed again

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(picture.key for picture in self.pictures)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.cancelled = True


@dataclass
class Row:
    """A question in the batch."""
    question: Question
    length: int                                 # slots that are written
    room: int                                   # most tokens of the answer
    generator: torch.Generator | None           # None: the most probable token is taken
    generated: Tensor | None                    # bool[1, V], where there is a repetition penalty
    began: float
    tokens: list[int] = field(default_factory=list)


class Engine:
    """The batch and its queue. `start` begins the thread, `close` ends it."""

    def __init__(self, model: SkyEyeGPT, most_rows: int = 16, most_waiting: int = 64,
                 cache_bytes: int = 1 << 30):
        """cache_bytes: of the keys and values of the batch and of what is kept, together; one
        answer is generated however large it is."""
        self.model, self.llama = model, model.llama_model
        self.device = self.llama.lm_head.weight.device
        self.most_rows, self.most_waiting, self.cache_bytes = most_rows, most_waiting, cache_bytes
        self.slots, self.store = Slots(self.llama), PrefixStore(cache_bytes)
        self.rows: list[Row] = []
        self.logits: Tensor | None = None                                     # [R, V], of the rows
        self.waiting: deque[Question] = deque()
        self.joining: list[Question] = []               # their prompts are being computed
        self.changed = threading.Condition()            # guards all that other threads look at
        self.closing = self.ended = False
        self.seconds_per_answer = 1.0                   # of late
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # ---- called by any thread --------------------------------------------------------------------

    def start(self) -> None:
        self.thread.start()

    def submit(self, question: Question) -> None:
        """QueueFull; Closing."""
        with self.changed:
            if self.closing:
                raise Closing
            if len(self.waiting) >= self.most_waiting:
                self.waiting = deque(own for own in self.waiting if not own.cancelled)
            if len(self.waiting) >= self.most_waiting:
                raise QueueFull(self.seconds_to_wait())
            self.waiting.append(question)
            self.changed.notify_all()

    def seconds_to_wait(self) -> int:
        ahead = len(self.waiting) / self.most_rows
        return min(60, max(1, math.ceil(ahead * self.seconds_per_answer)))

    def place(self, question: Question) -> int:
        """How many are before it, itself included; 0: it is being answered, or has been."""
        with self.changed:
            return self.waiting.index(question) + 1 if question in self.waiting else 0

    def load(self) -> dict[str, int]:
        with self.changed:
            return {"answering": len(self.rows) + len(self.joining), "waiting": len(self.waiting)}

    def idle(self) -> bool:
        return not (self.rows or self.joining or self.waiting)

    def close(self, seconds: float = 0.0) -> bool:
        """Take no more questions, finish those that are there, at most for so long -> whether all
        were finished."""
        end = time.monotonic() + seconds
        with self.changed:
            self.closing = True
            self.changed.notify_all()
            finished = self.changed.wait_for(lambda: self.idle() or self.ended,
                                             max(0.0, end - time.monotonic()))
            self.ended = True
            self.changed.notify_all()
        if self.thread.is_alive():
            self.thread.join(10)
        return finished

    # ---- the engine's thread ---------------------------------------------------------------------

    @torch.inference_mode()
    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.rows or self.waiting or self.ended)
                if self.ended:
                    break
            try:
                self.admit()
                self.step()
            except Exception as error:          # one line for each asker, and it goes on
                if not is_out_of_memory(error):
                    traceback.print_exc()
                self.drop_all(error)
        self.drop_all(Closing())

    def drop_all(self, error: Exception) -> None:
        """Tell those in the batch what went wrong; those that wait too, where it is the end."""
        with self.changed:
            dropped = [row.question for row in self.rows] + self.joining
            if isinstance(error, Closing):
                dropped += self.waiting
                self.waiting.clear()
            self.rows, self.joining, self.logits = [], [], None
            self.changed.notify_all()
        self.slots.clear()
        self.store.clear()
        for question in dropped:
            question.events.put(Ended("error", error))

    def admit(self) -> None:
        """Let those that wait join, in their order, as far as rows and memory allow."""
        with self.changed:
            while self.next_fits():
                self.joining.append(self.waiting.popleft())
        if self.joining:
            rows = [self.new_row(question) for question in self.joining]
            self.prefill(rows)
            with self.changed:
                self.rows, self.joining = self.rows + rows, []

    def next_fits(self) -> bool:
        """Whether somebody waits, and there is room beside the batch and those that join it."""
        while self.waiting and self.waiting[0].cancelled:
            self.waiting.popleft().events.put(Ended("error", Closing()))
            self.changed.notify_all()
        count = len(self.rows) + len(self.joining)
        if not self.waiting or count >= self.most_rows:
            return False
        new = [*self.joining, self.waiting[0]]
        longest = max(len(question.ids) for question in new)
        size = self.slots.size_for(count + 1, max(map(self.capacity_for, new)))[2]
        fits = size <= self.cache_bytes and len(new) * longest <= PREFILL_TOKENS
        return fits or not count

    def room(self, question: Question) -> int:
        """Tokens that its answer may have: near the context's end as many as alone."""
        limit = self.llama.config.max_positions
        return min(question.max_new_tokens, limit - len(question.ids) + 1)

    def capacity_for(self, question: Question) -> int:
        return len(question.ids) + self.room(question)

    def new_row(self, question: Question) -> Row:
        own, generator, generated = question.sampling, None, None
        if own["temperature"]:
            generator = torch.Generator(self.device).manual_seed(question.seed)
        if own["repetition_penalty"] != 1:
            generated = torch.zeros(1, self.llama.config.vocab_size, dtype=torch.bool,
                                    device=self.device)
        return Row(question, len(question.ids), self.room(question), generator, generated,
                   time.monotonic())

    # ---- prompts ---------------------------------------------------------------------------------

    def prefill(self, rows: list[Row]) -> None:
        """Compute what is new of these prompts, behind the rows of the batch, and join it."""
        questions = [row.question for row in rows]
        begins = [self.store.find(question.key, question.ids) for question in questions]
        missing = [bool(question.pictures) and shared < question.prefix_len
                   for question, (_, shared) in zip(questions, begins, strict=True)]
        prefixes = self.prefixes_of([question for question, lacks in
                                     zip(questions, missing, strict=True) if lacks])
        begins = [(prefixes[question.key], question.prefix_len) if lacks else begin
                  for question, lacks, begin in zip(questions, missing, begins, strict=True)]
        first, count = len(self.rows), len(rows)
        starts = [length for _, length in begins]
        new = [token_ids(question.ids[start:], self.device)
               for question, start in zip(questions, starts, strict=True)]
        T = max(map(len, new))
        capacity = max(max(starts) + T, *map(self.capacity_for, questions))
        self.make_room(first + count, capacity)
        for number, (pair, length) in enumerate(begins):
            if length:
                self.slots.write(first + number, pair, length)
        lengths = token_ids([len(ids) for ids in new], self.device)                   # [n]
        x = self.model.embed(nn.utils.rnn.pad_sequence(new, batch_first=True), None)  # [n, T, D]
        positions = token_ids(starts, self.device)[:, None] + torch.arange(T, device=self.device)
        cache = self.slots.view(first, count, max(starts))
        h = hidden_states_at(self.llama.model, x, lengths[:, None] - 1, positions, cache=cache)
        logits = self.llama.lm_head(h[:, 0])                                          # [n, V]
        self.logits = logits if self.logits is None else torch.cat([self.logits, logits])
        for question, start in zip(questions, starts, strict=True):
            question.cached_tokens = start

    def make_room(self, rows: int, capacity: int) -> None:
        self.store.limit = max(0, self.cache_bytes - self.slots.size_for(rows, capacity)[2])
        self.store.shrink(self.store.limit)
        self.slots.reserve(rows, capacity, len(self.rows))

    def prefixes_of(self, questions: Sequence[Question]) -> dict[tuple, Pair]:
        """Keys and values of these questions' pictures, by their keys: of the ids up to the first
        question. Those of as many ids are computed together, and kept."""
        by_length: dict[int, dict[tuple, Question]] = {}
        for question in questions:
            by_length.setdefault(question.prefix_len, {})[question.key] = question
        found: dict[tuple, Pair] = {}
        for length, own in by_length.items():
            self.encode_pictures([picture for question in own.values()
                                  for picture in question.pictures])
            visual = torch.cat([picture.tokens for question in own.values()
                                for picture in question.pictures])
            ids = torch.stack([token_ids(question.ids[:length], self.device)
                               for question in own.values()])                 # [groups, prefix]
            cache = self.llama.new_cache(len(own), length)
            self.llama.model(self.model.embed(ids, visual), cache=cache)
            for (key, question), pair in zip(own.items(), pairs_of(cache), strict=True):
                found[key] = pair
                self.store.add(key, question.ids[:length], pair)
        return found

    def encode_pictures(self, pictures: Sequence[EncodedPicture]) -> None:
        new = list({id(picture): picture for picture in pictures if picture.tokens is None
                    }.values())
        if new:
            images = torch.stack([picture.image for picture in new])          # [n, 3, S, S]
            weight = self.llama.lm_head.weight
            tokens = self.model.encode_images(images.to(self.device, weight.dtype))
            for picture, own in zip(new, tokens.chunk(len(new)), strict=True):
                picture.tokens, picture.image = own.clone(), None             # [N, D]

    # ---- tokens ----------------------------------------------------------------------------------

    def step(self) -> None:
        """One more token for each row; those that have ended leave."""
        if not self.rows:
            return
        ended = {number: end for number, (row, token) in enumerate(
            zip(self.rows, self.next_ids(), strict=True)) if (end := self.take(row, token))}
        leaving = [(self.rows[number], end) for number, end in ended.items()]
        self.remove(list(ended))
        for row, end in leaving:                # told when the next one finds what it computed
            self.finish(row, end)
        if not self.rows:
            return
        last = token_ids([row.tokens[-1] for row in self.rows], self.device)[:, None]     # [R, 1]
        positions = token_ids([row.length for row in self.rows], self.device)[:, None]    # [R, 1]
        cache = self.slots.view(0, len(self.rows), max(row.length for row in self.rows))
        self.logits = self.llama.decode_step(last, positions, cache)          # [R, V]
        for row in self.rows:
            row.length += 1

    def next_ids(self) -> list[int]:
        """As llama.sample and the constraints choose for each row alone."""
        constraints = [row.question.constraint for row in self.rows]
        logits = self.logits
        if any(constraint.enabled for constraint in constraints):
            logits = mask_logits(logits, constraints)                         # [R, V]
        ids = logits.float().argmax(-1)                                       # [R]
        for number, row in enumerate(self.rows):
            if row.generator is not None or row.generated is not None:
                options = row.question.sampling | {"generator": row.generator}
                generated = row.generated
                if generated is None:
                    generated = torch.zeros_like(logits[:1], dtype=torch.bool)
                ids[number] = sample(logits[number:number + 1], generated, **options)[0]
                if row.generated is not None:
                    row.generated[0, ids[number]] = True
        observe(constraints, ids, self.logits)
        return ids.tolist()

    def take(self, row: Row, token: int) -> Ended | None:
        """Deliver a row's token -> how the row has ended, if it has."""
        question = row.question
        if question.cancelled:
            return Ended("error", Closing())
        if token == question.stop:
            return Ended("stop")
        row.tokens.append(token)
        if question.each_token:
            question.events.put([token])
        return Ended("length") if len(row.tokens) == row.room else None

    def finish(self, row: Row, ended: Ended) -> None:
        if not row.question.each_token:
            row.question.events.put(row.tokens)
        row.question.events.put(ended)
        self.seconds_per_answer += (time.monotonic() - row.began - self.seconds_per_answer) / 20

    def remove(self, numbers: Sequence[int]) -> None:
        """Keep what these rows have computed, and let the last rows take their places."""
        if not numbers:
            return
        rows = list(self.rows)
        for number in numbers:
            row = rows[number]
            ids = (row.question.ids + row.tokens)[:row.length]
            self.store.add(row.question.key, ids, self.slots.read(number, row.length))
        for number in sorted(numbers, reverse=True):
            last = len(rows) - 1
            if number != last:
                self.slots.move(last, number, rows[last].length)
                rows[number] = rows[last]
            rows.pop()
        self.logits = None                      # the next step's come for the rows that stay
        if not rows:
            self.slots.clear()
            self.store.limit = self.cache_bytes
        with self.changed:
            self.rows = rows
            self.changed.notify_all()
