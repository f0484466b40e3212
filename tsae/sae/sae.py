"""The sparse autoencoder, with or without a table of token-biases.

    a     = activation((r - b_dec) W_enc^T + b_enc)      TopK, ReLU and others: see architectures/
    x_hat = a W_dec + b_dec + W_lookup[t]

A table may have rows for frequent bigrams, too. Such a token has the row of its bigram in place of its own, so `tokens` are then
rows of the table, as `rows_of` gives them for whole sequences; token ids stand for the tokens' own rows.

The encoder sees r: the residual x itself, as in the paper; x minus the token's row of the table (the remainder); or x without
the direction of the token's unigram residual. A constant in r favours the same features for every token, and under TopK the others
die. So training replaces b_dec in the encoder by a constant, the centre, which is the mean of r. `load` folds it into b_enc, which
gives the form above.

Training divides residuals by one number per layer, the scale. A checkpoint holds the parameters as trained and the scale;
`load` folds it in, so a loaded SAE is always in units of raw residuals.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from tsae.compute import kernels
from tsae.profile.point import Point
from tsae.sae.architectures import make_architecture
from tsae.sae.architectures.base import Active, Architecture
from tsae.sae.bigrams import rows_with_bigrams
from tsae.sae.start import Start

TABLES = {"W_lookup", "unigram_directions"}


class SAE(nn.Module):
    """An SAE of F features over residuals of width d; a tokenized one has a table of V token-biases."""

    W_lookup: Tensor | None
    unigram_directions: Tensor | None
    mean: Tensor | None
    centre: Tensor | None
    bigrams: Tensor | None

    def __init__(
        self,
        point: Point,
        W_enc: Tensor,
        W_dec: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        W_lookup: Tensor | None = None,
        unigram_directions: Tensor | None = None,
        mean: Tensor | None = None,
        centre: Tensor | None = None,
        bigrams: Tensor | None = None,
    ):
        """Take the parameters as they are.

        Args:
            point: the point of the sweep, which names the architecture and its sparsity.
            W_enc: (F, d).
            W_dec: (F, d).
            b_enc: (F,).
            b_dec: (d,).
            W_lookup: (V, d) token-biases; None for a baseline.
            unigram_directions: (V, d) unit rows, projected out of the encoder's input at each token; None: nothing is.
            mean: (d,) mean residual, subtracted before the projection; None: zero.
            centre: (d,) subtracted from the encoder's input; None: b_dec, as in the paper.
            bigrams: (M,) int64, ascending keys of the bigrams of the last M rows of W_lookup, see `sae.bigrams`; None: it has none.
        """
        super().__init__()
        self.W_enc = nn.Parameter(W_enc)
        self.W_dec = nn.Parameter(W_dec)
        self.b_enc = nn.Parameter(b_enc)
        self.b_dec = nn.Parameter(b_dec)
        # A buffer, outside autograd: a batch touches few rows, and the optimizer takes only their gradients.
        self.register_buffer("W_lookup", W_lookup)
        self.register_buffer("unigram_directions", unigram_directions)
        self.register_buffer("mean", mean)
        self.register_buffer("centre", centre)
        self.register_buffer("bigrams", bigrams)
        self.activation: Architecture = make_architecture(point, len(b_enc))
        self.point = point
        self.metadata: dict[str, Any] = {}
        self.eval()  # but for the choice of features in a training step

    @classmethod
    def initialise(cls, point: Point, start: Start, seed: int) -> "SAE":
        """Start from random features, and from a table if the SAE is tokenized.

        W_dec has random rows of equal length, W_enc is a multiple of it, and b_enc is zero. By default b_dec is the mean residual
        minus the mean row of the table, and the centre is the mean of the encoder's input, or a share of it. With `start: authors`,
        as in their code, b_dec is zero and is the centre.

        Args:
            point: the point of the sweep.
            start: means and tables of the layer.
            seed: seed of W_dec, the same for every point: baseline and tokenized SAEs start from the same features.
        """
        generator = torch.Generator().manual_seed(seed)
        d_model = len(start.mean)
        W_dec = torch.randn(point.n_features(d_model), d_model, generator=generator)
        W_dec *= point.initial_decoder_norm / W_dec.norm(dim=1, keepdim=True)
        authors = point.start == "authors"
        share = 1.0 if point.centre is None else point.centre
        return cls(
            point,
            W_enc=point.initial_encoder_scale * W_dec,
            W_dec=W_dec,
            b_enc=torch.zeros(len(W_dec)),
            b_dec=torch.zeros(d_model) if authors else start.mean - start.mean_row,
            W_lookup=start.W_lookup,
            unigram_directions=start.unigram_directions,
            mean=None if authors or start.unigram_directions is None else start.mean,
            centre=None if authors else share * start.mean_input,
            bigrams=start.bigrams,
        )

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.b_enc)

    @property
    def device(self) -> torch.device:
        """Device of the parameters, where inputs must be too."""
        return self.b_dec.device

    @property
    def token_table(self) -> Tensor | None:
        """The rows of single tokens (V, d), without those of bigrams; None for a baseline."""
        if self.W_lookup is None or self.bigrams is None:
            return self.W_lookup
        return self.W_lookup[: len(self.W_lookup) - len(self.bigrams)]

    def rows_of(self, tokens: Tensor) -> Tensor:
        """The row of the table (n_seq, n_ctx) for every token of whole sequences (n_seq, n_ctx): the ids unless there are bigrams.

        Tokens may be on any device, where the rows are then, too.
        """
        if self.bigrams is None or self.W_lookup is None:
            return tokens
        return rows_with_bigrams(tokens, self.bigrams.to(tokens.device), len(self.W_lookup) - len(self.bigrams))

    def token_biases(self, tokens: Tensor) -> Tensor:
        """Rows of the table (..., d) for tokens (...); zeros for a baseline."""
        if self.W_lookup is None:
            return self.b_dec.new_zeros(*tokens.shape, len(self.b_dec))
        rows: Tensor = embedding(tokens.long(), self.W_lookup)
        return rows

    @property
    def needs_tokens(self) -> bool:
        """Whether the encoder needs the token ids."""
        return self.point.encoder_input != "residual"

    def _seen(self, x: Tensor, tokens: Tensor | None, token_biases: Tensor | None = None) -> Tensor:
        """What the encoder sees of x (..., d), before the centre is subtracted."""
        if not self.needs_tokens:
            return x
        if tokens is None:
            raise ValueError(
                f"this SAE needs the token ids (encoder_input: {self.point.encoder_input}); give them with the residuals"
            )
        if self.unigram_directions is not None:
            directions = embedding(tokens.long(), self.unigram_directions)
            from_mean = x if self.mean is None else x - self.mean
            return x - (from_mean * directions).sum(-1, keepdim=True) * directions
        return x - (self.token_biases(tokens) if token_biases is None else token_biases)

    @property
    def _centre(self) -> Tensor:
        return self.b_dec if self.centre is None else self.centre

    def encoder_input(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """Centred input of the encoder for residuals x (..., d) at tokens (...).

        Raises:
            ValueError: the encoder needs the tokens, and there are none.
        """
        return self._seen(x, tokens) - self._centre

    def tokenized_activations(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Pre-activations of every feature (..., F) for x (..., d)."""
        return self.encoder_input(x, tokens) @ self.W_enc.T + self.b_enc

    def pre_activations(
        self, x: Tensor, tokens: Tensor | None, token_biases: Tensor | None, features: Tensor
    ) -> Tensor:
        """Pre-activations (N, n) of chosen features (n,); the other arguments are those of `active`."""
        inputs = self._seen(x, tokens, token_biases) - self._centre
        return inputs @ self.W_enc[features].T + self.b_enc[features]

    def active(self, x: Tensor, tokens: Tensor | None = None, token_biases: Tensor | None = None) -> Active:
        """The active features of every token.

        Args:
            x: (N, d) residuals.
            tokens: (N,) their tokens, if the encoder needs them.
            token_biases: (N, d) the tokens' rows of the table, if already looked up.
        """
        return self.activation(self._seen(x, tokens, token_biases), self.W_enc, self.b_enc, self._centre)

    def active_of(self, inputs: Tensor) -> Active:
        """The active features for centred inputs of the encoder (N, d)."""
        return self.activation(inputs, self.W_enc, self.b_enc)

    def decode_active(self, active: Active, token_biases: Tensor | None) -> Tensor:
        """Reconstruction (N, d) from active features and the tokens' rows of the table (N, d), None for a baseline."""
        x_hat = kernels.decode(active.values, active.indices, self.W_dec) + self.b_dec
        return x_hat if token_biases is None else x_hat + token_biases

    def encode(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Activations of every feature (..., F) for x (..., d), mostly zero."""
        rows = None if tokens is None else tokens.reshape(-1)
        active = self.active(x.reshape(-1, x.shape[-1]), rows)
        acts = active.values.new_zeros(active.indices.n_tokens, self.n_features)
        acts[active.rows, active.features] = active.values
        return acts.view(*x.shape[:-1], -1)

    def decode(self, acts: Tensor, tokens: Tensor) -> Tensor:
        """Reconstruction (..., d) from acts (..., F) and token ids (...), which a baseline ignores."""
        return acts @ self.W_dec + self.b_dec + self.token_biases(tokens)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Reconstruction of x (N, d) at tokens (N,): (N, d)."""
        token_biases = self.token_biases(tokens)
        return self.decode_active(self.active(x, tokens, token_biases), token_biases)

    @torch.no_grad()
    def fold_centre_(self) -> None:
        """Fold the difference of the centre from b_dec into the encoder's biases: the same function without a centre."""
        if self.centre is None:
            return
        offset = self.W_enc @ (self.b_dec - self.centre)
        self.b_enc.add_(offset)
        self.activation.shift_(offset)
        self.centre = None
