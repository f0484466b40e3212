"""The tables and means of a layer that an SAE starts from."""

from typing import NamedTuple

from torch import Tensor


class Start(NamedTuple):
    """What an SAE starts from at a layer, in the units of training."""

    mean: Tensor
    """(d,) mean training residual."""
    mean_row: Tensor
    """(d,) mean token-bias over the training tokens; zero without a table."""
    mean_input: Tensor
    """(d,) mean of what the encoder sees over the training tokens, before the centre is subtracted."""
    W_lookup: Tensor | None
    """(V, d) token-biases, with rows of bigrams (M, d) behind them if there are `bigrams`; None without a table."""
    unigram_directions: Tensor | None
    """(V, d) unit rows, projected out of the encoder's input at each token; None: nothing is. In a centred start they are directions
    of unigram residuals minus the mean one, projected out of the residual minus its mean."""
    bigrams: Tensor | None = None
    """(M,) int64, ascending keys of the bigrams that have a row, see `sae.bigrams`; None: none has."""
