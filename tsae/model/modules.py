"""A loaded model without what is not needed, and with faster modules."""

from typing import Any

import torch
from torch import Tensor, nn

from tsae.compute.products import product


def never_install() -> None:
    """Keep transformer_lens from installing torchvision, and another PyTorch with it, when it loads a model of images."""
    from transformer_lens.model_bridge.sources.transformers import helpers

    helpers._ensure_torchvision = lambda: False


def text_model(model: Any) -> Any:
    """The language model inside a model of images and text, with its weights, if transformer_lens knows it by itself.

    A language model is returned as it is.
    """
    config = model.config.get_text_config()
    if config is model.config:
        return model
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        alone = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    architecture = type(alone).__name__
    if architecture not in SUPPORTED_ARCHITECTURES:
        return model
    setattr(alone, alone.base_model_prefix, model.get_decoder())
    alone.set_output_embeddings(model.get_output_embeddings())
    alone.config.architectures = [architecture]
    return alone.eval()


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


def multiply_fast(model: nn.Module) -> None:
    """Let `product` multiply in every linear layer of a model, in place."""
    from transformers.pytorch_utils import Conv1D

    class Transposed(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return product(x, self.weight.T, self.bias)

    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
        elif type(module) is Conv1D:
            module.__class__ = Transposed


def unwrap(module: Any, component: type[Any]) -> None:
    """Put the model's own modules back inside its blocks: they are faster than the bridge's, whose inner hooks are not used."""
    for name, child in module.named_children():
        while isinstance(child, component):
            child = child.original_component
            module.register_module(name, child)
        unwrap(child, component)
