"""What a run says of its model: on held-out rows on the way, on training rows at the end.

    {"step": 20, "val_loss": 1.94, "val_exact": 0.31, "val_pr_50": 0.2, "val_rows": 120}

is a line of log.jsonl: the mean loss over the supervised tokens of the held-out rows (--val_data,
--val_part; of at most LOSS_ROWS), and of the answers to at most ANSWERS of their questions how many
are right, as support.training.answers counts them (val_f1_50: where a question has several boxes).
Every process takes its share. Nothing here draws a random number or changes what is trained.
"""
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data import PROMPTS, PackedDataset, Tokenizer, collate
from projector import SkyEyeGPT
from support.readers.common import DataError
from support.training.answers import COUNTS, Answered, Batch, answer_rows, count_right, rates
from support.training.distributed import (
    any_process,
    get_rank,
    get_world_size,
    sum_over_processes,
    with_dummy_image,
)
from support.training.features import FeatureCache
from support.training.log import (
    Logger,
    describe_figures,
    moving_average,
    read_log,
    read_validations,
)
from support.training.rows import BatchSchedule, OtherProcessError

LOSS_ROWS, ANSWERS = 1000, 100
TRAIN_ROWS = 10                     # that are asked at the end
SLOW_ON_CPU = 1e9                   # parameters of a model whose answers are not waited for


class Probe:
    """`with Probe(..) as probe:` the model in training as it answers: without dropout, in the run's
    arithmetic.

    features: the run's cache, or None. The model is not asked for answers where each process holds
    a part of it (shard), nor where that takes minutes.
    """

    def __init__(self, model: SkyEyeGPT, tokenizer: Tokenizer, device: str, dtype: torch.dtype,
                 batch_size: int, features: FeatureCache | None = None, shard: bool = False):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.device, self.dtype = device, dtype
        self.encode = features.encode if features else lambda batch: batch
        count = sum(p.numel() for p in model.parameters())
        self.can_answer = not shard and (device != "cpu" or count < SLOW_ON_CPU)

    def __enter__(self) -> "Probe":
        self.model.eval()
        self.autocast = torch.autocast(self.device, self.dtype,
                                       enabled=self.dtype != torch.float32)
        self.autocast.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.autocast.__exit__(*error)
        self.model.train()

    @torch.no_grad()
    def loss_sum(self, rows: Sequence[Batch]) -> Tensor:
        """-> the sum of the losses of the rows' supervised tokens, and how many: float[2]."""
        config, batch = self.model.config, collate(list(rows))
        count = int((batch["labels"][:, 1:] != -100).sum())
        batch = with_dummy_image(self.encode(batch), config.vit.image_size, config.visual_tokens)
        batch = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        return torch.tensor([self.model(**batch).item() * count, count], dtype=torch.float64)

    def ask(self, rows: Sequence[Batch]) -> list[Answered]:
        return answer_rows(self.model, self.tokenizer, rows, self.batch_size, self.encode)


# ---- held-out rows -------------------------------------------------------------------------------

class Validation:
    """Held-out rows, measured before the first step, every `every` steps and at the last one."""

    def __init__(self, probe: Probe, dataset: PackedDataset | None, every: int, max_steps: int,
                 skip_bad: bool = False):
        """dataset: None where nothing is held out; every: 0 for a tenth of the steps; skip_bad:
        leave faulty rows out."""
        self.probe, self.dataset, self.skip_bad = probe, dataset, skip_bad
        self.every, self.max_steps = every or max(1, max_steps // 10), max_steps

    def run(self, step: int, log: Logger) -> None:
        """Measure, if it is time for it at this step."""
        if self.dataset and (step % self.every == 0 or step == self.max_steps):
            log.add_validation(step, self.measure)

    def measure(self) -> dict[str, float]:
        """-> the figures of a line of log.jsonl. All processes call it at once. DataError, on all
        of them: a row that cannot be read, without skip_bad."""
        count, size = min(len(self.dataset), LOSS_ROWS), self.probe.batch_size
        own = range(get_rank(), count, get_world_size())
        asked = math.ceil(ANSWERS / self.dataset.questions_per_row) if self.probe.can_answer else 0
        sums = torch.zeros(3 + len(COUNTS), dtype=torch.float64)
        with self.probe as probe:
            for start in range(0, math.ceil(count / get_world_size()), size):
                rows = self.load(own[start:start + size])
                # Where each holds a part of the model, all must compute: one without a row too.
                loss = probe.loss_sum(list(rows.values()) or [self.dataset[0, 0]])
                sums[:2] += loss if rows else 0
                sums[2] += len(rows)
                questions = [row for number, row in rows.items() if number < asked]
                sums[3:] += count_right(probe.ask(questions))
        sums = sum_over_processes(sums.float().to(self.probe.device)).double().cpu()
        loss, tokens, rows = sums[:3].tolist()
        figures = {"val_loss": loss / tokens if tokens else math.nan}
        figures |= {f"val_{name}": value for name, value in rates(sums[3:]).items()}
        return figures | {"val_rows": int(rows)}

    def load(self, numbers: Sequence[int]) -> dict[int, Batch]:
        rows, fault = {}, None
        for number in numbers:
            try:
                rows[number] = self.dataset[0, number]
            except DataError as error:
                fault = None if self.skip_bad else error
        if any_process(fault is not None, self.probe.device):
            raise fault or OtherProcessError("")
        return rows


# ---- at the end of a run -------------------------------------------------------------------------

def describe_result(log: Path, probe: Probe, schedule: BatchSchedule) -> list[str]:
    """What was learned, in one line; of --overfit_one_batch in two or three. May be called on one
    process alone."""
    _, losses, _ = read_log(log)
    parts = [f"loss {losses[0]:.3f} -> {moving_average(losses)[-1]:.3f}"] if len(losses) else []
    if validations := read_validations(log):
        first, last = validations[0][1], validations[-1][1]
        parts.append(f"held out ({last['val_rows']:,} rows): {describe_figures(last, first)}")
    rows = schedule.first_rows()
    if not probe.can_answer:
        return [f"learned: {'; '.join(parts)}"]
    with probe:
        if schedule.one_batch:
            loss, count = probe.loss_sum(rows).tolist()
            return describe_batch(losses[0] if len(losses) else math.nan, loss / count,
                                  schedule.max_steps, probe.ask(rows))
        answered = probe.ask(rows[:TRAIN_ROWS])
    right = sum(answer.right for answer in answered)
    parts.append(f"of {len(answered)} answers to training rows {right} are right")
    return [f"learned: {'; '.join(parts)}"]


def without_markup(question: str) -> str:
    """A question as it was written, without what the prompt styles put around it."""
    for style in PROMPTS.values():
        for piece in (style.image_start, style.image_end, style.user_prefix, style.user_suffix):
            if marks := piece.removeprefix("<s>").strip():
                question = question.replace(marks, " ")
    return " ".join(question.split())


LEARNED_LOSS = 0.1                  # of one batch


def describe_batch(first: float, loss: float, steps: int, answered: Sequence[Answered]
                   ) -> list[str]:
    """What --overfit_one_batch shows.

    first, loss: of the batch, in training at the start and without dropout at the end; answered:
    its questions.
    """
    wrong = [found for found in answered if not found.exact]
    lines = [f"one batch: loss {first:.3f} -> {loss:.4f} in {steps:,} steps; "
             f"{len(answered) - len(wrong)} of {len(answered)} answers word for word"]
    if not wrong:
        return [*lines, "data, model and training fit together: now train on all rows, without "
                        "--overfit_one_batch"]
    if wrong:
        lines.append(f"the first wrong one: {without_markup(wrong[0].question)!r} is answered "
                     f"{wrong[0].answer!r}, not {wrong[0].truth!r}")
    truths: dict[tuple, set[str]] = {}
    for found in answered:
        truths.setdefault((found.pictures, found.question), set()).add(found.truth)
    both = sum(len(texts) > 1 for texts in truths.values())
    if both:
        reason = (f"{both:,} questions of the batch, each about one picture, have different "
                  "answers, and a model can learn one of them: look for rows that contradict each "
                  "other, or for another picture under the same name")
    elif loss >= LEARNED_LOSS and loss > first / 2:
        reason = ("the loss has hardly fallen: a higher --lr, or --tune full, as more must be "
                  "trained; if that does not help either, the answers have nothing to do with "
                  "pictures and questions as the model sees them: data.py --show draws them")
    elif loss >= LEARNED_LOSS:
        reason = "the loss was still falling: more --max_steps, or a higher --lr"
    else:
        reason = ("the loss is near 0, so single tokens are wrong: more --max_steps; where numbers "
                  "or names are wrong, pictures may differ too little at the model's size")
    return [*lines, f"what it means: {reason}"]
