"""A profile trains any set of SAEs, and makes what these allow."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import ROOT

from tsae.profile import config
from tsae.profile.config import Config

MINIMAL = ROOT / "config/minimal.yaml"


def minimal(**changes: Any) -> Config:
    return config.parse(yaml.safe_load(MINIMAL.read_text()) | changes)


def headline(*grids: dict[str, Any]) -> dict[str, Any]:
    return {"headline": list(grids)}


TOKENIZED = {"k": [32], "table": ["learned"]}
BASELINE = {"k": [32], "table": ["none"]}


def test_one_tokenized_sae_alone_has_at_least_three_figures() -> None:
    profile = minimal()
    assert [job.id for job in profile.jobs()] == ["layer12/topk-k32-x4-learned-s0"]
    assert profile.headline() == (None, "topk-k32-x4-learned", None)
    figures = ["last_token_detection", "lookup_geometry", "simple_features", "table_orders", "token_subspaces"]
    assert profile.drawn() == figures
    assert profile.curve_jobs() == []
    assert profile.undrawn()["pareto"] == "the block pareto"


@pytest.mark.parametrize(
    ("sweep", "roles", "figure"),
    [
        (headline(BASELINE), ("topk-k32-x4-none", None, None), "simple_features"),
        (headline(TOKENIZED | {"encoder_input": ["remainder"]}), (None, None, "topk-k32-x4-learned-remainder"), None),
        ({"mine": [TOKENIZED, BASELINE]}, (None, None, None), "token_subspaces"),
        (headline(TOKENIZED, BASELINE), ("topk-k32-x4-none", "topk-k32-x4-learned", None), "training_curves"),
        # The first tokenized point is the reference, and its baseline the one of the same k.
        (headline(BASELINE | {"k": [16]}, TOKENIZED), (None, "topk-k32-x4-learned", None), "lookup_geometry"),
    ],
)
def test_roles_and_figures_follow_from_the_points(
    sweep: dict[str, Any], roles: tuple[str | None, ...], figure: str | None
) -> None:
    profile = minimal(sweep=sweep)
    assert profile.headline() == roles
    assert figure is None or figure in profile.drawn()
    assert bool(profile.curve_jobs()) == (roles[:2] == ("topk-k32-x4-none", "topk-k32-x4-learned"))


def test_a_baseline_at_some_layers_alone_is_compared_there() -> None:
    profile = minimal(residuals={"layers": [6, 12]}, sweep=headline(TOKENIZED, BASELINE | {"layers": [6]}))
    assert {job.layer for job in profile.curve_jobs()} == {6}
    assert profile.undrawn()["training_curves"] == "a tokenized SAE with its baseline at every layer of headline"
    with pytest.raises(ValueError, match=r"sweep\.headline: the figure speedup compares .*leave speedup out"):
        minimal(
            residuals={"layers": [6, 12]}, sweep=headline(TOKENIZED, BASELINE | {"layers": [6]}), figures=["speedup"]
        )


def write_config_json(folder: Path, **settings: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    return {"source": {"kind": "folder", "path": str(folder)}}


SIZES = {"num_hidden_layers": 6, "hidden_size": 32, "vocab_size": 512}


@pytest.mark.parametrize(
    "settings",
    [SIZES, {"n_layer": 6, "n_embd": 32, "vocab_size": 512}, {"model_type": "gemma3", "text_config": SIZES}],
)
def test_the_size_of_a_model_is_read_from_its_folder(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = write_config_json(tmp_path / "model", **settings)
    profile = minimal(model=model, residuals={})
    assert (profile.model.n_layers, profile.model.d_model, profile.model.vocab_size) == (6, 32, 512)
    assert profile.residuals.layers == (3,)
    stated = minimal(model=model | {"vocab_size": 500}, residuals={"layers": [5]})
    assert (stated.model.vocab_size, stated.residuals.layers) == (500, (5,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read (No such file or directory); correct the path, or state model.n_layers"),
        ("{", "is not JSON"),
        ("{}", "does not state the size of a language model; state model.n_layers"),
        ("[1]", "does not state the size of a language model; state model.n_layers"),
    ],
)
def test_a_size_that_cannot_be_read_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError) as error:
        minimal(model={"source": {"kind": "folder", "path": str(tmp_path)}}, residuals={})
    (line,) = str(error.value).splitlines()
    assert line.startswith("config: model: model.source.path: ") and message in line


def test_a_wheel_has_no_config_json() -> None:
    model = yaml.safe_load(MINIMAL.read_text())["model"]
    del model["d_model"]
    with pytest.raises(ValueError, match=r"^config: model: d_model: this key is required; a model inside a wheel"):
        minimal(model=model)
