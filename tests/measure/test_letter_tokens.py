"""Tokens of first letters: which they are, and that they are read as they were written."""

from pathlib import Path

import pytest
import torch
from fixtures.evaluation import SETTINGS, Evaluated
from fixtures.training import Prepared, write_letters
from torch import Tensor

from tsae.measure.first_letters import measure_first_letters, measure_residual_probe
from tsae.measure.letter_tokens import LetterTokens, first_letters, gather_letter_tokens, load_letter_tokens
from tsae.measure.probes import fit_probes
from tsae.sae.checkpoint import load
from tsae.store.tensors import load_metadata, load_tensors, save_tensors
from tsae.text.tokens import load_tokenizer


def gathered(prepared: Prepared, evaluated: Evaluated, probe_tokens: int = SETTINGS.probe_tokens) -> LetterTokens:
    found = gather_letter_tokens(prepared.model, evaluated.train, evaluated.whole, probe_tokens, SETTINGS.seed)
    assert found is not None
    return found


def tensors_of(found: LetterTokens) -> list[Tensor]:
    of_parts = [part for fields in (found.sample, found.test, found.probes) for part in fields]
    return [part for part in (*found, *of_parts) if isinstance(part, Tensor)]


def test_letters_are_those_of_the_text_after_white_space(prepared: Prepared) -> None:
    tokenizer = load_tokenizer(prepared.model)
    found = first_letters(prepared.model, torch.arange(500), 512)
    assert (found[500:] == -1).all()
    for token in range(500):
        text = str(tokenizer.decode([token])).strip()
        is_letter = text[:1].isascii() and text[:1].isalpha()
        assert found[token] == (ord(text[0].lower()) - ord("a") if is_letter else -1), text
    assert len(found.unique()) > 10


def test_no_token_is_both_trained_and_tested_on(prepared: Prepared, evaluated: Evaluated) -> None:
    found, fewer = gathered(prepared, evaluated), gathered(prepared, evaluated, 500)
    assert not set(found.tokens.tolist()) & set(found.test_tokens.tolist())
    assert len(fewer.tokens) == 500 < len(found.tokens)
    letters = first_letters(prepared.model, torch.arange(512), 512)
    for tokens, sample in ((found.tokens, found.sample), (found.test_tokens, found.test)):
        assert (letters[tokens] >= 0).all()
        # A class is one letter, in training and in test.
        pairs = {*zip(sample.classes.tolist(), letters[tokens].tolist(), strict=True)}
        assert len([c for c, _ in pairs if c >= 0]) == sample.n_classes
    kept = evaluated.train.kept_rows()
    assert {*map(tuple, found.x[:50].tolist())} <= {*map(tuple, kept.residuals.tolist())}
    assert torch.equal(evaluated.whole.tokens.flatten()[found.places], found.test_tokens)


def test_they_are_read_as_they_were_gathered(prepared: Prepared, evaluated: Evaluated) -> None:
    found, read = gathered(prepared, evaluated), load_letter_tokens(prepared.references.letter_tokens, evaluated.whole)
    assert read is not None and read.sample.n_classes == found.sample.n_classes
    assert len(tensors_of(read)) == len(tensors_of(found)) == 13
    for written, expected in zip(tensors_of(read), tensors_of(found), strict=True):
        assert written.dtype == expected.dtype and torch.equal(written, expected)
        assert written.stride() == expected.stride()  # else products with it round otherwise
    fitted = fit_probes(found.x.float(), found.sample)
    assert all(map(torch.equal, read.probes, fitted))


def test_only_shards_of_the_mean_are_read(prepared: Prepared, evaluated: Evaluated, tmp_path: Path) -> None:
    one = evaluated.train.sampled[1]
    shards = [path if i == one else tmp_path / "none" for i, path in enumerate(evaluated.train.shards)]
    cache = evaluated.train
    values = vars(cache) | {"shards": shards, "sampled": (one,)}
    found = gathered(prepared, evaluated._replace(train=type(cache)(**values)))
    of_shard = {*map(tuple, cache.shard(one).residuals.tolist())}
    assert {*map(tuple, found.x.tolist())} <= of_shard


def test_a_file_without_probes(prepared: Prepared, evaluated: Evaluated, tmp_path: Path) -> None:
    # None is wanted, or no letter has enough types among three tokens.
    for probe_tokens in (0, 3):
        write_letters(prepared, tmp_path / "none.safetensors", probe_tokens)
        assert load_tensors(tmp_path / "none.safetensors") == {}
        assert load_letter_tokens(tmp_path / "none.safetensors", evaluated.whole) is None
    sae = load(evaluated.saes["none"])
    assert measure_residual_probe(None, evaluated.whole, SETTINGS) == []
    assert measure_first_letters(sae, None, evaluated.whole, [], SETTINGS) == []


@pytest.mark.parametrize("probe_tokens", [0, 500])
def test_a_file_of_other_heldout_tokens_is_refused(
    prepared: Prepared, evaluated: Evaluated, tmp_path: Path, probe_tokens: int
) -> None:
    path, whole = tmp_path / "letters.safetensors", evaluated.whole
    write_letters(prepared, path, probe_tokens)
    for other in (whole._replace(tokens=whole.tokens.roll(1, 0)), whole._replace(kept=whole.kept.roll(1, 0))):
        with pytest.raises(ValueError, match=f"{path}: tokens of other held-out sequences"):
            load_letter_tokens(path, other)


@pytest.mark.parametrize("name", ["x", "tokens", "classes", "places", "test_classes"])
def test_columns_of_different_lengths_are_refused(
    prepared: Prepared, evaluated: Evaluated, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "letters.safetensors"
    write_letters(prepared, path, 500)
    tensors, metadata = load_tensors(path), load_metadata(path)
    shorter = {each: tensor.clone() for each, tensor in tensors.items()} | {name: tensors[name][1:].clone()}
    save_tensors(path, shorter, metadata)
    with pytest.raises(ValueError, match=f"{path}: holds columns of different lengths"):
        load_letter_tokens(path, evaluated.whole)
