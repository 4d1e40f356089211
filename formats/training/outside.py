"""The numbers of log.jsonl, also told to TensorBoard or Weights & Biases where asked for."""
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from formats.training.flags import FlagError

Tell = Callable[[int, dict[str, float]], None]      # of a step, its numbers by name


def open_all(names: Sequence[str], out: Path, settings: dict) -> list[Tell]:
    """names: of PLACES. Raises FlagError where a package is not installed, before any is opened."""
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:           # a folder of that name is no package
            raise FlagError(f"--log_to {name}: the package {name} is not installed; "
                            f"pip install {name}")
    return [PLACES[name](out, settings) for name in dict.fromkeys(names)]


def tensorboard(out: Path, settings: dict) -> Tell:
    """tensorboard --logdir OUT shows it."""
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(out / "tensorboard"))

    def tell(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()                                      # a killed run keeps its curves
    return tell


def wandb(out: Path, settings: dict) -> Tell:
    """Over the network, unless WANDB_MODE=offline says otherwise; a run that is not logged in is a
    FlagError."""
    import wandb
    out.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(dir=str(out), config=settings)
    except wandb.Error as error:
        raise FlagError(f"--log_to wandb: {' '.join(str(error).split()).rstrip('.')}; or set "
                        "WANDB_MODE=offline") from None
    return lambda step, numbers: run.log(numbers, step=step)


PLACES = {"tensorboard": tensorboard, "wandb": wandb}
