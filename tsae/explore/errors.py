"""What went wrong with what a reader of a notebook wrote."""


class AskedError(ValueError):
    """What was asked for is not there, or cannot be. A notebook shows the message alone, in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows."""
        return [str(self)]
