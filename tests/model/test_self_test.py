"""What a model is found to allow when it is prepared, and the models that are refused then."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from fixtures.kinds import VOCABULARY, WIDTH, write_kind

from tsae.model.language_model import LanguageModel, load_model
from tsae.model.self_test import try_model
from tsae.model.write_model import write_model
from tsae.profile.inputs import Model
from tsae.profile.sources import FolderModel


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


def settings(folder: Path, n_layers: int = 2, compatibility_mode: bool = False) -> Model:
    source = FolderModel(kind="folder", path=folder)
    return Model(
        source=source,
        n_layers=n_layers,
        d_model=WIDTH,
        vocab_size=VOCABULARY,
        compatibility_mode=compatibility_mode,
    )


@pytest.mark.parametrize("compatibility_mode", [False, True])
def test_a_prepared_model_says_what_it_allows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, compatibility_mode: bool
) -> None:
    write_kind("gpt2", tmp_path / "given")
    with caplog.at_level(logging.INFO):
        write_model(settings(tmp_path / "given", compatibility_mode=compatibility_mode), tmp_path, tmp_path / "model")
    assert json.loads((tmp_path / "model/capabilities.json").read_text()) == {
        "model_type": "gpt2",
        "read": [0, 1],
        "prefix": "once",
        "continued": [0, 1],
    }
    assert caplog.messages == [
        "model of type gpt2: residuals of layers 0 to 1 can be read; a prefix runs once; the loss: from every layer alone"
    ]


def test_a_model_that_needs_more_than_the_residual_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_kind("gemma4", tmp_path / "given")
    with caplog.at_level(logging.INFO):
        write_model(settings(tmp_path / "given", n_layers=4), tmp_path, tmp_path / "model")
    assert caplog.messages == [
        "model of type gemma4_text: residuals of layers 0 to 3 can be read; a prefix runs with every prompt; the loss: at layers "
        "0, 1, 2, 3 the whole model runs"
    ]
    # It belongs to the folder that it was made for.
    write_model(settings(tmp_path / "model", n_layers=4), tmp_path, tmp_path / "copy")
    assert "capabilities.json" not in json.loads((tmp_path / "copy/source.json").read_text())["files"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bert", "model.source: a model of type bert: its residuals cannot be read (at layer 1 their shape is"),
        ("helium", "transformer_lens does not know models of type helium; choose another"),
    ],
)
def test_a_kind_that_cannot_be_read_is_refused_in_one_line(kind: str, message: str, tmp_path: Path) -> None:
    write_kind(kind, tmp_path / "given")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        write_model(settings(tmp_path / "given"), tmp_path, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    assert not (tmp_path / "model/capabilities.json").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("falcon_h1", "model.compatibility_mode: true changes its predictions"),
        ("vaultgemma", "model.compatibility_mode: transformer_lens cannot fold models of type vaultgemma"),
    ],
)
def test_a_compatibility_mode_that_is_not_compatible_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    write_kind(kind, tmp_path / "given")
    with pytest.raises(ValueError, match=message) as caught:
        write_model(settings(tmp_path / "given", compatibility_mode=True), tmp_path, tmp_path / "model")
    assert "set it to false" in str(caught.value)
    write_model(settings(tmp_path / "given"), tmp_path, tmp_path / "model")


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    write_kind("llama", tmp_path)
    return load_model(tmp_path)


def add_after_block(model: LanguageModel, layer: int, added: torch.nn.Module) -> None:
    """Change a block so that it is no longer that of a causal language model."""
    model._blocks[layer].register_forward_hook(lambda _block, _inputs, output: output + added(output))


class LaterTokens(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True)


class Length(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(x.shape[1])[:, None] * torch.ones_like(x)


class Forgets(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 - x


@pytest.mark.parametrize(
    ("added", "layer", "message"),
    [
        (LaterTokens(), 0, r"depend on later tokens \(at layer 1 by .* so it does not predict the next token"),
        # Positions counted from where the pass starts.
        (Length(), 0, r"can be read, but not behind a prefix \(at layer 1 .* so it has no unigram residuals"),
        (
            Forgets(),
            1,
            r"not continued to logits from layer 0 \(other residuals give the same logits\), so it has no loss",
        ),
    ],
)
def test_each_part_that_fails_is_named(added: torch.nn.Module, layer: int, message: str, model: LanguageModel) -> None:
    try_model(model)
    add_after_block(model, layer, added)
    with pytest.raises(ValueError, match=message):
        try_model(model)
