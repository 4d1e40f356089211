"""Is a run resumed with the settings it was begun with?"""
from collections.abc import Collection

FREE = ("device", "compile", "shard", "num_workers", "save_steps", "save_total_limit", "log_steps",
        "log_to", "resume", "force", "output_dir")        # what a resumed run may have changed


def differences(saved: dict, now: dict, free: Collection[str]) -> list[str]:
    """"lr 0.001 -> 0.002" for each setting that differs and is not free to."""
    def told(settings: dict, key: str) -> str:
        value = settings.get(key, "(none)")
        listed = isinstance(value, list | tuple)
        return (" ".join(map(str, value)) if listed else str(value)) or "(empty)"
    pairs = ((key, told(saved, key), told(now, key)) for key in now | saved if key not in free)
    return [f"{key} {old} -> {new}" for key, old, new in pairs if old != new]
