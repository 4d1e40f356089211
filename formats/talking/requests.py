"""What a question asks for: its task, typed as [task] or told from plain words."""
import re
from collections.abc import Mapping

from formats.boxes import BOX
from formats.templates import IDENTIFIERS, TASKS

PICTURE = r"(?:(?:this|the) )?(?:image|picture|photo|photograph|scene|it|this)"
REQUESTS = (        # the first that fits the whole request, in lower case, without its last mark
    (rf"(?:what is|what's|describe|name)(?: it| this)?(?: (?:in|at))? ({BOX.pattern})",
     "[identify] what is it in {}"),
    (r"(?:find|detect|locate|mark|show)(?: me)? (?:all|every|each)(?: of)?(?: the)? (.+)",
     "[detection] {}"),
    (r"where are (?:all )?(?:the )?(.+)", "[detection] {}"),
    (r"(?:where is|where's|find|locate) (.+)", "[refer] where is {} ?"),
    (rf"(?:describe|summarize)(?: {PICTURE})? (?:in detail|in details|thoroughly)()",
     "[grounding] describe this image in detail"),
    (rf"(?:describe|caption|summarize)(?: {PICTURE})?(?: briefly)?()",
     "[caption] briefly describe the image"),
    (r"((?:how many|how much|is|are|do|does|which|what is|what are|what kind|what color) .+)",
     "[vqa] {} ?"),
)
# Of upstream's web demo; where a task is named always the likeliest word, as its evaluation does.
FREE, NAMED = ({"temperature": 0.6, "repetition_penalty": 1.05},
               {"temperature": 0.0, "repetition_penalty": 1.0})


def as_task(request: str) -> str:
    """A plain request in the words of the task it names; others, and [tasks], as they are."""
    words = re.sub(r"^(?:please|can you|could you)\s+", "", " ".join(request.lower().split()))
    for pattern, asked in REQUESTS:
        if match := re.fullmatch(pattern, words.rstrip(" ?!.")):
            return asked.replace("{}", match[1].strip())
    return request


def task_of(question: str) -> str:
    """refer, vqa, ..; "" for a free question. ValueError: begins with an unknown [task]."""
    name = question[1:question.find("]")] if question.startswith("[") and "]" in question else ""
    if name and name not in IDENTIFIERS:
        known = " ".join(f"[{name}]" for name in IDENTIFIERS)
        raise ValueError(f"[{name}]: unknown task; there are {known}")
    return name


def referred(question: str) -> str:
    """What a [refer] question asks for: the question without the template around it."""
    patterns = [re.escape(template).replace(r"\{\}", "(.+)") for template in TASKS["refer"]]
    found = [match[1] for match in (re.fullmatch(p, question) for p in patterns) if match]
    return min(found, key=len, default="")


def drawn(question: str, sampling: Mapping) -> dict:
    """How its answer is drawn: what is None in `sampling` is what fits the question."""
    fitting = NAMED if task_of(question) else FREE
    return {name: fitting[name] if value is None else value for name, value in sampling.items()}
