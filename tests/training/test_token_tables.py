import pytest
import torch
from torch import Tensor

from tsae.profile.point import Point
from tsae.profile.training import Training
from tsae.sae.sae import SAE
from tsae.sae.start import Start
from tsae.training.token_tables import EmbeddedTable, ScaledTable, token_table

SETTINGS = Training(tokens=100, batch_size=10, lr=0.1, lr_end=0.1, table_lr=0.2, buffer_tokens=10)
V, D = 5, 3


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_sae(table: str, rows: Tensor | None, **more: float) -> SAE:
    zeros = torch.zeros(D)
    point = Point.model_validate({"k": 1, "expansion": 2, "table": table, **more})
    return SAE.initialise(point, Start(zeros, zeros, zeros, rows, None), seed=0)


def test_only_tables_that_are_trained_have_an_optimizer() -> None:
    assert token_table(make_sae("none", None), SETTINGS) is None
    assert token_table(make_sae("fixed", normal(V, D, seed=0)), SETTINGS) is None
    with pytest.raises(ValueError, match="embedding needs the model's embedding"):
        token_table(make_sae("embedding", normal(V, D, seed=0)), SETTINGS)


def test_a_point_may_have_a_learning_rate_of_its_own() -> None:
    for more, lr in (({}, 0.2), ({"table_lr": 0.5}, 0.5)):
        table = token_table(make_sae("learned", normal(V, D, seed=0), **more), SETTINGS)
        assert table is not None and table.optimizer.param_groups[0]["lr"] == lr


def test_a_scaled_table_keeps_its_directions() -> None:
    rows = normal(V, D, seed=0)
    sae = make_sae("scaled", rows.clone())
    table = token_table(sae, SETTINGS)
    assert isinstance(table, ScaledTable) and sae.W_lookup is not None
    gradients = normal(3, D, seed=1)
    table.step(torch.tensor([1, 3, 1]), gradients)
    # Adam's first step is the learning rate against the sign of the gradient of each token's number.
    slopes = ((gradients[0] + gradients[2]) @ rows[1], gradients[1] @ rows[3])
    expected = rows.clone()
    expected[1] *= 1 - 0.2 * slopes[0].sign()
    expected[3] *= 1 - 0.2 * slopes[1].sign()
    torch.testing.assert_close(table.rows(torch.tensor([1, 3, 0])), expected[[1, 3, 0]])
    assert torch.equal(sae.W_lookup, rows)
    table.settle()
    torch.testing.assert_close(sae.W_lookup, expected)


def test_a_map_of_the_embedding_moves_the_rows_of_all_tokens() -> None:
    embedding, M = normal(V, 2, seed=2), normal(2, D, seed=3)
    sae = make_sae("embedding", embedding @ M)
    table = token_table(sae, SETTINGS, embedding)
    assert isinstance(table, EmbeddedTable) and sae.W_lookup is not None
    tokens, gradients = torch.tensor([0, 4]), normal(2, D, seed=4)
    torch.testing.assert_close(table.rows(tokens), (embedding @ M)[tokens])
    table.step(tokens, gradients)
    expected = embedding @ (M - 0.2 * (embedding[tokens].T @ gradients).sign())
    table.settle()
    torch.testing.assert_close(sae.W_lookup, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["learned", "scaled", "embedding"])
def test_a_table_that_is_restored_continues_as_it_was(kind: str) -> None:
    embedding = normal(V, D, seed=5)
    steps = [(torch.tensor([0, 2]), normal(2, D, seed=seed)) for seed in (6, 7, 8)]

    def start() -> tuple[SAE, object]:
        sae = make_sae(kind, normal(V, D, seed=0))
        return sae, token_table(sae, SETTINGS, embedding)

    (first, table), (second, restored) = start(), start()
    assert table is not None and restored is not None
    for step in steps[:2]:
        table.step(*step)  # type: ignore[attr-defined]
    table.settle()  # type: ignore[attr-defined]
    second.load_state_dict(first.state_dict())
    restored.restore({name: tensor.clone() for name, tensor in table.tensors().items()})  # type: ignore[attr-defined]
    for one in (table, restored):
        one.step(*steps[2])  # type: ignore[attr-defined]
        one.settle()  # type: ignore[attr-defined]
    assert first.W_lookup is not None and second.W_lookup is not None
    assert torch.equal(first.W_lookup, second.W_lookup)
    assert not torch.equal(first.W_lookup, normal(V, D, seed=0))
