import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from fixtures import ROOT
from fixtures.training import LAYER, Prepared
from torch import Tensor
from transformers import AutoTokenizer

from tsae.__main__ import app
from tsae.measure.prefixes import (
    CANDIDATES,
    Prefixes,
    PrefixMeasurement,
    advice,
    describe,
    frequent_tokens,
    in_rows,
    measure_layer,
    measure_prefixes,
    read_prefixes,
    recommend,
)
from tsae.measure.sequences import Sequences, load_sequences
from tsae.model.language_model import load_model
from tsae.profile import config
from tsae.profile.config import Config
from tsae.profile.evaluation import Evaluation
from tsae.residuals.read import open_residuals
from tsae.text.tokens import load_tokens

SETTINGS = Evaluation(token_biases="topk-k4-x2-learned", bootstrap=10, dead_window=1, detection_tokens=100)


def measurement(prefix: str, n_tokens: int, layer: int, fvu: float) -> PrefixMeasurement:
    return PrefixMeasurement(
        prefix, n_tokens, layer, norm_ratio=1, rescaled=0, scale=1, fvu=fvu, last_token_detection=1
    )


def rows_of(fvu: dict[str, list[float]]) -> list[PrefixMeasurement]:
    lengths = {"": 0, "\n": 1, "The": 1, " a the of and": 4}
    return [
        measurement(prefix, lengths[prefix], layer, value)
        for prefix, values in fvu.items()
        for layer, value in zip((6, 12, 18), values, strict=True)
    ]


@pytest.mark.parametrize(
    ("fvu", "expected"),
    [
        # An attention sink: what follows BOS is useless, and four tokens are not worth 0.01.
        (
            {
                "": [0.99, 1, 1],
                "\n": [0.57, 0.64, 0.73],
                "The": [0.61, 0.66, 0.74],
                " a the of and": [0.56, 0.63, 0.72],
            },
            "\n",
        ),
        # They are worth 0.04.
        ({"": [0.99, 1, 1], "\n": [0.57, 0.64, 0.73], " a the of and": [0.53, 0.6, 0.69]}, " a the of and"),
        # No sink.
        ({"": [0.5, 0.5, 0.5], "\n": [0.49, 0.49, 0.49], "The": [0.6, 0.6, 0.6]}, ""),
        # Of equally long ones the better.
        ({"\n": [0.61, 0.6, 0.6], "The": [0.6, 0.6, 0.6]}, "The"),
        # The mean over layers decides, not one of them.
        ({"": [0.1, 0.8, 0.8], "\n": [0.4, 0.4, 0.4]}, "\n"),
    ],
)
def test_recommended_is_the_shortest_of_the_best(fvu: dict[str, list[float]], expected: str) -> None:
    assert recommend(rows_of(fvu)) == expected
    assert recommend(rows_of(fvu)[::-1]) == expected


def test_advice_says_why_and_what_changes() -> None:
    measured = rows_of({"": [0.95, 0.95, 0.95], "\n": [0.6, 0.6, 0.6], "The": [0.59, 0.59, 0.59]})
    found = Prefixes(100, 0.9, [], measured, recommend(measured))
    assert 'unigrams.prefix: "The", instead of "\\n"' in advice(found, "\n")
    assert 'unigrams.prefix: "The", as it is' in advice(found, "The")
    assert "(0.590)" in advice(found, "")
    assert "try others" not in advice(found, "")
    useless = measured[:3]
    assert "try others with --prefix" in advice(found._replace(measured=useless, recommended=""), "")


def test_frequent_tokens_by_hand() -> None:
    ids = torch.tensor([[0, 5, 5, 2], [0, 2, 5, 7], [0, 2, 9, 9]], dtype=torch.int32)
    assert frequent_tokens(ids, bos=0, n=3).tolist() == [2, 5, 9]
    assert sorted(frequent_tokens(ids, bos=0, n=100).tolist()) == [2, 5, 7, 9]


def test_only_tokens_that_have_a_row_are_kept() -> None:
    tokens = torch.tensor([[0, 5, 3], [0, 8, 5]])
    kept = torch.tensor([[False, True, True], [False, True, False]])
    found = in_rows(
        Sequences(torch.zeros(2, 3, 4), tokens, kept, torch.zeros_like(tokens)), torch.tensor([8, 5]), vocab_size=10
    )
    assert found.kept.tolist() == [[False, True, False], [False, True, False]]
    assert found.tokens[found.kept].tolist() == [1, 0]


def planted(rows: Tensor, noise: float) -> Sequences:
    """Residuals that are their token's row and noise."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(rows), (30, 8), generator=generator)
    residuals = rows[tokens] + noise * torch.randn(30, 8, rows.shape[1], generator=generator)
    kept = torch.ones(30, 8, dtype=torch.bool)
    kept[:, 0] = False
    return Sequences(residuals.half(), tokens, kept, torch.zeros_like(tokens))


def explained(x: Tensor, table: Tensor) -> tuple[float, float]:
    """Slope of the regression of x (N, d) on table (N, d) with one slope and an intercept per coordinate; and its FVU."""
    x, table = (part.double() - part.double().mean(0) for part in (x, table))
    product, norm, variance = (x * table).sum(), table.square().sum(), x.square().sum()
    return (product / norm).item(), (1 - product**2 / (norm * variance)).item()


def test_a_layer_by_hand() -> None:
    rows = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    sequences = planted(rows, noise=0.5)
    measured = measure_layer(sequences, rows.clone(), 2.0, 4.0, SETTINGS)
    slope, fvu = explained(sequences.residuals[:, 1:].reshape(-1, 16), rows[sequences.tokens[:, 1:].flatten()])
    assert [measured["scale"], measured["fvu"]] == pytest.approx([slope, fvu], rel=1e-4)
    assert 0.1 < fvu < 0.3
    assert measured["norm_ratio"] == pytest.approx(rows.norm(dim=1).median().item() / 2)
    assert measured["rescaled"] == 0
    assert measured["last_token_detection"] > 0.9
    # An SAE scales the table, and its b_dec shifts it.
    moved = measure_layer(sequences, 4 * rows + 3, 2.0, 4.0, SETTINGS)
    assert [moved["scale"], moved["fvu"]] == pytest.approx([slope / 4, fvu], rel=1e-4)
    # In a sink, rows are long and say nothing of their token.
    sink = 100 + torch.randn(20, 16, generator=torch.Generator().manual_seed(2))
    in_sink = measure_layer(sequences, sink, 2.0, 4.0, SETTINGS)
    assert 0.9 < in_sink["fvu"] < 1
    assert in_sink["norm_ratio"] > 100
    assert in_sink["last_token_detection"] < 0.5


def test_long_rows_are_rescaled_as_in_the_table() -> None:
    rows = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    long = rows.clone()
    long[3] *= 1000
    measured = measure_layer(planted(rows, noise=0.1), long, 1.0, 4.0, SETTINGS)
    assert measured["rescaled"] == 1 / 20
    assert measured["fvu"] < 0.1


@pytest.fixture(scope="module")
def profile(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a profile and its artefacts up to the residuals."""
    folder = tmp_path_factory.mktemp("profile")
    results = folder / "results/mine"
    (results / "tokens").mkdir(parents=True)
    (results / "model").symlink_to(prepared.model)
    (results / "residuals").symlink_to(prepared.residuals.parent)
    (results / "tokens/train.safetensors").symlink_to(prepared.train_tokens)
    (results / "tokens/heldout.safetensors").symlink_to(prepared.heldout_tokens)
    smoke = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    smoke |= {"profile": "mine", "unigrams": {"prefix": " b", "batch_tokens": 7}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(smoke))
    return folder


def load_profile(folder: Path) -> Config:
    return config.load(folder / "mine.yaml")


def test_what_is_measured_is_what_the_model_says(profile: Path, prepared: Prepared) -> None:
    found = measure_prefixes(load_profile(profile), Path("mine.yaml"), profile / "results/mine", ["x y"], n_rows=40)
    prefixes = [*CANDIDATES, " b", "x y"]
    assert [(row.prefix, row.layer) for row in found.measured] == [(p, at) for at in (1, 2) for p in prefixes]
    assert read_prefixes(profile / "results/mine/prefixes.json") == found
    assert found.recommended in prefixes

    split, model = load_tokens(prepared.train_tokens), load_model(prepared.model)
    sample = frequent_tokens(split.ids, split.bos, 40)
    cache = open_residuals(prepared.residuals, "heldout", LAYER)
    sequences = load_sequences(cache, prepared.heldout_tokens)
    scored = sequences.kept & torch.isin(sequences.tokens, sample)
    assert found.coverage == pytest.approx(int(scored.sum()) / int(sequences.kept.sum()), abs=0.1)
    x, tokens = sequences.residuals[scored], sequences.tokens[scored]
    tokenizer = AutoTokenizer.from_pretrained(prepared.model)
    for prefix in ("", "x y"):
        ids = tokenizer.encode(prefix, add_special_tokens=False)
        rows = {
            token: model.residuals(torch.tensor([[split.bos, *ids, token]]), [LAYER])[LAYER][0, -1]
            for token in sample.tolist()
        }
        (measured,) = (row for row in found.measured if (row.prefix, row.layer) == (prefix, LAYER))
        slope, fvu = explained(x, torch.stack([rows[token] for token in tokens.tolist()]))
        assert [measured.scale, measured.fvu] == pytest.approx([slope, fvu], rel=1e-3)
        norm = torch.stack(list(rows.values())).norm(dim=1).median().item()
        assert measured.norm_ratio == pytest.approx(norm / cache.median_norm, rel=1e-4)
        assert (measured.n_tokens, measured.rescaled) == (len(ids), 0)

    about = found.text[1]
    assert (about.layer, about.median_norm) == (LAYER, cache.median_norm)
    norms = torch.cat([cache.shard(i).norms for i in range(len(cache.shards))]).view(-1, cache.n_ctx)
    assert about.bos_ratio == pytest.approx(norms[:, 0].median().item() / cache.median_norm)
    assert about.outliers == pytest.approx((norms[:, 1:] > cache.max_norm * cache.median_norm).double().mean().item())


def test_the_command_prints_tables_and_a_recommendation(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(profile)
    arguments = ["measure-prefixes", "--configfile", "mine.yaml", "--rows", "30", "--prefix", "a|b"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    found = read_prefixes(Path("results/mine/prefixes.json"))
    assert describe(found) in done.stdout
    for prompt in ("`[BOS, t]`", r'`[BOS, "\n", t]`', r'`[BOS, "a\|b", t]`'):
        assert prompt in done.stdout
    assert f"unigrams.prefix: {json.dumps(found.recommended)}" in done.stdout
    assert not any(math.isnan(row.fvu) for row in found.measured)


@pytest.mark.parametrize("missing", ["model", "tokens/train.safetensors", "tokens/heldout.safetensors", "residuals"])
def test_what_must_be_made_first_is_named(profile: Path, tmp_path: Path, missing: str) -> None:
    results = tmp_path / "results"
    (results / "tokens").mkdir(parents=True)
    for name in {"model", "tokens/train.safetensors", "tokens/heldout.safetensors", "residuals"} - {missing}:
        (results / name).symlink_to((profile / "results/mine" / name).resolve())
    with pytest.raises(
        ValueError, match=f"{results}/{missing}.* is missing; run first: snakemake .*--configfile mine.yaml"
    ):
        measure_prefixes(load_profile(profile), Path("mine.yaml"), results, (), 10)
