"""What the flags of a training may not say."""


class FlagError(ValueError):
    """A flag that cannot be followed: one line that names it and what to do."""
