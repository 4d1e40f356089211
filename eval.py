"""Evaluation: a benchmark's questions, the model's answers, and a table below the papers' rows.

    python eval.py                                    the shipped model on the miniature world
    python eval.py --data FOLDER --split val          any folder that data.py reads
    python eval.py --data mine.json                   your own conversations, turn by turn
    python eval.py --benchmark rsvg --data FOLDER --model MODEL
    torchrun --nproc_per_node 8 eval.py --benchmark all --data ROOT --model MODEL
    python eval.py --score FILE.jsonl                 score answers again, also another system's

Every answer becomes a line of predictions.jsonl as soon as it is generated, so a run that was
stopped continues with the same command. metrics.json has all figures with their 95 % intervals and
what they were measured with; table.md is what is printed. How answers are scored: support/metrics.
"""
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data import (
    CLEANED_TASKS,
    PROMPTS,
    Tokenizer,
    apply_templates,
    clean_text,
    encode_conversation,
    load_images,
    preprocess,
)
from examples.miniworld import WORLD, ensure_world
from projector import DTYPES, SkyEyeConfig, SkyEyeGPT, read_config
from support.common import (
    FolderLock,
    UserError,
    find_device,
    in_range,
    is_out_of_memory,
    load_ahead,
    option,
    parse_config,
)
from support.evaluation.benchmarks import (
    BENCHMARKS,
    Job,
    compare_counts,
    count_rows,
    plan_jobs,
)
from support.evaluation.ranking import answer_log_likelihoods
from support.evaluation.report import (
    CONVERSATION_NOTE,
    TaskResult,
    check_output,
    draw_sheet,
    format_papers,
    write_report,
)
from support.evaluation.rows import (
    answer_boxes,
    conversation_questions,
    draw_rows,
    find_pictures,
    names_base,
    portable_row,
    scorable_samples,
)
from support.evaluation.runs import (
    begin_run,
    gather_predictions,
    group_by_picture,
    hash_samples,
    load_predictions,
    make_batches,
    output_errors,
    provenance,
    read_jsonl,
    read_record,
)
from support.images.common import parse_bands
from support.images.draw import check_sheet, save_picture
from support.inference.generation import BoxConstraint, BoxGrammar, pack_if_possible
from support.metrics.answers import answer_candidates
from support.metrics.boxes import CONVENTIONS, LOCATED_TASKS
from support.metrics.captions import caption_scores as caption_scores  # for those who import eval
from support.metrics.figures import error_score, task_details, task_figures
from support.metrics.statistics import ScoringOptions
from support.readers import FORMATS, check_image_folder, gather_references, read_data
from support.readers.common import DataError, Sample
from support.training.distributed import finish_processes, start_processes, wait_for_all
from support.training.watch import explain_failure

CONTINUE = "the same command continues"
EVAL_PROMPTS = {       # task: the prompt, {} for the question, and how many tokens to generate
    "caption":   ("[caption] briefly describe the image", 60),
    "video":     ("[caption] briefly describe the video frame image", 60),
    "vqa":       ("[vqa] {}", 20),
    "scene":     ("[vqa] {}", 20),
    "identify":  ("[identify] what is it in {}", 30),
    "refer":     ("[refer] give me the location of {}", 30),
    "detection": ("[detection] {}", 300),
    "grounding": ("[grounding] describe this image in detail", 300),
    "conversation": ("{}", 300),                # a turn, asked as it stands after those before it
}


# ---- settings ------------------------------------------------------------------------------------

@dataclass
class EvalConfig:
    """Each field is a flag."""
    # --- model ---
    model: str = option("weights/nano", "model folder", metavar="FOLDER", is_shipped=True)
    device: str = option("auto", "cpu, cuda, cuda:1, ..; auto: a GPU if there is one")
    dtype: str = option("fp32", "number format of the weights", choices=tuple(DTYPES))
    bits: int = option(16, "bits of the language model's weights; 16: as --dtype says",
                       choices=(16, 8, 4))
    # --- data ---
    benchmark: str = option("", f"benchmark to evaluate: {', '.join(BENCHMARKS)}; all: each of "
                            "them in its own folder below --data; empty: every task of the data",
                            choices=("", *BENCHMARKS, "all"), metavar="NAME")
    data: tuple[str, ...] = option((WORLD,), "folders, or LLaVA .json and .jsonl files")
    split: str = option("", "split to evaluate; empty: test, or for a benchmark the splits that "
                        "the papers report")
    format: str = option("", f"layout of the data: {' '.join(FORMATS)}; empty: recognize it")
    tasks: tuple[str, ...] = option((), "tasks to evaluate", choices=tuple(EVAL_PROMPTS),
                                    default_text="all; conversation where there is no other")
    limit: int = option(0, "evaluate only this many rows of each task, drawn at random over all of "
                        "its classes and types of questions; 0: all", type=in_range(int, 0))
    seed: int = option(42, "seed of the rows that --limit draws")
    skip_bad: bool = option(False, "leave out and count rows whose truth cannot be scored, instead "
                            "of refusing them")
    image_folder: str = option("", "folder of the pictures that a .json or .jsonl of --data names; "
                               "empty: the file's own", metavar="FOLDER")
    bands: tuple[int, ...] = option((), "bands to use as red, green and blue, counted from 1, of "
                                    "pictures with more than three, such as 4,3,2",
                                    type=parse_bands, nargs=None, metavar="R,G,B")
    frames: int = option(8, "number of frames to use of a clip; 1: as in the paper",
                         type=in_range(int, 1))
    # --- answers ---
    prompt: str = option("", "ask with this prompt instead of the task's own; {} is the question")
    raw_questions: bool = option(False, "ask questions and expressions as they are, as upstream's "
                                 "evaluation does, not cleaned as in training")
    rank: bool = option(False, "where the possible answers are known (classes; yes and no), choose "
                        "the most probable of them instead of generating text")
    well_formed: bool = option(False, "constrain the generated tokens so that boxes are complete")
    batch_size: int = option(64, "questions answered at a time; if a picture has more, it is "
                             "encoded again for each batch", type=in_range(int, 1))
    # --- output ---
    output_dir: Path | None = option(None, "folder for answers and scores; with several benchmarks "
                                     "each gets a folder in it", type=Path, metavar="FOLDER",
                                     default_text="out/eval/MODEL/DATA-SPLIT; none with --score")
    fresh: bool = option(False, "delete the answers of an earlier run instead of continuing it")
    sheet: Path | None = option(None, "write a picture of the worst answers and of random ones to "
                                "this file", type=Path, metavar="FILE")
    overwrite: bool = option(False, "let --sheet write over a file that exists")
    # --- scores ---
    score: Path | None = option(None, "score this predictions.jsonl, ours or another system's, "
                                "without running a model", type=Path, metavar="FILE")
    papers: bool = option(False, "print the papers' rows of all benchmarks, without a model")
    convention: str = option("both", "how IoU is computed; upstream: with a pixel more a side, and "
                             "a box is right above a threshold, not at it; upstream_reading: that, "
                             "and an answer is read as upstream reads it; both: the first two",
                             choices=(*CONVENTIONS, "both", "all"))
    normalize: bool = option(False, "compare answers to questions as the VQA v2 evaluation does: "
                             "without articles and punctuation, number words as digits")
    count_ranges: bool = option(False, "compare counts and areas in RSVQA's ranges")
    corner: bool = option(False, "read a number of a box as upstream does, as the lower edge of "
                          "its bin instead of the middle")


def parse_args(argv: Sequence[str] | None = None) -> EvalConfig:
    return parse_config(EvalConfig, argv, __doc__)


# ---- questions -----------------------------------------------------------------------------------

def read_questions(job: Job, format_name: str = "", image_folder: str = "",
                   bands: Sequence[int] = (), tasks: Sequence[str] = ()) -> list[Sample]:
    """The samples that a job asks about: those of the benchmark's task, or of `tasks`, or of every
    task; of conversations each turn, after those before it.

    The turns of a conversation file are questions of the benchmark's task. DataError.
    """
    tasks = [BENCHMARKS[job.benchmark].task] if job.benchmark else tasks
    samples = [sample for place in job.places
               for sample in read_data(place, job.split, format_name=format_name,
                                       image_folder=image_folder, bands=bands)]
    is_conversation = bool(job.benchmark) and Path(job.places[0]).is_file() and all(
        sample.task == "conversation" for sample in samples)
    if is_conversation:
        samples = [turn for sample in samples for turn in split_turns(sample, tasks[0])]
    found = {sample.task for sample in samples}
    chosen = tasks or found - {"conversation"} or found
    if not tasks and found > chosen:
        print(f"{job.name}: its conversations are not asked; --tasks conversation asks them",
              file=sys.stderr)
    samples = [sample for sample in samples if sample.task in chosen]
    if not samples:
        raise DataError(f"{job.places[0]}: split {job.split!r} has no {' or '.join(chosen)}")
    if "conversation" in chosen:
        samples = [*(sample for sample in samples if sample.task != "conversation"),
                   *conversation_questions(s for s in samples if s.task == "conversation")]
    without_image = [sample.source for sample in samples if not sample.images]
    if without_image:
        raise DataError(f"{without_image[0]}: no picture (and {len(without_image) - 1} rows more)")
    if is_conversation or job.split == "train":     # of other splits read_data has done it
        return gather_references(samples)
    return samples


def split_turns(conversation: Sample, task: str) -> Iterator[Sample]:
    """Each turn as a question of its own, with the boxes that belong to it."""
    boxes = iter(conversation.boxes)
    for turn in conversation.turns:
        count = sum(text.count("<bbox>") for text in turn)
        yield replace(conversation, task=task, turns=(turn,), boxes=tuple(islice(boxes, count)))


def choose_rows(samples: Sequence[Sample], config: EvalConfig) -> list[int]:
    """The numbers of the samples to ask about: of each of --tasks all, or --limit of them."""
    chosen = []
    for task in dict.fromkeys(config.tasks or EVAL_PROMPTS):
        numbers = [i for i, sample in enumerate(samples) if sample.task == task]
        if 0 < config.limit < len(numbers):
            numbers = draw_rows(samples, numbers, config.limit, config.seed)
        chosen += numbers
    return chosen


# ---- from samples to tensors ---------------------------------------------------------------------

@dataclass(frozen=True)
class Group:
    """Questions about the same images. Their prompts begin with the same ids, the prefix."""
    numbers: list[int]              # of the samples
    size: tuple[int, int]           # width and height of the first image, in pixels
    images: Tensor                  # float[n, 3, H, W]
    questions: list[str]
    prompts: list[Tensor]           # long[T] each
    prefix_len: int                 # the prefix ends with the last image slot


def load_groups(batches: Iterable[list[list[int]]], samples: Sequence[Sample],
                tokenizer: Tokenizer, model_config: SkyEyeConfig, config: EvalConfig
                ) -> Iterator[list[Group]]:
    """Groups of sample numbers -> Groups, batch by batch; each picture is read once. DataError."""
    paths: tuple[str, ...] = ()
    for batch in batches:
        groups = []
        for numbers in batch:
            own = [samples[i] for i in numbers]
            if own[0].images != paths:          # a picture with many questions has several groups
                paths = own[0].images
                size, images = read_images(paths, model_config, config)
            groups.append(make_group(numbers, own, size, images, tokenizer, model_config, config))
        yield groups


def read_images(paths: Sequence[str], model_config: SkyEyeConfig, config: EvalConfig
                ) -> tuple[tuple[int, int], Tensor]:
    """-> width and height of the first image, and what the model gets, float[n, 3, H, W]."""
    pictures = load_images(paths, config.bands, config.frames)
    images = [preprocess(picture.image, model_config.vit.image_size, style=model_config.prompt)
              for picture in pictures]
    return pictures[0].size, torch.stack(images)


def make_group(numbers: list[int], samples: list[Sample], size: tuple[int, int], images: Tensor,
               tokenizer: Tokenizer, model_config: SkyEyeConfig, config: EvalConfig) -> Group:
    template = config.prompt or EVAL_PROMPTS[samples[0].task][0]
    questions, prompts = [], []
    for sample in samples:
        *before, (question, _) = write_turns(sample, template, size, model_config.prompt,
                                             config.raw_questions)
        ids, _, prefix_len = encode_conversation(
            tokenizer, [*before, (question, None)], model_config.visual_tokens, len(images),
            model_config.prompt)
        if len(ids) >= model_config.llama.max_positions:
            raise DataError(f"{sample.source}: {len(ids)} tokens, and the model's context has "
                            f"{model_config.llama.max_positions}")
        questions.append(question)
        prompts.append(torch.tensor(ids))       # [T]
    return Group(numbers, size, images, questions, prompts, prefix_len)


def write_turns(sample: Sample, template: str, size: tuple[int, int], style: str,
                raw: bool = False) -> list[tuple[str, str]]:
    """The sample's turns with boxes as text; the last question, unless `raw` cleaned as in
    training, in the template. DataError."""
    *before, (question, answer) = sample.turns
    if sample.task in CLEANED_TASKS and not raw:
        question = clean_text(question)
    turns = (*before, (template.replace("{}", question), answer))
    try:
        return apply_templates(replace(sample, task="conversation", turns=turns), size, style=style)
    except ValueError as error:                 # a box that is not in the picture
        raise DataError(f"{sample.source}: {error}") from None


# ---- answers -------------------------------------------------------------------------------------

def answer_groups(model: SkyEyeGPT, tokenizer: Tokenizer, groups: list[Group], max_new_tokens: int,
                  device: str, grammar: BoxGrammar | None = None) -> list[str]:
    """The answer to each question, decoded greedily.

    grammar: constrains the answers to questions for boxes, so that these are well-formed.
    """
    answers = []
    for prefix_len, alike in groupby(groups, lambda group: group.prefix_len):
        alike = list(alike)
        prompts = [[prompt.to(device) for prompt in group.prompts] for group in alike]
        images = torch.cat([group.images for group in alike]).to(device)
        constraints = []
        if grammar:
            constraints = [BoxConstraint.for_question(grammar, question)
                           for group in alike for question in group.questions]
        answers += model.answer_batch(prompts, images, prefix_len, max_new_tokens, tokenizer.eos,
                                      constraints=constraints)
    return [tokenizer.decode(ids) for ids in answers]


def rank_groups(model: SkyEyeGPT, tokenizer: Tokenizer, groups: list[Group],
                candidates: Sequence[str], device: str) -> list[str]:
    """The most probable candidate for each question."""
    answers = []
    for group in groups:
        scores = answer_log_likelihoods(model, tokenizer, group, candidates, device)
        answers += [candidates[best] for best in scores.argmax(dim=1).tolist()]
    return answers


# ---- a run, which can be stopped and continued ---------------------------------------------------

def run(job: Job, samples: Sequence[Sample], record: dict, model: SkyEyeGPT, tokenizer: Tokenizer,
        config: EvalConfig, rank: int = 0, world_size: int = 1) -> None:
    """Answer what predictions.jsonl lacks; this process answers every `world_size`-th group.

    record: of run_record. UserError: the folder holds answers to other questions.
    """
    # 1. Which rows have no answer yet
    record = {"benchmark": job.benchmark, "split": job.split} | record
    scorable, left_out = scorable_samples(samples, config.skip_bad)
    if left_out:
        record |= {"left_out": left_out}
    rows = [scorable[i] for i in choose_rows([samples[i] for i in scorable], config)]
    answered = begin_run(job.folder, record | {"data": hash_samples(samples)}, config.fresh, rank)
    if other := answered - set(rows):
        raise UserError(f"{job.folder}: holds answers of rows that are not asked for, as row "
                        f"{min(other)}; --fresh deletes them")
    pending = [i for i in rows if i not in answered]

    # 2. Batches: questions of one task with the same candidates, those about a picture together
    candidates = answer_candidates(samples) if config.rank else {}
    kinds = {i: (samples[i].task, candidates.get((samples[i].task, samples[i].kind)))
             for i in pending}
    shard = group_by_picture(samples, pending, config.batch_size, kinds)[rank::world_size]
    batches = load_ahead(load_groups(make_batches(shard, config.batch_size, kinds), samples,
                                     tokenizer, model.config, config))
    grammar = None
    if config.well_formed:
        grammar = BoxGrammar(tokenizer.model.id_to_piece(list(range(len(tokenizer)))))

    # 3. Answers, written as they come
    name = "predictions.jsonl" if world_size == 1 else f"predictions.rank{rank}.jsonl"
    base = names_base([*job.places, *filter(None, [config.image_folder])])
    with output_errors(job.folder / name), open(
            job.folder / name, "a", encoding="utf-8") as file, tqdm(
            total=sum(map(len, shard)), unit="row", desc=job.name, disable=rank > 0 or None) as bar:
        for groups in batches:
            task, choices = kinds[groups[0].numbers[0]]
            if choices:
                answers = rank_groups(model, tokenizer, groups, choices, config.device)
            else:
                answers = answer_groups(model, tokenizer, groups, EVAL_PROMPTS[task][1],
                                        config.device, grammar)
            for row in prediction_rows(samples, groups, answers, model.config.prompt):
                print(json.dumps(portable_row(row, base)), file=file, flush=True)
                bar.update()
    wait_for_all()
    if rank == 0 and len(gather_predictions(job.folder)) != len(rows):
        raise UserError(f"{job.folder}: holds other rows than were asked for; --fresh deletes them")


def prediction_rows(samples: Sequence[Sample], groups: list[Group], answers: Iterable[str],
                    style: str) -> Iterator[dict]:
    """-> the lines of predictions.jsonl."""
    remaining = iter(answers)
    for group in groups:
        for number, question in zip(group.numbers, group.questions, strict=True):
            sample = samples[number]
            boxes, more = sample.boxes, {}
            if sample.task in (*LOCATED_TASKS, "conversation"):
                boxes = answer_boxes(sample)        # those of the truth alone
            if sample.task == "conversation":
                more = {"turn": len(sample.turns)}
            yield {"row": number, "source": sample.source, "image": list(sample.images),
                   "task": sample.task, "type": sample.kind, "size": group.size,
                   "question": question, "pad": PROMPTS[style].pad, "answer": next(remaining),
                   "boxes": boxes,
                   "references": list(sample.references or (sample.turns[-1][1],)), **more}


def run_record(config: EvalConfig) -> dict:
    """What the answers depend on beside the data, and where they were computed."""
    decoding = "ranked" if config.rank else "greedy"
    if config.well_formed:
        decoding += ", boxes well-formed"
    more = {}                       # what older runs do not have: only where it is in use
    if config.limit:
        more["sample"] = f"drawn with seed {config.seed} over classes and types"
    if config.raw_questions:
        more["questions"] = "raw"
    return provenance(
        Path(config.model), config.device, limit=config.limit or None, prompt=config.prompt,
        tasks=" ".join(config.tasks), bands=",".join(map(str, config.bands)),
        frames=config.frames, decoding=decoding, dtype=config.dtype, bits=config.bits, **more)


# ---- scores --------------------------------------------------------------------------------------

def score(file: Path, config: EvalConfig) -> tuple[list[TaskResult], dict]:
    """predictions.jsonl -> the scores of each task, and how its answers were made."""
    record = read_record(file)
    benchmark = record.get("benchmark", "")
    if config.benchmark not in ("", "all"):
        benchmark = config.benchmark
    split = record.get("split", config.split) or "test"
    definition = BENCHMARKS.get(benchmark)
    rows = load_predictions(file, definition.task if definition else "", config.skip_bad)
    left_out = record.get("left_out", 0)
    if config.skip_bad and not left_out:
        left_out = len(read_jsonl(file)) - len(rows)
    base = names_base([*config.data, *filter(None, [config.image_folder])])
    rows = [portable_row(row, base) for row in rows]        # also of runs that wrote whole paths
    if config.corner:
        rows = [row | {"corner": True} for row in rows]
    options = ScoringOptions(convention=config.convention, count_ranges=config.count_ranges,
                             types=definition.types if definition else (),
                             normalize=config.normalize)
    results = []
    for task in EVAL_PROMPTS:
        own = [row for row in rows if row["task"] == task]
        if not own:
            continue
        remarks = [compare_counts(benchmark, split, count_rows(own))]
        if record.get("limit"):
            drawn = record.get("sample")
            remarks = [f"only {record['limit']:,} rows, {drawn}" if drawn else
                       f"only the first {record['limit']:,} rows"]
        if config.normalize and task in ("vqa", "conversation"):
            remarks.append("answers compared as the VQA v2 evaluation does (--normalize)")
        if task == "conversation":
            remarks.append(CONVERSATION_NOTE)
        if left_out and task in LOCATED_TASKS:
            remarks.append(f"{left_out:,} rows left out: no box can be read in their truth")
        results.append(TaskResult(
            benchmark, split, task, rows=len(own), figures=task_figures(task, own, options),
            details=task_details(task, own, options), remarks=[*filter(None, remarks)]))
    if config.sheet:
        errors = [error_score(row, options) for row in rows]
        folders = (".", base, *file.absolute().parents)
        shown = [row | {"image": find_pictures(row["image"], folders)} for row in rows]
        with output_errors(config.sheet):
            save_picture(draw_sheet(shown, errors, config.bands), config.sheet)
    return results, record


# ---- the command ---------------------------------------------------------------------------------

def main(argv: Sequence[str] | None = None) -> None:
    config = parse_args(argv)
    if config.papers:
        print(format_papers(), end="")
        return
    if config.sheet and config.benchmark != "all":
        check_sheet("--sheet", config.sheet, config.overwrite)
    if config.score:                            # needs no model
        if config.output_dir:
            check_output(config.output_dir)
        results, record = score(config.score, config)
        print(write_report(config.output_dir, results, record))
        return

    # 1. Processes and device
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    start_processes("cpu", world_size, CONTINUE, hours=7 * 24)  # the first wait for the slowest
    config = replace(config, device=pick_device(config.device))

    # 2. What to evaluate
    read_config(Path(config.model))             # refused before a world is rendered for it
    if rank == 0:
        ensure_world(config.data)
    wait_for_all()
    check_image_folder(config.image_folder, config.data)
    jobs, missing = plan_jobs(config.benchmark, config.split, config.data, config.output_dir,
                              config.model, config.limit)
    if missing and rank == 0:
        print(f"not in {config.data[0]}: {', '.join(missing)}", file=sys.stderr)
    for folder in {job.folder for job in jobs} if rank == 0 else ():
        check_output(folder)

    # 3. Model
    model = SkyEyeGPT.from_pretrained(config.model, config.device, DTYPES[config.dtype],
                                      config.bits)
    model = pack_if_possible(model, rows=config.batch_size)
    tokenizer = Tokenizer(Path(config.model) / "tokenizer.model", model.config.llama.vocab_size)
    record = run_record(config)

    # 4. Of each benchmark the questions, the answers, the scores
    all_results, errors = [], []
    for job in jobs:
        try:
            samples = read_questions(job, config.format, config.image_folder, config.bands,
                                     config.tasks)
            scorable_samples(samples, config.skip_bad)
        except UserError as error:              # the other benchmarks are still evaluated
            errors.append(f"{job.name}: {error}" if len(jobs) > 1 else str(error))
            continue
        with FolderLock(job.folder) if rank == 0 else nullcontext():
            run(job, samples, record, model, tokenizer, config, rank, world_size)
            if rank == 0:
                results, job_record = score(job.folder / "predictions.jsonl", replace(
                    config, sheet=sheet_of(job, jobs, config), data=job.places))
                print(write_report(job.folder, results, job_record))
                all_results += results

    # 5. All of them in one file too
    if rank == 0 and len(jobs) > 1 and all_results:
        write_report(jobs[0].folder.parent, all_results, record | {"data": ""})
    finish_processes()
    if errors:
        raise DataError("; ".join(errors))


def pick_device(name: str) -> str:
    """-> "cpu", "cuda:0", ..; with torchrun each process has a GPU of its own."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return str(find_device(name))


def sheet_of(job: Job, jobs: list[Job], config: EvalConfig) -> Path | None:
    """--sheet, with the job's name in it where there are several."""
    if config.sheet and len(jobs) > 1:
        return config.sheet.with_stem(f"{config.sheet.stem}-{job.folder.name}")
    return config.sheet


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print(f"eval.py: stopped; {CONTINUE}", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        print(f"eval.py: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:                    # a disk that is full, a folder that is read-only
        print(f"eval.py: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        line = explain_failure(error, "cpu", CONTINUE)
        if is_out_of_memory(error):
            line = "out of memory; --batch_size 8 needs less"
        print(f"eval.py: {line}", file=sys.stderr)
        sys.exit(2)
