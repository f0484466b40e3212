"""What a caller gives, as a profile: the model, the text, the settings."""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tsae.profile import config
from tsae.profile.config import Config
from tsae.profile.inputs import Corpus, Model
from tsae.profile.sources import FileCorpus, FolderModel
from tsae.store.files import read_text, sha256, write_json, write_text
from tsae.store.reasons import reason_of
from tsae.text.local import check_local_sources

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROFILE, DIGESTS = "profile.yaml", "inputs.json"
TEXTS = "texts.jsonl"
# Fewer documents than this are cut into pieces, so that enough can be held out.
FEW_DOCUMENTS, PIECE_CHARACTERS = 400, 4000


def profile_of(
    folder: Path, model: Mapping[str, Any], corpus: Mapping[str, Any], sections: Mapping[str, Any]
) -> Config:
    """The profile of a training, kept in its folder with the sha256 of the local files that it names.

    Raises:
        ValueError: it has a mistake, or the folder holds a training with another profile or with other files.
    """
    data = {"profile": "sae", "model": model, "corpus": corpus, **sections}
    profile = config.parse(data, "settings")
    if len(profile.jobs()) != 1:
        raise ValueError(
            f"settings: sweep: one SAE is trained here, and these spell {len(profile.jobs())}; use a profile"
        )
    check_local_sources(profile)
    path = folder / PROFILE
    if path.exists() and (other := config.load(path)) != profile:
        changed = [name for name, section in profile if section != getattr(other, name)]
        raise ValueError(
            f"{folder} holds a training with other settings ({', '.join(changed)}); choose another folder, or remove it"
        )
    digests = {str(local): sha256(local) for local in _local_files(profile)}
    if not path.exists():
        write_json(folder / DIGESTS, digests)
        write_text(path, yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False))
    elif changed := sorted(name for name, _ in json.loads(read_text(folder / DIGESTS)).items() ^ digests.items()):
        raise ValueError(
            f"{folder} holds a training from other files ({changed[0]} is not what it was); choose another folder, or remove it"
        )
    return profile


def _local_files(profile: Config) -> list[Path]:
    source = profile.model.source
    model = [path for path in source.path.iterdir() if path.is_file()] if isinstance(source, FolderModel) else []
    texts = [path for source in profile.corpus.sources if isinstance(source, FileCorpus) for path in source.files]
    return model + texts


def profile_in(folder: Path) -> Config:
    """The profile of the training in a folder.

    Raises:
        ValueError: there is none.
    """
    if not (folder / PROFILE).is_file():
        raise ValueError(f"{folder} has no {PROFILE}, so no SAE was trained there; run tsae train first")
    return config.load(folder / PROFILE)


def model_of(
    model: "str | Path | Model | PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", folder: Path
) -> dict[str, Any]:
    """The section `model` of the profile."""
    if isinstance(model, Model):
        return model.model_dump(mode="json")
    if not isinstance(model, str | Path):
        return {"source": {"kind": "folder", "path": str(_saved(model, tokenizer, folder))}}
    if Path(model).is_dir():
        return {"source": {"kind": "folder", "path": str(Path(model).resolve())}}
    if isinstance(model, Path) or model.startswith((".", "/", "~")):
        raise ValueError(f"model: there is no folder {model}")
    name, _, revision = model.partition("@")
    return {"source": {"kind": "huggingface", "id": name, "revision": _commit_of(name, revision)}}


def _saved(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", folder: Path) -> Path:
    """The folder of a loaded model, as `save_pretrained` writes it."""
    if tokenizer is None:
        raise ValueError("tokenizer: a loaded model needs its tokenizer")
    saved = folder / "loaded-model"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        building = Path(temporary) / "model"
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        if not saved.exists():
            building.rename(saved)
        elif _digests(building) != _digests(saved):
            raise ValueError(f"{saved} holds another model; choose another folder, or remove it")
    return saved.resolve()


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if path.is_file()}


def _commit_of(name: str, revision: str) -> str:
    """The commit of a hub repository that a branch or tag names."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(name, revision=revision or None).sha)
    except Exception as error:  # of any type
        raise ValueError(
            f"model: {name} is no folder here, and the hub does not say what it is ({reason_of(error, 200)}); correct the name or the "
            "path, check the network, or name the commit: id@<40 hex digits>"
        ) from None


def corpus_of(texts: "Iterable[str] | Path | Sequence[Path] | Corpus", folder: Path) -> dict[str, Any]:
    """The section `corpus` of the profile."""
    if isinstance(texts, Corpus):
        return texts.model_dump(mode="json")
    if isinstance(texts, str):
        raise ValueError("texts: a single string; give documents as a list of strings, or files as paths")
    listed = [texts] if isinstance(texts, Path) else texts
    first = next(iter(listed), None) if isinstance(listed, Sequence) else None
    if not isinstance(first, Path):
        path = folder / TEXTS
        n_documents = _write_documents(listed, path)
        return {"sources": [_source([path], "jsonl", n_documents)]}
    paths = [Path(path).resolve() for path in listed]
    lines = {path.name.partition(".")[2].startswith("jsonl") for path in paths if not path.is_dir()}
    if len(lines) > 1:
        raise ValueError("texts: .jsonl and other files together; name files of one kind")
    kind = "jsonl" if True in lines else "text"
    source = FileCorpus(kind="files", paths=tuple(paths), format=kind)
    return {"sources": [_source(paths, kind, FEW_DOCUMENTS if kind == "jsonl" else len(source.files))]}


def _source(paths: Sequence[Path], kind: str, n_documents: int) -> dict[str, Any]:
    cut = PIECE_CHARACTERS if n_documents < FEW_DOCUMENTS else None
    return {"kind": "files", "paths": [str(path.resolve()) for path in paths], "format": kind, "cut": cut}


def _write_documents(texts: Iterable[Any], path: Path) -> int:
    """Write documents as JSON lines; how many there are.

    Raises:
        ValueError: one is no string, or the file holds other documents.
    """
    lines = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts: document {number} is of type {type(text).__name__}; give strings")
        lines.append(json.dumps({"text": text}, ensure_ascii=False))
    written = "".join(f"{line}\n" for line in lines)
    if not path.exists():
        write_text(path, written)
    elif read_text(path) != written:
        raise ValueError(f"{path} holds other texts; choose another folder, or remove it")
    return len(lines)
