"""Generation of many answers at once: the token loop of llama.py for batches, on any device.

It gives each row the tokens that `Llama.generate` gives it alone, and adds what serving needs:
prefixes that several rows share, rows that leave when they have ended, constraints on the next
token, and on a GPU tokens that are read back a few steps late, so that the device never waits.

A constraint follows one answer. BoxConstraint lets a box that has been opened be closed again:

    {<x1><y1><x2><y2>}    0 to 100, no leading zeros, and as GeoChat rotates it, {<..>|<degrees>}

Each box has braces of its own, also where <delim> joins several (MiniGPT-v2). Corners may come in
either order: data.parse_boxes sorts them.

Shapes: B rows, R rows that are still active, T tokens of a prompt, D width, V vocabulary.
"""
import importlib.util
import re
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llama import KVCache, Llama, hidden_states_at, sample

LOOKAHEAD = 4               # tokens that a GPU is asked for before the first of them is read
CONTROL_IDS, EOS = 3, 2     # <unk> <s> </s> have the first ids: no text, never inside a box


# ---- the token loop ------------------------------------------------------------------------------

def generate(llama: Llama, x: Tensor, lengths: Tensor, cache: KVCache, max_new_tokens: int,
             stop: int, start: int = 0, constraints: Sequence["BoxConstraint"] = (),
             **sampling) -> Iterator[Tensor]:
    """Embeddings of the prompts in, one long[B] of new ids a step out, on the CPU.

    x: float[B, T, D], right-padded; lengths: long[B], real tokens of each row; start: slots of the
    cache that hold earlier turns. A row that has generated `stop` repeats it, and the loop ends
    when all have, after max_new_tokens, or when the cache is full. constraints: one a row, or
    none; `sampling` goes to llama.sample. ValueError: the prompts do not fit the cache.
    """
    if start + x.shape[1] > cache.capacity:
        raise ValueError(f"{start + x.shape[1]} tokens do not fit the context of {cache.capacity}")
    steps = min(max_new_tokens, cache.capacity - start - x.shape[1] + 1)
    tokens = decode(llama, x, lengths, cache, steps, stop, start, constraints, **sampling)
    lookahead = 0 if constraints or x.device.type == "cpu" else LOOKAHEAD
    return stop_when_finished(tokens, stop, lookahead)


@torch.inference_mode()
def decode(llama: Llama, x: Tensor, lengths: Tensor, cache: KVCache, steps: int, stop: int,
           start: int, constraints: Sequence["BoxConstraint"], **sampling) -> Iterator[Tensor]:
    """As generate, to the last step; nothing waits for the device, unless there are constraints.

    When half of the rows have finished, which is checked now and then, the others go on alone.
    """
    B, T, _ = x.shape
    rows = torch.arange(B, device=x.device)                                   # [R], the active ones
    generated = torch.zeros(B, llama.config.vocab_size, dtype=torch.bool, device=x.device)
    finished = torch.zeros(B, dtype=torch.bool, device=x.device)              # [R]
    check_every = 1 if x.device.type == "cpu" else 4 * LOOKAHEAD              # steps
    positions = start + torch.arange(T, device=x.device).expand(B, T)
    h = hidden_states_at(llama.model, x, lengths[:, None] - 1, positions, cache=cache)
    logits = llama.lm_head(h[:, 0])                                           # [B, V]
    for step in range(steps):
        active = [constraints[row] for row in rows.tolist()] if constraints else []
        ids = sample(mask_logits(logits, active), generated, **sampling)      # [R]
        ids = ids.masked_fill(finished, stop)
        observe(active, ids, logits)
        yield lengths.new_full((B,), stop).index_copy(0, rows, ids)           # [B]
        finished = ids == stop
        if B > 1 and (step + 1) % check_every == 0 and len(rows) > 2 * (~finished).sum() > 0:
            kept = (~finished).nonzero()[:, 0]                                # [new R]
            cache.select_rows(kept, cache.capacity)
            rows, ids, finished, generated = rows[kept], ids[kept], finished[kept], generated[kept]
        generated.scatter_(1, ids[:, None], True)
        if step + 1 < steps:
            positions = (start + lengths[rows] + step)[:, None]               # [R, 1]
            logits = llama.decode_step(ids[:, None], positions, cache)        # [R, V]


def generate_batch(llama: Llama, prefix: Tensor | None, group_sizes: Sequence[int], x: Tensor,
                   lengths: Tensor, max_new_tokens: int, stop: int, **options) -> list[list[int]]:
    """The ids of each row's answer; rows of a group share a prefix, which is computed once.

    prefix: float[groups, prefix_len, D] or None; x: float[B, T, D], what follows it in each row,
    group after group; lengths: long[B], real tokens of x.
    """
    prefix_len = 0 if prefix is None else prefix.shape[1]
    cache = llama.new_cache(len(group_sizes), prefix_len + x.shape[1] + max_new_tokens)
    if prefix is not None:
        llama.model(prefix, cache=cache)
    row_to_group = [group for group, size in enumerate(group_sizes) for _ in range(size)]
    cache.select_rows(torch.tensor(row_to_group, device=x.device), cache.capacity)
    steps = generate(llama, x, lengths, cache, max_new_tokens, stop, prefix_len, **options)
    rows = torch.stack(list(steps), dim=1).tolist()                           # [B, new tokens]
    return [row[:row.index(stop)] if stop in row else row for row in rows]


def pack_if_possible(model: nn.Module, rows: int = 1) -> nn.Module:
    """The same model with its weights arranged for a CPU's fastest products, for about so many rows
    at once. The file that does it may be deleted: the model then stays as it is, and is slower."""
    if importlib.util.find_spec("support.inference.cpu_kernels") is None:
        return model
    from support.inference.cpu_kernels import pack_for_cpu
    return pack_for_cpu(model, rows)


# ---- look-ahead ----------------------------------------------------------------------------------

def stop_when_finished(tokens: Iterator[Tensor], stop: int, lookahead: int) -> Iterator[Tensor]:
    """tokens: long[B] a step, on any device -> the same on the CPU, up to where all are `stop`."""
    for ids in prefetch(tokens, lookahead):
        yield ids
        if ids.eq(stop).all():
            return


def prefetch(tokens: Iterator[Tensor], lookahead: int) -> Iterator[Tensor]:
    """The tokens of each step, when those of `lookahead` further steps have been asked for.

    The first ones are read at once: somebody waits for them, and the second step of an answer may
    have to record a CUDA graph.
    """
    copies = deque()
    for step, ids in enumerate(tokens):
        copies.append(copy_async(ids))
        if step == 0 or len(copies) > lookahead:
            yield wait_for_copy(*copies.popleft())
    yield from (wait_for_copy(*copy) for copy in copies)


def copy_async(ids: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Begin to copy them to the CPU."""
    if ids.device.type == "cpu":
        return ids, None
    copy, done = ids.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record()
    return copy, done


def wait_for_copy(ids: Tensor, done: torch.cuda.Event | None) -> Tensor:
    if done:
        done.synchronize()
    return ids


# ---- constraints ---------------------------------------------------------------------------------

BOX_TASKS = ("[refer]", "[detection]", "[grounding]")       # whose answers are boxes
BOX_NUMBER, BOX_ANGLE = r"(?:100|[1-9]?\d)", r"-?(?:0|[1-9]\d{0,2})"
WHOLE_BOX = rf"\{{(?:<{BOX_NUMBER}>){{4}}(?:\|<{BOX_ANGLE}>)?\}}"
PARTIAL_BOX = (rf"\{{(?:(?:<{BOX_NUMBER}>){{0,3}}(?:<{BOX_NUMBER}?)?"
               rf"|(?:<{BOX_NUMBER}>){{4}}(?:\|(?:<-?|<{BOX_ANGLE}>?)?)?)")     # its beginnings
BOXED_TEXT = re.compile(rf"[^{{]*(?:{WHOLE_BOX}[^{{]*)*({PARTIAL_BOX})?", re.ASCII)


def token_text(piece: str) -> str:
    """What a token adds to the text; a byte of a longer letter as the replacement character."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]).decode(errors="replace") if byte else piece.replace("▁", " ")


def unfinished_box(text: str) -> str | None:
    """The box that a text ends in the middle of, "" for none; None: it holds a malformed one."""
    match = BOXED_TEXT.fullmatch(text)
    return match and (match[1] or "")


class BoxGrammar:
    """Which tokens may follow inside a box, for the pieces of any sentencepiece vocabulary, in the
    order of their ids."""

    def __init__(self, pieces: list[str]):
        self.texts = [""] * CONTROL_IDS + [token_text(piece) for piece in pieces[CONTROL_IDS:]]
        self.opening = [i for i, text in enumerate(self.texts) if "{" in text]
        self.inner = [i for i, text in enumerate(self.texts) if text[:1] in set("<>}|-0123456789")]
        self.anything = np.full(len(pieces), True)
        self.masks: dict[str, np.ndarray] = {}

    def allowed(self, open_text: str = "") -> np.ndarray:
        """open_text: the box that has been begun, "" outside of one -> bool[V], the next ids.

        Where the vocabulary has no continuation, as one without digits, all are allowed.
        """
        state = re.sub(rf"<{BOX_NUMBER}>", "<0>", open_text)    # which numbers came is no matter
        if state not in self.masks:
            mask = np.full(len(self.texts), not state)
            for i in self.inner if state else self.opening:
                mask[i] = unfinished_box(state + self.texts[i]) is not None
            self.masks[state] = mask if mask.any() else self.anything
        return self.masks[state]


class BoxConstraint:
    """Follows one answer: which ids may come next, and what the model gave for those that came.

    Not `enabled`, it allows everything and only records.
    """

    def __init__(self, grammar: BoxGrammar, enabled: bool = True):
        self.grammar, self.enabled = grammar, enabled
        self.open_text, self.ended = "", False              # the box that has been begun
        self.texts: list[str] = []                          # of the tokens
        self.log_probs: list[float] = []                    # of the tokens

    @classmethod
    def for_question(cls, grammar: BoxGrammar, question: str) -> "BoxConstraint":
        """Enabled where the question's task is answered with boxes."""
        return cls(grammar, enabled=question.startswith(BOX_TASKS))

    def allowed(self) -> np.ndarray:
        """bool[V], the ids that may come next."""
        return self.grammar.allowed(self.open_text) if self.enabled else self.grammar.anything

    def observe(self, token: int, log_prob: float) -> None:
        """log_prob: the model's own, over all ids, whatever was allowed."""
        if self.ended:
            return
        self.ended = token == EOS
        self.texts.append(self.grammar.texts[token])
        self.log_probs.append(log_prob)
        self.open_text = unfinished_box(self.open_text + self.texts[-1]) or ""


def mask_logits(logits: Tensor, constraints: Sequence[BoxConstraint]) -> Tensor:
    """float[B, V] -> the same, -inf where a row's constraint does not allow the id."""
    if not constraints:
        return logits
    allowed = torch.stack([torch.from_numpy(c.allowed()) for c in constraints])   # [B, V]
    return logits.masked_fill(~allowed.to(logits.device), -torch.inf)


def observe(constraints: Sequence[BoxConstraint], ids: Tensor, logits: Tensor) -> None:
    """Tell each constraint its row's id, ids: long[B], and its log-probability among all ids."""
    if constraints:
        log_probs = logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]  # [B]
        for constraint, token, log_prob in zip(constraints, ids.tolist(), log_probs.tolist(),
                                               strict=True):
            constraint.observe(token, log_prob)
