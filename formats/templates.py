"""MiniGPT-v2's instruction templates, and how upstream cleans its texts.

https://github.com/Vision-CAIR/MiniGPT-4/tree/d94738a/minigpt4/datasets/datasets
"""
import re

IDENTIFIERS = ("caption", "vqa", "refer", "detection", "identify", "grounding")
CAPTION = """Briefly describe this image. | Provide a concise depiction of this image.
| Present a short description of this image. | Summarize this image in a few words.
| A short image caption: | A short image description: | A photo of | An image that shows
| Write a short description for the image. | Write a description for the photo.
| Provide a description of what is presented in the photo.
| Briefly describe the content of the image. | Can you briefly explain what you see in the image?
| Could you use a few words to describe what you perceive in the photo?
| Please provide a short depiction of the picture.
| Using language, provide a short account of the image.
| Use a few words to illustrate what is happening in the picture."""
TASKS = {       # MiniGPT-v2's templates; {} is the expression, the question or the box
    "caption": ["[caption] briefly describe the image",
                *("[caption] " + text.strip() for text in CAPTION.split("|"))],
    "video": ["[caption] briefly describe the video frame image"],
    "vqa": ["[vqa] {}",
            "[vqa] Based on the image, respond to this question with a short answer: {}"],
    "scene": ["[vqa] {}"],
    "refer": ["[refer] give me the location of {}", "[refer] {}", "[refer] where is {} ?",
              "[refer] from this image, tell me the location of {}",
              "[refer] the location of {} is", "[refer] could you tell me the location for {} ?",
              "[refer] where can I locate the {} ?"],
    "detection": ["[detection] {}"],
    "identify": ["[identify] what is it in {}", "[identify] {}", "[identify] this {} is",
                 "[identify] what object is in this location {}",
                 "[identify] identify the object present at this location {}",
                 "[identify] describe this object in {}", "[identify] the object in {} is"],
    "grounding": ["[grounding] describe this image in detail",
                  "[grounding] please describe this image in details",
                  "[grounding] describe this image as detailed as possible",
                  "[grounding] summarize this image in details",
                  "[grounding] give a thorough description of what you see in this image"],
    "conversation": ["{}"],
}
CLEANED = ("caption", "video", "vqa", "refer")          # tasks whose texts upstream cleans


def clean_text(text: str, words: int = 50) -> str:
    """Upstream's blip_caption: lower case, no punctuation but ? and comma, at most 50 words."""
    text = re.sub(r"[.!\"()*#:;~]", " ", text.lower())
    return " ".join(re.sub(r" {2,}", " ", text).rstrip("\n").strip(" ").split(" ")[:words])

# Words that forbid to mirror or turn a picture, and to crop it.
SIDES = set("left right top bottom upper lower above below leftmost rightmost north south east "
            "west northeast northwest southeast southwest".split())
NUMBERS = set("no one two three four five six seven eight nine ten".split())
