"""The sparse autoencoder: `load` reads one that speaks raw residuals."""

from tsae.sae.checkpoint import load
from tsae.sae.sae import SAE

__all__ = ["SAE", "load"]
