"""Tokenized sparse autoencoders, from public weights and text to every figure of the write-up.

`tsae.sae.load(folder)` gives a trained SAE that speaks raw residuals; `python -m tsae --help` lists the stages.
"""

__version__ = "0.1.0"
