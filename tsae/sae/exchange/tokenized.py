"""A tokenized SAE for users of SAELens: an SAE of theirs, and the table that it lacks.

This file needs torch, safetensors and SAELens 6, and nothing else of this package, so it can be copied.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import embedding

TOKEN_BIASES = "token_biases.safetensors"


class TokenizedSAE(nn.Module):
    """An SAE of SAELens whose reconstruction adds a row of a table: x_hat = sae.decode(acts) + token_biases[token_ids]."""

    def __init__(self, sae: Any, token_biases: Tensor | None):
        """Take both as they are.

        Args:
            sae: an SAE of SAELens, in units of raw residuals.
            token_biases: (V, d); None for a baseline, which ignores token ids.
        """
        super().__init__()
        self.sae = sae
        self.token_biases = None if token_biases is None else nn.Parameter(token_biases)

    @classmethod
    def load_from_disk(cls, folder: str | Path, device: str = "cpu") -> "TokenizedSAE":
        """Load a folder of `save_model`, `tsae export-saelens` or `tsae push`."""
        from sae_lens import SAE

        table = Path(folder) / TOKEN_BIASES
        token_biases = load_file(table, device)["token_biases"] if table.is_file() else None
        return cls(SAE.load_from_disk(folder, device=device), token_biases)

    @classmethod
    def from_pretrained(
        cls, release: str, sae_id: str, device: str = "cpu", revision: str | None = None
    ) -> "TokenizedSAE":
        """Load an SAE from a repository that `tsae push` wrote.

        Args:
            release: the repository, `USER/NAME`.
            sae_id: the SAE's subfolder, such as `layer12/topk-k32-x4-learned-s0`.
            device: where it computes.
            revision: commit, branch or tag; by default the newest commit.
        """
        from huggingface_hub import snapshot_download

        files = [f"{sae_id}/{name}" for name in ("cfg.json", "sae_weights.safetensors", TOKEN_BIASES)]
        return cls.load_from_disk(
            Path(snapshot_download(release, revision=revision, allow_patterns=files)) / sae_id, device
        )

    @property
    def cfg(self) -> Any:
        """SAELens' description of the SAE."""
        return self.sae.cfg

    def encode(self, x: Tensor) -> Tensor:
        """Activations: x (..., d) gives (..., F)."""
        acts: Tensor = self.sae.encode(x)
        return acts

    def decode(self, acts: Tensor, token_ids: Tensor) -> Tensor:
        """Reconstruction: acts (..., F) and token ids (...) give (..., d)."""
        x_hat: Tensor = self.sae.decode(acts)
        return x_hat if self.token_biases is None else x_hat + embedding(token_ids, self.token_biases)

    def forward(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """Reconstruction of x (..., d) at token ids (...)."""
        return self.decode(self.encode(x), token_ids)

    def save_model(self, folder: str | Path) -> None:
        """Write a folder that `load_from_disk`, SAELens and, for TopK, `tsae import-saelens` read."""
        self.sae.save_model(folder)
        table = Path(folder) / TOKEN_BIASES
        table.unlink(missing_ok=True)
        if self.token_biases is not None:
            save_file({"token_biases": self.token_biases.detach().contiguous()}, table)
