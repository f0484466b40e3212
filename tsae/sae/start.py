"""What an SAE starts from: its table, and what is taken away from the encoder's input."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    pass


class Start(NamedTuple):
    """What an SAE starts from at a layer, in the units that it will be trained in."""

    mean: Tensor
    """(d,) mean training residual."""
    mean_row: Tensor
    """(d,) mean token-bias over the training tokens; zero without a table."""
    mean_input: Tensor
    """(d,) mean of what the encoder sees over the training tokens, before a centre is taken away."""
    W_lookup: Tensor | None
    """(V, d) token-biases; None without a table."""
    unigram_directions: Tensor | None
    """(V, d) unit rows, the direction that is taken out of the encoder's input at each token; None if it stays. Centred, it is the
    direction of the token's unigram residual less the mean one, and is taken out of the residual less its mean."""
