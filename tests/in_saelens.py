"""What `test_saelens.py` runs in SAELens' own environment: `python in_saelens.py FOLDER`.

Reads FOLDER/inputs.safetensors (by width of the residuals) and the exported SAEs in FOLDER/exported; writes what SAELens makes of
them to FOLDER/outputs.safetensors, the same SAEs as it saves them to FOLDER/saved, and SAEs of its own to FOLDER/own.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from safetensors.torch import load_file, save_file

D_IN, D_SAE, K = 32, 100, 5


def main(folder: Path) -> None:
    """Load, encode, decode; and save."""
    inputs = load_file(folder / "inputs.safetensors")
    outputs: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "exported").iterdir()):
        sae = SAE.load_from_disk(path)
        x, tokens = inputs[f"x{sae.cfg.d_in}"], inputs[f"tokens{sae.cfg.d_in}"]
        acts = sae.encode(x)
        # The documented adapter.
        x_hat = sae.decode(acts)
        if (path / "token_biases.safetensors").is_file():
            x_hat = x_hat + load_file(path / "token_biases.safetensors")["token_biases"][tokens]
        outputs |= {f"{path.name}.acts": acts, f"{path.name}.x_hat": x_hat}
        sae.save_model(folder / "saved" / path.name)
    torch.manual_seed(0)
    for apply_b_dec, rescale, training in itertools.product((True, False), repeat=3):
        settings: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "k": K}
        settings |= {"apply_b_dec_to_input": apply_b_dec, "rescale_acts_by_decoder_norm": rescale}
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**settings)) if training else TopKSAE(TopKSAEConfig(**settings))
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.normal_()
        sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
        name = f"{apply_b_dec}-{rescale}-{training}"
        outputs[f"{name}.acts"] = acts = sae.encode(inputs[f"x{D_IN}"])
        outputs[f"{name}.x_hat"] = sae.decode(acts)
        # As SAELens' trainer keeps a checkpoint, and as it releases an SAE.
        sae.save_model(folder / "own" / name)
        if training:
            sae.save_inference_model(folder / "own" / f"{name}-inference")
    save_file({name: tensor.detach().contiguous() for name, tensor in outputs.items()}, folder / "outputs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
