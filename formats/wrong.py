"""Errors that name their row."""
import contextlib
from collections.abc import Callable, Iterator

WRONG = (AttributeError, LookupError, SyntaxError, TypeError, ValueError)


def named(source: str, error: Exception) -> ValueError:
    """What went wrong with a row, in one line that names it."""
    what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return ValueError(f"{source}: {what}")


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    try:
        yield
    except WRONG as error:
        raise named(source, error) from None


def attempt(source: str, make: Callable, *given) -> list[dict | ValueError]:
    """The samples that `make` has for a row; in their place the error, if the row is wrong."""
    try:
        made = make(*given)
        return [made] if isinstance(made, dict) else list(made)
    except WRONG as error:
        return [named(source, error)]
