import copy

import pytest
import torch
from torch import Tensor

from tsae.training.optimizers import DenseAdam, RowAdam


def test_the_tables_first_step_by_hand() -> None:
    table = torch.zeros(4, 2)
    optimizer = RowAdam(table, lr=0.1)
    gradients = torch.tensor([[-3.0, 2.0], [1.0, -1.0], [2.0, -3.0]])
    optimizer.step(torch.tensor([3, 1, 3]), gradients)
    # Row 3 has the gradient (-1, -1). Adam's first step is lr against the sign, whatever the size.
    expected = torch.tensor([[0.0, 0.0], [-0.1, 0.1], [0.0, 0.0], [0.1, 0.1]])
    torch.testing.assert_close(table, expected)
    before = table.clone()
    optimizer.step(torch.tensor([0]), torch.tensor([[1.0, 1.0]]))
    assert torch.equal(table[1:], before[1:])
    # A row that is first seen later takes a first step too.
    torch.testing.assert_close(table[0], torch.tensor([-0.1, -0.1]))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_steps_are_those_of_an_adam_for_each_row(betas: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(20, 3, generator=generator)
    expected = [torch.nn.Parameter(row.clone()) for row in table]
    references = [torch.optim.Adam([row], lr=0.1, betas=betas) for row in expected]
    optimizer = RowAdam(table, lr=0.1, betas=betas)
    for step in range(30):
        tokens = torch.randint(0, 15, (8,), generator=generator)
        gradients = torch.randn(8, 3, generator=generator)
        dense: Tensor = torch.zeros(20, 3).index_add_(0, tokens, gradients)
        for group in (*optimizer.param_groups, *(group for row in references for group in row.param_groups)):
            group["lr"] = 0.1 / (1 + step)
        for row in tokens.unique().tolist():
            expected[row].grad = dense[row]
            references[row].step()
        optimizer.step(tokens, gradients)
        torch.testing.assert_close(table, torch.stack([row.detach() for row in expected]), rtol=1e-5, atol=1e-6)
    assert torch.equal(table[15:], torch.randn(20, 3, generator=torch.Generator().manual_seed(0))[15:])


def test_a_copy_goes_on_where_the_original_was() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 2, generator=generator)
    optimizer = RowAdam(table, lr=0.1)
    steps = [(torch.tensor([1, 4]), torch.randn(2, 2, generator=generator)) for _ in range(4)]
    for step in steps[:2]:
        optimizer.step(*step)
    other = RowAdam(table.clone(), lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in steps[2:]:
        optimizer.step(*step)
        other.step(*step)
    (again,) = other.param_groups[0]["params"]
    assert torch.equal(again, table)


def test_the_authors_optimizer_moves_rows_of_absent_tokens_by_momentum() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 3, generator=generator)
    expected = torch.nn.Parameter(table.clone())
    reference, optimizer = torch.optim.Adam([expected], lr=0.1), DenseAdam(table, lr=0.1)
    for tokens in ([1, 4, 1], [0, 1, 1], [5, 0, 0]):
        gradients = torch.randn(3, 3, generator=generator)
        expected.grad = torch.zeros(6, 3).index_add_(0, torch.tensor(tokens), gradients)
        before = table.clone()
        reference.step()
        optimizer.step(torch.tensor(tokens), gradients)
        torch.testing.assert_close(table, expected.detach(), rtol=1e-5, atol=1e-6)
        moved = (table != before).any(1).tolist()
    assert moved == [True, True, False, False, True, True]  # 1 and 4 were in earlier batches alone
