"""What a model allows: its residuals read, read behind a prefix, and continued to logits, tried on a few tokens."""

from typing import NamedTuple

from torch import Tensor

from tsae.model.language_model import LanguageModel, relative_error
from tsae.store.reasons import reason_of

# Rounding was at most 3e-6 of the largest number in 60 kinds of models; whatever is wrong was above 1e-2.
LARGEST_ERROR = 1e-4
# Of compatibility mode, which multiplies weights by each other.
LARGEST_CHANGE = 1e-3


class Capabilities(NamedTuple):
    """How a model does what the stages need, at every layer."""

    read: tuple[int, ...]
    """Layers whose residuals can be read."""
    prefix: str
    """Whether a prefix runs `once` for all prompts, or in the `whole prompt` every time."""
    continued: tuple[int, ...]
    """Layers from which the blocks above, alone, give the model's logits. For others the whole model runs."""

    def __str__(self) -> str:
        ways = {"once": "a prefix runs once", "whole prompt": "a prefix runs with every prompt"}
        whole = sorted(set(self.read) - set(self.continued))
        continued = (
            f"at layers {', '.join(map(str, whole))} the whole model runs" if whole else "from every layer alone"
        )
        return f"residuals of layers 0 to {self.read[-1]} can be read; {ways[self.prefix]}; the loss: {continued}"


def try_model(model: LanguageModel) -> Capabilities:
    """Try a model on eight tokens, at every layer.

    Returns:
        How it does what the stages need.

    Raises:
        ValueError: it does not; the message names what fails, what the model cannot have, and what would still work.
    """
    ids = model.few_tokens()
    read = _read(model, ids)
    _check_prefix(model, ids, read)
    own = model.logits(ids)
    for layer, residual in read.items():
        _check_continued(model, ids, layer, residual, own)
    prefix = "once" if model.keeps_prefix(ids[0, :2].tolist()) else "whole prompt"
    return Capabilities(tuple(read), prefix, tuple(filter(model.starts_at, read)))


def try_compatibility_mode(model: LanguageModel, logits: Tensor) -> Capabilities:
    """Try a model that was loaded in compatibility mode.

    Args:
        model: the language model.
        logits: of `few_tokens` (2, 4, vocab_size), without compatibility mode.

    Raises:
        ValueError: as `try_model`, or the mode changes what the model predicts.
    """
    found, expected = model.logits(model.few_tokens()).log_softmax(-1), logits.log_softmax(-1)
    if (off := relative_error(found, expected)) > LARGEST_CHANGE:
        raise ValueError(
            f"model.compatibility_mode: true changes its predictions (by {off:.1g} of the largest log-probability); set it to "
            "false"
        )
    return try_model(model)


def _read(model: LanguageModel, ids: Tensor) -> dict[int, Tensor]:
    layers = range(model.n_layers)
    try:
        residuals, earlier = model.residuals(ids, layers), model.residuals(ids[:, :-1], layers)
    except Exception as error:  # of any type
        raise ValueError(f"its residuals cannot be read ({reason_of(error, 200)}), so nothing works") from error
    for layer, residual in residuals.items():
        if tuple(residual.shape) != (*ids.shape, model.d_model):
            raise ValueError(
                f"its residuals cannot be read (at layer {layer} their shape is {tuple(residual.shape)} instead of "
                f"{(*ids.shape, model.d_model)}), so nothing works"
            )
        if (off := relative_error(residual[:, :-1], earlier[layer])) > LARGEST_ERROR:
            raise ValueError(
                f"its residuals depend on later tokens (at layer {layer} by {off:.1g} of the largest entry), so it does not "
                "predict the next token: no loss, no claims"
            )
    return {layer: residuals[layer] for layer in layers}


def _check_prefix(model: LanguageModel, ids: Tensor, read: dict[int, Tensor]) -> None:
    fails = "its residuals can be read, but not behind a prefix"
    without = "so it has no unigram residuals and no tokenized SAEs; only the residual cache would work"
    prefix = ids[0, :2].tolist()
    prompts = ids.clone()
    prompts[:, :2] = ids[0, :2]
    try:
        whole, behind = model.residuals(prompts, read), model.residuals(ids[:, 2:], read, prefix)
    except Exception as error:  # of any type
        raise ValueError(f"{fails} ({reason_of(error, 200)}), {without}") from error
    for layer, residual in behind.items():
        if (off := relative_error(residual, whole[layer][:, 2:])) > LARGEST_ERROR:
            raise ValueError(f"{fails} (at layer {layer} they are {off:.1g} of the largest entry off), {without}")


def _check_continued(model: LanguageModel, ids: Tensor, layer: int, residual: Tensor, own: Tensor) -> None:
    fails = f"its residuals can be read, but not continued to logits from layer {layer}"
    without = "so it has no loss: no CE metrics, no curves; caches, unigram residuals and trainings would work"
    try:
        same, other = (model.logits_from(x, layer, ids) for x in (residual, residual.flip(1)))
    except Exception as error:  # of any type
        raise ValueError(f"{fails} ({reason_of(error, 200)}), {without}") from error
    if (off := relative_error(same, own)) > LARGEST_ERROR:
        raise ValueError(f"{fails} (the logits are {off:.1g} of the largest off), {without}")
    if relative_error(other, own) < LARGEST_ERROR:
        raise ValueError(f"{fails} (other residuals give the same logits), {without}")
