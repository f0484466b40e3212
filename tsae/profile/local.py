"""Checks of the local files that a configuration names."""

from pathlib import Path

from tsae.profile.config import Config
from tsae.profile.sources import CorpusSource, FileCorpus, FolderModel, HubCorpus


def check_local_sources(config: Config) -> None:
    """Check that local files exist, and that the sources have enough documents to hold out.

    Raises:
        ValueError: a file is missing, or there are too few documents; the message names the key.
    """
    wanted: list[tuple[str, Path]] = []
    if isinstance(config.model.source, FolderModel):
        wanted.append(("model.source.path", config.model.source.path / "config.json"))
    for place, source in enumerate(config.corpus.sources):
        if isinstance(source, FileCorpus):
            wanted += [(f"corpus.sources.{place}.paths", path) for path in source.files or source.paths]
    for key, path in wanted:
        if not path.is_file():
            raise ValueError(f"{key}: there is no file {path} (in {Path.cwd()})")
    n_least = config.tokens.heldout_documents
    numbers = [_count_documents(source, 2 * n_least) for source in config.corpus.sources]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers) and sum(number // 2 for number in known) < n_least:
        raise ValueError(
            f"tokens.heldout_documents: {n_least} documents are to be held out, at most half of each source's, and "
            f"corpus.sources have {', '.join(map(str, known))}; lower it, or add to corpus.sources"
        )


def _count_documents(source: CorpusSource, enough: int) -> int | None:
    """Documents of a source, counted up to `enough`; None if unknown before the source is fetched."""
    match source:
        case HubCorpus():
            return min(source.documents, enough)
        case FileCorpus(format="text"):
            return min(len(source.files), enough)
        case FileCorpus():
            n_documents = 0
            try:
                for path in source.files:
                    with path.open("rb") as file:
                        for line in file:
                            n_documents += bool(line.strip())
                            if n_documents == enough:
                                return enough
            except OSError:  # the stage that reads the file reports it
                return None
            return n_documents
    return None
