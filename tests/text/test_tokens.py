"""Tokens: the split by document, and packing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tsae.profile.inputs import Tokens
from tsae.store import files
from tsae.store.tensors import load_metadata, save_tensors
from tsae.text import write_tokens as packing
from tsae.text.tokens import TokenSplit, load_tokens, open_text
from tsae.text.write_tokens import write_tokens

SETTINGS = Tokens(n_ctx=32, train=40_000, heldout=4_000, heldout_documents=40, seed=0)


def write_documents(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"title": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


@pytest.fixture
def documents(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The tiny corpus, with every tenth document repeated at the end."""
    texts = tiny_corpus.read_text().splitlines()
    return write_documents(tmp_path / "documents.jsonl", texts + texts[::10])


def splits(documents: Path, model: Path, settings: Tokens = SETTINGS) -> tuple[TokenSplit, TokenSplit]:
    train, heldout = documents.with_name("train.safetensors"), documents.with_name("heldout.safetensors")
    write_tokens(documents, model, settings, train, heldout)
    return load_tokens(train), load_tokens(heldout)


def write_word_tokenizer(folder: Path, **special: str) -> Path:
    """A tokenizer that knows the words "0" to "30", each with its own number as id."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(31)}, unk_token="30"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return folder


def test_packing_by_hand(tmp_path: Path) -> None:
    model = write_word_tokenizer(tmp_path / "model", bos_token="0")
    # 20 documents give 3 tokens each to the held-out split; 3 of the others are trained on.
    words = [[1 + line % 25, 2 + line // 25, 30 - line % 7] for line in range(41)]
    documents = write_documents(tmp_path / "documents.jsonl", [" ".join(map(str, text)) for text in words])
    settings = Tokens(n_ctx=4, train=9, heldout=80, heldout_documents=20, heldout_share=0.05, seed=0)
    train, heldout = splits(documents, model, settings)
    order = np.random.default_rng(0).permutation(41).tolist()
    assert heldout.ids.tolist() == [[0, *words[line]] for line in order[:20]]
    assert heldout.documents.tolist() == [[-1, line, line, line] for line in order[:20]]
    assert train.ids.tolist() == [[0, *words[line]] for line in order[20:23]]
    assert train.documents.tolist() == [[-1, line, line, line] for line in order[20:23]]
    assert train.ids.dtype == train.documents.dtype == torch.int32
    assert (train.source_tokens, heldout.source_tokens) == ([9], [60])
    assert train.document_sources.tolist() == heldout.document_sources.tolist() == [0] * 41


def test_shapes_and_metadata(documents: Path, tiny_llama: Path) -> None:
    train, heldout = splits(documents, tiny_llama)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for split, n_sequences in ((train, 1250), (heldout, 125)):
        assert split.ids.shape == split.documents.shape == (n_sequences, 32)
        assert split.bos == tokenizer.bos_token_id
        assert (split.ids[:, 0] == split.bos).all()
        assert (split.ids[:, 1:] != split.bos).all()
        assert ((split.documents == -1) == (split.ids == split.bos)).all()
        assert (split.n_ctx, split.n_vocabulary, split.n_documents, split.seed) == (32, 512, 220, 0)
        assert split.documents_sha256 == files.sha256(documents)


def test_sizes_are_rounded_up_to_whole_sequences(documents: Path, tiny_gpt2: Path) -> None:
    train, heldout = splits(documents, tiny_gpt2, Tokens(n_ctx=32, train=32 * 100 + 1, heldout=4_001))
    assert (len(train.ids), len(heldout.ids)) == (101, 126)


def test_documents_follow_each_other(documents: Path, tiny_gpt2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    starts = []
    for is_heldout, split in enumerate(splits(documents, tiny_gpt2)):
        ids, lines = split.ids[:, 1:].flatten(), split.documents[:, 1:].flatten()
        visited = lines.unique_consecutive().tolist()
        assert len(visited) == len(set(visited)) > 10
        assert visited != sorted(visited)
        for line in visited:
            whole = tokenizer(texts[line], add_special_tokens=False)["input_ids"]
            found = ids[lines == line].tolist()
            places = [at for at in range(len(whole)) if whole[at : at + len(found)] == found]
            if is_heldout:
                starts.append(places[0] / (len(whole) - len(found)))
            else:
                assert places[0] == 0 and (found == whole or line == visited[-1])
    # Pieces are at random places in their documents, from beginning to end.
    assert min(starts) < 0.1 and max(starts) > 0.9 and 0.3 < np.mean(starts) < 0.7


def test_heldout_documents_never_occur_in_training(documents: Path, tiny_gpt2: Path) -> None:
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    for seed in range(5):
        train, heldout = splits(documents, tiny_gpt2, SETTINGS.model_copy(update={"seed": seed}))
        trained, held = (set(split.documents.unique().tolist()) - {-1} for split in (train, heldout))
        assert trained and held and not trained & held
        assert not {texts[line] for line in trained} & {texts[line] for line in held}


def test_many_documents_none_of_them_large(documents: Path, tiny_gpt2: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tsae")
    settings = Tokens(n_ctx=32, train=30_000, heldout=4_000, seed=0)
    train, heldout = splits(documents, tiny_gpt2, settings)
    lengths = heldout.documents[:, 1:].unique(return_counts=True)[1]
    assert len(lengths) == 100
    assert lengths.max() <= 0.03 * lengths.sum()
    assert train.documents[:, 1:].unique(return_counts=True)[1].max() > 4 * lengths.max()
    assert heldout.source_tokens == [heldout.ids[:, 1:].numel()]
    # 3875 tokens of 100 documents, of 38 or 39 each: 1.0%.
    assert "heldout.safetensors: 100 documents, the largest 1.0% of the text; tokens by source: 3875" in caplog.text


def test_same_seed_same_bytes(documents: Path, tiny_gpt2: Path) -> None:
    def written(seed: int) -> list[str]:
        splits(documents, tiny_gpt2, SETTINGS.model_copy(update={"seed": seed}))
        return [files.sha256(documents.with_name(f"{split}.safetensors")) for split in ("train", "heldout")]

    first, again, other = written(0), written(0), written(1)
    assert first == again
    assert not set(first) & set(other)


def test_splits_are_what_packing_in_memory_gives(
    documents: Path, tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is read, tokenized and packed at a time."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
    first = [line for line, text in enumerate(texts) if text not in texts[:line]]
    for block, batch in ((1, 1), (100, 7), (1 << 20, 256)):
        monkeypatch.setattr(packing, "BLOCK_TOKENS", block)
        monkeypatch.setattr(packing, "BATCH_DOCUMENTS", batch)
        train, heldout = splits(documents, tiny_gpt2)
        held = set(heldout.documents.unique().tolist())
        order = [line for line in np.random.default_rng(0).permutation(first).tolist() if line not in held]
        encoded = [tokenizer(texts[line], add_special_tokens=False)["input_ids"] for line in order]
        ids = [token for each in encoded for token in each]
        lines = [line for line, each in zip(order, encoded, strict=True) for _ in each]
        assert train.ids[:, 1:].flatten().tolist() == ids[: 1250 * 31]
        assert train.documents[:, 1:].flatten().tolist() == lines[: 1250 * 31]
        # The file is the one that safetensors writes.
        path = documents.with_name("train.safetensors")
        whole = documents.with_name("whole.safetensors")
        tensors = {"ids": train.ids, "documents": train.documents, "document_sources": train.document_sources}
        save_tensors(whole, tensors, load_metadata(path))
        assert path.read_bytes() == whole.read_bytes()
        assert {each.name for each in path.parent.glob("*tmp*")} == set()


def test_text_that_spells_bos_is_no_bos(tiny_gpt2: Path, tmp_path: Path) -> None:
    texts = [f"{number} <|endoftext|> bin" for number in range(400)]
    train, heldout = splits(
        write_documents(tmp_path / "documents.jsonl", texts), tiny_gpt2, Tokens(n_ctx=8, train=800, heldout=400, seed=0)
    )
    assert (train.ids[:, 1:] != train.bos).all()
    assert (heldout.ids[:, 1:] != heldout.bos).all()


def test_eos_stands_in_for_a_missing_bos(tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "documents.jsonl", [f"{i % 30} {i // 30}" for i in range(50)])
    settings = Tokens(n_ctx=4, train=8, heldout=40, heldout_documents=20, heldout_share=0.07)
    assert splits(documents, write_word_tokenizer(tmp_path / "eos", eos_token="30"), settings)[0].bos == 30
    with pytest.raises(ValueError, match="neither BOS nor EOS"):
        splits(documents, write_word_tokenizer(tmp_path / "none"), settings)


def test_too_small_a_corpus(documents: Path, tiny_gpt2: Path) -> None:
    larger = SETTINGS.model_copy(update={"train": 90_000})
    with pytest.raises(ValueError, match=r"^tokens\.train: .* 90000 needs 87203 tokens .* hold \d+, .*") as error:
        splits(documents, tiny_gpt2, larger)
    assert not documents.with_name("train.safetensors").exists()
    most = int(str(error.value).split("lower it to ")[1].split()[0])
    train, _ = splits(documents, tiny_gpt2, larger.model_copy(update={"train": most}))
    assert train.ids.numel() == most
    with pytest.raises(ValueError, match=rf"lower it to {most} at most"):
        splits(documents, tiny_gpt2, larger.model_copy(update={"train": most + 1}))


def test_too_little_to_hold_out(documents: Path, tiny_gpt2: Path) -> None:
    with pytest.raises(ValueError, match=r"^tokens\.heldout: 90000 needs 87203 tokens .* at most 2616 tokens from one"):
        splits(documents, tiny_gpt2, SETTINGS.model_copy(update={"heldout": 90_000}))
    # Of 200 texts, since every tenth comes twice.
    message = (
        "^tokens.heldout_documents: 101 documents are to be held out, and of the 200 of the corpus, .* at most 100"
    )
    with pytest.raises(ValueError, match=message):
        splits(documents, tiny_gpt2, SETTINGS.model_copy(update={"heldout_documents": 101}))
    documents.write_text("")
    with pytest.raises(ValueError, match="of the 0 of the corpus"):
        splits(documents, tiny_gpt2)


def test_sequences_longer_than_the_model_takes(documents: Path, tiny_gpt2: Path) -> None:
    with pytest.raises(ValueError, match=r"^tokens\.n_ctx: sequences of 65 tokens, and the model takes at most 64"):
        splits(documents, tiny_gpt2, SETTINGS.model_copy(update={"n_ctx": 65}))


def test_missing_inputs_are_named(documents: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no tokenizer there"):
        splits(documents, tmp_path / "empty")
    with pytest.raises(ValueError, match="absent: no such folder"):
        splits(documents, tmp_path / "absent")
    with pytest.raises(ValueError, match=r"absent\.jsonl: no such file"):
        splits(tmp_path / "absent.jsonl", tiny_gpt2)


def test_a_damaged_tokenizer_is_refused(documents: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_gpt2, tmp_path / "model")
    for path in (model / "tokenizer.json", model / "tokenizer_config.json"):
        text = path.read_text()
        files.record(path)
        path.write_text(text + " ")
        with pytest.raises(ValueError, match=f"{path.name}: damaged"):
            splits(documents, model)
        path.write_text(text)
    splits(documents, model)


def test_a_split_is_read_in_parts(documents: Path, tiny_gpt2: Path) -> None:
    train, _ = splits(documents, tiny_gpt2)
    path = documents.with_name("train.safetensors")
    text = open_text(path)
    columns = [column.flatten().long().numpy() for column in (train.ids, train.documents)]
    assert text.n_tokens == 40_000
    for start, stop in ((0, 40_000), (0, 1), (31, 33), (39_999, 40_000), (64, 96), (100, 100)):
        for part, column in zip(text.read(start, stop), columns, strict=True):
            assert part.dtype == np.int64 and np.array_equal(part, column[start:stop])


def test_load_refuses_other_tensors(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_tensors(path, {"rows": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"other\.safetensors: not a token split"):
        load_tokens(path)
