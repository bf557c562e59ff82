"""Something for the other file."""

SECRET = 42
