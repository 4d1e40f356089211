"""A picture padded to a square, as LLaVA-1.5 sees it."""
from PIL import Image

MEAN = (122, 116, 104)          # the mean color of CLIP's pictures, cut off to 8 bits


def padded(image: Image.Image) -> Image.Image:
    """In the middle of a square of CLIP's mean color."""
    side, (width, height) = max(image.size), image.size
    square = Image.new("RGB", (side, side), MEAN)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
