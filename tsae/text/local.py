"""Checks of the local files that a configuration names."""

from pathlib import Path

from tsae.profile.config import Config
from tsae.profile.section import unusable_in
from tsae.profile.shape import check_context
from tsae.profile.sources import CorpusSource, FileCorpus, FolderModel, HubCorpus
from tsae.text.corpus import documents_of
from tsae.text.cut import cut_for


def check_local_sources(config: Config) -> None:
    """Check that local files exist, that the model takes the sequences, and that enough documents can be held out.

    Raises:
        ValueError: a file is missing, its name cannot be taken or its first documents cannot be read, sequences are too long for the
            model, or there are too few documents; the message names the key.
    """
    if isinstance(config.model.source, FolderModel):
        described = config.model.source.path / "config.json"
        _check_file("model.source.path", described)
        check_context(described, "model.source.path", config.tokens.n_ctx)
    for place, source in enumerate(config.corpus.sources):
        if isinstance(source, FileCorpus):
            _check_files(f"corpus.sources.{place}.paths", source)
    n_least = config.tokens.heldout_documents
    known, n_characters = [], 0
    for source in config.corpus.sources:
        counted = _count_documents(source, 2 * n_least)
        if counted is None:
            return
        known.append(counted[0])
        n_characters += counted[1]
    if sum(number // 2 for number in known) >= n_least:
        return
    suggested = cut_for(n_characters, n_least)
    raise ValueError(
        f"tokens.heldout_documents: {n_least} documents are to be held out, at most half of each source's, and "
        f"corpus.sources have {', '.join(map(str, known))}; lower it, add to corpus.sources"
        + (f", or cut long documents into pieces with `cut: {suggested}` in the source" if suggested else "")
    )


def _check_files(key: str, source: FileCorpus) -> None:
    try:
        listed = source.files
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    for path in listed:
        _check_file(key, path)
        if unusable := unusable_in(path):
            raise ValueError(f"{key}: {str(path)!r} has {unusable}, which the workflow cannot take; rename it")


def _check_file(key: str, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{key}: there is no file {path} (in {Path.cwd()})")


def _count_documents(source: CorpusSource, enough: int) -> tuple[int, int] | None:
    """Documents of a source, counted up to `enough`, and the characters of local ones; None if unknown before it is fetched."""
    match source:
        case HubCorpus():
            return min(source.documents, enough), 0
        case FileCorpus():
            n_documents = n_characters = 0
            for document in documents_of(source, Path()):
                if document.text.strip():
                    n_documents += 1
                    n_characters += len(document.text)
                if n_documents == enough:
                    break
            return n_documents, n_characters
    return None
