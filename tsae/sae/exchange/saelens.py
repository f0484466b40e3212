"""Convert SAEs to and from the format of SAELens 6, a folder with `cfg.json` and `sae_weights.safetensors`.

SAELens' decoders take no tokens. The table is a file beside the SAE, to be added after decoding:

    sae = sae_lens.SAE.load_from_disk(folder)
    table = safetensors.torch.load_file(f"{folder}/token_biases.safetensors")["token_biases"]
    x_hat = sae.decode(sae.encode(x)) + table[tokens]
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from tsae.profile.architectures import about
from tsae.profile.point import Point
from tsae.profile.validation import describe_errors
from tsae.sae.checkpoint import load, save
from tsae.sae.sae import SAE
from tsae.store.arguments import Folder
from tsae.store.files import record_of, remove, sha256, write_json
from tsae.store.tensors import load_tensors, save_tensors

LOG = logging.getLogger(__name__)

CFG, WEIGHTS, TOKEN_BIASES = "cfg.json", "sae_weights.safetensors", "token_biases.safetensors"
VERSION = "6.0.0"  # of the format; SAELens reads a folder with an earlier version or none as the format of SAELens 5
# Defaults of HookedTransformer; SAELens applies them only if an SAE asks for them.
COMPATIBILITY_MODE = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), True)


def export_saelens(sae: Folder, folder: Path, model_name: str | None = None) -> None:
    """Write an SAE as a folder that SAELens loads.

    It is in units of raw residuals, and its encoder gives the same activations as ours. `token_biases.safetensors` holds the table
    of a tokenized SAE, `token_biases` (V, d), which SAELens does not read: add it after decoding.

    Args:
        sae: a checkpoint.
        folder: the folder to write.
        model_name: transformer_lens' name of the model; by default its hub id, if it has one.

    Raises:
        ValueError: there is no SAE, or SAELens' encoders cannot express it.
    """
    ours = load(sae)
    if reason := inexpressible(ours):
        raise ValueError(f"{sae}: {reason}")
    write_saelens(ours, folder, model_name)
    table = "" if ours.W_lookup is None else f", and {TOKEN_BIASES}"
    LOG.info("%s: %s as SAELens reads it%s", folder, ours.point.id, table)


def inexpressible(sae: SAE) -> str | None:
    """Why SAELens' encoders cannot express an SAE, and what to do; None if they can."""
    if sae.needs_tokens:
        return (
            f"its encoder needs the token ids (encoder_input: {sae.point.encoder_input}), and SAELens' encoders take none; "
            "export an SAE whose encoder_input is residual"
        )
    if sae.bigrams is not None:
        return (
            "its table has rows for bigrams (rows: bigram), and SAELens' decoders are given token ids alone; export an SAE with "
            "rows: unigram or conditional"
        )
    if not sae.point.topk_relu:
        return (
            "it keeps negative activations (topk_relu: false), and SAELens' TopK ends in a ReLU; export an SAE with "
            "topk_relu: true"
        )
    if about(sae.point.architecture).saelens is None:
        return f"SAELens has no architecture {sae.point.architecture}; export an SAE of another one"
    return None


def write_saelens(ours: SAE, folder: Path, model_name: str | None = None) -> None:
    """Write an SAE that SAELens can express; arguments as of `export_saelens`."""
    point, architecture = ours.point, about(ours.point.architecture).saelens
    assert architecture is not None
    weights = {"W_enc": ours.W_enc.T, "W_dec": ours.W_dec, "b_dec": ours.b_dec, architecture.b_enc: ours.b_enc}
    weights |= ours.activation.saelens_weights(ours.n_features)
    cfg: dict[str, Any] = {
        "architecture": architecture.architecture,
        "d_in": len(ours.b_dec),
        "d_sae": ours.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": _metadata(ours, model_name),
    }
    if architecture.architecture == "topk":
        cfg["k"] = point.k
    cfg |= architecture.settings
    # Remove what an earlier export left, and write the description last.
    for name in (CFG, TOKEN_BIASES):
        remove(folder / name)
    save_tensors(folder / WEIGHTS, weights)
    if ours.W_lookup is not None:
        save_tensors(folder / TOKEN_BIASES, {"token_biases": ours.W_lookup})
    write_json(folder / CFG, cfg)
    # SAELens may save over these files, which is then not damage.
    for name in (WEIGHTS, TOKEN_BIASES, CFG):
        record_of(folder / name).unlink(missing_ok=True)


def _metadata(sae: SAE, model_name: str | None) -> dict[str, Any]:
    """What SAELens needs to know about the model, and how the SAE was made."""
    made_from = sae.metadata.get("residuals", {})
    bos = made_from.get("tokens", {}).get("train", {}).get("bos")
    metadata = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": model_name or made_from.get("model", {}).get("source", {}).get("id"),
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": COMPATIBILITY_MODE if made_from.get("compatibility_mode") else {},
        "hook_name": sae.metadata.get("hook_point"),
        "hook_head_index": None,
        "context_size": made_from.get("n_ctx"),
        "prepend_bos": True,
        "exclude_special_tokens": False if made_from.get("include_bos") or bos is None else [bos],
        "tsae": sae.metadata,
    }
    if sae.W_lookup is not None:
        metadata["token_biases"] = f"{TOKEN_BIASES}; x_hat = sae.decode(sae.encode(x)) + token_biases[tokens]"
    return metadata


class _Metadata(BaseModel):
    hook_name: str | None = None
    hook_head_index: int | None = None


class _Cfg(BaseModel):
    """The keys of `cfg.json` that decide what a TopK SAE computes, with SAELens' defaults."""

    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1)
    k: int = Field(ge=1)
    rescale_acts_by_decoder_norm: bool = False
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    metadata: _Metadata = _Metadata()


def import_saelens(saelens: Folder, folder: Path) -> None:
    """Convert a TopK SAE of SAELens 6 to a checkpoint of ours.

    It has the same activations and reconstructions. `token_biases.safetensors`, if present, becomes the table. `config.json` keeps
    the content of `cfg.json`. When features last fired in training is unknown.

    Args:
        saelens: folder with `cfg.json` and `sae_weights.safetensors`.
        folder: the folder to write.

    Raises:
        ValueError: a file is missing or damaged, has an earlier format or another architecture, or asks for what an SAE here
            cannot do; the message names the file.
    """
    path = saelens / CFG
    described = _read_cfg(path)
    try:
        cfg = _Cfg.model_validate(described)
    except ValidationError as error:
        raise ValueError(describe_errors(error, _Cfg, str(path))) from None
    layer = _layer(cfg, path)
    W_enc, W_dec, b_enc, b_dec = _read_weights(saelens / WEIGHTS, cfg)
    if cfg.rescale_acts_by_decoder_norm:
        # SAELens multiplies pre-activations by the length of the decoder row and decodes with unit rows.
        norms = W_dec.norm(dim=1).clamp(min=1e-8)
        W_enc, W_dec, b_enc = W_enc * norms[:, None], W_dec / norms[:, None], b_enc * norms
    if not cfg.apply_b_dec_to_input:
        b_enc = b_enc + W_enc @ b_dec
    table = saelens / TOKEN_BIASES
    W_lookup = _read_token_biases(table, cfg.d_in) if table.is_file() else None
    point = Point(k=cfg.k, expansion=cfg.d_sae / cfg.d_in, table="none" if W_lookup is None else "learned")
    sae = SAE(point, W_enc, W_dec, b_enc, b_dec, W_lookup)
    metadata = {
        "layer": layer,
        "hook_point": f"blocks.{layer}.hook_resid_pre",
        "point": point.model_dump(mode="json"),
        "n_features": cfg.d_sae,
        "d_model": cfg.d_in,
        "scale": 1.0,
        "imported": {"from": "SAELens", "sha256": sha256(saelens / WEIGHTS), "cfg": described},
    }
    save(folder, sae, metadata, last_fired=None)
    LOG.info("%s: %s at layer %d, from %s", folder, point.id, layer, saelens)


def _read_cfg(path: Path) -> dict[str, Any]:
    try:
        cfg = json.loads(path.read_bytes())
        version = str(cfg.get("sae_lens_version") or cfg.get("metadata", {}).get("sae_lens_version"))
        architecture = cfg.get("architecture")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, so {path.parent} holds no SAE of SAELens") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, AttributeError) as error:
        raise ValueError(f"{path}: not the description of an SAE ({error})") from None
    if not re.match(r"([6-9]|\d\d+)\.", version):
        raise ValueError(
            f"{path}: written by a SAELens before 6 (sae_lens_version {version}); load it with SAELens 6 and save it with "
            "`sae.save_model`"
        )
    if architecture != "topk":
        raise ValueError(f"{path}: architecture {architecture!r}; only SAELens' topk can be imported")
    described: dict[str, Any] = cfg
    return described


def _layer(cfg: _Cfg, path: Path) -> int:
    """The layer that the SAE reads, after a check that an SAE here can do all that it asks for."""
    if cfg.normalize_activations != "none":
        raise ValueError(
            f"{path}: normalize_activations is {cfg.normalize_activations!r}, and an SAE here reads residuals as they are; "
            "if it is one factor, have SAELens fold it into the weights (`sae.fold_activation_norm_scaling_factor`) and save it again"
        )
    if cfg.reshape_activations != "none" or cfg.metadata.hook_head_index is not None:
        raise ValueError(f"{path}: it reads attention heads, and an SAE here reads the residual stream")
    hook = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", cfg.metadata.hook_name or "")
    if hook is None:
        raise ValueError(
            f"{path}: metadata.hook_name is {cfg.metadata.hook_name!r}, and an SAE here reads blocks.L.hook_resid_pre or "
            "blocks.L.hook_resid_post, which is the former one layer on"
        )
    if cfg.k > cfg.d_sae:
        raise ValueError(f"{path}: k = {cfg.k} active features of d_sae = {cfg.d_sae}")
    return int(hook[1]) + (hook[2] == "post")


def _read_weights(path: Path, cfg: _Cfg) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W_enc (F, d), W_dec (F, d), b_enc (F,) and b_dec (d,), float32."""
    tensors = _read_floats(path)
    expected = {
        "W_enc": (cfg.d_in, cfg.d_sae),
        "W_dec": (cfg.d_sae, cfg.d_in),
        "b_enc": (cfg.d_sae,),
        "b_dec": (cfg.d_in,),
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise ValueError(
            f"{path}: not the weights of the SAE that {CFG} describes; it holds {found} instead of {expected}"
        )
    W_enc, W_dec, b_enc, b_dec = (tensors[name].float() for name in expected)
    return W_enc.T.contiguous(), W_dec, b_enc, b_dec


def _read_floats(path: Path) -> dict[str, Tensor]:
    tensors = load_tensors(path)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} holds {tensor.dtype}, and weights are floating-point numbers")
    return tensors


def _read_token_biases(path: Path, d_model: int) -> Tensor:
    tensors = _read_floats(path)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if set(found) != {"token_biases"} or found["token_biases"][1:] != (d_model,):
        raise ValueError(f"{path}: it holds {found} instead of token_biases (vocabulary, {d_model})")
    return tensors["token_biases"].float()
