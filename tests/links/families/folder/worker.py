"""The class of the family."""

from .parts import SECRET


class InFolder:
    """Answers from the other file."""

    def secret(self):
        return SECRET
