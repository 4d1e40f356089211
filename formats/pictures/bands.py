"""Which bands are shown."""
from formats.pictures.errors import PictureError


def choose(bands: tuple[int, ...], total: int, kind: str) -> tuple[int, ...]:
    """-> one band or three, counted from 1. PictureError where only the user can know."""
    if not bands and total > 4:
        raise PictureError(f"{total} bands of {kind} data; say which three are red, green and "
                           f"blue, e.g. --bands 4,3,2")
    if not bands:
        return (1, 2, 3) if total > 2 else (1,)
    if len(bands) not in (1, 3):
        raise PictureError(f"--bands takes one number or three, not {len(bands)}")
    for band in bands:
        if not 1 <= band <= total:
            raise PictureError(f"--bands asks for band {band}; it has {total}")
    return tuple(bands)


def tell_bands(chosen: tuple[int, ...], total: int) -> str:
    """"bands 1, 2, 3 of 4 shown", or nothing where all are shown in their order."""
    if chosen == tuple(range(1, total + 1)):
        return ""
    numbers = ", ".join(str(band) for band in chosen)
    return f"{'bands' if len(chosen) > 1 else 'band'} {numbers} of {total} shown"


def join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def parse_bands(text: str) -> tuple[int, ...]:
    """4,3,2 -> (4, 3, 2). ValueError where it is no list of numbers from 1."""
    bands = tuple(int(number) for number in text.split(",")) if text else ()
    if bands and min(bands) < 1:
        raise ValueError("bands are counted from 1")
    return bands
