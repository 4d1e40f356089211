"""Rows of predictions.jsonl for the tests of scores, and the figures that they get."""
from support.metrics.figures import task_figures
from support.metrics.statistics import ScoringOptions

QUICK = ScoringOptions(samples=50, java=False)


def row(task, answer, references=(), boxes=(), kind="", image="same.png", size=(100, 200)):
    return {"task": task, "answer": answer, "references": list(references), "boxes": list(boxes),
            "type": kind, "size": size, "image": [image]}


def refer_row(predicted, true, **more):
    """A row whose answer is exactly a box in pixels: corners are read, in a picture of 100."""
    answer = "{" + "".join(f"<{v}>" for v in predicted) + "}" if predicted else "no idea"
    return row("refer", answer, boxes=[true], size=(100, 100), **more) | {"corner": True}


def values(task, rows, options=QUICK):
    """{name: value} of the task's figures."""
    return {name: figure.value for name, figure in task_figures(task, rows, options).items()}


EXTERNAL_ROWS = [               # answers of another system, as --score takes them
    {"task": "refer", "answer": "{<10><10><20><20>}", "boxes": [[10, 20, 21, 42]],
     "size": [100, 200], "image": "a.png"},
    {"task": "refer", "answer": "somewhere", "boxes": [[10, 20, 21, 42]], "size": [100, 200],
     "image": "a.png"},
    {"task": "caption", "answer": "a river", "references": ["a river", "a green river"]},
    {"task": "vqa", "answer": "Yes.", "references": "yes", "type": "presence"},
]
