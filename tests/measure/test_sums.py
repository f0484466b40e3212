"""Sums over documents: against cases worked by hand, on disk, and two SAEs resampled together."""

from pathlib import Path

import pytest
import torch
from fixtures.evaluation import SETTINGS, Evaluated, by_name, identity_sae, losses_of, make_sae
from torch import Tensor

from tsae.measure.ablations import load_ablations
from tsae.measure.intervals import Bootstrap, interval
from tsae.measure.loss import measure_loss
from tsae.measure.measurement import Measurement
from tsae.measure.reconstruction import measure_reconstruction, reconstruct
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums, load_curve, load_sums, save_curve
from tsae.measure.token_tables import last_token_detection, table_fvu
from tsae.sae.checkpoint import load
from tsae.store.tensors import save_tensors

# Document 8 continues from the first sequence into the second; BOS, which is first, and (100, 100) are not kept.
SEQUENCES = Sequences(
    torch.tensor([[[50.0, 9], [3, 4], [2, 0], [-1, -2]], [[50, 9], [6, 8], [100, 100], [1, 0]]]).half(),
    torch.tensor([[0, 1, 2, 2], [0, 1, 2, 1]]),
    torch.tensor([[False, True, True, True], [False, True, False, True]]),
    torch.tensor([[3, 3, 3, 8], [8, 8, 8, 5]]),
)


def parts(sums: DocumentSums, metric: str, at: float | None = None) -> tuple[list[float], list[float]]:
    numerator, denominator = sums.ratio(metric, at)
    return numerator.tolist(), denominator.tolist()


@pytest.mark.parametrize("batch_sequences", [1, 2])
def test_errors_of_documents_by_hand(batch_sequences: int) -> None:
    settings = SETTINGS.model_copy(update={"batch_sequences": batch_sequences})
    sums = DocumentSums(SEQUENCES.documents)
    reconstruction, _ = reconstruct(make_sae(torch.eye(2), torch.eye(2), k=1), SEQUENCES, settings, torch.tensor([]))
    measure_reconstruction(reconstruction, SEQUENCES, sums)
    assert sums.documents.tolist() == [3, 5, 8]
    # (3, 4) -> (0, 4) and (2, 0) -> (2, 0) are of document 3, (1, 0) -> (1, 0) of 5, (-1, -2) -> (0, 0) and (6, 8) -> (0, 8) of 8.
    for metric, numerator, denominator in (
        ("nmse", [9 / 25, 0, 1 + 36 / 100], [2, 1, 2]),
        ("nmse_original", [9 / 25.0001, 0, 5 / 5.0001 + 36 / 100.0001], [2, 1, 2]),
        ("mse", [9, 0, 41], [4, 2, 4]),
        ("l0", [2, 1, 1], [2, 1, 2]),
        # Around the mean of all five, (2.2, 2).
        ("fvu", [9, 0, 41], [4.64 + 4.04, 5.44, 26.24 + 50.44]),
    ):
        found = parts(sums, metric)
        assert found[0] == pytest.approx(numerator, rel=1e-9), metric
        assert found[1] == pytest.approx(denominator, rel=1e-9), metric
    measured = by_name(sums.measure(SETTINGS.bootstrap, SETTINGS.seed))
    assert (measured["nmse"].value, measured["nmse"].n, measured["nmse"].over) == (1.72 / 5, 5, "documents")


def test_what_tables_say_of_documents_by_hand() -> None:
    # Token 1 has the row (3, 4), token 2 (1, 0); token 0 has none and is never kept.
    table = torch.tensor([[torch.nan, torch.nan], [3.0, 4.0], [1.0, 0.0]])
    sums = DocumentSums(SEQUENCES.documents)
    table_fvu(SEQUENCES, table, torch.zeros(2), sums)
    assert parts(sums, "table_fvu")[0] == [1, 20, 8 + 25]
    last_token_detection(SEQUENCES, table, SETTINGS, sums)
    # Last are (-1, -2) with token 2, of document 8, and (1, 0) with token 1, of document 5; either is nearer to token 2's row.
    assert parts(sums, "last_token_detection") == ([0, 0, 1], [0, 1, 1])
    assert parts(sums, "last_token_detection_any_position") == ([2, 0, 2], [2, 1, 2])


@pytest.mark.parametrize("table", ["none", "learned"])
def test_a_loss_counts_with_the_document_of_the_token_it_is_made_from(evaluated: Evaluated, table: str) -> None:
    chosen, sae = torch.tensor([0, 3, 4]), load(evaluated.saes[table])
    sequences = Sequences(*(part[chosen] for part in evaluated.sequences))
    without_sae = load_ablations(evaluated.ablations, evaluated.sequences)
    ablations = {name: losses[chosen] for name, losses in without_sae.items()}
    sums = DocumentSums(evaluated.whole.documents)
    patched = losses_of(sae, evaluated.model, sequences)
    measure_loss(patched, sequences, ablations, sums)
    expected = {name: dict.fromkeys(sums.documents.tolist(), 0.0) for name in ("ce", "clean", "zero", "n")}
    for sequence, position in sequences.kept[:, :-1].nonzero().tolist():
        document = int(sequences.documents[sequence, position])
        expected["ce"][document] += patched[sequence, position].item()
        for name in ("clean", "zero"):
            expected[name][document] += ablations[name][sequence, position].item()
        expected["n"][document] += 1
    ce, clean, zero, n = (torch.tensor(list(by.values()), dtype=torch.float64) for by in expected.values())
    # Documents of other sequences have no tokens here.
    assert (n == 0).any() and (n > 0).sum() > 2
    for metric, numerator, denominator in (
        ("ce", ce, n),
        ("ce_clean", clean, n),
        ("ce_added", ce - clean, clean),
        ("ce_added_original", ce - clean, clean + 0.001 * n),
        ("ce_added_nats", ce - clean, n),
        ("ce_recovered_zero", zero - ce, zero - clean),
    ):
        torch.testing.assert_close(sums.ratio(metric).numerator, numerator)
        torch.testing.assert_close(sums.ratio(metric).denominator, denominator)


def test_documents_are_the_same_whatever_is_measured_on_them(evaluated: Evaluated) -> None:
    found = []
    for sae in (load(evaluated.saes["none"]), identity_sae(32)):
        sums = DocumentSums(evaluated.whole.documents)
        measure_reconstruction(reconstruct(sae, evaluated.whole, SETTINGS, torch.tensor([]))[0], evaluated.whole, sums)
        found.append(sums)
    assert torch.equal(found[0].documents, found[1].documents)
    denominators = [sums.ratio("nmse").denominator for sums in found]
    assert torch.equal(*denominators)
    assert denominators[0].sum() == evaluated.heldout.n_kept


def some_sums(n_documents: int = 30, seed: int = 0) -> DocumentSums:
    """Errors of tokens that differ much between documents."""
    generator = torch.Generator().manual_seed(seed)
    documents = torch.randint(n_documents, (500,), generator=generator)
    sums = DocumentSums(torch.arange(n_documents))
    sums.add("nmse", 1.0 + documents + torch.rand(500, generator=generator), 1, documents)
    return sums


def test_two_saes_are_compared_on_the_same_resamples(tmp_path: Path) -> None:
    baseline = some_sums()
    tokenized = DocumentSums(baseline.documents)
    numerator, denominator = baseline.ratio("nmse")
    tokenized.add("nmse", 0.8 * numerator, denominator, baseline.documents)
    for name, sums in (("baseline", baseline), ("tokenized", tokenized)):
        sums.save(tmp_path / f"{name}.safetensors")
    # Each has a wide interval, and yet their ratio is 0.8 on every resample.
    of = {name: load_sums(tmp_path / f"{name}.safetensors") for name in ("baseline", "tokenized")}
    draws = {name: Bootstrap(30, 200, seed=3).ratios(*sums.ratio("nmse")) for name, sums in of.items()}
    low, high = interval(draws["baseline"])
    assert high > 1.3 * low
    assert interval(draws["tokenized"] / draws["baseline"]) == pytest.approx((0.8, 0.8), rel=1e-12)


def test_an_interval_is_that_of_resampled_documents() -> None:
    sums = some_sums()
    (measured,) = sums.measure(4000, seed=0)
    numerator, denominator = sums.ratio("nmse")
    draws = torch.randint(30, (20_000, 30), generator=torch.Generator().manual_seed(7))
    naive = interval(numerator[draws].sum(1) / denominator[draws].sum(1))
    assert (measured.low, measured.high) == pytest.approx(naive, rel=0.02)
    # Tokens taken as independent would make it much narrower.
    assert measured.low is not None and measured.high is not None
    assert measured.high - measured.low > 3 * 2 * 1.96 * 9 / 500**0.5


def test_tokens_added_in_parts_and_in_any_order_are_the_same() -> None:
    documents = torch.tensor([7, 2, 2, 7, 4])
    numerator, denominator = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([1.0, 1, 2, 2, 4])
    whole, apart = DocumentSums(documents), DocumentSums(torch.tensor([4, 7, 2, 2]))
    whole.add("fvu", numerator, denominator, documents)
    for chosen in (torch.tensor([4, 0]), torch.tensor([2]), torch.tensor([3, 1])):
        apart.add("fvu", numerator[chosen], denominator[chosen], documents[chosen])
    assert whole.documents.tolist() == apart.documents.tolist() == [2, 4, 7]
    assert parts(whole, "fvu") == parts(apart, "fvu") == ([5, 5, 5], [3, 4, 3])
    assert whole.measure(50, 0) == apart.measure(50, 0)
    assert whole.ratio("fvu").value == 1.5
    assert "fvu" in whole and "nmse" not in whole
    with pytest.raises(KeyError):
        whole.ratio("nmse")


@pytest.mark.parametrize("document", [-1, 3, 8])
def test_a_token_of_another_document_is_refused(document: int) -> None:
    sums = DocumentSums(torch.tensor([[-1, 2, 4], [-1, 4, 7]]))
    assert sums.documents.tolist() == [2, 4, 7]
    with pytest.raises(ValueError, match="none of the documents"):
        sums.add("nmse", torch.ones(2), 1, torch.tensor([4, document]))
    assert "nmse" not in sums


def test_a_metric_is_kept_at_every_place(tmp_path: Path) -> None:
    sums = DocumentSums(torch.tensor([0, 1]))
    places = [0.05, 2.0, 2.0**20, 2.0**20 + 1]
    for place in places:
        sums.add(
            "residual_unigram_cosine",
            torch.tensor([place, 1.0], dtype=torch.float64),
            1,
            torch.tensor([0, 1]),
            at=place,
        )
    sums.add("scale", torch.ones(1), 1, torch.tensor([1]))
    sums.save(tmp_path / "sums.safetensors")
    found = load_sums(tmp_path / "sums.safetensors")
    assert [(metric, at) for metric, at, _ in found] == [
        *(("residual_unigram_cosine", at) for at in places),
        ("scale", None),
    ]
    for place in places:
        assert parts(found, "residual_unigram_cosine", place) == ([place, 1], [1, 1])
    assert "residual_unigram_cosine" in found
    measured = {m.at: m for m in found.measure(10, 0)}
    assert measured[None] == Measurement("scale", 1.0, n=1)
    assert (measured[2.0].value, measured[2.0].n) == (1.5, 2)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    sums = some_sums()
    for name in ("a", "b"):
        sums.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_sums(tmp_path / "a").measure(50, 0) == sums.measure(50, 0)
    # Of an SAE that failed there is nothing to sum.
    DocumentSums(sums.documents).save(tmp_path / "none")
    assert list(load_sums(tmp_path / "none")) == []


def test_a_curve_is_read_in_the_order_of_its_steps(tmp_path: Path) -> None:
    curve = {step: some_sums(seed=step) for step in (1000, 20, 3)}
    save_curve(tmp_path / "curve", curve, curve[3].documents)
    found = load_curve(tmp_path / "curve")
    assert list(found) == [3, 20, 1000]
    for step, sums in found.items():
        assert torch.equal(sums.documents, curve[step].documents)
        assert sums.measure(50, 0) == curve[step].measure(50, 0)
    assert len({sums.ratio("nmse").value for sums in found.values()}) == 3
    save_curve(tmp_path / "none", {}, torch.arange(4))
    assert load_curve(tmp_path / "none") == {}
    with pytest.raises(ValueError, match="the sums of a training curve, and not of one SAE"):
        load_sums(tmp_path / "curve")
    some_sums().save(tmp_path / "sums")
    with pytest.raises(ValueError, match="the sums of one SAE, and not of a training curve"):
        load_curve(tmp_path / "sums")


ONES, TWOS = torch.ones(2, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": torch.tensor([5, 3])}, "its documents are not numbers of lines in ascending order"),
        ({"documents": torch.tensor([-1, 3])}, "its documents are not numbers of lines in ascending order"),
        ({"nmse/numerator": torch.ones(3, dtype=torch.float64)}, "the sums of nmse are not of its 2 documents"),
        ({"l0/numerator": ONES + 2}, "holds .* instead of"),
        ({"nmse/numerator": ONES.float()}, "holds .* instead of"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Tensor], message: str) -> None:
    path = tmp_path / "sums.safetensors"
    tensors = {"documents": torch.tensor([3, 5]), "nmse/numerator": ONES, "nmse/denominator": TWOS}
    save_tensors(path, tensors, {"n_tokens": {"nmse": 9}})
    assert load_sums(path).ratio("nmse").value == 0.5
    save_tensors(path, tensors | changes, {"n_tokens": {"nmse": 9}})
    with pytest.raises(ValueError, match=rf"^{path}: {message}"):
        load_sums(path)


@pytest.mark.parametrize("metadata", [None, {"n_tokens": 9}, {"n_tokens": {"nmse": "9"}}, {"n_tokens": {"nmse": True}}])
def test_files_without_counts_are_refused(tmp_path: Path, metadata: dict[str, object] | None) -> None:
    path = tmp_path / "sums.safetensors"
    save_tensors(path, {"documents": torch.tensor([3])}, metadata)
    with pytest.raises(ValueError, match=rf"^{path}: holds no sums over documents"):
        load_sums(path)
