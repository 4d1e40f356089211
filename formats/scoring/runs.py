"""Whether a run may go on with the answers of one that was stopped."""
import json
from collections.abc import Callable
from pathlib import Path

from formats.scoring.predictions import RunError, gather, read, write

# What may not change between the starts of one run. Other settings change no answer.
SAME = ("benchmark", "split", "tasks", "limit", "weights", "data", "prompt", "decoding", "dtype",
        "bits", "bands", "frames")


def begin(folder: Path, record: dict, fresh: bool, rank: int, wait: Callable[[], None]
          ) -> set[int]:
    """-> the rows that are answered already, or with `fresh` none, as they are thrown away.

    record: what is known of this run, kept beside its answers; wait: for the other processes.
    RunError: the answers that are there were given with other settings.
    """
    side = folder / "predictions.settings.json"
    if not fresh:
        check(folder, side, record)
    wait()
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("predictions*.jsonl") if fresh else ():
            file.unlink()
        write(side, [record])
        gather(folder)
    wait()
    return {row["row"] for row in read(folder / "predictions.jsonl")}


def check(folder: Path, side: Path, record: dict) -> None:
    if any(folder.glob("predictions*.jsonl")):
        old = read(side)[0] if side.is_file() else {}
        new = json.loads(json.dumps(record))
        told = ", ".join(f"{name} {old.get(name)} -> {new[name]}" for name in SAME
                         if old.get(name) != new[name])
        if told:
            raise RunError(f"{folder}: holds answers of {'another run' if old else 'no known run'}"
                           f" ({told}); --fresh throws them away, --output_dir goes elsewhere")
