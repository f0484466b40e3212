"""The language model and its residual stream.

A residual at layer L is the vector that enters block L, `blocks.L.hook_resid_pre`.

Two things have a fast way, which most models allow, and a way that any causal model does: a prompt's prefix runs once if all
that the model keeps of it is keys and values, and blocks below a layer are left out where the logits stay the same.
"""

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsae.model.folder import auto_class, model_config, model_shape, quiet_transformers
from tsae.model.modules import multiply_fast, never_install, text_model, unwrap
from tsae.profile.shape import Shape
from tsae.store import files
from tsae.store.reasons import reason_of

# Rounding was at most 2e-6 of the largest logit in 60 kinds of models; the smallest mistake 8e-5, of bloom's first layer.
TOLERANCE = 1e-5


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference / largest expected magnitude; infinite if a number is not finite."""
    if found.shape != expected.shape or not (found.isfinite().all() and expected.isfinite().all()):
        return math.inf
    return ((found - expected).abs().max() / expected.abs().max()).item()


class LanguageModel:
    """A language model to read at its residual stream and to continue from it; made by `load_model`.

    Attributes:
        n_layers: number of blocks.
        d_model: width of the residual stream.
        vocab_size: rows of the embedding.
        n_positions: longest sequence that the model takes [tokens]; None: no limit.
        device: where it computes; inputs may be on any device.
    """

    def __init__(self, bridge: Any, shape: Shape, n_positions: int | None, device: torch.device) -> None:
        self._bridge = bridge
        self.device = device
        self.n_layers, self.d_model, self.vocab_size = shape
        self.n_positions = n_positions
        self._blocks = [block.original_component for block in bridge.blocks]
        self._block_returns_tuple = self._probe_block()
        self._past: dict[tuple[int, ...], Any] = {}
        self._starts_at: dict[int, bool] = {}

    def residuals(self, ids: Tensor, layers: Iterable[int], prefix: Sequence[int] = ()) -> dict[int, Tensor]:
        """Residuals entering the blocks `layers`, from one forward pass that stops at the last of them.

        Args:
            ids: (batch, pos) int64 token ids.
            layers: layers in any order.
            prefix: token ids before every sequence, whose residuals are not returned. If `keeps_prefix`, they run once for all
                calls.

        Returns:
            layer -> (batch, pos, d_model) float32, on the CPU.

        Raises:
            ValueError: the model lacks a layer, sequences are too long, or token ids are unknown.
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
        n_written = 0
        with torch.no_grad():
            if not prefix:
                past = {"use_cache": False}
            elif self.keeps_prefix(prefix):
                past = self._keys_and_values(prefix, len(ids))
            else:
                past, n_written = {"use_cache": False}, len(prefix)
                ids = torch.cat([torch.tensor([list(prefix)]).to(ids).expand(len(ids), -1), ids], dim=1)
            residuals[last] = self._bridge.run_with_hooks(
                ids.to(self.device), fwd_hooks=hooks, stop_at_layer=last, **past
            )
        return {layer: residual[:, n_written:].cpu() for layer, residual in residuals.items()}

    def embedding(self) -> Tensor:
        """Embedding (vocab_size, e) float32, on the CPU; e is d_model in most models."""
        weight: Tensor = self._bridge.original_model.get_input_embeddings().weight
        return weight.detach().float().cpu().contiguous()

    def logits_from(self, residual: Tensor, layer: int, ids: Tensor) -> Tensor:
        """Logits of the model continued from the residual entering block `layer`.

        If `starts_at(layer)`, lower blocks do not run. If not, the whole model runs on `ids` and block `layer` gets `residual`: what
        upper blocks take from elsewhere, such as keys of a lower block or the token ids, is then of the unchanged model.

        Args:
            residual: (batch, pos, d_model) float32, from the start of the sequence.
            layer: the block to start from.
            ids: (batch, pos) int64 token ids of the same sequences.

        Returns:
            (batch, pos, vocab_size) float32, on the model's device.

        Raises:
            ValueError: the model lacks the layer.
        """
        self._check_layer(layer)
        with torch.no_grad():
            return self._continue(residual, layer) if self.starts_at(layer) else self._replace(residual, layer, ids)

    def starts_at(self, layer: int) -> bool:
        """Whether the blocks from `layer` on, alone, give the logits of the whole model on a few tokens; tried once."""
        if layer not in self._starts_at:
            ids = self.few_tokens()
            residual = self.residuals(ids, [layer])[layer]
            other = residual.flip(1)
            with torch.no_grad():
                expected = [self.logits(ids), self._replace(other, layer, ids)]
                try:
                    found = [self._continue(residual, layer), self._continue(other, layer)]
                except Exception:  # of any type, where a block takes or returns what the bridge does not expect
                    self._starts_at[layer] = False
                else:
                    self._starts_at[layer] = max(map(relative_error, found, expected)) < TOLERANCE
        return self._starts_at[layer]

    def keeps_prefix(self, prefix: Sequence[int]) -> bool:
        """Whether keys and values are all that the model keeps of a prefix, so that it runs once for all sequences."""
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        kept = getattr(self._after(prefix), "layers", ())
        return len(kept) > 0 and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in kept)

    def few_tokens(self) -> Tensor:
        """Two sequences of four tokens from the whole vocabulary (2, 4) int64, to try the model on."""
        return (torch.arange(1, 9) * (self.vocab_size - 1) // 9).view(2, 4)

    def logits(self, ids: Tensor) -> Tensor:
        """The model's own logits (batch, pos, vocab_size) float32 of token ids (batch, pos), on its device."""
        with torch.no_grad():
            logits: Tensor = self._bridge(ids.to(self.device), use_cache=False)
        return logits

    def _after(self, prefix: Sequence[int]) -> Any:
        """What the model keeps of a prefix."""
        key = tuple(prefix)
        if key not in self._past:
            with torch.no_grad():
                prompt = torch.tensor([key]).to(self.device)
                _, past = self._bridge(prompt, return_type="logits_and_cache", use_cache=True)
            self._past = {key: past}
        return self._past[key]

    def _keys_and_values(self, prefix: Sequence[int], batch: int) -> dict[str, Any]:
        # A forward pass adds its own keys and values.
        cache = copy.deepcopy(self._after(prefix))
        cache.batch_repeat_interleave(batch)
        return {"past_key_values": cache}

    def _continue(self, residual: Tensor, layer: int) -> Tensor:
        with self._bypassed(layer):
            logits: Tensor = self._bridge(residual.to(self.device), start_at_layer=layer, use_cache=False)
        return logits

    def _replace(self, residual: Tensor, layer: int, ids: Tensor) -> Tensor:
        residual = residual.to(self.device)

        def replace(_block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
            if inputs:
                return (residual, *inputs[1:]), named
            return inputs, named | {"hidden_states": residual}

        handle = self._blocks[layer].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            return self.logits(ids)
        finally:
            handle.remove()

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"layer {layer} does not exist; the model has layers 0 to {self.n_layers - 1}")

    def _probe_block(self) -> bool:
        returned: list[Any] = []
        handle = self._blocks[0].register_forward_hook(lambda _module, _inputs, output: returned.append(output))
        with torch.no_grad():
            self._bridge(torch.zeros(1, 1, dtype=torch.int64, device=self.device), use_cache=False)
        handle.remove()
        return isinstance(returned[0], tuple)

    @contextlib.contextmanager
    def _bypassed(self, layer: int) -> Iterator[None]:
        # To start at a layer, the bridge runs the lower blocks on input that it discards. Here they return it unchanged.
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


def load_model(folder: Path, compatibility_mode: bool = False, device: torch.device | str = "cpu") -> LanguageModel:
    """Load a model folder in float32.

    Args:
        folder: config.json, *.safetensors and the tokenizer.
        compatibility_mode: fold layer norms into the weights and centre those that write to the residual stream, as
            HookedTransformer did by default.
        device: where it computes.

    Raises:
        ValueError: the folder is missing or incomplete, or transformer_lens does not know the model.
    """
    config = model_config(folder)
    shape = model_shape(folder)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no *.safetensors; prepare the model again")
    for path in sorted(folder.iterdir()):
        files.check(path)
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    quiet_transformers()
    never_install()
    try:
        loaded: Any = auto_class(config).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        model, info = loaded
        if info["missing_keys"]:
            # The library would use random weights instead.
            raise ValueError(f"the weights {', '.join(sorted(info['missing_keys']))} are missing")
        model = text_model(model)
        attention = model.config._attn_implementation
        # A relative path could equal the short name of a model, which the bridge would load instead.
        bridge: Any = TransformerBridge.boot_transformers(str(folder.resolve()), hf_model=model, device="cpu")
    except Exception as error:  # of any type
        reason = reason_of(error)
        if "supported architecture" in reason:  # and then a list of all
            raise ValueError(
                f"{folder}: transformer_lens does not know models of type {config.model_type}; choose another"
            ) from error
        raise ValueError(
            f"{folder}: could not be loaded ({reason}); prepare the model again or choose another"
        ) from error
    if compatibility_mode:
        try:
            bridge.enable_compatibility_mode(disable_warnings=True)
        except Exception as error:  # of any type
            raise ValueError(
                f"model.compatibility_mode: transformer_lens cannot fold models of type {config.model_type} "
                f"({reason_of(error)}); set it to false"
            ) from error
    else:
        for block in bridge.blocks:
            unwrap(block.original_component, GeneralizedComponent)
        bridge.original_model.set_attn_implementation(attention)
    multiply_fast(bridge)
    bridge.eval()
    device = torch.device(device)
    if device.type != "cpu":
        # By name: from a torch.device the bridge keeps only the type.
        bridge.to(str(device), print_details=False)
    return LanguageModel(bridge, shape, getattr(config.get_text_config(), "max_position_embeddings", None), device)
