"""Types with which a stage says what its arguments are, where a command line has to know more than Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

# A folder of files that are made together. A rule names one of its files.
Folder = Annotated[Path, "FOLDER"]
# Any number of files, which come after the options, as other programs take them.
Files = Annotated[Sequence[Path], "FILES"]
