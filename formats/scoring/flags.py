"""What `python eval.py` is told."""
import argparse
from pathlib import Path

from formats.pictures.bands import parse_bands


def parse(argv: list[str] | None, description: str, benchmarks: tuple[str, ...],
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
