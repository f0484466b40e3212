"""Text without spaces, through documents and tokens: nothing is lost or changed."""

# ruff: noqa: RUF001

import json
from pathlib import Path

import pytest
from fixtures.corpora import file_corpus
from transformers import AutoTokenizer

from tsae.profile.inputs import Corpus, Tokens
from tsae.text.documents import read_documents
from tsae.text.tokens import load_tokens
from tsae.text.write_documents import write_documents
from tsae.text.write_tokens import write_tokens

SENTENCES = {
    "chinese": ["学而时习之，不亦说乎？", "有朋自远方来，不亦乐乎？", "人不知而不愠，不亦君子乎！", "𠮷野家的牛肉飯。"],
    "japanese": ["吾輩は猫である。", "名前はまだ無い。", "「か\u3099」と「が」は同じに見える。", "ﾊﾟﾝｺｰﾋｰ？"],
    "thai": ["ภาษาไทยเป็นภาษาที่มีระดับเสียง ", "น้ำใจคนไทยยิ่งใหญ่ ", "กำลังเดินทางไปทำงาน ", "เก็บเงินได้๑๒๓บาท "],
}
SETTINGS = Tokens(n_ctx=16, train=4_000, heldout=800, heldout_documents=30, heldout_share=0.05)


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("format", ["text", "lines", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_text_without_spaces(language: str, format: str, encoding: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    sentences = SENTENCES[language]
    # Every document is another order of sentences, so that none counts twice.
    texts = ["".join(sentences[int(digit) % 4] for digit in f"{number:06o}") + str(number) for number in range(200)]
    path = tmp_path / "book"
    match format:
        case "text":
            path.write_text("".join(texts), encoding=encoding)
        case "lines":
            path.write_text("\n".join(texts), encoding=encoding)
        case "jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding=encoding)
    source = file_corpus(format, path, cut=120 if format == "text" else None)
    output, train, heldout = (
        tmp_path / name for name in ("documents.jsonl", "train.safetensors", "heldout.safetensors")
    )
    write_documents(Corpus(sources=(source,)), tmp_path, output)
    documents = list(read_documents(output))
    if format == "text":
        assert "".join(document.text for document in documents) == "".join(texts)
        assert all(60 < len(document.text) <= 120 for document in documents[:-1])
    else:
        assert [document.text for document in documents] == texts
    write_tokens(output, tiny_gpt2, SETTINGS, train, heldout)
    tokenizer, split = AutoTokenizer.from_pretrained(tiny_gpt2), load_tokens(train)
    ids, lines = split.ids[:, 1:].flatten(), split.documents[:, 1:].flatten()
    assert split.source_tokens == [len(ids)] == [250 * 15]
    assert split.n_documents == len(documents)
    visited = lines.unique_consecutive().tolist()
    for line in visited[:-1]:
        assert tokenizer.decode(ids[lines == line], clean_up_tokenization_spaces=False) == documents[line].text
    assert not set(visited) & set(load_tokens(heldout).documents.unique().tolist()) - {-1}
