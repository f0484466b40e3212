"""Less text than `tokens.train` asks for, and one long book: every stage up to training."""

import json
import re
from pathlib import Path

import pytest
import torch
from fixtures.corpora import file_corpus
from fixtures.training import LAYER, POINTS, SETTINGS

from tsae.model.write_model import prepare_model
from tsae.profile.evaluation import Ngrams
from tsae.profile.inputs import Corpus, Residuals, Tokens, Unigrams
from tsae.profile.sources import FolderModel
from tsae.profile.sweep import Job
from tsae.residuals.index_residuals import index_residuals
from tsae.residuals.read import open_residuals
from tsae.residuals.write_conditional_means import write_conditional_means
from tsae.residuals.write_ngrams import write_ngrams
from tsae.residuals.write_residuals import cache_residuals
from tsae.residuals.write_unigrams import write_unigrams
from tsae.sae.checkpoint import load
from tsae.text.documents import read_documents
from tsae.text.tokens import load_tokens
from tsae.text.write_documents import write_documents
from tsae.text.write_tokens import write_tokens
from tsae.training.batches import training_batches
from tsae.training.train import train

SHORT = Tokens(n_ctx=32, train=10**6, heldout=2_000, heldout_documents=20, heldout_share=0.06, short_text="take")
RESIDUALS = Residuals(layers=(LAYER,), shard_sequences=2000, batch_sequences=200, disk_gb=1)
JOB = Job(layer=LAYER, point=POINTS["learned"], seed=0)


@pytest.fixture(scope="module")
def book(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of 500 kB."""
    path = tmp_path_factory.mktemp("book") / "book.txt"
    text = re.sub(r"(?<=\.) ", "\n", tiny_corpus.read_text())
    path.write_text((text + text.swapcase() + text[::-1])[:500_000])
    assert path.stat().st_size == 500_000
    return path


def tokens_of(documents: Path, model: Path, settings: Tokens, batch_size: int = 1) -> tuple[Path, Path]:
    outputs = documents.with_name("train.safetensors"), documents.with_name("heldout.safetensors")
    write_tokens(documents, model, settings, *outputs, batch_size)
    return outputs


def test_one_book_is_trained_on(book: Path, tiny_gpt2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = tmp_path / "documents.jsonl"
    write_documents(Corpus(sources=(file_corpus("text", book),)), tmp_path, documents)
    with pytest.raises(
        ValueError, match=r"of the 1 of the corpus, .* or cut long documents .* `cut: \d+` there$"
    ) as raised:
        tokens_of(documents, tiny_gpt2, SHORT)
    suggested = int(str(raised.value).split("`cut: ")[1].split("`")[0])
    write_documents(Corpus(sources=(file_corpus("text", book, cut=suggested),)), tmp_path, documents)
    assert "".join(document.text for document in read_documents(documents)) == book.read_text()
    paths = tokens_of(documents, tiny_gpt2, SHORT, SETTINGS.batch_size)
    n_train, n_heldout = (load_tokens(path).ids.numel() for path in paths)
    assert n_heldout == 2016 and 50_000 < n_train < 10**6
    assert f"tokens.train: {n_train} of 1000000 tokens, for the corpus has no more" in caplog.text

    # More jobs than shards, and the last shard is not full.
    model, cache = tmp_path / "model", tmp_path / "residuals"
    prepare_model(FolderModel(kind="folder", path=tiny_gpt2), tmp_path, model)
    n_jobs = 12
    for part in range(n_jobs):
        cache_residuals(model, *paths, RESIDUALS, False, cache, part, n_jobs)
    index_residuals(RESIDUALS, [cache / f"parts/{part}.json" for part in range(n_jobs)], cache / "index.json")
    residuals = open_residuals(cache / "index.json", "train", LAYER)
    assert 2 < len(residuals.shards) < n_jobs and n_train / 2 < residuals.n_kept < n_train

    write_unigrams(model, paths[0], Unigrams(), [LAYER], False, tmp_path / "unigrams")
    write_conditional_means(cache / "index.json", LAYER, tmp_path / "means.safetensors")
    write_ngrams(model, paths[0], Ngrams(min_documents=2), Unigrams(), [LAYER], False, tmp_path / "ngrams")
    unigrams = tmp_path / f"unigrams/layer{LAYER}.safetensors"
    train(JOB, SETTINGS, cache / "index.json", unigrams, tmp_path / "sae")
    assert torch.isfinite(load(tmp_path / "sae").W_dec).all()
    trained = json.loads((tmp_path / "sae/config.json").read_text())
    assert trained["tokens_trained"] == 12_800 and "failed" not in trained


def test_a_streamed_split_that_is_short(book: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    """The profile streams, since it counts with `tokens.train`; what is there has only a few shards."""
    documents, model = tmp_path / "documents.jsonl", tmp_path / "model"
    write_documents(Corpus(sources=(file_corpus("text", book, cut=1000),)), tmp_path, documents)
    paths = tokens_of(documents, tiny_gpt2, SHORT)
    prepare_model(FolderModel(kind="folder", path=tiny_gpt2), tmp_path, model)
    write_unigrams(model, paths[0], Unigrams(), [LAYER], False, tmp_path / "unigrams")
    saes = []
    for streams, mean_tokens in ((False, 10**7), (True, 10**7), (True, 10_000)):
        cache = tmp_path / f"{streams}{mean_tokens}"
        settings = RESIDUALS.model_copy(update={"mean_tokens": mean_tokens})
        cache_residuals(model, *paths, settings, False, cache, streams=streams)
        index_residuals(settings, [cache / "parts/0.json"], cache / "index.json")
        shorter = SETTINGS.model_copy(update={"tokens": 2560})
        unigrams = tmp_path / f"unigrams/layer{LAYER}.safetensors"
        train(JOB, shorter, cache / "index.json", unigrams, cache / "sae", model=model if streams else None)
        saes.append((cache / "sae/sae.safetensors").read_bytes())
    assert saes[0] == saes[1]


def test_what_is_taken_is_what_a_smaller_size_gives(book: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    write_documents(Corpus(sources=(file_corpus("text", book, cut=1000),)), tmp_path, documents)
    refused = SHORT.model_copy(update={"short_text": "refuse"})
    with pytest.raises(
        ValueError, match=r"^tokens\.train: .* lower it to \d+ at most, set tokens\.short_text: take, or add"
    ) as raised:
        tokens_of(documents, tiny_gpt2, refused)
    most = int(str(raised.value).split("lower it to ")[1].split()[0])
    taken = [path.read_bytes() for path in tokens_of(documents, tiny_gpt2, SHORT)]
    assert [
        path.read_bytes() for path in tokens_of(documents, tiny_gpt2, refused.model_copy(update={"train": most}))
    ] == taken
    # Where there is enough text, the key changes nothing.
    enough = {"train": 20_000}
    larger = [path.read_bytes() for path in tokens_of(documents, tiny_gpt2, SHORT.model_copy(update=enough))]
    assert (
        [path.read_bytes() for path in tokens_of(documents, tiny_gpt2, refused.model_copy(update=enough))]
        == larger
        != taken
    )


@pytest.mark.refused("text for less than a batch")
def test_less_than_a_batch_is_refused(tiny_corpus: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    lines = tiny_corpus.read_text().splitlines()[:40]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    documents = tmp_path / "documents.jsonl"
    write_documents(Corpus(sources=(file_corpus("lines", tmp_path / "a.txt"),)), tmp_path, documents)
    train_path, _ = tokens_of(documents, tiny_gpt2, SHORT)
    n_text = load_tokens(train_path).ids[:, 1:].numel()
    tokens_of(documents, tiny_gpt2, SHORT, n_text)
    with pytest.raises(ValueError, match=rf"less than a batch \(training\.batch_size: {n_text + 1}\); add to corpus"):
        tokens_of(documents, tiny_gpt2, SHORT, n_text + 1)


def test_text_lost_beside_held_out_pieces_names_the_key(tiny_corpus: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    """40 long documents, half of them held out in small pieces."""
    text = tiny_corpus.read_text()
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(text[number * 7_000 : (number + 1) * 7_000])
    documents = tmp_path / "documents.jsonl"
    write_documents(Corpus(sources=(file_corpus("text", *sorted(tmp_path.glob("*.txt"))),)), tmp_path, documents)
    with pytest.raises(ValueError, match=r"`cut`\): \d+ tokens are beside held-out pieces in their documents$"):
        tokens_of(documents, tiny_gpt2, SHORT.model_copy(update={"train": 60_000, "short_text": "refuse"}))


def test_batches_larger_than_the_kept_tokens(index: Path) -> None:
    """A split of one batch has fewer tokens than a batch without those of outlier norm; they come again until it is full."""
    cache = open_residuals(index, "train", 3)
    settings = SETTINGS.model_copy(update={"batch_size": cache.n_kept + 9, "tokens": 4 * (cache.n_kept + 9)})
    batches = [batch.tokens for batch in training_batches(cache, settings, seed=0)]
    assert [len(tokens) for tokens in batches] == [cache.n_kept + 9] * 4
    kept = torch.cat([cache.shard(place).tokens[cache.kept(place)] for place in range(len(cache.shards))])
    assert torch.equal(torch.cat(batches).unique(), kept.long().unique())
