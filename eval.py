"""Evaluation: a benchmark's questions, the model's answers, and a table below the papers' rows.

    python eval.py                                    the shipped model on the miniature world
    python eval.py --data FOLDER --split val          any folder that data.py reads
    python eval.py --benchmark rsvg --data FOLDER --model MODEL
    torchrun --nproc_per_node 8 eval.py --benchmark all --data ROOT --model MODEL
    python eval.py --score FILE.jsonl                 predictions again, also another system's

Every answer is a line of predictions.jsonl as soon as it is there (formats/scoring/predictions.py),
so a run that was stopped goes on with the same command. metrics.json has all figures with their
intervals and what they were measured with, table.md what is printed. How texts and boxes are scored
stands in formats/scoring.
"""
import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path

import torch
import torch.distributed as dist
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
from projector import DTYPES, SkyEyeConfig, SkyEyeGPT
from support.checkpoints.files import ModelError
from support.common import UserError, commit, is_out_of_memory
from support.evaluation.benchmarks import BENCHMARKS, Job, compare_counts, count_rows, plan_jobs
from support.evaluation.report import ReportPart, details_markdown, draw_sheet, format_report
from support.evaluation.runs import (
    begin_run,
    gather_predictions,
    group_by_picture,
    hash_texts,
    load_ahead,
    load_predictions,
    make_batches,
    provenance,
    provenance_line,
    read_jsonl,
    sample_texts,
)
from support.images.common import parse_bands
from support.inference.cpu_kernels import pack_for_cpu
from support.inference.generation import BOX_TASKS, BoxConstraint, BoxGrammar
from support.metrics.answers import answer_candidates
from support.metrics.figures import error_score, task_details, task_figures
from support.metrics.statistics import Options
from support.readers import gather_references, read_data
from support.readers.common import DataError, Sample

# ---- what is asked, and how ----------------------------------------------------------------------

EVAL_PROMPTS = {       # task: the prompt, {} for the question, and the tokens its answer may have
    "caption":   ("[caption] briefly describe the image", 60),
    "video":     ("[caption] briefly describe the video frame image", 60),
    "vqa":       ("[vqa] {}", 20),
    "scene":     ("[vqa] {}", 20),
    "identify":  ("[identify] what is it in {}", 30),
    "refer":     ("[refer] give me the location of {}", 30),
    "detection": ("[detection] {}", 300),
    "grounding": ("[grounding] describe this image in detail", 300),
}


def read_samples(job: Job, form: str) -> list[Sample]:
    """Of a benchmark its task alone; turns of a LLaVA file are questions of that task. DataError.
    """
    samples = [sample for place in job.places for sample in read_data(place, job.split, form=form)]
    tasks = [BENCHMARKS[job.benchmark].task] if job.benchmark else list(EVAL_PROMPTS)
    talks = job.benchmark and Path(job.places[0]).is_file()
    if talks:
        samples = [part for sample in samples for part in split_turns(sample, tasks[0])]
    samples = [sample for sample in samples if sample.task in tasks]
    if not samples:
        raise DataError(f"{job.places[0]}: split {job.split!r} has no {' or '.join(tasks)}")
    if blind := [sample.source for sample in samples if not sample.images]:
        raise DataError(f"{blind[0]}: no picture (and {len(blind) - 1} rows more)")
    return gather_references(samples) if talks or job.split == "train" else samples


def split_turns(talk: Sample, task: str) -> Iterator[Sample]:
    """Each turn as a question of its own, with the boxes that stand in it."""
    boxes = iter(talk.boxes)
    for turn in talk.turns:
        own = tuple(islice(boxes, sum(text.count("<bbox>") for text in turn)))
        yield replace(talk, task=task, turns=(turn,), boxes=own)


# ---- batches -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Group:
    """Questions about the same pictures, which are loaded once."""
    numbers: list[int]              # of the samples
    size: tuple[int, int]           # of the first picture, in pixels
    images: Tensor                  # float[n, 3, H, W]
    questions: list[str]
    prompts: list[Tensor]           # long[T] each

    def shared(self) -> int:
        """How many ids come before the first question: up to the last image slot."""
        return int((self.prompts[0] < 0).nonzero()[-1]) + 1


def question_of(sample: Sample, prompt: str, size: tuple[int, int], style: str) -> str:
    """The text that is asked: cleaned as in training, in its prompt, boxes written. DataError."""
    question, answer = sample.turns[0]
    text = prompt.replace("{}", clean_text(question) if sample.task in CLEANED_TASKS else question)
    try:
        asked = replace(sample, task="conversation", turns=((text, answer),))
        return apply_templates(asked, size, style=style)[0][0]
    except ValueError as error:                 # a box that is in no picture
        raise DataError(f"{sample.source}: {error}") from None


def make_loader(samples: Sequence[Sample], tokenizer: Tokenizer, config: SkyEyeConfig,
                args: argparse.Namespace) -> Callable[[list[list[int]]], list[Group]]:
    """-> a function that reads a batch's pictures, each once, and writes its prompts. DataError."""
    @lru_cache(maxsize=1)                       # a picture of many questions is in several groups
    def pictures(paths: tuple[str, ...]) -> tuple[tuple[int, int], Tensor]:
        found = load_images(paths, args.bands, args.frames)
        return found[0].size, torch.stack([preprocess(picture.image, config.vit.image_size,
                                                      style=config.prompt) for picture in found])

    def prompt_of(sample: Sample, question: str, count: int) -> Tensor:
        ids = encode_conversation(tokenizer, [(question, None)], config.visual_tokens, count, config.prompt)[0]
        if len(ids) >= config.llama.max_positions:
            raise DataError(f"{sample.source}: {len(ids)} tokens, and the model's context has "
                            f"{config.llama.max_positions}")
        return torch.tensor(ids)                # [T]

    def load(batch: list[list[int]]) -> list[Group]:
        groups = []
        for numbers in batch:
            own = [samples[i] for i in numbers]
            size, images = pictures(own[0].images)
            prompt = args.prompt or EVAL_PROMPTS[own[0].task][0]
            questions = [question_of(sample, prompt, size, config.prompt) for sample in own]
            prompts = [prompt_of(sample, question, len(images))
                       for sample, question in zip(own, questions, strict=True)]
            groups.append(Group(numbers, size, images, questions, prompts))
        return groups
    return load


# ---- answers -------------------------------------------------------------------------------------

def answer_groups(model: SkyEyeGPT, tokenizer: Tokenizer, groups: list[Group], tokens: int,
                  device: str, grammar: BoxGrammar | None = None) -> list[str]:
    """Each question's answer, greedily; with a grammar, boxes that region tasks ask for are whole.
    """
    answers = []
    for shared, alike in groupby(groups, Group.shared):
        own = list(alike)                       # their prompts begin with as many ids
        prompts = [[prompt.to(device) for prompt in group.prompts] for group in own]
        images = torch.cat([group.images for group in own]).to(device)
        guides = [BoxConstraint(grammar, free=not question.startswith(BOX_TASKS)) for group in own
                  for question in group.questions] if grammar else None
        answers += model.answer(prompts, images, shared, tokens, tokenizer.eos, guides=guides)
    return [tokenizer.decode(ids) for ids in answers]


@torch.inference_mode()
def answer_log_likelihoods(model: SkyEyeGPT, tokenizer: Tokenizer, group: Group, texts: Sequence[str],
                device: str) -> Tensor:
    """The log-probability of each question's being answered with each text, float[Q, texts].

    The sum over its tokens and </s>, so of saying just this; a mean would prefer long names. One
    row holds what all prompts share, then each prompt's end with each text, segments that do not
    see each other.
    """
    ends = [torch.tensor(tokenizer.encode(text) + [tokenizer.eos]) for text in texts]
    shared = group.shared()
    ids, spoken, before = [group.prompts[0][:shared]], [], []
    segments, positions = [torch.zeros(shared)], [torch.arange(shared)]
    for prompt in group.prompts:
        for end in ends:
            own, start = torch.cat([prompt[shared:], end]), sum(map(len, ids))
            first = start + len(own) - len(end)             # where the text begins
            spoken.append(torch.arange(first, first + len(end)))
            before.append(torch.arange(first - 1, first + len(end) - 1))
            before[-1][0] = first - 1 if first > start else shared - 1
            segments.append(torch.full((len(own),), len(spoken)))
            positions.append(torch.arange(shared, shared + len(own)))
            ids.append(own)
    row, places, parts = (torch.cat(x).long()[None].to(device) for x in (ids, positions, segments))
    logits = model(row, group.images.to(device), positions=places, segments=parts)[0]   # [T, V]
    said = logits[torch.cat(before)].float().log_softmax(-1)
    said = said.gather(1, row[0, torch.cat(spoken)][:, None])[:, 0]
    totals = torch.stack([part.sum() for part in said.split([len(own) for own in spoken])])
    return totals.view(len(group.prompts), len(texts))


def rows_of(samples: Sequence[Sample], groups: list[Group], answers: Iterable[str], style: str
            ) -> Iterator[dict]:
    """-> the lines for predictions.jsonl."""
    asked = [(group, i, question) for group in groups
             for i, question in zip(group.numbers, group.questions, strict=True)]
    for (group, number, question), answer in zip(asked, answers, strict=True):
        sample = samples[number]
        yield {"row": number, "source": sample.source, "image": list(sample.images),
               "task": sample.task, "type": sample.kind, "size": group.size, "question": question,
               "pad": PROMPTS[style].pad, "answer": answer, "boxes": sample.boxes,
               "references": list(sample.references or (sample.turns[0][1],))}


# ---- a run, which can be stopped and goes on -----------------------------------------------------

def barrier() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def run_record(args: argparse.Namespace) -> dict:
    """What the answers depend on beside the data, and what else is worth knowing of them."""
    return {"model": args.model} | provenance(
        Path(args.model), (), commit=commit(), limit=args.limit or None, prompt=args.prompt,
        tasks="" if len(args.tasks) == len(EVAL_PROMPTS) else " ".join(args.tasks),
        bands=",".join(map(str, args.bands)), frames=args.frames,
        decoding=("ranked" if args.rank else "greedy") + ", boxes well-formed" * args.well_formed,
        dtype=args.dtype, bits=args.bits, device=args.device)


def answer_job(job: Job, samples: Sequence[Sample], record: dict, model: SkyEyeGPT, tokenizer: Tokenizer,
        args: argparse.Namespace, rank: int, world: int) -> None:
    """Answer what predictions.jsonl lacks, this process each `world`-th group; rank 0 gathers."""
    numbers = [i for task in args.tasks
               for i in [i for i, s in enumerate(samples) if s.task == task][:args.limit or None]]
    record = {"benchmark": job.benchmark, "split": job.split} | record | {
        "data": hash_texts(sample_texts(samples))}
    done = begin_run(job.folder, record, args.fresh, rank, barrier)
    texts = answer_candidates(samples) if args.rank else {}

    def kind(i: int) -> tuple[str, tuple[str, ...] | None]:
        return samples[i].task, texts.get((samples[i].task, samples[i].kind))

    todo = group_by_picture(samples, [i for i in numbers if i not in done], args.batch_size, kind)
    mine = todo[rank::world]
    batches = load_ahead(make_loader(samples, tokenizer, model.config, args),
                    make_batches(mine, args.batch_size, kind))
    pieces = tokenizer.model.id_to_piece(list(range(len(tokenizer))))
    grammar = BoxGrammar(pieces) if args.well_formed else None
    name = "predictions.jsonl" if world == 1 else f"predictions.rank{rank}.jsonl"
    with open(job.folder / name, "a", encoding="utf-8") as file, tqdm(
            total=sum(map(len, mine)), unit="row", desc=job.name, disable=rank > 0 or None) as bar:
        for groups in batches:
            task, names = kind(groups[0].numbers[0])
            if names:
                scores = (answer_log_likelihoods(model, tokenizer, group, names, args.device)
                          for group in groups)
                answers = [names[i] for own in scores for i in own.argmax(1).tolist()]
            else:
                answers = answer_groups(model, tokenizer, groups, EVAL_PROMPTS[task][1], args.device,
                                        grammar)
            for row in rows_of(samples, groups, answers, model.config.prompt):
                print(json.dumps(row), file=file, flush=True)
                bar.update()
    barrier()
    if rank == 0 and len(gather_predictions(job.folder)) != len(numbers):
        raise UserError(f"{job.folder}: holds other rows than were asked for; --fresh starts anew")


# ---- scores --------------------------------------------------------------------------------------

def score(file: Path, args: argparse.Namespace, sheet: Path | None) -> tuple[list[dict], dict]:
    """-> the results of each task, and what is known of how the answers came about."""
    side = file.with_suffix(".settings.json")
    record = read_jsonl(side)[0] if side.is_file() else {"model": file.stem}
    benchmark = args.benchmark.replace("all", "") or record.get("benchmark", "")
    split, known = record.get("split", args.split) or "test", BENCHMARKS.get(benchmark)
    rows = load_predictions(file, EVAL_PROMPTS, known.task if known else "")
    rows = [row | {"corner": True} for row in rows] if args.corner else rows
    options = Options(convention=args.convention, count_ranges=args.count_ranges,
                      types=known.types if known else ())
    results = []
    for task in EVAL_PROMPTS:
        own = [row for row in rows if row["task"] == task]
        remark = (f"only the first {record['limit']:,} rows" if record.get("limit")
                  else compare_counts(benchmark, split, count_rows(own)))
        if own:
            results.append({"benchmark": benchmark, "split": split, "task": task, "rows": len(own),
                            "figures": task_figures(task, own, options),
                            "details": task_details(task, own, options),
                            "remarks": [remark] if remark else []})
    if sheet:
        draw_sheet(rows, [error_score(row, options) for row in rows], lambda row: load_images(
            row["image"][:1], args.bands, frames=1, near=512)[0].image).save(sheet)
    return results, record


def write_report(folder: Path, results: Sequence[dict], record: dict) -> str:
    """metrics.json and table.md -> the table."""
    parts = [ReportPart(**result | {"details": details_markdown(result["details"])}) for result in results]
    text = format_report(Path(record["model"]).resolve().name, parts, provenance_line(record))
    told = [result | {"figures": {name: asdict(figure) for name, figure in
                                  result["figures"].items()}} for result in results]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(
        json.dumps({"provenance": record, "results": told}, indent=2) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(text, encoding="utf-8")
    return text


def make_args(argv: list[str] | None, description: str, benchmarks: tuple[str, ...],
          tasks: tuple[str, ...], world: str, device: str) -> argparse.Namespace:
    """world: the data without a flag; device: the machine's."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)

    def flag(name: str, text: str, **more) -> None:
        more = {"action": "store_true"} if not more else more
        shown = " (default %(default)s)" if more.get("default") else ""
        parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")),
                            help=text + shown, **more)

    flag("model", "folder", default="weights/nano")
    flag("benchmark", f"{', '.join(benchmarks)}; or all, each in its folder of --data",
         choices=(*benchmarks, "all"), default="", metavar="NAME")
    flag("data", "folders, or LLaVA files", nargs="+", default=[world])
    flag("split", "empty: test, or those of a benchmark that the papers report", default="")
    flag("format", "layout of the data; empty: seen", default="")
    flag("tasks", "to be asked", nargs="+", choices=tasks, default=list(tasks))
    flag("limit", "rows of each task; 0: all", type=int, default=0)
    flag("prompt", "instead of the task's own, with {} for the question", default="")
    flag("rank", "of classes, of yes and no: take the most probable, instead of the model's words")
    flag("well_formed", "of a box let the model write only what goes on with one")
    flag("bands", "shown of more: 4,3,2", type=parse_bands, default=())
    flag("frames", "of a clip; 1: the paper's single frame", type=int, default=8)
    flag("batch_size", "questions at a time; of a picture with more it is computed again", type=int,
         default=64)
    flag("output_dir", "for results; empty: out/eval, and in it a folder a benchmark", type=Path,
         default=None)
    flag("fresh", "throw away what the folder for results holds of an earlier run")
    flag("score", "a predictions.jsonl to be scored again, or another system's; asks nothing",
         type=Path, default=None, metavar="FILE")
    flag("convention", "of IoU; upstream: a pixel more a side, and over 0.5 instead of at least",
         choices=("standard", "upstream", "both"), default="both")
    flag("count_ranges", "compare counts and areas in RSVQA's ranges")
    flag("corner", "read a box number as upstream does, as the lower edge of its bin and not as "
         "the middle")
    flag("sheet", "picture of the worst rows, and of some drawn by lot", type=Path, default=None)
    flag("device", "", default=device)
    flag("bits", "of the language model's weights; 16: --dtype", type=int, choices=(16, 8, 4),
         default=16)
    flag("dtype", "of the weights", choices=("fp32", "bf16", "fp16"), default="fp32")
    return parser.parse_args(argv)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return make_args(argv, __doc__, tuple(BENCHMARKS), tuple(EVAL_PROMPTS), WORLD, device)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.score:
        result = score(args.score, args, args.sheet)
        print(write_report(args.output_dir or args.score.parent, *result))
        return
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo", timeout=timedelta(days=7))      # the slowest is waited for
    if args.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if rank == 0:
        ensure_world(args.data)
    barrier()
    jobs, absent = plan_jobs(args.benchmark, args.split, args.data, args.output_dir, BENCHMARKS)
    if absent and rank == 0:
        print(f"not in {args.data[0]}: {', '.join(absent)}", file=sys.stderr)
    model = pack_for_cpu(SkyEyeGPT.from_pretrained(args.model, args.device, DTYPES[args.dtype],
                                             args.bits), rows=args.batch_size)
    tokenizer = Tokenizer(Path(args.model) / "tokenizer.model", model.config.llama.vocab_size)
    record, results, failed = run_record(args), [], []
    for job in jobs:
        try:
            samples = read_samples(job, args.format)
        except DataError as error:              # of several benchmarks the others are asked
            failed.append(f"{job.name}: {error}" if len(jobs) > 1 else str(error))
            continue
        answer_job(job, samples, record, model, tokenizer, args, rank, world)
        if rank == 0:
            sheet = args.sheet
            if sheet and len(jobs) > 1:
                sheet = sheet.with_stem(f"{sheet.stem}-{job.folder.name}")
            own = score(job.folder / "predictions.jsonl", args, sheet)
            print(write_report(job.folder, *own))
            results += own[0]
    if rank == 0 and len(jobs) > 1 and results:     # all of them in one file too
        write_report(jobs[0].folder.parent, results, record | {"data": ""})
    barrier()
    if world > 1:
        dist.destroy_process_group()
    if failed:
        raise DataError("; ".join(failed))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("eval.py: stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    except (DataError, ModelError, UserError, MemoryError, RuntimeError) as error:
        full = is_out_of_memory(error)
        if isinstance(error, RuntimeError) and not full:
            raise
        print(f"eval.py: {'out of memory; --batch_size 8 needs less' if full else error}",
              file=sys.stderr)
        sys.exit(2)
