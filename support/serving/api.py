"""OpenAI's chat completions as this model understands them: a request in, replies out.

Every field of OpenAI's is checked, and a value that is not to be had is refused, with an error
object as OpenAI's clients read it. Programs made for other servers send fields of those, too: they
have no effect, and a note says so. Pictures come as data URLs; an address or a path is never
followed. What the model adds stands in a field of its own, `skyeyegpt`: the question as the model
read it, the answer without markup, its boxes in pixels with their confidences, and notes.

Source: https://platform.openai.com/docs/api-reference/chat
"""
import math
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from data import PROMPTS, Tokenizer, encode_conversation
from projector import SkyEyeConfig
from support.common import UserError, parse_json
from support.inference.generation import BoxConstraint, BoxGrammar
from support.serving.engine import Ended, Question
from support.serving.pictures import PictureReader
from support.terminal.answers import readable_text
from support.terminal.display import describe_scale
from support.terminal.each import check_picture_count
from support.terminal.questions import (
    confidences,
    find_detections,
    sampling_for,
    task_of,
    write_question,
)
from support.terminal.session import check_line

MAX_MESSAGES, MAX_PARTS = 400, 100      # of a request; of a message
MAX_TEXT = 100_000                      # characters of all texts of a request
MAX_PICTURE = 48 << 20                  # bytes of one
MAX_ITEMS = 200_000                     # commas in a request's JSON
MAX_UNKNOWN = 8                         # names of fields in a note
MAX_STOPS, MAX_STOP = 4, 100            # texts that end an answer; characters of one
DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40};base64,")
EXTRA = "skyeyegpt"                     # the field of what other models do not have


class RequestError(Exception):
    """What is wrong with a request, and the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400, param: str | None = None,
                 code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def to_json(self) -> dict:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": str(self), "type": kind, "param": self.param,
                          "code": self.code}}


class Settings(Protocol):
    """What is used of chat.ChatConfig."""
    auto_task: bool
    free: bool
    seed: int
    max_new_tokens: int
    temperature: float | None
    top_p: float
    top_k: int
    repetition_penalty: float | None


@dataclass
class ChatRequest:
    """A request whose every field has been checked."""
    turns: list[tuple[str, str | None]]         # (question, answer) as they came, the last open
    pictures: list[str]                         # in base64
    options: dict                               # temperature, top_p, .. that it names
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    notes: list[str] = field(default_factory=list)


# ---- a request -----------------------------------------------------------------------------------

def parse_request(body: bytes, model: str) -> ChatRequest:
    """model: the name of ours. RequestError."""
    request = parse_body(body)
    options = {}
    for name, value in request.items():
        if name in FIELDS and value is not None:
            checked = FIELDS[name](name, value)
            options.update(checked or {})
    if options.pop("model", model) != model:
        raise no_such_model(model)
    if "messages" not in options:
        raise RequestError("messages: missing", param="messages")
    turns, pictures, notes = options.pop("messages")
    if unknown := sorted(set(request) - set(FIELDS)):
        more = f" and {len(unknown) - MAX_UNKNOWN} more" * (len(unknown) > MAX_UNKNOWN)
        notes.append(f"{', '.join(map(shown, unknown[:MAX_UNKNOWN]))}{more}: not a field of this "
                     "interface, without effect")
    return ChatRequest(turns, pictures, options, options.pop("stop", ()),
                       options.pop("stream", False), options.pop("include_usage", False), notes)


def parse_body(body: bytes) -> dict:
    if body.count(b",") > MAX_ITEMS:
        raise RequestError(f"the body has over {MAX_ITEMS:,} entries", 413)
    try:
        request = parse_json(body)
    except ValueError:                          # what is wrong may quote the body
        raise RequestError("the body is not JSON in UTF-8, or too deep") from None
    if not isinstance(request, dict):
        raise RequestError("the body must be a JSON object")
    return request


def shown(value: object) -> str:
    """A part of a request in an error, in letters that can be written."""
    return ascii(value)[:60]


def wrong(name: str, expected: str) -> RequestError:
    return RequestError(f"{name}: must be {expected}", param=name)


def no_such_model(own: str) -> RequestError:
    return RequestError(f"no such model; the one here is {own}", 404, "model", "model_not_found")


def number_from(low: float, high: float, kind: type = float, as_name: str = ""):
    """-> a check of a field: a number of this kind, int or float, from low to high."""
    def check(name: str, value: object) -> dict:
        is_number = isinstance(value, int if kind is int else int | float)
        if not is_number or isinstance(value, bool) or not low <= value <= high:
            whole = "a whole number" if kind is int else "a number"
            raise wrong(name, f"{whole} from {low:g} to {high:g}")
        return {as_name or name: kind(value)}
    return check


def only(*allowed: object):
    """-> a check of a field: it may be given with these values, which change nothing."""
    def check(name: str, value: object) -> dict:
        if not any(value == other and type(value) is type(other) for other in allowed):
            raise RequestError(f"{name}: only {' or '.join(map(repr, allowed))} is to be had here",
                               param=name)
        return {}
    return check


def ignored(name: str, value: object) -> dict:
    """A field about whoever asks, which no answer depends on."""
    return {}


def check_top_k(name: str, value: object) -> dict:
    """0 is all of them, and so is -1, as vLLM's clients say it."""
    return {name: max(0, number_from(-1, 1e6, int)(name, value)[name])}


def check_model(name: str, value: object) -> dict:
    if not isinstance(value, str):
        raise wrong(name, "a text")
    return {"model": value}


def check_flag(name: str, value: object) -> dict:
    if not isinstance(value, bool):
        raise wrong(name, "true or false")
    return {name: value}


def check_stream_options(name: str, value: object) -> dict:
    if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
        raise wrong(name, '{"include_usage": true}')
    return check_flag("include_usage", value.get("include_usage", False))


def check_stop(name: str, value: object) -> dict:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MAX_STOPS or not all(
            isinstance(text, str) and 0 < len(text) <= MAX_STOP for text in texts):
        raise wrong(name, f"up to {MAX_STOPS} texts of 1 to {MAX_STOP} characters")
    return {"stop": tuple(texts)}


def check_messages(name: str, value: object) -> dict:
    """-> turns, the pictures of all of them in order, and notes. Messages of the same role that
    follow each other are one."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise wrong(name, f"a list of 1 to {MAX_MESSAGES} messages")
    turns: list[tuple[str, str | None]] = []
    pictures: list[str] = []
    notes, length = [], 0
    for number, message in enumerate(value):
        place = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(place, "an object with a role and a content")
        role = message["role"]
        text, own = check_content(f"{place}.content", message.get("content"), role, len(pictures))
        length += len(text)
        if length > MAX_TEXT:
            raise RequestError(f"messages: over {MAX_TEXT:,} characters", 413, "messages")
        if role in ("system", "developer"):
            notes.append("the model was taught without system messages: they are left out")
        elif role == "user":
            if turns and turns[-1][1] is None:
                text = joined(turns.pop()[0], text)
            turns.append((text, None))
            pictures += own
        elif role == "assistant" and turns:
            question, answer = turns[-1]
            turns[-1] = (question, joined(answer or "", text))
        elif role == "assistant":
            notes.append("what the assistant says before the first question is left out")
        else:
            raise wrong(f"{place}.role", "system, user or assistant")
    if not turns or turns[-1][1] is not None:
        raise wrong(name, "a conversation that ends with a question of the user")
    if any(not question.strip() for question, _ in turns):
        raise wrong(name, "questions and answers, and no question may be blank")
    return {"messages": (turns, pictures, list(dict.fromkeys(notes)))}


def joined(*texts: str) -> str:
    """Parts of one message, a line each."""
    return "\n".join(text for text in texts if text)


def check_content(place: str, content: object, role: str, before: int) -> tuple[str, list[str]]:
    """-> the text, and the pictures of a user's message; before: pictures before this message."""
    if isinstance(content, str):
        return check_text(place, content), []
    if not isinstance(content, list) or not 0 < len(content) <= MAX_PARTS:
        raise wrong(place, f"a text, or a list of 1 to {MAX_PARTS} parts")
    texts, pictures = [], []
    for number, part in enumerate(content):
        own = f"{place}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(check_text(f"{own}.text", part.get("text")))
        elif kind == "image_url" and role == "user":
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            pictures.append(check_picture(f"{own}.image_url.url", url))
        else:
            raise wrong(own, "of type text, or in a user's message image_url")
    return joined(*texts), pictures


def check_text(place: str, text: object) -> str:
    if not isinstance(text, str):
        raise wrong(place, "a text")
    try:
        return check_line(text)
    except UserError:                           # too long; NUL; half of a character
        raise wrong(place, f"Unicode of at most {MAX_TEXT:,} characters") from None


def check_picture(place: str, url: object) -> str:
    """-> what stands behind the comma; it is decoded where the picture is not known yet."""
    head = DATA_URL.match(url[:100]) if isinstance(url, str) else None
    if not head:
        raise wrong(place, "a data URL, data:image/png;base64,..; this server fetches no address "
                    "and opens no file")
    if (len(url) - head.end()) * 3 // 4 > MAX_PICTURE:
        raise RequestError(f"{place}: over {MAX_PICTURE >> 20} MB", 413, place)
    if not url.isascii():
        raise wrong(place, "base64")
    return url[head.end():]


FIELDS = {
    "model": check_model, "messages": check_messages, "stream": check_flag,
    "stream_options": check_stream_options, "stop": check_stop,
    "max_tokens": number_from(1, 1e6, int, "max_new_tokens"),
    "max_completion_tokens": number_from(1, 1e6, int, "max_new_tokens"),
    "temperature": number_from(0, 2), "top_p": number_from(0, 1),
    "seed": number_from(-2**63, 2**63 - 1, int),
    "top_k": check_top_k, "repetition_penalty": number_from(0.01, 100),
    "n": only(1), "frequency_penalty": only(0, 0.0), "presence_penalty": only(0, 0.0),
    "logprobs": only(False), "top_logprobs": only(0), "logit_bias": only({}), "tools": only([]),
    "tool_choice": only("none", "auto"), "parallel_tool_calls": only(True, False),
    "functions": only([]), "function_call": only("none", "auto"),
    "response_format": only({"type": "text"}), "modalities": only(["text"]),
    "user": ignored, "metadata": ignored, "store": only(False), "service_tier": ignored,
    "safety_identifier": ignored, "prompt_cache_key": ignored,
}


# ---- what the model is asked ---------------------------------------------------------------------

@dataclass
class Service:
    """What answers a request: the model's own parts, without the model."""
    name: str
    model_config: SkyEyeConfig
    tokenizer: Tokenizer
    reader: PictureReader
    config: Settings

    def __post_init__(self):
        pieces = self.tokenizer.model.id_to_piece(list(range(len(self.tokenizer))))
        self.grammar = BoxGrammar(pieces)

    def prepare(self, request: ChatRequest) -> "Answer":
        """As chat.py prepares a conversation's question. RequestError."""
        style, N = self.model_config.prompt, self.model_config.visual_tokens
        side = self.model_config.vit.image_size
        try:
            check_picture_count(len(request.pictures), self.model_config)
            pictures = tuple(self.reader.read(text, f"picture {number}")
                             for number, text in enumerate(request.pictures, 1))
            size = pictures[0].size if pictures else None
            turns = [(write_question(text.strip(), size, PROMPTS[style].pad,
                                     auto_task=self.config.auto_task), answer)
                     for text, answer in request.turns]
        except UserError as error:
            raise RequestError(str(error), param="messages") from None
        question = turns[-1][0]
        ids, prefix_len, forgotten = self.fit_context(turns, len(pictures), N, style)
        own = self.sampling(question, request.options)
        constraint = BoxConstraint.for_question(self.grammar, question)
        constraint.enabled = constraint.enabled and not self.config.free
        most = min(request.options.get("max_new_tokens", self.config.max_new_tokens),
                   self.config.max_new_tokens)
        asked = Question(ids, prefix_len, pictures, constraint, own,
                         request.options.get("seed", self.config.seed) % 2**63, most,
                         self.tokenizer.eos, each_token=request.stream or bool(request.stops))
        notes = request.notes + list(dict.fromkeys(
            note for number, picture in enumerate(pictures, 1)
            for note in (picture.note and f"picture {number}: {picture.note}",
                         describe_scale(f"picture {number}", picture.size, side)) if note))
        if forgotten:
            notes.append(f"the context is full: the oldest {forgotten} questions are left out")
        return Answer(self, request, asked, question, notes)

    def fit_context(self, turns: list[tuple[str, str | None]], count: int, N: int, style: str
                    ) -> tuple[list[int], int, int]:
        """-> ids, prefix_len, and how many of the oldest turns are left out so that they fit."""
        limit = self.model_config.llama.max_positions
        reserved = min(self.config.max_new_tokens, limit // 4)
        for first in range(len(turns)):
            ids, _, prefix_len = encode_conversation(self.tokenizer, turns[first:], N, count, style)
            if len(ids) + reserved <= limit:
                break
        if len(ids) >= limit:
            raise RequestError(f"{len(ids)} tokens do not fit the context of {limit}: ask shorter",
                               param="messages", code="context_length_exceeded")
        return ids, prefix_len, first

    def sampling(self, question: str, options: dict) -> dict:
        names = ("temperature", "top_p", "top_k", "repetition_penalty")
        given = {name: options.get(name, getattr(self.config, name)) for name in names}
        return sampling_for(question, given)


# ---- an answer -----------------------------------------------------------------------------------

@dataclass
class Answer:
    """An answer that arrives, and the replies that tell of it."""
    service: Service
    request: ChatRequest
    question: Question
    asked: str                                  # as the model reads it
    notes: list[str]
    text: str = ""                              # so far, as generated
    count: int = 0                              # tokens
    reason: str = ""                            # "stop" or "length", when that is known
    ended: bool = False                         # nothing more comes

    def __post_init__(self):
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.tokens: list[int] = []
        self.sent = self.readable_sent = 0

    def take(self, event: list[int] | Ended) -> None:
        """A list of tokens, or the end. What went wrong is raised."""
        if isinstance(event, Ended):
            if event.error and not self.reason:
                raise event.error
            self.reason, self.ended = self.reason or event.reason, True
        if self.ended or self.reason:           # what was on its way when a text ended it
            return
        self.tokens += event
        self.count = len(self.tokens)
        text = self.service.tokenizer.decode(self.tokens)
        if not text.endswith("\ufffd") or not self.question.each_token:
            self.text = text.rstrip("\ufffd")
        if stop := first_stop(self.text, self.request.stops):
            self.text, self.reason = self.text[:stop[0]], "stop"
            self.question.cancel()

    def new_piece(self) -> str:
        """What has come since the last call, but for what may become a text that ends it."""
        end = len(self.text) if self.ended else safe_length(self.text, self.request.stops)
        piece = self.text[self.sent:end]
        self.sent = max(self.sent, end)
        return piece

    def new_readable(self) -> str:
        """The same without markup, as far as it is sure."""
        text, _ = readable_text(self.text[:self.sent], finished=self.ended)
        piece = text[self.readable_sent:]
        self.readable_sent = max(self.readable_sent, len(text))
        return piece

    def usage(self) -> dict:
        prompt = len(self.question.ids)
        return {"prompt_tokens": prompt, "completion_tokens": self.count,
                "total_tokens": prompt + self.count,
                "prompt_tokens_details": {"cached_tokens": self.question.cached_tokens}}

    def extra(self) -> dict:
        """The question as it was read, the text without markup, boxes, notes."""
        constraint, sizes = self.question.constraint, [p.size for p in self.question.pictures]
        scores = confidences(constraint.texts, constraint.log_probs)
        found = find_detections(self.asked, self.text, sizes,
                                PROMPTS[self.service.model_config.prompt].pad, scores)
        text, broken = readable_text(self.text)
        return {"question": self.asked, "task": task_of(self.asked), "text": text,
                "boxes": [detection.to_json(range(len(sizes))) for detection in found],
                "notes": self.notes + ["pieces of a box or a tag are left out"] * broken}

    def completion(self) -> dict:
        message = {"role": "assistant", "content": self.text, "refusal": None}
        return {"id": self.id, "object": "chat.completion", "created": self.created,
                "model": self.service.name,
                "choices": [{"index": 0, "message": message, "logprobs": None,
                             "finish_reason": self.reason}],
                "usage": self.usage(), EXTRA: self.extra()}

    def chunk(self, delta: dict, extra: dict | None = None) -> dict:
        """A part of a streamed reply."""
        reason = self.reason if not delta else None
        return {"id": self.id, "object": "chat.completion.chunk", "created": self.created,
                "model": self.service.name,
                "choices": [{"index": 0, "delta": delta, "logprobs": None,
                             "finish_reason": reason}]} | ({EXTRA: extra} if extra else {})

    def chunks(self, first: bool = False) -> Iterator[dict]:
        """What is to be sent after an event; after the last one, the end."""
        if first:
            yield self.chunk({"role": "assistant", "content": ""})
        piece = self.new_piece()
        readable = self.new_readable()
        if piece or readable:
            yield self.chunk({"content": piece}, {"text": readable})
        if self.ended:
            yield self.chunk({}, self.extra())
            if self.request.include_usage:
                yield self.chunk({}) | {"choices": [], "usage": self.usage()}


def first_stop(text: str, stops: Iterable[str]) -> tuple[int, str] | None:
    """Where the first of these texts begins, and which it is."""
    found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    return min(found) if found else None


def safe_length(text: str, stops: Sequence[str]) -> int:
    """How much of a text cannot be part of one of the `stops` that is still to come."""
    held = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:length]):
                held = length
                break
    return len(text) - held


def model_json(name: str, created: float) -> dict:
    return {"id": name, "object": "model", "created": math.floor(created), "owned_by": "skyeyegpt"}


