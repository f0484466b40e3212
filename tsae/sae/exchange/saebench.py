"""A tokenized SAE for SAEBench, whose evaluations hand an SAE residuals and no token ids.

`ForSAEBench` has what SAEBench 0.6 asks of its custom SAEs. It learns the ids from a hook on the model: whatever batch of ids the
model last ran is the batch that `encode` and `decode` are about. This file needs torch and the SAE, and not SAEBench.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tsae.sae.sae import SAE


@dataclass
class BenchConfig:
    """What SAEBench and SAELens read of an SAE's `cfg`."""

    model_name: str
    """Name of the model in TransformerLens."""
    d_in: int
    """Width of the residual stream."""
    d_sae: int
    """Number of features."""
    hook_layer: int
    """The block whose hook point is `hook_name`."""
    hook_name: str
    """Where residuals are read."""
    dtype: str = "float32"
    """Of the parameters."""
    architecture: str = "tokenized"
    """For the record."""
    context_size: int | None = None
    """Length of the sequences that the SAE was trained on [tokens]."""
    device: str = "cpu"
    """For the record."""
    hook_head_index: int | None = None
    """No attention heads are read."""
    prepend_bos: bool = True
    """Sequences begin with BOS."""
    normalize_activations: str = "none"
    """Residuals are raw."""
    dataset_path: str = ""
    """Unknown to SAEBench."""
    dataset_trust_remote_code: bool = False
    """Nothing is run."""
    seqpos_slice: tuple[int | None, ...] = (None,)
    """All positions."""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    """How TransformerLens loads the model."""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class ForSAEBench(nn.Module):
    """An SAE with SAEBench's interface: `encode(x)`, `decode(acts)` and `forward(x)`, of the batch that the model ran last.

    W_dec has rows of length 1, which SAEBench expects; activations are longer by as much, so reconstructions stay the same.

    Attributes:
        W_enc: (d, F), with W_dec (F, d), b_enc (F,) and b_dec (d,).
        cfg: what SAEBench reads of it.
        device, dtype: of the parameters.
    """

    def __init__(self, sae: SAE, model: nn.Module, model_name: str):
        """Watch the ids that a model is run on, until `close`.

        Args:
            sae: the SAE, on the device of the model, as `tsae.sae.load` gives it.
            model: the model that SAEBench runs, or its embedding; its first input, or the keyword `input` or `input_ids`, are ids
                (batch, pos).
            model_name: its name in TransformerLens.

        Raises:
            ValueError: the SAE's metadata do not say at which layer it reads.
        """
        super().__init__()
        if "layer" not in sae.metadata:
            raise ValueError("the SAE's metadata have no layer; load it with tsae.sae.load")
        self.sae = sae
        self._lengths = sae.W_dec.detach().norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        self.W_enc = nn.Parameter((sae.W_enc.detach() * self._lengths[:, None]).T.contiguous())
        self.W_dec = nn.Parameter(sae.W_dec.detach() / self._lengths[:, None])
        self.b_enc = nn.Parameter(sae.b_enc.detach() * self._lengths)
        self.b_dec = nn.Parameter(sae.b_dec.detach().clone())
        self.device, self.dtype = sae.device, sae.b_dec.dtype
        layer = sae.metadata["layer"]
        self.cfg = BenchConfig(
            model_name,
            d_in=len(sae.b_dec),
            d_sae=sae.n_features,
            # Some evaluations read hook_resid_post of hook_layer, whatever hook_name says. It is what enters the next block.
            hook_layer=max(layer - 1, 0),
            hook_name=f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre",
            device=str(sae.device),
        )
        self._ids: Tensor | None = None
        self._hook = model.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep the ids of a batch; inputs that are no ids, such as text, leave none."""
        given = inputs[0] if inputs else named.get("input", named.get("input_ids"))
        if isinstance(given, Tensor) and not given.is_floating_point():
            self._ids = (given if given.ndim > 1 else given[None]).detach()
        else:
            self._ids = None

    def close(self) -> None:
        """Watch the model no longer."""
        self._hook.remove()

    def _tokens(self, rows: Tensor, what: str) -> Tensor | None:
        """The ids of rows (batch, pos, m) or (batch * pos, m); None if the SAE has no use for them.

        Raises:
            ValueError: they are of no or of another batch.
        """
        if self.sae.W_lookup is None and not self.sae.needs_tokens:
            return None
        if self._ids is None:
            raise ValueError(
                f"{what}: the model has not run on token ids; run it on ids, and hook its embedding if it takes text"
            )
        ids = self.sae.rows_of(self._ids).to(rows.device)
        if rows.shape[:-1] not in (ids.shape, (ids.numel(),)):
            raise ValueError(
                f"{what} {tuple(rows.shape)} are not of the batch of ids {tuple(ids.shape)} that the model ran last; SAEBench has "
                "masked, sampled or cached them, and a tokenized SAE cannot tell their tokens"
            )
        return ids.view(rows.shape[:-1])

    def encode(self, x: Tensor) -> Tensor:
        """Activations (..., F) of residuals x (..., d) of the last batch.

        Raises:
            ValueError: the encoder needs the ids, and x is of another batch.
        """
        tokens = self._tokens(x, "residuals") if self.sae.needs_tokens else None
        return self.sae.encode(x.to(self.dtype), tokens) * self._lengths.to(x.device)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction (..., d) from activations (..., F) of the last batch.

        Raises:
            ValueError: they are of another batch, and the SAE has a table.
        """
        tokens = self._tokens(feature_acts, "activations")
        x_hat = feature_acts @ self.W_dec + self.b_dec
        return x_hat if tokens is None else x_hat + self.sae.token_biases(tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of x (..., d) of the last batch, as `decode` of `encode`."""
        return self.decode(self.encode(x))

    def to(self, *args: Any, **kwargs: Any) -> "ForSAEBench":
        """Move it; what it computes in is the type of its parameters."""
        super().to(*args, **kwargs)
        self._lengths = self._lengths.to(self.W_dec)
        self.device, self.dtype = self.W_dec.device, self.W_dec.dtype
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")
        return self
