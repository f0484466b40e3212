"""What a direction of the residual stream adds to the logits.

It is apart from the model itself, because cached residuals depend on the code of the model and not on this.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tsae.model.language_model import LanguageModel


def logits_of_direction(model: LanguageModel, directions: Tensor) -> Tensor:
    """What a direction in the last residual adds to the logits, through the final norm and the unembedding.

    The norm scales the direction alone to a root mean square of 1 and, if it is a layer norm, centres it. Its gain and
    the unembedding follow. Their biases are left out: this is half the difference of the logits of v and -v.

    Args:
        model: the language model.
        directions: (n, d_model).

    Returns:
        (n, vocab_size) float32, on the model's device.
    """
    with torch.no_grad(), model._bypassed(model.n_layers):
        # At this length the norm's epsilon does not matter.
        scaled = model.d_model**0.5 * normalize(directions, dim=1)
        both = torch.stack([scaled, -scaled], 1)
        plus, minus = model._continue(both, model.n_layers - 1).unbind(1)
        return (plus - minus) / 2
