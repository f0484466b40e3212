"""The language model: a folder of weights made from any source, and its residual stream.

A residual at layer L is the vector that enters block L, `blocks.L.hook_resid_pre`.
"""

import contextlib
import fnmatch
import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsae import files
from tsae.config import Model
from tsae.sources import FolderModel, GgufModel, HubModel, ModelSource

# Weights as safetensors only: loading any other format can run code.
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
# Further weights that some hub repositories hold in formats of their own.
_NOT_MODEL_FILES = ("*/*", "consolidated*", "source.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class ModelShape(NamedTuple):
    """What `config.json` says about a model's size."""

    n_layers: int
    d_model: int
    vocab_size: int


# --- the folder ------------------------------------------------------------------------------------------------------


def prepare_model(source: ModelSource, sources_dir: Path, folder: Path) -> None:
    """Make a model folder: config.json, *.safetensors, the tokenizer, and last `source.json`.

    `source.json` holds the source's settings and the sha256 of every file; where it exists, the folder is whole. Files
    of an earlier model in `folder` are replaced.

    Args:
        source: where the model comes from.
        sources_dir: folder with the files fetched from wheels (kind `wheel-gguf`).
        folder: the folder to make.

    Raises:
        ValueError: the source is missing, not what the configuration says, out of reach, or has no safetensors.
    """
    if isinstance(source, FolderModel) and source.path.resolve() == folder.resolve():
        raise ValueError(f"model.source.path: {source.path} is the folder that the model is to be copied to; move it")
    folder.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        match source:
            case GgufModel():
                _expand_gguf(sources_dir / source.filename, source.sha256, building)
            case HubModel():
                _copy_model(_download(source), f"model.source.id: {source.id}", building)
            case FolderModel():
                _copy_model(source.path, f"model.source.path: {source.path}", building)
        paths = sorted(building.iterdir())
        hashes = {path.name: files.sha256(path) for path in paths}
        # First, so that an interrupted replacement does not pass for a whole model.
        (folder / "source.json").unlink(missing_ok=True)
        for path in _model_files(folder):
            path.unlink()
        for path in paths:
            path.replace(folder / path.name)
        files.write_json(folder / "source.json", {"source": source.model_dump(mode="json"), "files": hashes})
    finally:
        shutil.rmtree(building, ignore_errors=True)


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
        missing = sorted(set(json.loads(index.read_text())["weight_map"].values()) - names)
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
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{where}: could not be downloaded and is not in the local cache ({error}); connect to the network, or "
            "copy the model here and use it as `kind: folder`"
        ) from error


def _expand_gguf(path: Path, sha256: str, folder: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: the GGUF file of model.source is missing; fetch the sources first")
    if (found := files.sha256(path)) != sha256:
        raise ValueError(
            f"{path}: sha256 is {found} and model.source.sha256 is {sha256}; delete the file, fetch it again"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _quiet_transformers()
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    config = quantised.config
    # The weights are float32 by now; with this entry the library refuses to save them.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _quiet_transformers() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def model_shape(folder: Path) -> ModelShape:
    """Read a model's size from its `config.json`.

    Raises:
        ValueError: the file is missing or describes no language model.
    """
    config = _model_config(folder)
    try:
        return ModelShape(config.num_hidden_layers, config.hidden_size, config.vocab_size)
    except AttributeError as error:
        raise ValueError(f"{folder / 'config.json'}: not the configuration of a language model ({error})") from error


def check_shape(model: Model, folder: Path) -> None:
    """Check that a prepared model has the size that the configuration states.

    Raises:
        ValueError: it has another one; the message names each key and the right value.
    """
    wrong = [
        f"model.{key} is {getattr(model, key)}, but the model has {found}"
        for key, found in model_shape(folder)._asdict().items()
        if getattr(model, key) != found
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def _model_config(folder: Path) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {folder} is not a model folder; prepare the model first")
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not the configuration of a language model ({error})") from error


# --- the residual stream ---------------------------------------------------------------------------------------------


class LanguageModel:
    """A language model that is read at, and continued from, its residual stream; made by `load_model`.

    Attributes:
        n_layers: number of blocks.
        d_model: width of the residual stream.
        vocab_size: rows of the embedding.
        n_positions: longest sequence the model takes [tokens], or None where the model sets no limit.
    """

    def __init__(self, bridge: Any, shape: ModelShape, n_positions: int | None) -> None:
        self._bridge = bridge
        self.n_layers, self.d_model, self.vocab_size = shape
        self.n_positions = n_positions
        self._blocks = [block.original_component for block in bridge.blocks]
        self._block_returns_tuple = self._probe_block()

    def residuals(self, ids: Tensor, layers: Iterable[int], prefix: Sequence[int] = ()) -> dict[int, Tensor]:
        """Residuals entering the blocks `layers`, from one forward pass that stops at the last of them.

        Args:
            ids: (batch, pos) int64 token ids.
            layers: layers, in any order.
            prefix: token ids that precede every sequence; they are run once, and their residuals are not returned.

        Returns:
            layer -> (batch, pos, d_model) float32.

        Raises:
            ValueError: a layer that the model does not have, sequences that are too long, or unknown token ids.
        """
        layers = sorted(set(layers))
        for layer in layers:
            self._check_layer(layer)
        n_tokens = len(prefix) + ids.shape[1]
        if self.n_positions is not None and n_tokens > self.n_positions:
            raise ValueError(f"sequences of {n_tokens} tokens: the model takes at most {self.n_positions}")
        smallest, largest = min([int(ids.min()), *prefix]), max([int(ids.max()), *prefix])
        if smallest < 0 or largest >= self.vocab_size:
            raise ValueError(
                f"token ids from {smallest} to {largest}: the model's go from 0 to {self.vocab_size - 1}; "
                "were the tokens made with another model's tokenizer?"
            )
        *lower, last = layers
        residuals: dict[int, Tensor] = {}

        def keep(residual: Tensor, hook: Any) -> None:
            residuals[int(hook.name.split(".")[1])] = residual

        hooks = [(f"blocks.{layer}.hook_resid_pre", keep) for layer in lower]
        with torch.no_grad():
            past = self._keys_and_values(prefix, len(ids)) if prefix else {"use_cache": False}
            residuals[last] = self._bridge.run_with_hooks(ids, fwd_hooks=hooks, stop_at_layer=last, **past)
        return residuals

    def logits_from(self, residual: Tensor, layer: int) -> Tensor:
        """Logits that follow from the residual entering block `layer`; the blocks below are not run.

        Args:
            residual: (batch, pos, d_model) float32, positions counted from the start of the sequence.
            layer: the layer at which the model takes it up.

        Returns:
            (batch, pos, vocab_size) float32.

        Raises:
            ValueError: a layer that the model does not have.
        """
        self._check_layer(layer)
        with torch.no_grad(), self._bypassed(layer):
            return self._bridge(residual, start_at_layer=layer, use_cache=False)

    def _keys_and_values(self, prefix: Sequence[int], batch: int) -> dict[str, Any]:
        ids = torch.tensor([list(prefix)])
        _, cache = self._bridge(ids, return_type="logits_and_cache", use_cache=True)
        cache.batch_repeat_interleave(batch)
        return {"past_key_values": cache}

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"layer {layer} does not exist; the model has layers 0 to {self.n_layers - 1}")

    def _probe_block(self) -> bool:
        returned: list[Any] = []
        handle = self._blocks[0].register_forward_hook(lambda _module, _inputs, output: returned.append(output))
        with torch.no_grad():
            self._bridge(torch.zeros(1, 1, dtype=torch.int64), use_cache=False)
        handle.remove()
        return isinstance(returned[0], tuple)

    @contextlib.contextmanager
    def _bypassed(self, layer: int) -> Iterator[None]:
        # The bridge starts at a layer by running the blocks below on discarded input; here they hand it through.
        def hand_through(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor]:
            return (hidden_states,) if self._block_returns_tuple else hidden_states

        blocks = self._blocks[:layer]
        forwards = [block.forward for block in blocks]
        try:
            for block in blocks:
                block.forward = hand_through
            yield
        finally:
            for block, forward in zip(blocks, forwards, strict=True):
                block.forward = forward


def load_model(folder: Path, compatibility_mode: bool = False) -> LanguageModel:
    """Load a model folder, float32, on the CPU.

    Args:
        folder: config.json, *.safetensors and the tokenizer.
        compatibility_mode: fold layer norms into the weights and centre those that write to the residual stream, as
            HookedTransformer did by default.

    Raises:
        ValueError: the folder is missing, incomplete, or holds a model that transformer_lens does not know.
    """
    config = _model_config(folder)
    shape = model_shape(folder)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no *.safetensors; prepare the model again")
    from safetensors import SafetensorError
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
    from transformers import AutoModelForCausalLM

    _quiet_transformers()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        model, info = loaded
        if info["missing_keys"]:
            # The library would go on with random weights in their place.
            raise ValueError(f"the weights {', '.join(sorted(info['missing_keys']))} are missing")
        attention = model.config._attn_implementation
        # The bridge takes a relative path that equals a model's short name for that model.
        bridge: Any = TransformerBridge.boot_transformers(str(folder.resolve()), hf_model=model, device="cpu")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: could not be loaded ({error}); prepare the model again or choose another"
        ) from error
    if compatibility_mode:
        bridge.enable_compatibility_mode(disable_warnings=True)
    else:
        for block in bridge.blocks:
            _unwrap(block.original_component, GeneralizedComponent)
        bridge.original_model.set_attn_implementation(attention)
    bridge.eval()
    return LanguageModel(bridge, shape, getattr(config, "max_position_embeddings", None))


def _unwrap(module: Any, component: type[Any]) -> None:
    """Put the model's own modules back inside its blocks, so that only the blocks' inputs can be hooked.

    The bridge runs attention step by step, so that scores can be hooked; nothing here does, and the model's own is faster.
    """
    for name, child in module.named_children():
        while isinstance(child, component):
            child = child.original_component
            module.register_module(name, child)
        _unwrap(child, component)
