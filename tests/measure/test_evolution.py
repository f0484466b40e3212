"""What checkpoints resemble on the way: features of a baseline, and rows of a table."""

import torch
from fixtures.evaluation import SETTINGS, Evaluated, make_sae
from fixtures.training import LAYER, Prepared
from torch import Tensor

from tsae.measure.evolution import Trained, measure_checkpoint
from tsae.residuals.read import open_residuals
from tsae.sae.checkpoint import load

E = torch.eye(3)
# Of three tokens seen once, once and 20 times; the trained table has turned the first towards axis 2.
UNIGRAMS = torch.stack([E[0], E[1], E[2]])
TRAINED = Trained(
    W_dec=torch.stack([E[0] + E[1], E[2], E[0]]),
    token_biases=torch.stack([0.8 * E[0] + 0.6 * E[2], E[1], E[2]]),
    unigrams=UNIGRAMS,
    tokens=torch.tensor([0, 2, 3]),
    counts=torch.tensor([1, 1, 20]),
)


def values(W_dec: Tensor, W_lookup: Tensor | None, trained: Trained = TRAINED) -> dict[tuple[str, int | None], float]:
    rows = measure_checkpoint(make_sae(W_dec, W_dec, k=1, W_lookup=W_lookup), trained, SETTINGS)
    found = {(m.metric, m.min_count): m.value for m in rows}
    assert len(found) == len(rows)
    return found


def test_a_baseline_on_the_way_by_hand() -> None:
    # To the trained token-biases 0.8, 1 and 1; to the unigram residuals 1; of tokens seen 20 times the last row alone, 0, 0 and 1.
    found = values(E, None)
    assert found == {
        ("feature_token_bias_similar", 1): 1 / 3,
        ("feature_token_bias_similar", 20): 0,
        ("feature_unigram_similar", 1): 0,
        ("feature_unigram_similar", 20): 0,
    }
    assert values(E[:2] + E[1:], None)["feature_unigram_similar", 1] == 1


def test_a_tokenized_sae_on_the_way_by_hand() -> None:
    # Token 1 was never seen. The trained baseline's features are similar by 0.71, 1 and 1 to where the table starts,
    table = torch.stack([E[0], 7 * E[1], E[1], E[2]])
    found = values(5 * E, table)
    assert found["feature_token_bias_similar", 1] == 1 / 3
    assert found["token_bias_unigram_cosine", 1] == found["token_bias_unigram_cosine", 20] == 1
    assert not any(metric == "feature_unigram_similar" for metric, _ in found)
    # and by 0.42, 0.8 and 0.6 to where it has gone.
    found = values(5 * E, torch.stack([0.6 * E[0] + 0.8 * E[2], E[1], -E[1], -E[2]]))
    assert found["feature_token_bias_similar", 1] == 1
    assert found["token_bias_unigram_cosine", 1] == -1
    assert found["token_bias_unigram_cosine", 20] == -1


def test_what_failed_in_training_is_not_compared_with() -> None:
    assert not any("token_bias" in metric for metric, _ in values(E, None, TRAINED._replace(token_biases=None)))
    found = values(E, torch.ones(4, 3), TRAINED._replace(W_dec=None))
    assert {metric for metric, _ in found} == {"token_bias_unigram_cosine"}


def test_trained_ones_are_read_for_the_tokens_seen(prepared: Prepared, evaluated: Evaluated) -> None:
    trained = evaluated.trained_ones.load(open_residuals(prepared.residuals, "train", LAYER), "cpu")
    counts = evaluated.train.token_counts(512)
    assert torch.equal(trained.tokens, counts.nonzero().flatten()) and torch.equal(trained.counts, counts[counts > 0])
    baseline, tokenized = load(evaluated.saes["none"]), load(evaluated.saes["learned"])
    assert trained.W_dec is not None and torch.equal(trained.W_dec, baseline.W_dec)
    assert tokenized.W_lookup is not None and trained.token_biases is not None
    assert torch.equal(trained.token_biases, tokenized.W_lookup[counts > 0])


def test_a_sample_of_features_is_the_same_at_every_checkpoint() -> None:
    generator = torch.Generator().manual_seed(1)
    W_dec = torch.randn(50, 3, generator=generator)
    settings = SETTINGS.model_copy(update={"similarity_rows": 7})
    chosen = torch.randperm(50, generator=torch.Generator().manual_seed(settings.seed))[:7]
    for features in (W_dec, W_dec.flip(1)):
        sae, fewer = (make_sae(rows, rows, k=1) for rows in (features, features[chosen]))
        found = measure_checkpoint(sae, TRAINED, settings)
        assert {m.n for m in found} == {7}
        assert [m.value for m in found] == [m.value for m in measure_checkpoint(fewer, TRAINED, SETTINGS)]
