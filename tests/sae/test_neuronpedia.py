import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.evaluation import FEATURES, SETTINGS, Evaluated, reconstruction
from fixtures.training import LAYER, Prepared

from tsae.measure.features import Firings, feature_statistics, write_features
from tsae.sae.checkpoint import load
from tsae.sae.exchange.neuronpedia import export_neuronpedia
from tsae.store.files import write_json

NAME = f"layer{LAYER}/topk-k4-x2-learned-s0"
# What Neuronpedia's converter for uploads reads of a feature and of an activation.
OF_FEATURE = {
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices",
    "correlated_features_pearson", "correlated_features_l1", "neg_str", "neg_values", "pos_str", "pos_values",
    "frac_nonzero", "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "decoder_weights_dist", "activations",
}  # fmt: skip
OF_ACTIVATION = {"tokens", "values", "bin_min", "bin_max", "bin_contains", "qualifying_token_index"}


@pytest.fixture(scope="module")
def results(evaluated: Evaluated, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a profile in which one SAE is evaluated."""
    folder = tmp_path_factory.mktemp("results")
    firings: list[Firings] = []
    sae = load(evaluated.saes["learned"])
    reconstruction(sae, evaluated.whole, SETTINGS, firings)
    nothing = torch.zeros(sae.n_features), torch.zeros(sae.n_features, dtype=torch.int64)
    frame = feature_statistics(sae.n_features, firings, evaluated.whole, nothing, nothing, FEATURES)
    # One that never fired.
    frame.loc[3, "firing_rate"] = 0.0
    for path in ("saes", "features", "metrics"):
        (folder / path / NAME).parent.mkdir(parents=True)
    (folder / "saes" / NAME).symlink_to(evaluated.saes["learned"])
    (folder / "residuals").symlink_to(prepared.residuals.parent)
    (folder / "model").symlink_to(prepared.model)
    write_features(folder / f"features/{NAME}.parquet", frame)
    write_json(folder / f"metrics/{NAME}.json", [])
    return folder


def test_batches_hold_what_was_measured(results: Path, evaluated: Evaluated, tmp_path: Path) -> None:
    export_neuronpedia(results / "saes" / NAME, tmp_path, "tiny", "tsae", "a corpus", batch_features=30)
    batches = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("batch-*.json"))]
    frame = pd.read_parquet(results / f"features/{NAME}.parquet")
    assert [len(batch["features"]) for batch in batches[:-1]] == [30] * (len(batches) - 1)
    for batch in batches:
        assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("tiny", LAYER, "tsae")
    features = [feature for batch in batches for feature in batch["features"]]
    silent = frame["feature"][frame["firing_rate"] == 0].tolist()
    assert 3 in silent
    assert [feature["feature_index"] for feature in features] == [i for i in range(len(frame)) if i not in silent]
    assert json.loads((tmp_path / "skipped_indexes.json").read_text())["skipped_indexes"] == silent

    whole = evaluated.whole
    acts = load(evaluated.saes["learned"]).encode(whole.residuals.float(), whole.tokens) * whole.kept[..., None]
    for feature in features:
        assert feature.keys() >= OF_FEATURE
        assert (feature["dataset"], feature["n_tokens_in_prompt"]) == ("a corpus", whole.tokens.shape[1])
        row, mine = frame.loc[feature["feature_index"]], acts[..., feature["feature_index"]]
        assert feature["frac_nonzero"] == row["firing_rate"]
        assert sum(feature["freq_hist_data_bar_heights"]) == row["firings"] == (mine != 0).sum()
        np.testing.assert_allclose(
            np.average(feature["freq_hist_data_bar_values"], weights=feature["freq_hist_data_bar_heights"]),
            row["mean_activation"],
            atol=(row["max_activation"] - mine[mine != 0].min().item()) / 100 + 1e-4,
        )
        assert len(feature["activations"]) == len(row["context_activations"])
        for i, activation in enumerate(feature["activations"]):
            assert activation.keys() == OF_ACTIVATION
            sequence, position, active = (row[f"context_{name}"][i] for name in ("sequences", "positions", "active"))
            start = position - active
            values = mine[sequence, start : start + len(activation["tokens"])]
            torch.testing.assert_close(torch.tensor(activation["values"]), values, rtol=1e-4, atol=1e-5)
            assert activation["qualifying_token_index"] == active
            assert activation["values"][active] == pytest.approx(row["context_activations"][i], rel=1e-5)
            assert activation["bin_max"] == pytest.approx(row["max_activation"], rel=1e-5)


def test_tokens_are_the_texts_of_the_contexts(results: Path, evaluated: Evaluated, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export_neuronpedia(results / "saes" / NAME, tmp_path, "tiny", "tsae")
    tokenizer = AutoTokenizer.from_pretrained(results / "model")
    frame = pd.read_parquet(results / f"features/{NAME}.parquet")
    feature = json.loads((tmp_path / "batch-0.json").read_text())["features"][0]
    tokens = frame.loc[feature["feature_index"], "context_tokens"][0]
    assert feature["activations"][0]["tokens"] == [tokenizer.decode([token]) for token in tokens]


def test_earlier_batches_are_replaced_only_if_asked(results: Path, tmp_path: Path) -> None:
    export_neuronpedia(results / "saes" / NAME, tmp_path, "tiny", "tsae", batch_features=10)
    assert (tmp_path / "batch-1.json").exists()
    with pytest.raises(ValueError, match=r"holds batch-0\.json already; give --overwrite to replace it"):
        export_neuronpedia(results / "saes" / NAME, tmp_path, "tiny", "tsae")
    export_neuronpedia(results / "saes" / NAME, tmp_path, "tiny", "tsae", overwrite=True)
    assert not (tmp_path / "batch-1.json").exists()


def test_an_sae_that_is_not_evaluated_is_refused(results: Path, evaluated: Evaluated, tmp_path: Path) -> None:
    other = results / f"saes/layer{LAYER}/topk-k4-x2-none-s0"
    if not other.exists():
        other.symlink_to(evaluated.saes["none"])
    with pytest.raises(ValueError, match=r"not evaluated, .*json is missing"):
        export_neuronpedia(other, tmp_path, "tiny", "tsae")
