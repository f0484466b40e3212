"""SAEs that the authors released: find those of a profile, and convert their files to our checkpoints and back.

Their encoder is TopK((x - b_dec) W_enc^T + b_enc), without a ReLU, on raw residuals: a checkpoint of ours with scale 1 and
`topk_relu: false`. `released_files.py` describes the files.
"""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import normalize

from tsae.profile.config import Config
from tsae.profile.point import Point
from tsae.profile.released import Released
from tsae.profile.sweep import UNKNOWN_OF_RELEASED, Job
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.checkpoint import load, save
from tsae.sae.exchange.released_files import (
    DTYPES,
    EXAMPLE,
    OURS,
    PARAMETERS,
    TABLE,
    FileName,
    Reading,
    assumed,
    describe,
    parse_name,
    read_state,
)
from tsae.sae.sae import SAE
from tsae.store.arguments import Folder
from tsae.store.files import replacing, sha256

LOG = logging.getLogger(__name__)

FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
READ_AS_RELU = Reading("relu")


class ReleasedFile(NamedTuple):
    """A file and its job in a profile."""

    path: Path
    job: Job
    name: FileName


def find_released(config: Config) -> dict[str, ReleasedFile]:
    """The released SAEs of a profile by the id of their job. Only names and shapes are read.

    Files are in `released.folder` or in a folder of it, whose name is then part of the subject: `released-gpt2-layers-ot30`. Files of
    layers that the profile does not compare are skipped, and one log line counts them.

    Raises:
        ValueError: the folder is missing or empty, or one line per file that cannot be evaluated.
    """
    if config.released is None:
        return {}
    folder, paths = config.released.folder, _paths(config.released)
    layers = sorted({job.layer for job in config.jobs()})
    found: dict[str, ReleasedFile] = {}
    elsewhere: Counter[int] = Counter()
    mistakes = []
    for path in paths:
        try:
            name = parse_name(path)
            if name.layer not in layers:
                elsewhere[name.layer] += 1
                continue
            job = _job_of(config, config.released, path, name)
            if job.id in found:
                raise ValueError(
                    f"{path}: called {job.id} in results, as is {found[job.id].path}; move one of them away"
                )
            found[job.id] = ReleasedFile(path, job, name)
        except ValueError as error:
            mistakes.append(f"released.folder: {error}")
    if mistakes:
        raise ValueError("\n".join(mistakes))
    skipped = f"{elsewhere.total()} of {len(paths)} files in {folder} are of layers {sorted(elsewhere)}"
    if not found:
        raise ValueError(
            f"released.folder: {skipped}, and the profile compares layers {layers}; add one to residuals.layers"
        )
    if elsewhere:
        LOG.warning("released.folder: %s, which the profile does not compare; they are skipped", skipped)
    return found


def _paths(released: Released) -> list[Path]:
    """The files of a profile, in its folder and one folder deeper."""
    folder = released.folder
    if not folder.is_dir():
        raise ValueError(f"released.folder: there is no folder {folder} (in {Path.cwd()})")
    # Archives made on a Mac hold a shadow of every file, whose name begins with a dot.
    found = (path for pattern in ("*.pt", "*/*.pt") for path in folder.glob(pattern))
    paths = sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))
    if not paths:
        raise ValueError(
            f"released.folder: there is no file *.pt in {folder} or in a folder of it; put SAEs like {EXAMPLE} there"
        )
    if "encoder_input" in released.model_fields_set:
        folders = {_folder_of(path, released) for path in paths}
        for named in released.encoder_input:
            if named not in folders:
                raise ValueError(
                    f"released.encoder_input: {named!r} is none of the folders with files *.pt, {sorted(folders)}; correct or remove it"
                )
    return paths


def _folder_of(path: Path, released: Released) -> str:
    """The folder of a file, relative to `released.folder`."""
    return path.parent.relative_to(released.folder).as_posix()


def _job_of(config: Config, released: Released, path: Path, name: FileName) -> Job:
    """The job of a file in a profile."""
    within = _folder_of(path, released)
    if within != "." and not FOLDER.fullmatch(within):
        raise ValueError(f"{path}: tables name SAEs by their folder; call the folder something of A-Z a-z 0-9 . _ -")
    reading = Reading(released.without_o, released.encoder_input.get(within, "residual"))
    state = read_state(path, mapped=True)
    point = describe(path, name, state, reading, config.model.d_model, config.model.vocab_size)
    called = name.short if within == "." else f"{within}-{name.short}"
    return Job(layer=name.layer, point=point, seed=0, released=called)


def token_bias_reference(config: Config, released: dict[str, ReleasedFile], job: Job) -> Job | None:
    """The tokenized SAE whose table the features of a released one are compared with.

    A tokenized SAE is compared with its own table. A baseline is compared with a released table of its layer: in its own folder if
    possible, then with the nearest k and size. If there is none, it is compared with `evaluation.token_biases`, lowest seed.
    """
    if job.point.table != "none":
        return job
    folder = released[job.id].path.parent
    tokenized = [file for file in released.values() if file.job.layer == job.layer and file.job.point.table != "none"]

    def distance(file: ReleasedFile) -> tuple[Any, ...]:
        k, other = job.point.k or 0, file.job.point.k or 0
        wider = abs(file.job.point.expansion - job.point.expansion)
        return file.path.parent != folder, abs(other - k), wider, other, file.job.id

    return min(tokenized, key=distance).job if tokenized else config.token_bias_reference(job.layer, 0)


def import_released(
    file: Path,
    folder: Path,
    d_model: int | None = None,
    vocab_size: int | None = None,
    reading: Reading = READ_AS_RELU,
    unigrams: Path | None = None,
) -> None:
    """Convert an SAE released by the authors to a checkpoint.

    W_dec is (d, F) in their files. (F, d) is accepted too, and a square one is read as (d, F). `config.json` keeps the layout and
    the dtypes, so `export_released` gives the same tensors again. A table is called learned, as in the SAEs that the authors
    recommend, though a file does not say so. `config.json` lists other unknown settings as unknown.

    Args:
        file: the file, named like theirs.
        folder: the folder to write.
        d_model: width of the model's residuals; None: any.
        vocab_size: rows of the model's embedding; None: any.
        reading: what to assume if the file's name has no `o`.
        unigrams: unigram residuals of the SAE's layer, for `encoder_input: without_unigram`.

    Raises:
        ValueError: the file is not such an SAE, or not of this model; the message names it.
    """
    name, state = parse_name(file), read_state(file)
    point = describe(file, name, state, reading, d_model, vocab_size)
    for part, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {part} has values that are not finite; download or copy the file again")
    width, n_features = len(state["b_dec"]), point.n_features(len(state["b_dec"]))
    stored_as = "d, F" if state["W_dec"].shape == (width, n_features) else "F, d"
    tensors = {OURS[part]: tensor.float() for part, tensor in state.items()}
    if stored_as == "d, F":
        tensors["W_dec"] = tensors["W_dec"].T.contiguous()
    if point.encoder_input == "without_unigram":
        if unigrams is None:
            raise ValueError(
                f"{file}: its encoder does not see the unigram residuals; give those of its layer with --unigrams"
            )
        tensors["unigram_directions"] = normalize(load_unigrams(unigrams))
        if tensors["unigram_directions"].shape != tensors["W_lookup"].shape:
            raise ValueError(
                f"{unigrams}: unigram residuals of the shape {tuple(tensors['unigram_directions'].shape)}, and the table of {file} "
                f"has {tuple(tensors['W_lookup'].shape)}; they are of another model"
            )
    parts = (*PARAMETERS, "W_lookup", "unigram_directions")
    sae = SAE(point, **{part: tensors[part] for part in parts if part in tensors})
    sae.load_state_dict(tensors)
    metadata: dict[str, Any] = {
        "layer": name.layer,
        "hook_point": f"blocks.{name.layer}.hook_resid_pre",
        "point": point.model_dump(mode="json"),
        "unknown": [setting for setting in UNKNOWN_OF_RELEASED if setting != "l1" or point.l1 is not None],
        "n_features": n_features,
        "d_model": width,
        "scale": 1.0,
        "released": {
            "file": file.name,
            "sha256": sha256(file),
            "assumed": assumed(name, state),
            "W_dec": stored_as,
            "dtypes": {part: str(tensor.dtype).removeprefix("torch.") for part, tensor in state.items()},
        },
    }
    save(folder, sae, metadata, last_fired=None)
    LOG.info("%s: %s at layer %d, released as %s", folder, point.id, name.layer, file.name)


def export_released(folder: Folder, file: Path) -> None:
    """Write an SAE in the layout of the authors' released ones.

    It is in units of raw residuals.

    Args:
        folder: a checkpoint: of `import_released`, or trained here with `topk_relu: false`.
        file: the file to write, whose name must say what the SAE is.

    Raises:
        ValueError: there is no SAE, their encoder cannot express it, or the name says another.
    """
    sae = load(folder)
    if "layer" not in sae.metadata:
        raise ValueError(f"{folder / 'config.json'}: does not say the layer")
    made_from = sae.metadata.get("released")
    name = parse_name(Path(made_from["file"])) if made_from else _name_of(sae.point, sae.metadata["layer"], folder)
    if parse_name(file) != name:
        raise ValueError(
            f"{file}: the SAE in {folder} is called MODEL_resid_pre_{name.layer}_{name.short}.pt; name it so"
        )
    parts = [*PARAMETERS, *([] if sae.W_lookup is None else [TABLE])]
    dtypes = made_from["dtypes"] if made_from else dict.fromkeys(parts, "float32")
    tensors = sae.state_dict()
    if not made_from or made_from["W_dec"] == "d, F":
        tensors["W_dec"] = tensors["W_dec"].T
    state = {part: tensors[OURS[part]].to(DTYPES[dtype]).contiguous() for part, dtype in dtypes.items()}
    # To an open file: given a path, torch would store the temporary name in the archive.
    with replacing(file) as temporary, temporary.open("wb") as opened:
        torch.save(state, opened)
    LOG.info("%s: %s", file, sae.point.id)


def _name_of(point: Point, layer: int, folder: Path) -> FileName:
    """The file name of an SAE trained here."""
    if (point.architecture, point.topk_relu, point.encoder_input) != (
        "topk",
        False,
        "residual",
    ) or point.rows == "bigram":
        raise ValueError(
            f"{folder}: {point.id} cannot be written in their layout, which only knows TopK without a ReLU, on the whole residual, "
            "and a row for each token; train it with architecture: topk, topk_relu: [false], encoder_input: [residual], "
            "rows: [unigram]"
        )
    return FileName(layer, "o" if point.table == "none" else "ot", str(point.k))
