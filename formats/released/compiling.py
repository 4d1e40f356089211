"""torch.compile, whose failures are told in a line."""
from collections.abc import Callable

import torch


def compiled(step: Callable) -> Callable:
    """In one piece. ValueError: there is no compiler, say."""
    made = torch.compile(step, fullgraph=True)

    def run(*given):
        try:
            return made(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ValueError(f"--compile: {str(error).splitlines()[0]}") from None
    return run
