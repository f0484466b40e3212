"""What the exceptions of libraries say, short enough for a message of one line."""


def reason_of(error: Exception, longest: int | None = None) -> str:
    """All that it says, in one line of at most `longest` characters; its type if it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:longest]


def first_line_of(error: Exception) -> str:
    """The first line that it says; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
