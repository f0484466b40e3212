"""Types of a stage's arguments that a command line must know more about than Python does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

# A folder whose files are written together; a rule names one of them.
Folder = Annotated[Path, "FOLDER"]
# Any number of files, which follow the options on a command line.
Files = Annotated[Sequence[Path], "FILES"]
