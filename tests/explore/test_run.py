"""What notebooks use, on a run made by hand."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from fixtures.evaluation import Evaluated
from fixtures.explored import write_run
from fixtures.training import LAYER, Prepared
from IPython.core.formatters import HTMLFormatter
from IPython.core.interactiveshell import InteractiveShell
from nbconvert import HTMLExporter

from tsae.explore.errors import AskedError
from tsae.explore.run import Run, contexts_html, features_on, open_run
from tsae.measure.table import COLUMNS
from tsae.store import files
from tsae.text.documents import Document

ROWS = [
    {"layer": 8, "subject": "topk-k4-x2-none", "seed": 3, "table": "none", "metric": "nmse", "value": 0.2},
    {"layer": 4, "subject": "topk-k4-x2-learned", "seed": 2, "table": "learned", "metric": "nmse", "value": 0.1},
]


@pytest.fixture
def run(tmp_path: Path, tiny_gpt2: Path) -> Run:
    (tmp_path / "tables").mkdir()
    pd.DataFrame(ROWS, columns=COLUMNS).to_csv(tmp_path / "tables/headline.csv", index=False)
    (tmp_path / "model").symlink_to(tiny_gpt2)
    return open_run(tmp_path)


def test_a_run_knows_its_headline(run: Run) -> None:
    assert (run.baseline, run.tokenized) == ("topk-k4-x2-none", "topk-k4-x2-learned")
    assert (run.layers, run.seed) == ([4, 8], 2)
    assert run.folder("a", 4) == run.results / "saes/layer4/a-s2"


def test_an_sae_whose_training_failed_is_shown_with_a_warning(run: Run) -> None:
    failed = {"layer": 4, "subject": "topk-k4-x2-none", "seed": 2, "table": "none", "metric": "failed", "value": 70}
    pd.DataFrame([*ROWS, failed], columns=COLUMNS).to_csv(run.results / "tables/headline.csv", index=False)
    with pytest.warns(UserWarning, match=r"topk-k4-x2-none \(layer 4, seed 2\) failed in training at step 70"):
        run.folder("topk-k4-x2-none", 4)
    run.folder("topk-k4-x2-none", 8)
    run.folder("topk-k4-x2-learned", 4)


def test_a_missing_run_or_table_says_what_to_do(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"pareto\.csv is missing; run: snakemake"):
        run.table("pareto")
    with pytest.raises(ValueError, match=f"no finished run in {tmp_path}/none; run: make reproduce"):
        open_run(tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TSAE_RESULTS", raising=False)
    with pytest.raises(ValueError, match="no finished run in results/embedded or"):
        open_run()
    monkeypatch.setenv("TSAE_RESULTS", str(run.results))
    assert open_run().results == run.results


def test_what_is_damaged_is_not_shown(tmp_path: Path, tiny_gpt2: Path) -> None:
    run = Run(tmp_path)
    shutil.copytree(tiny_gpt2, tmp_path / "model")
    files.write_text(tmp_path / "tables/headline.csv", pd.DataFrame(ROWS, columns=COLUMNS).to_csv(index=False))
    history = run.folder("a", 4) / "history.csv"
    files.write_text(history, "step,loss\n1,0.5\n")
    files.record(tmp_path / "model/tokenizer.json")
    assert run.history("a", 4)["loss"].tolist() == [0.5]
    history.write_text("step,loss\n1,0.4\n")
    tokenizer = tmp_path / "model/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(ValueError, match=r"history\.csv: damaged"):
        run.history("a", 4)
    with pytest.raises(ValueError, match=r"tokenizer\.json: damaged"):
        run.token("a")


def test_nearest_rows_by_hand(run: Run) -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])
    found = run.nearest(torch.tensor([2.0, 0.0]), table, n=2)
    assert found["token"].tolist() == [run.shown(0), run.shown(2)]
    assert found["cosine"].tolist() == pytest.approx([1.0, 0.707])


def test_a_text_that_is_no_token_says_what_to_write(run: Run) -> None:
    assert run.token("a") == run.tokenizer.encode("a")[0]
    with pytest.raises(AskedError, match=r"'\?!' is 2 tokens of this model, '\?', '!', and one is needed; check the"):
        run.token("?!")
    word = next(
        text for text in run.writable(range(300, 500)) if text[0] == " " and len(run.tokenizer.encode(text[1:])) > 1
    )
    with pytest.raises(AskedError, match=f"one is needed; write '{word}', with its leading space"):
        run.token(word.strip())
    with pytest.raises(AskedError, match="the text of a token is empty"):
        run.token("")


def test_writable_texts_lead_back_to_their_tokens(run: Run) -> None:
    texts = run.writable(range(len(run.tokenizer)))
    assert len(texts) < len(run.tokenizer)  # bytes of a character are tokens, too
    assert [run.text(run.token(text)) for text in texts] == texts


def test_a_notebook_shows_what_to_write_and_no_traceback() -> None:
    shell = InteractiveShell()
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        shell.run_cell("from tsae.explore.errors import AskedError\nraise AskedError('write one token')")
    assert shown.getvalue().strip() == "write one token"


@pytest.fixture
def prepared_run(tmp_path: Path, evaluated: Evaluated, prepared: Prepared) -> Run:
    return Run(write_run(tmp_path / "prepared", evaluated, prepared, "tokenized"))


def test_a_sentence_is_read_like_a_sequence(prepared_run: Run) -> None:
    heldout = prepared_run.heldout(LAYER)
    text = prepared_run.tokenizer.decode(heldout.tokens[0, 1:])
    sentence = prepared_run.sentence(text, [LAYER])
    assert torch.equal(sentence.tokens, heldout.tokens[0, 1:])
    torch.testing.assert_close(sentence.residuals[LAYER], heldout.residuals[0, 1:].float(), rtol=2e-3, atol=2e-3)
    assert torch.equal(sentence.kept[LAYER], heldout.kept[0, 1:])
    longer = prepared_run.sentence(f"{text} {text}", [LAYER])
    assert torch.equal(longer.tokens, sentence.tokens)
    with pytest.raises(AskedError, match="the text is empty; write a sentence"):
        prepared_run.sentence("", [LAYER])


def feature(**values: object) -> dict[str, object]:
    return {
        "feature": 7,
        "firing_rate": 0.01,
        "top_token": 5,
        "top_token_share": 0.75,
        "context_tokens": [[10, 11], [12, 13]],
        "context_active": [1, 0],
        "context_activations": [2.0, 1.0],
        "context_documents": [3, 4],
    } | values


def test_contexts_escape_what_comes_from_the_corpus(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {10: "<script>", 11: "a & b", 12: "\n", 13: "c"}
    monkeypatch.setattr(Run, "text", lambda _, token: texts[token])
    documents = [Document("", ""), *[Document(f"<b>{number}</b>", "", number % 2) for number in range(1, 5)]]
    lines = (json.dumps(document._asdict()) for document in documents)
    (run.results / "documents.jsonl").write_text("\n".join(lines))
    page = contexts_html(run, pd.DataFrame([feature()]), n_contexts=2)
    assert "<script>" not in page and "&lt;script&gt;<mark>a &amp; b</mark>" in page
    assert "<mark>↵</mark>c" in page and "75% of its mass" in page
    assert "2.0, &lt;b&gt;3&lt;/b&gt;:" in page and "1.0, &lt;b&gt;4&lt;/b&gt;:" in page
    assert re.findall("data-source='(.)'", page) == ["1", "0"]
    assert contexts_html(run, pd.DataFrame([feature()]), n_contexts=1).count("<mark>") == 1


HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> $\\href{javascript:alert(3)}{x}$ &lt;b&gt; </p></table>",
    "</script><script>alert(4)</script>",
)


@pytest.mark.refused("HTML in text of the corpus, in a notebook")
def test_a_page_shows_hostile_text_as_text(run: Run, tmp_path: Path) -> None:
    """Every way in which the notebooks show text of the corpus, converted as the workflow does it."""
    token = run.token("a")
    contexts = [run.tokenizer.encode(text) for text in HOSTILE]
    lines = [json.dumps(Document(text, "")._asdict()) for text in (*HOSTILE, *HOSTILE, *HOSTILE)]
    (run.results / "documents.jsonl").write_text("\n".join(lines))
    row = feature(top_token=token, context_tokens=contexts, context_active=[0, 3])
    shown = pd.DataFrame([{"token": f"{run.shown(token)}{text}", text: 1} for text in HOSTILE])
    as_html = HTMLFormatter()
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": contexts_html(run, pd.DataFrame([row]))}),
        nbformat.v4.new_output("execute_result", {"text/html": as_html(shown), "text/plain": repr(shown)}),
        nbformat.v4.new_output("execute_result", {"text/html": as_html(shown.T)}),
        nbformat.v4.new_output("stream", text="\n".join(HOSTILE)),
        nbformat.v4.new_output("error", ename="ValueError", evalue=HOSTILE[0], traceback=list(HOSTILE)),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("run", outputs=outputs)])
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert "alert(" in page and "&lt;script&gt;" in page
    assert not re.search(r"<script>alert|<img src=x|</script><script>|&lt;b&gt; </p>", page)
    # Where it is neither preformatted nor marked, a formula would be made of what is between dollars.
    marked = re.sub(r"(?s)<pre.*?</pre>|<(p|table)[^>]*tex2jax_ignore.*?</\1>", "", page)
    assert "href{javascript" in page and "href{javascript" not in marked


def test_features_on_a_token_come_by_their_share() -> None:
    frame = pd.DataFrame(
        [feature(feature=i, top_token=t, top_token_share=s) for i, t, s in ((0, 5, 0.2), (1, 6, 1.0), (2, 5, 0.9))]
    )
    assert features_on(frame, [5])["feature"].tolist() == [2, 0]
    assert features_on(frame, [5, 6], n=1)["feature"].tolist() == [1]
