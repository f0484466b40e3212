"""The sparse autoencoder, with or without a table of token-biases, and its checkpoint.

    a     = ReLU(TopK((x - b_dec) W_enc^T + b_enc))
    x_hat = a W_dec + b_dec + W_lookup[t]

Training runs on residuals divided by one number per layer, the scale. A checkpoint holds the parameters as trained and
the scale beside them; `load` folds it in, so a loaded SAE always speaks raw residuals.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsae import kernels
from tsae.files import load_tensors, save_tensors, write_json
from tsae.sweep import Point


class Active(NamedTuple):
    """The active features of N tokens."""

    values: Tensor  # (N, k) activations, zero where fewer than k are active
    indices: Tensor  # (N, k) int64: the features they belong to


class SAE(nn.Module):
    """A TopK SAE of F features over residuals of width d, with a table of V token-biases if it is tokenized."""

    W_lookup: Tensor | None

    def __init__(
        self,
        W_enc: Tensor,
        W_dec: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        W_lookup: Tensor | None,
        k: int,
        relu: bool = True,
    ):
        """Take the parameters as they are: W_enc and W_dec (F, d), b_enc (F,), b_dec (d,), W_lookup (V, d) or None."""
        super().__init__()
        self.W_enc = nn.Parameter(W_enc)
        self.W_dec = nn.Parameter(W_dec)
        self.b_enc = nn.Parameter(b_enc)
        self.b_dec = nn.Parameter(b_dec)
        # Outside autograd: a batch touches few rows, and its optimizer takes those rows' gradients alone.
        self.register_buffer("W_lookup", W_lookup)
        self.k = k
        self.relu = relu
        self.metadata: dict[str, Any] = {}

    @classmethod
    def initialise(cls, point: Point, unigrams: Tensor, mean: Tensor, mean_unigram: Tensor, seed: int) -> "SAE":
        """Start from random features, and from unigram residuals if the SAE is tokenized.

        W_dec has random unit rows, W_enc is its multiple, b_enc is zero, W_lookup a multiple of the unigram residuals.
        b_dec is the mean of what the table leaves to be explained, or zero as in the authors' code: the mean can be most
        of a residual's norm, and then an SAE without table spends its training on it.

        Args:
            point: the point of the sweep.
            unigrams: (V, d) unigram residuals, in the units that the SAE will be trained in.
            mean: (d,) mean training residual, in the same units.
            mean_unigram: (d,) mean unigram residual of the training tokens.
            seed: seed of W_dec; the same for every point, so that baseline and tokenized SAEs start from the same features.
        """
        generator = torch.Generator().manual_seed(seed)
        d_model = unigrams.shape[1]
        W_dec = torch.randn(point.n_features(d_model), d_model, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        lookup_scale = 0.0 if point.table == "none" else point.lookup_scale
        return cls(
            W_enc=point.initial_encoder_scale * W_dec,
            W_dec=W_dec,
            b_enc=torch.zeros(len(W_dec)),
            b_dec=mean - lookup_scale * mean_unigram if point.b_dec == "mean" else torch.zeros(d_model),
            W_lookup=None if point.table == "none" else lookup_scale * unigrams,
            k=point.k,
            relu=point.topk_relu,
        )

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.b_enc)

    def token_biases(self, tokens: Tensor) -> Tensor:
        """Rows of the table: tokens (...) give (..., d); zeros for a baseline."""
        if self.W_lookup is None:
            return self.b_dec.new_zeros(*tokens.shape, len(self.b_dec))
        rows: Tensor = self.W_lookup[tokens.long()]
        return rows

    def tokenized_activations(self, x: Tensor) -> Tensor:
        """Pre-activations of every feature, before TopK and ReLU: x (..., d) gives (..., F)."""
        return (x - self.b_dec) @ self.W_enc.T + self.b_enc

    def active(self, x: Tensor) -> Active:
        """The k largest activations of every token: x (N, d)."""
        return Active(*kernels.encode_topk(x - self.b_dec, self.W_enc, self.b_enc, self.k, self.relu))

    def decode_active(self, active: Active, token_biases: Tensor) -> Tensor:
        """Reconstruct from active features and the tokens' rows of the table (N, d): (N, d)."""
        return kernels.decode(active.values, active.indices, self.W_dec) + self.b_dec + token_biases

    def encode(self, x: Tensor) -> Tensor:
        """Activations of every feature: x (..., d) gives (..., F), at most k of them non-zero per token."""
        values, indices = self.active(x.reshape(-1, x.shape[-1]))
        acts = values.new_zeros(len(values), self.n_features).scatter(1, indices, values)
        return acts.view(*x.shape[:-1], -1)

    def decode(self, acts: Tensor, tokens: Tensor) -> Tensor:
        """Reconstruction: acts (..., F) and token ids (...) give (..., d). A baseline ignores the tokens."""
        return acts @ self.W_dec + self.b_dec + self.token_biases(tokens)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Reconstruction of x (N, d) at tokens (N,): (N, d)."""
        return self.decode_active(self.active(x), self.token_biases(tokens))


def save(folder: Path, sae: SAE, metadata: dict[str, Any], last_fired: Tensor) -> None:
    """Write a checkpoint: `sae.safetensors` and `config.json`, the latter last.

    Args:
        folder: where to write.
        sae: the SAE in the units that it was trained in.
        metadata: everything that made it; must hold `scale` and `point`.
        last_fired: (F,) int64, training tokens seen when each feature last fired; -1 if it never did.
    """
    save_tensors(folder / "sae.safetensors", dict(sae.state_dict()) | {"last_fired": last_fired})
    write_json(folder / "config.json", metadata)


def load(folder: str | Path) -> SAE:
    """Load a trained SAE that speaks raw residuals; its `metadata` says everything about how it was made.

    Residuals scale by s, and so do activations, biases and token-biases; W_enc and W_dec stay.

    Raises:
        ValueError: a file is missing or damaged, or the tensors do not fit together; the message names the file.
    """
    path = Path(folder) / "config.json"
    try:
        metadata = json.loads(path.read_text())
        scale, k, relu = metadata["scale"], metadata["point"]["k"], metadata["point"]["topk_relu"]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, so {folder} holds no SAE") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the description of an SAE ({error!r})") from None
    tensors = _load_parameters(Path(folder) / "sae.safetensors")
    sae = SAE(
        W_enc=tensors["W_enc"],
        W_dec=tensors["W_dec"],
        b_enc=tensors["b_enc"] * scale,
        b_dec=tensors["b_dec"] * scale,
        W_lookup=tensors["W_lookup"] * scale if "W_lookup" in tensors else None,
        k=k,
        relu=relu,
    )
    sae.metadata = metadata
    sae.requires_grad_(False)
    return sae


def _load_parameters(path: Path) -> dict[str, Tensor]:
    tensors = load_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(shapes.get("W_enc", ())) != 2:
        raise ValueError(f"{path}: not the parameters of an SAE; it holds {shapes}, and no W_enc of two dimensions")
    n_features, d_model = shapes["W_enc"]
    expected = {
        "W_enc": (n_features, d_model),
        "W_dec": (n_features, d_model),
        "b_enc": (n_features,),
        "b_dec": (d_model,),
        "last_fired": (n_features,),
    }
    if "W_lookup" in shapes:
        expected["W_lookup"] = (*shapes["W_lookup"][:1], d_model)
    if shapes != expected:
        raise ValueError(f"{path}: not the parameters of an SAE; it holds {shapes} instead of {expected}")
    return tensors


def load_last_fired(folder: Path) -> Tensor:
    """(F,) int64: training tokens seen when each feature last fired; -1 if it never did."""
    return _load_parameters(folder / "sae.safetensors")["last_fired"]
