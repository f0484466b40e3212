"""The sparse autoencoder (SAE); `load` reads one in units of raw residuals."""

from tsae.sae.checkpoint import load
from tsae.sae.sae import SAE

__all__ = ["SAE", "load"]
