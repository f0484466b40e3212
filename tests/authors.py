"""Files in the layout of the authors' SAEs, and what they compute, by their formulas."""

from pathlib import Path

import tiny
import torch
from torch import Tensor, nn

D, F, V = tiny.D_MODEL, 48, tiny.VOCABULARY
TABLE = "lookup.W_lookup.weight"


class Authors(nn.Module):
    """An SAE whose state dict has the names and shapes of theirs; k is more than half of F, so that some activations are negative."""

    def __init__(self, tokenized: bool, n_features: int = F, d_model: int = D, vocab_size: int = V, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.W_dec = nn.Parameter(torch.randn(d_model, n_features, generator=generator) / d_model**0.5)
        self.W_enc = nn.Parameter(0.5 * self.W_dec.detach().T.clone())
        self.b_enc = nn.Parameter(0.1 * torch.randn(n_features, generator=generator))
        self.b_dec = nn.Parameter(0.1 * torch.randn(d_model, generator=generator))
        if tokenized:
            table = torch.randn(vocab_size, d_model, generator=generator)
            self.lookup = nn.ModuleDict({"W_lookup": nn.Embedding.from_pretrained(table, freeze=False)})


def state_of(tokenized: bool = True, **shape: int) -> dict[str, Tensor]:
    return Authors(tokenized, **shape).state_dict()


def write(folder: Path, name: str = "gpt2_resid_pre_2_ot30.pt", **shape: int) -> Path:
    """A file as theirs: its table, or not, by the letters in its name."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = name.split("_")[4].removesuffix(".pt")
    torch.save(state_of("t" in letters, **shape), folder / name)
    return folder / name


def by_hand(state: dict[str, Tensor], k: int, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Activations (N, F) and reconstruction (N, d) by their formula; W_dec is (d, F)."""
    pre = (x - state["b_dec"]) @ state["W_enc"].T + state["b_enc"]
    kept = pre.topk(k, dim=1).indices
    acts = torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept))
    x_hat = acts @ state["W_dec"].T + state["b_dec"]
    return acts, x_hat + state[TABLE][tokens] if TABLE in state else x_hat


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are the same to the bit."""
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].contiguous().view(torch.uint8).equal(other[name].contiguous().view(torch.uint8))
        for name in one
    )
