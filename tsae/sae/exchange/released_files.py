"""The files of the authors' SAEs: their names, their tensors, and what must be assumed.

A file `gpt2_resid_pre_8_ot30.pt` is a state dict of `torch.save`, of F features over residuals of width d:

    W_enc (F, d)   W_dec (d, F)   b_enc (F,)   b_dec (d,)   and, if the SAE is tokenized, lookup.W_lookup.weight (V, d)

Its name says the layer, `o` for TopK, `t` for tokenized, and k. A suffix like `_i0.1` belongs to a sweep. A gated SAE has W_gate (F, d)
and b_gate, r_mag, b_mag (F,) in place of W_enc and b_enc.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.profile.point import ArchitectureName, EncoderInput, Point
from tsae.profile.released import WithoutO

NAME = re.compile(
    r"(?P<model>[A-Za-z0-9.-]+)_resid_pre_(?P<layer>[0-9]{1,6})_(?P<letters>[a-z]*)(?P<number>[0-9]{1,9}(?:\.[0-9]{1,9})?)"
    r"(?P<rest>(?:[A-Za-z_-][A-Za-z0-9._-]*)?)\.pt"
)
EXAMPLE = "gpt2_resid_pre_8_ot30.pt"
# Our names of their tensors. Their table is an embedding, which has a weight, or a parameter.
OURS = {
    "W_enc": "W_enc",
    "W_gate": "W_enc",
    "b_enc": "b_enc",
    "b_gate": "b_enc",
    "r_mag": "activation.r_mag",
    "b_mag": "activation.b_mag",
    "W_dec": "W_dec",
    "b_dec": "b_dec",
    "lookup.W_lookup.weight": "W_lookup",
    "lookup.W_lookup": "W_lookup",
}
TABLE = "lookup.W_lookup.weight"
PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_dec")
GATED = ("W_gate", "W_dec", "b_gate", "b_dec", "r_mag", "b_mag")
# float32 holds every value of these, so conversion there and back loses nothing.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class FileName(NamedTuple):
    """What the name of a file says."""

    layer: int
    letters: str
    """`o` for TopK, `t` for tokenized; the meaning of others is unknown."""
    number: str
    """k if there is an `o`; otherwise its meaning is unknown."""
    rest: str = ""
    """Suffix in sweeps."""

    @property
    def short(self) -> str:
        """The name without model and layer: `ot30`, or `o30` for a baseline."""
        return f"{self.letters}{self.number}{self.rest}"


class Reading(NamedTuple):
    """Assumptions about an SAE whose name has no `o`."""

    without_o: WithoutO
    """Its activation, unless its tensors show that it is gated."""
    encoder_input: EncoderInput | None = None
    """What its encoder sees if it is tokenized; None: `describe` refuses it."""


def parse_name(path: Path) -> FileName:
    """Parse the name of a file.

    Raises:
        ValueError: it has not this form; the message names the file.
    """
    found = NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(
            f"{path}: not a name like {EXAMPLE} (layer 8, o: TopK, t: tokenized, k = 30); rename or move the file"
        )
    name = FileName(int(found["layer"]), found["letters"], found["number"], found["rest"])
    if float(name.number) == 0:
        raise ValueError(f"{path}: its name says 0 where the sparsity belongs; rename it as {EXAMPLE}")
    if "o" in name.letters and not name.number.isdecimal():
        raise ValueError(f"{path}: its name says k = {name.number} active features; rename it as {EXAMPLE}")
    return name


def read_state(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """Read a state dict of plain tensors; anything else is refused before it is unpickled.

    Args:
        path: the file.
        mapped: map the file instead of reading it, if only shapes are needed; damaged values then go unnoticed.

    Raises:
        ValueError: the file is missing, truncated or damaged, holds a pickled object, or is not a dictionary of tensors; the
            message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            begins = file.read(4) == b"PK\x03\x04"
        if begins:
            raise ValueError(f"{path}: truncated, its end is missing; download or copy it again")
        raise ValueError(
            f"{path}: not a file of torch.save since PyTorch 1.6, which is a zip archive; download it again, or save its state dict "
            "again with a newer PyTorch"
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
            f"{path}: holds {what}, which can run code when read, so it was not read; save only a state dict of tensors, with "
            "torch.save(sae.state_dict(), ...)"
        ) from None
    except Exception as error:  # damage raises errors of any type
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
    path: Path,
    name: FileName,
    state: dict[str, Tensor],
    reading: Reading,
    d_model: int | None = None,
    vocab_size: int | None = None,
) -> Point:
    """Check that a state dict is the SAE that its name says and fits the model, and return its point.

    Args:
        path: the file, for messages.
        name: its parsed name.
        state: its tensors.
        reading: what to assume if the name has no `o`.
        d_model: width of the model's residuals; None: any.
        vocab_size: rows of the model's embedding; None: any.

    Raises:
        ValueError: it is not; the message names the file and the remedy.
    """
    architecture = _architecture(path, name, state, reading)
    tokenized = _has_table(path, name, state)
    expected = {*(GATED if architecture == "gated" else PARAMETERS), *_tables(state)}
    if set(state) != expected:
        raise ValueError(
            f"{path}: not the state dict of such an SAE; it holds {sorted(state)} instead of {sorted(expected)}"
        )
    n_features, width = _check_shapes(path, state)
    if d_model not in (None, width):
        raise ValueError(
            f"{path}: an SAE of residuals of width {width}, and the model's are {d_model} wide (model.d_model); it is of another model"
        )
    for table in _tables(state):
        if vocab_size not in (None, len(state[table])):
            raise ValueError(
                f"{path}: its table has {len(state[table])} tokens, and the model's vocabulary {vocab_size} (model.vocab_size); it "
                "is of another model or tokenizer"
            )
    encoder_input: EncoderInput | None = "residual"
    if tokenized and "o" not in name.letters:
        encoder_input = reading.encoder_input
    if encoder_input is None:
        raise ValueError(
            f"{path}: its name has no `o` (TopK), and nothing says what its encoder sees; say it with --encoder-input"
        )
    settings = {"expansion": n_features / width, "table": "learned" if tokenized else "none"}
    if architecture != "topk":
        # Only the parameters decide which features are active. The number is kept, but its unit is not that of our l1.
        return Point(architecture=architecture, l1=float(name.number), encoder_input=encoder_input, **settings)
    if not name.number.isdecimal():
        raise ValueError(
            f"{path}: its name says {name.number}, which is no number of active features; read it as relu (released.without_o)"
        )
    k = int(name.number)
    if k > n_features:
        raise ValueError(f"{path}: its name says k = {k} active features, and it has {n_features}; correct the name")
    return Point(k=k, topk_relu=False, encoder_input=encoder_input, **settings)


def assumed(name: FileName, state: dict[str, Tensor]) -> list[str]:
    """The settings that `describe` takes from the reading, because neither name nor tensors say them."""
    if "o" in name.letters:
        return []
    return [*([] if "W_gate" in state else ["architecture"]), *(["encoder_input"] if _tables(state) else [])]


def _tables(state: dict[str, Tensor]) -> list[str]:
    return [part for part in state if OURS.get(part) == "W_lookup"]


def _architecture(path: Path, name: FileName, state: dict[str, Tensor], reading: Reading) -> ArchitectureName:
    if "W_gate" in state:
        if "o" in name.letters:
            raise ValueError(f"{path}: its name says TopK (o), and it holds a gated SAE (W_gate); correct the name")
        return "gated"
    return "topk" if "o" in name.letters else reading.without_o


def _has_table(path: Path, name: FileName, state: dict[str, Tensor]) -> bool:
    """Whether the SAE is tokenized, by its tensors; its name must agree."""
    known = set(state) <= OURS.keys()
    tables = _tables(state)
    if known and "t" in name.letters and not tables:
        raise ValueError(f"{path}: its name says tokenized, and it holds no table ({TABLE}); correct the name")
    # Names in one of their sweeps lack the `t`. A name without suffix must be right: the ledger takes `o30` for a baseline.
    if known and "t" not in name.letters and not name.rest and tables:
        raise ValueError(f"{path}: its name says baseline, and it holds a table ({tables[0]}); correct the name")
    if len(tables) > 1:
        raise ValueError(f"{path}: not the state dict of such an SAE; it holds two tables, {' and '.join(tables)}")
    return bool(tables)


def _check_shapes(path: Path, state: dict[str, Tensor]) -> tuple[int, int]:
    """Number of features and width, which all shapes must agree on."""
    for part, tensor in state.items():
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES or tensor.layout != torch.strided:
            raise ValueError(
                f"{path}: {part} is {tensor.dtype} ({tensor.layout}), not {', '.join(DTYPES)}; convert it with "
                "tensor.to_dense().float()"
            )
    shapes = {part: tuple(tensor.shape) for part, tensor in state.items()}
    b_enc = "b_enc" if "b_enc" in shapes else "b_gate"
    if any(len(shapes[bias]) != 1 or 0 in shapes[bias] for bias in (b_enc, "b_dec")):
        raise ValueError(f"{path}: {b_enc} {shapes[b_enc]} and b_dec {shapes['b_dec']} are to have one dimension each")
    (n_features,), (width,) = shapes[b_enc], shapes["b_dec"]
    for part, shape in shapes.items():
        by_part: dict[str, list[tuple[int, ...]]] = {
            "W_enc": [(n_features, width)],
            "W_dec": [(width, n_features), (n_features, width)],
            "W_lookup": [(*shape[:1], width)],
            "b_dec": [(width,)],
        }
        allowed = by_part.get(OURS[part], [(n_features,)])
        if shape not in allowed:
            raise ValueError(
                f"{path}: {part} has the shape {shape} instead of {' or '.join(map(str, allowed))}, which {b_enc} {shapes[b_enc]} "
                f"and b_dec {shapes['b_dec']} require; not an SAE of this layout"
            )
    return n_features, width
