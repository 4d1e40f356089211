"""SkyEye-968k's 19 files as they were released, and what their rows may call a field.

The fields were published without a description: ALIASES are the names that are understood.
"""
FILES = {       # how a name begins: the task, where the folder does not tell it, and the pictures
    "caption_ERA": ("video", ("SingleFrames", "SingleFrames/train", "SingleFrames/Train")),
    "caption_NWPU": ("", ("NWPU-RESISC45",)),
    "caption_RSICD": ("", ("RSICD_images",)),
    "caption_RSITMD": ("", ("rsitmd/images",)),
    "caption_Sydney": ("", ("Sydney/images", "Sydney/imgs", "Sydney")),
    "caption_UCM": ("", ("UCMerced", "UCMerced/Images", "UCMerced/imgs")),
    "DIOR_Conversa": ("", ("DIOR/JPEGImages-trainval", "JPEGImages-trainval")),
    "DOTA_Conversa": ("", ("DOTA/images", "DOTA")),
    "Sydney_Conversa": ("", ("Sydney/images", "Sydney/imgs", "Sydney")),
    "UCM_Conversa": ("", ("UCMerced", "UCMerced/Images", "UCMerced/imgs")),
    "diorpg": ("", ("DIOR/JPEGImages-trainval", "JPEGImages-trainval")),
    "rsvg": ("", ("RSVG/images",)),
    "DIORvg": ("", ("DIOR/JPEGImages-trainval", "JPEGImages-trainval")),
    "DOTAvqa": ("", ("DOTA/images", "DOTA")),
    "EARVqa": ("", ("SingleFrames", "SingleFrames/train", "SingleFrames/Train")),
    "RSVQAHR": ("", ("RSVQA_HR/Data",)),
    "RSVQALR": ("", ("RSVQA_LR/Images_LR",)),
    "SydneyVqa": ("", ("Sydney/images", "Sydney/imgs", "Sydney")),
    "UCMvqa": ("", ("UCMerced", "UCMerced/Images", "UCMerced/imgs")),
}
TASKS = {"caption": "caption", "vqa": "vqa", "vg": "refer", "phrasegrounding": "detection",
         "multitask_conversation": "conversation"}      # of the folders
FIELDS = {"caption": ("image", "caption"), "video": ("image", "caption"),
          "vqa": ("image", "question", "answer"), "refer": ("image", "expression", "box"),
          "detection": ("image", "phrase", "box"), "identify": ("image", "phrase", "box")}
ALIASES = {
    "image": ("image", "image_id", "img_id", "filename", "file_name", "img", "picture"),
    "caption": ("caption", "text", "sentence", "answer", "ground_truth"),
    "question": ("question", "query", "text"),
    "answer": ("answer", "ground_truth", "label"),
    "expression": ("expression", "sents", "sentence", "description", "question", "text"),
    "phrase": ("phrase", "label", "name", "text", "caption"),
    "box": ("bbox", "bboxes", "box", "boxes", "answer", "ground_truth"),
}


def known(stem: str) -> tuple[str, tuple[str, ...]]:
    """-> task or "", and the folders of its pictures after images/."""
    return next((FILES[name] for name in FILES if stem.startswith(name)), ("", ()))


def fields(row: dict | tuple, task: str) -> tuple[str, ...]:
    """What a row of a task must have."""
    talk = "conversations" in row or task not in FIELDS
    return ("conversations",) if talk else FIELDS[task]


def alias(row: dict | tuple, name: str) -> str:
    """What a row calls a field."""
    for found in ALIASES.get(name, (name,)):
        if found in row:
            return found
    raise ValueError(f"no field for the {name}; it has {', '.join(row)}")
