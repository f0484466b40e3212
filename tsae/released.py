"""SAEs that the authors released: what their files are called, what is in them, and the way from their layout to ours and back.

A file `gpt2_resid_pre_8_ot30.pt` is a state dict of `torch.save`, of F features over residuals of width d:

    W_enc (F, d)   W_dec (d, F)   b_enc (F,)   b_dec (d,)   and, if the SAE is tokenized, lookup.W_lookup.weight (V, d)

Its name says the layer, `o` for TopK, `t` for tokenized, and k. Their encoder is TopK((x - b_dec) W_enc^T + b_enc) without a
ReLU behind it, of raw residuals, so that a file is a checkpoint of ours with scale 1 and `topk_relu: false`.
"""

import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsae.config import Config
from tsae.files import replacing, sha256
from tsae.sae import SAE, load, save
from tsae.sweep import UNKNOWN_OF_RELEASED, Job, Point

LOG = logging.getLogger(__name__)

NAME = re.compile(r"(?P<model>[A-Za-z0-9.-]+)_resid_pre_(?P<layer>[0-9]+)_(?P<letters>[a-z]*)(?P<number>[0-9]+)\.pt")
EXAMPLE = "gpt2_resid_pre_8_ot30.pt"
TABLE = "lookup.W_lookup.weight"
PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_dec")
# Their values are float32's too, so that there and back again they are the same.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class FileName(NamedTuple):
    """What the name of a file says."""

    layer: int
    tokenized: bool
    k: int

    @property
    def short(self) -> str:
        """`ot30`, or `o30` for a baseline: what SAEs of several layers have in common."""
        return f"o{'t' if self.tokenized else ''}{self.k}"


class ReleasedFile(NamedTuple):
    """A file, and what it is among the SAEs of a profile."""

    path: Path
    job: Job


def parse_name(path: Path) -> FileName:
    """What the name of a file says.

    `_t8`, an older variant, is refused: without an `o` the name does not say what the SAE's activation is, nor what is 8.

    Raises:
        ValueError: it is not a name of this form; the message names the file.
    """
    found = NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(
            f"{path}: not a name like {EXAMPLE} (layer 8, o: TopK, t: tokenized, k = 30); rename the file, or move it away"
        )
    letters, number = found["letters"], int(found["number"])
    if letters in ("", "t"):
        raise ValueError(
            f"{path}: a variant without `o` (TopK) in its name, which does not say what its activation and its number are, so "
            f"that it cannot be evaluated; move it away, and take one like {EXAMPLE}"
        )
    if letters not in ("o", "ot"):
        raise ValueError(f"{path}: `{letters}` is not known; names have o (TopK) or ot (TopK, tokenized), as {EXAMPLE}")
    if number < 1:
        raise ValueError(f"{path}: its name says k = 0 active features; rename it as {EXAMPLE}")
    return FileName(int(found["layer"]), letters == "ot", number)


def read_state(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """Read a state dict; what is no plain tensor is refused before any of it is made.

    Args:
        path: the file.
        mapped: map the file instead of reading it, where only shapes are wanted; damage to values then goes unnoticed.

    Raises:
        ValueError: there is no such file, it is truncated or damaged, holds a pickled object, or is not a dictionary of
            tensors; the message names the file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            begins = file.read(4) == b"PK\x03\x04"
        if begins:
            raise ValueError(f"{path}: truncated, its end is missing; download or copy it again")
        raise ValueError(
            f"{path}: not a file of torch.save since PyTorch 1.6, a zip archive, and so not read; download it again, or have "
            "who made it save its state dict anew"
        )
    try:
        if not mapped:  # torch does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if entry := archive.testzip():
                    raise zipfile.BadZipFile(f"the checksum of {entry} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a pickled object ({name[1]})" if name else "something that is neither a name nor a tensor"
        raise ValueError(
            f"{path}: holds {what}, and such can run code when it is read, so the file was not; only a state dict of tensors "
            "is, as torch.save(sae.state_dict(), ...) writes it"
        ) from None
    except Exception as error:  # damage shows wherever the reader happens to trip over it
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {reason}); download or copy it again") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not a state dict; save sae.state_dict() alone")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{path}: not a state dict, its entry {name!r} is a {type(tensor).__name__} and no tensor; save "
                "sae.state_dict() alone"
            )
    return dict(state)


def describe(
    path: Path, name: FileName, state: dict[str, Tensor], d_model: int | None = None, vocab_size: int | None = None
) -> Point:
    """Check that a state dict is the SAE that its name says, and of the model, and say what it is.

    Args:
        path: the file, for messages.
        name: of the file.
        state: of `read_state`.
        d_model: width of the model's residuals; None: any.
        vocab_size: rows of the model's embedding; None: any.

    Raises:
        ValueError: it is not; the message names the file, and what to do.
    """
    if name.tokenized != (TABLE in state) and set(state) <= {*PARAMETERS, TABLE}:
        says, holds = ("tokenized", "no table") if name.tokenized else ("baseline", "a table")
        raise ValueError(f"{path}: its name says {says}, and it holds {holds} ({TABLE}); correct the name")
    expected = {*PARAMETERS, TABLE} if name.tokenized else {*PARAMETERS}
    if set(state) != expected:
        raise ValueError(
            f"{path}: not the state dict of such an SAE; it holds {sorted(state)} instead of {sorted(expected)}"
        )
    for part, tensor in state.items():
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES or tensor.layout != torch.strided:
            raise ValueError(
                f"{path}: {part} is {tensor.dtype} ({tensor.layout}), not {', '.join(DTYPES)}; convert it with "
                "tensor.to_dense().float()"
            )
    shapes = {part: tuple(tensor.shape) for part, tensor in state.items()}
    if any(len(shapes[bias]) != 1 or 0 in shapes[bias] for bias in ("b_enc", "b_dec")):
        raise ValueError(f"{path}: b_enc {shapes['b_enc']} and b_dec {shapes['b_dec']} are to have one dimension each")
    (n_features,), (width,) = shapes["b_enc"], shapes["b_dec"]
    rows = shapes[TABLE][:1] if name.tokenized else ()
    allowed: dict[str, list[tuple[int, ...]]] = {
        "W_enc": [(n_features, width)],
        "W_dec": [(width, n_features), (n_features, width)],
        TABLE: [(*rows, width)],
    }
    for part, shape in shapes.items():
        if part in allowed and shape not in allowed[part]:
            raise ValueError(
                f"{path}: {part} has the shape {shape} instead of {' or '.join(map(str, allowed[part]))}, as b_enc "
                f"{shapes['b_enc']} and b_dec {shapes['b_dec']} want it; not an SAE of this layout"
            )
    if d_model not in (None, width):
        raise ValueError(
            f"{path}: an SAE of residuals of width {width}, and the model's are {d_model} wide (model.d_model); it is of another "
            "model"
        )
    if rows and vocab_size not in (None, rows[0]):
        raise ValueError(
            f"{path}: its table has {rows[0]} tokens, and the model's vocabulary {vocab_size} (model.vocab_size); it is of "
            "another model or tokenizer"
        )
    if name.k > n_features:
        raise ValueError(
            f"{path}: its name says k = {name.k} active features, and it has {n_features}; correct the name"
        )
    table = "learned" if name.tokenized else "none"
    return Point(k=name.k, expansion=n_features / width, table=table, topk_relu=False)


def find_released(config: Config) -> dict[str, ReleasedFile]:
    """The released SAEs of a profile by the id of their job; of the files, only what they hold is looked at.

    Raises:
        ValueError: there is no such folder or nothing in it, or one line per file that cannot be evaluated.
    """
    if config.released is None:
        return {}
    folder = config.released.folder
    if not folder.is_dir():
        raise ValueError(f"released.folder: there is no folder {folder} (in {Path.cwd()})")
    paths = sorted(folder.glob("*.pt"))
    if not paths:
        raise ValueError(f"released.folder: there is no file *.pt in {folder}; put SAEs like {EXAMPLE} there")
    layers = sorted({job.layer for job in config.jobs()})
    found: dict[str, ReleasedFile] = {}
    mistakes = []
    for path in paths:
        try:
            name = parse_name(path)
            if name.layer not in layers:
                raise ValueError(
                    f"{path}: an SAE of layer {name.layer}, and the profile compares layers {layers}; move it away, or add the "
                    "layer to residuals.layers"
                )
            point = describe(path, name, read_state(path, mapped=True), config.model.d_model, config.model.vocab_size)
            job = Job(layer=name.layer, point=point, seed=0, released=name.short)
            if job.id in found:
                raise ValueError(
                    f"{path}: the same layer, kind and k as {found[job.id].path.name}; move one of them away"
                )
            found[job.id] = ReleasedFile(path, job)
        except ValueError as error:
            mistakes.append(f"released.folder: {error}")
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return found


def token_bias_reference(config: Config, released: dict[str, ReleasedFile], job: Job) -> Job:
    """The tokenized SAE whose table the features of a released one are compared with.

    Its own; for a baseline that of the released tokenized SAE of its layer, of the k nearest to its own; and if there is
    none, that of `evaluation.token_biases`, lowest seed.
    """
    if job.point.table != "none":
        return job
    k = job.point.k or 0
    jobs = [other.job for other in released.values()]
    tokenized = [other for other in jobs if other.layer == job.layer and other.point.table != "none"]
    if not tokenized:
        return config.token_bias_reference(job.layer, 0)
    return min(tokenized, key=lambda other: (abs((other.point.k or 0) - k), other.point.k))


def import_released(path: Path, folder: Path, d_model: int | None = None, vocab_size: int | None = None) -> None:
    """Write a released SAE as a folder that `sae.load` reads.

    W_dec is (d, F) in their files; (F, d) is accepted by its shape, and one that is square is taken for (d, F). Which it was,
    and the dtypes, are kept in `config.json`, and `export_released` gives the same tensors again. A table is called learned, as
    in the SAEs that the authors recommend; a file does not say. What else it does not say, `config.json` lists as unknown.

    Args:
        path: the file.
        folder: the folder to write.
        d_model: width of the model's residuals; None: any.
        vocab_size: rows of the model's embedding; None: any.

    Raises:
        ValueError: the file is not such an SAE, or not of this model; the message names it.
    """
    name, state = parse_name(path), read_state(path)
    point = describe(path, name, state, d_model, vocab_size)
    for part, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {part} has values that are not finite; download or copy the file again")
    n_features, width = state["W_enc"].shape
    stored_as = "d, F" if state["W_dec"].shape == (width, n_features) else "F, d"
    tensors = {part: tensor.float() for part, tensor in state.items()}
    W_dec = tensors["W_dec"].T.contiguous() if stored_as == "d, F" else tensors["W_dec"]
    sae = SAE(point, tensors["W_enc"], W_dec, tensors["b_enc"], tensors["b_dec"], tensors.get(TABLE))
    metadata: dict[str, Any] = {
        "layer": name.layer,
        "hook_point": f"blocks.{name.layer}.hook_resid_pre",
        "point": point.model_dump(mode="json"),
        "unknown": UNKNOWN_OF_RELEASED,
        "n_features": n_features,
        "d_model": width,
        "scale": 1.0,
        "released": {
            "file": path.name,
            "sha256": sha256(path),
            "W_dec": stored_as,
            "dtypes": {part: str(tensor.dtype).removeprefix("torch.") for part, tensor in state.items()},
        },
    }
    save(folder, sae, metadata, last_fired=None)
    LOG.info("%s: %s at layer %d, released as %s", folder, point.id, name.layer, path.name)


def export_released(folder: Path, path: Path) -> None:
    """Write an SAE in the layout of the released files, in units of raw residuals.

    Args:
        folder: an SAE of `sae.save`: one of `import_released`, or trained here with `topk_relu: false`.
        path: the file, whose name must say what the SAE is.

    Raises:
        ValueError: there is no SAE, one that their encoder cannot express, or another than the name says.
    """
    sae = load(folder)
    point = sae.point
    if point.architecture != "topk" or point.topk_relu or point.encoder_input != "residual" or point.k is None:
        raise ValueError(
            f"{folder}: {point.id} cannot be written in their layout, which knows TopK without a ReLU behind it, of the whole "
            "residual, alone; train it with architecture: topk, topk_relu: [false], encoder_input: [residual]"
        )
    if "layer" not in sae.metadata:
        raise ValueError(f"{folder / 'config.json'}: does not say the layer")
    name = FileName(sae.metadata["layer"], sae.W_lookup is not None, point.k)
    if parse_name(path) != name:
        raise ValueError(
            f"{path}: the SAE in {folder} is called MODEL_resid_pre_{name.layer}_{name.short}.pt; name it so"
        )
    made_from = sae.metadata.get("released", {})
    W_dec = sae.W_dec if made_from.get("W_dec") == "F, d" else sae.W_dec.T
    state = {"W_enc": sae.W_enc, "W_dec": W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    if sae.W_lookup is not None:
        state[TABLE] = sae.W_lookup
    dtypes = made_from.get("dtypes", {})
    state = {
        part: tensor.detach().to(DTYPES[dtypes.get(part, "float32")]).contiguous() for part, tensor in state.items()
    }
    # To an open file: given a path, torch names the archive inside after it, and this one is temporary.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
    LOG.info("%s: %s", path, point.id)
