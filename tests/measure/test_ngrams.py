"""Common n-grams: which they are, the residuals after them, and what is measured of these."""

import math
from pathlib import Path

import pytest
import torch
from fixtures.training import LAYER, Prepared
from transformers import AutoModelForCausalLM

from tsae.measure.measurement import Measurement
from tsae.measure.ngrams import measure_ngrams
from tsae.profile.evaluation import Ngrams
from tsae.profile.inputs import Unigrams
from tsae.residuals.ngrams import NgramResiduals, load_ngrams, load_spelling
from tsae.residuals.unigrams import load_unigrams
from tsae.residuals.write_ngrams import common_ngrams, find_ngrams, spellings, write_ngrams
from tsae.text.tokens import load_tokens

SETTINGS = Ngrams(common=30, per_length=8, max_length=4, tokens=1500)


def test_ngrams_by_hand() -> None:
    # Two documents in three sequences; BOS is token 0.
    ids = torch.tensor([[0, 5, 6, 5, 6, 7], [0, 5, 6, 8, 8, 8], [0, 8, 8, 5, 6, 7]])
    documents = torch.tensor([[-1, 3, 3, 3, 3, 3], [-1, 4, 4, 4, 4, 4], [-1, 4, 4, 4, 4, 4]])
    found = find_ngrams(ids, documents, {1: 9, 2: 9, 3: 9, 6: 9}, min_documents=1)
    assert set(found) == {1, 2, 3}
    assert found[1].tolist() == [[8], [5], [6], [7]]  # 5 times, 4, 4 and twice
    # Of runs as frequent as one another the lowest ids come first.
    assert found[2].tolist() == [[5, 6], [8, 8], [6, 7], [6, 5], [6, 8], [8, 5]]
    assert find_ngrams(ids, documents, {2: 2}, 1)[2].tolist() == [[5, 6], [8, 8]]
    # The three of 8 8 are in one document.
    in_both = find_ngrams(ids, documents, {1: 9, 2: 9, 3: 9, 4: 9}, min_documents=2)
    assert {length: runs.tolist() for length, runs in in_both.items()} == {
        1: [[5], [6], [7]],
        2: [[5, 6], [6, 7]],
        3: [[5, 6, 7]],
    }


def test_no_ngram_goes_from_one_document_into_the_next() -> None:
    ids = torch.tensor([[0, 5, 6, 7, 8]]).repeat(2, 1)
    documents = torch.tensor([[-1, 1, 1, 2, 2], [-1, 3, 3, 4, 4]])
    found = find_ngrams(ids, documents, {2: 9, 3: 9}, 1)
    assert {length: runs.tolist() for length, runs in found.items()} == {2: [[5, 6], [7, 8]]}


@pytest.mark.parametrize("prefix", ["", "ba"])
def test_residuals_are_those_of_single_prompts(prepared: Prepared, tmp_path: Path, prefix: str) -> None:
    prompt = Unigrams(prefix=prefix, batch_tokens=5)
    write_ngrams(prepared.model, prepared.train_tokens, SETTINGS, prompt, [LAYER], False, tmp_path)
    found, split = load_ngrams(tmp_path / f"layer{LAYER}.safetensors"), load_tokens(prepared.train_tokens)
    unigrams, ngrams = common_ngrams(split, SETTINGS)
    assert torch.equal(found.unigrams, unigrams) and len(unigrams) == 30
    assert {length: len(ids) for length, ids in found.ids.items()} == {1: 8, 2: 30, 3: 8, 4: 8}
    bare = AutoModelForCausalLM.from_pretrained(prepared.model).eval()
    before = [split.bos, *model_tokens(prepared, prefix)]
    for length, ids in found.ids.items():
        assert torch.equal(ids, ngrams[length])
        for place in (0, 6):
            prompt_ids = torch.tensor([[*before, *ids[place].tolist()]])
            with torch.no_grad():
                expected = bare(prompt_ids, output_hidden_states=True).hidden_states[LAYER][0, -1]
            torch.testing.assert_close(found.residuals[length][place], expected, rtol=1e-4, atol=1e-4)
    if not prefix:
        own = load_unigrams(prepared.unigrams)[found.ids[1].flatten()]
        torch.testing.assert_close(found.residuals[1], own, rtol=1e-4, atol=1e-4)
    assert load_spelling(tmp_path / "spelling.safetensors").shape == (512,)


def model_tokens(prepared: Prepared, text: str) -> list[int]:
    from tsae.text.tokens import load_tokenizer

    return load_tokenizer(prepared.model).encode(text, add_special_tokens=False)


def test_ngrams_are_sought_in_so_many_tokens(prepared: Prepared) -> None:
    split = load_tokens(prepared.train_tokens)
    few = SETTINGS.model_copy(update={"tokens": split.n_ctx, "min_documents": 1})
    first = split._replace(ids=split.ids[:1], documents=split.documents[:1])
    for found, expected in zip(common_ngrams(split, few), common_ngrams(first, few), strict=True):
        assert str(found) == str(expected)


def test_tokens_of_too_few_documents_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"min_documents": 10_000})
    with pytest.raises(ValueError, match=r"no training token occurs in 10000 documents; lower ngrams\.min_documents"):
        write_ngrams(prepared.model, prepared.train_tokens, settings, Unigrams(), [LAYER], False, tmp_path)


def test_other_files_are_refused(prepared: Prepared) -> None:
    with pytest.raises(ValueError, match="holds no residuals of n-grams"):
        load_ngrams(prepared.unigrams)
    with pytest.raises(ValueError, match=r"instead of spelling \(n\) int64"):
        load_spelling(prepared.unigrams)


def test_spellings_by_hand() -> None:
    texts = [
        "The",
        " The",
        " the",
        "the ",
        "  the",
        " ",
        "\N{REPLACEMENT CHARACTER}",
        " \N{REPLACEMENT CHARACTER}",
        "1",
        " 1",
        "É",
        "é",
    ]
    assert spellings(texts, 14).tolist() == [0, 0, 0, 3, 4, 5, 6, 7, 8, 9, 10, 10, 12, 13]


def by_place(measured: list[Measurement]) -> dict[tuple[str, float | None], Measurement]:
    named = {(m.metric, m.at): m for m in measured}
    assert len(named) == len(measured)
    return named


def test_cosines_of_ngrams_by_hand() -> None:
    e = torch.eye(4)
    unigrams = torch.stack([2 * e[0], e[1], e[2], e[0] + e[3]])
    ngrams = NgramResiduals(
        torch.tensor([0, 1]),
        {1: torch.tensor([[0], [1], [2]]), 2: torch.tensor([[3, 0], [3, 1], [1, 2]])},
        {1: unigrams[:3], 2: torch.stack([e[0] + e[3], e[1], 3 * e[2] + 4 * e[0]])},
        per_length=3,
    )
    found = by_place(measure_ngrams(ngrams, unigrams, seed=0))
    assert {at for _, at in found} == {1, 2}
    assert all(m.over == "n-grams" and m.n == 3 for m in found.values())
    assert found["ngram_unigram_cosine", 1].value == pytest.approx(1)
    assert found["ngram_unigram_cosine_centred", 1].value == pytest.approx(1)
    # 0.71, 1 and 0.6.
    assert found["ngram_unigram_cosine", 2].value == pytest.approx(math.sqrt(0.5))
    # Of two common tokens the other is never the n-gram's own last one.
    others = by_place(
        measure_ngrams(ngrams._replace(ids={2: torch.tensor([[3, 0], [3, 1]])}, per_length=2), unigrams, 0)
    )
    assert others["ngram_other_cosine", 2].value == pytest.approx(0, abs=1e-7)
    assert by_place(measure_ngrams(ngrams._replace(per_length=2), unigrams, seed=0))["ngram_unigram_cosine", 2].n == 2


def test_centred_cosines_of_ngrams_leave_out_what_all_share() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.full((64,), 3.0)
    unigrams = torch.randn(400, 64, generator=generator) + shared
    ids = torch.stack([torch.randint(0, 400, (200,), generator=generator), torch.arange(200)], 1)
    x = torch.randn(200, 64, generator=generator) + unigrams[ids[:, 1]]
    found = by_place(measure_ngrams(NgramResiduals(torch.arange(400), {2: ids}, {2: x}, 200), unigrams, 0))
    assert found["ngram_other_cosine", 2].value > 0.8
    assert found["ngram_other_cosine_centred", 2].value == pytest.approx(0, abs=0.05)
    assert found["ngram_unigram_cosine_centred", 2].value == pytest.approx(math.sqrt(0.5), abs=0.03)
