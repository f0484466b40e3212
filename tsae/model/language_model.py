"""The language model and its residual stream.

A residual at layer L is the vector that enters block L, `blocks.L.hook_resid_pre`.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsae.compute.products import product
from tsae.model.folder import ModelShape, model_config, model_shape, quiet_transformers
from tsae.store import files


class LanguageModel:
    """A language model to read at its residual stream and to continue from it; made by `load_model`.

    Attributes:
        n_layers: number of blocks.
        d_model: width of the residual stream.
        vocab_size: rows of the embedding.
        n_positions: longest sequence that the model takes [tokens]; None: no limit.
        device: where it computes; inputs may be on any device.
    """

    def __init__(self, bridge: Any, shape: ModelShape, n_positions: int | None, device: torch.device) -> None:
        self._bridge = bridge
        self.device = device
        self.n_layers, self.d_model, self.vocab_size = shape
        self.n_positions = n_positions
        self._blocks = [block.original_component for block in bridge.blocks]
        self._block_returns_tuple = self._probe_block()
        self._past: dict[tuple[int, ...], Any] = {}

    def residuals(self, ids: Tensor, layers: Iterable[int], prefix: Sequence[int] = ()) -> dict[int, Tensor]:
        """Residuals entering the blocks `layers`, from one forward pass that stops at the last of them.

        Args:
            ids: (batch, pos) int64 token ids.
            layers: layers in any order.
            prefix: token ids before every sequence. They run once for all calls, and their residuals are not returned.

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
        with torch.no_grad():
            past = self._keys_and_values(prefix, len(ids)) if prefix else {"use_cache": False}
            residuals[last] = self._bridge.run_with_hooks(
                ids.to(self.device), fwd_hooks=hooks, stop_at_layer=last, **past
            )
        return {layer: residual.cpu() for layer, residual in residuals.items()}

    def embedding(self) -> Tensor:
        """Embedding (vocab_size, e) float32, on the CPU; e is d_model in most models."""
        weight: Tensor = self._bridge.original_model.get_input_embeddings().weight
        return weight.detach().float().cpu().contiguous()

    def logits_from(self, residual: Tensor, layer: int) -> Tensor:
        """Logits of the model continued from the residual entering block `layer`; lower blocks do not run.

        Args:
            residual: (batch, pos, d_model) float32, from the start of the sequence.
            layer: the block to start from.

        Returns:
            (batch, pos, vocab_size) float32, on the model's device.

        Raises:
            ValueError: the model lacks the layer.
        """
        self._check_layer(layer)
        with torch.no_grad(), self._bypassed(layer):
            return self._bridge(residual.to(self.device), start_at_layer=layer, use_cache=False)

    def _keys_and_values(self, prefix: Sequence[int], batch: int) -> dict[str, Any]:
        key = tuple(prefix)
        if key not in self._past:
            prompt = torch.tensor([key]).to(self.device)
            _, past = self._bridge(prompt, return_type="logits_and_cache", use_cache=True)
            self._past = {key: past}
        # A forward pass adds its own keys and values.
        cache = copy.deepcopy(self._past[key])
        cache.batch_repeat_interleave(batch)
        return {"past_key_values": cache}

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
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
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
        attention = model.config._attn_implementation
        # A relative path could equal the short name of a model, which the bridge would load instead.
        bridge: Any = TransformerBridge.boot_transformers(str(folder.resolve()), hf_model=model, device="cpu")
    except Exception as error:  # of any type
        raise ValueError(
            f"{folder}: could not be loaded ({error}); prepare the model again or choose another"
        ) from error
    if compatibility_mode:
        bridge.enable_compatibility_mode(disable_warnings=True)
    else:
        for block in bridge.blocks:
            _unwrap(block.original_component, GeneralizedComponent)
        bridge.original_model.set_attn_implementation(attention)
    _multiply_fast(bridge)
    bridge.eval()
    device = torch.device(device)
    if device.type != "cpu":
        # By name: from a torch.device the bridge keeps only the type.
        bridge.to(str(device), print_details=False)
    return LanguageModel(bridge, shape, getattr(config, "max_position_embeddings", None), device)


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


def _multiply_fast(model: nn.Module) -> None:
    from transformers.pytorch_utils import Conv1D

    class Transposed(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return product(x, self.weight.T, self.bias)

    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
        elif type(module) is Conv1D:
            module.__class__ = Transposed


def _unwrap(module: Any, component: type[Any]) -> None:
    """Put the model's own modules back inside its blocks: they are faster than the bridge's, whose inner hooks are not used."""
    for name, child in module.named_children():
        while isinstance(child, component):
            child = child.original_component
            module.register_module(name, child)
        _unwrap(child, component)
