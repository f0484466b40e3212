"""Damaged artefacts are named before anything reads them."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.faults import Fault, Run, differences, flip_a_bit, kill_all, on_two_cores, visible

from tsae.profile.inputs import Corpus
from tsae.store import verify as artefacts
from tsae.text.write_documents import _Partial, write_documents

pytestmark = pytest.mark.faults


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {"a bit flipped": flip_a_bit, "truncated": truncate}
TOKENIZED, BASELINE = "layer1/topk-k4-x4-learned-s0", "layer1/topk-k4-x4-none-s0"
PHRASES = "layer2/topk-k4-x4-learned-s0"
# One of each kind, and a job that reads it; None: what reads it checks all artefacts first, or nothing reads it.
KINDS = {
    "model": ("model/model.safetensors", "unigrams"),
    "configuration of the model": ("model/config.json", "unigrams"),
    "tokenizer": ("model/tokenizer.json", "tokenize"),
    "source of the model": ("model/source.json", "cache_residuals/0"),
    "documents": ("documents.jsonl", "tokenize"),
    "training tokens": ("tokens/train.safetensors", "unigrams"),
    "held-out tokens": ("tokens/heldout.safetensors", f"evaluate/{TOKENIZED}"),
    "residual shard": ("residuals/train/layer1/shard-00001.safetensors", f"train/{TOKENIZED}"),
    "held-out residual shard": ("residuals/heldout/layer1/shard-00000.safetensors", f"evaluate/{TOKENIZED}"),
    "part of the residuals": ("residuals/parts/0.json", "index_residuals"),
    "residual index": ("residuals/index.json", f"train/{TOKENIZED}"),
    "residual statistics": ("residuals/layer1.safetensors", f"train/{TOKENIZED}"),
    "unigram residuals": ("unigrams/layer1.safetensors", f"train/{TOKENIZED}"),
    "n-grams": ("ngrams/layer1.safetensors", f"evaluate/{TOKENIZED}"),
    "conditional means": ("conditional_means/layer1.safetensors", f"evaluate/{TOKENIZED}"),
    "tokens of first letters": ("letter_tokens/layer1.safetensors", f"evaluate/{TOKENIZED}"),
    "losses of ablations": ("ablations/layer1.safetensors", f"evaluate/{TOKENIZED}"),
    "SAE": (f"saes/{TOKENIZED}/sae.safetensors", f"evaluate/{TOKENIZED}"),
    "description of an SAE": (f"saes/{TOKENIZED}/config.json", f"evaluate/{TOKENIZED}"),
    "history of a training": (f"saes/{TOKENIZED}/history.csv", None),
    "checkpoint on the way": (f"saes/{TOKENIZED}/checkpoints/*/sae.safetensors", f"measure_curve/{TOKENIZED}"),
    "description of a checkpoint": (f"saes/{TOKENIZED}/checkpoints/*/config.json", f"measure_curve/{TOKENIZED}"),
    "measurements": (f"metrics/{TOKENIZED}.json", "collect/headline"),
    "sums of an SAE": (f"sums/{TOKENIZED}.safetensors", None),
    "sums of tables alone": ("sums/layer1/unigram-residuals.safetensors", None),
    "sums of checkpoints": (f"sums/curves/{TOKENIZED}.safetensors", None),
    "statistics of features": (f"features/{TOKENIZED}.parquet", None),
    "measurements of the residuals": ("baselines/layer1.json", "collect/baselines"),
    "curve": (f"curves/{TOKENIZED}.json", "collect/curves"),
    "phrases": ("phrases/phrases.json", f"measure_phrases/{PHRASES}"),
    "measurements of phrases": (f"phrases/{PHRASES}.json", "collect/encoder"),
    "examples of phrases": (f"phrases/{PHRASES}.csv", "collect_phrases"),
    "table": ("tables/headline.csv", "measure_claims"),
    "table of phrases": ("tables/phrases.csv", "measure_claims"),
    "all measurements": ("metrics.csv", "verify"),
    "claims": ("claims.csv", "verify"),
    "claims to read": ("claims.md", None),
    "claims in the report": ("claims.html", None),
    "manifest": ("manifest.json", None),
    "figure": ("../../figures/smoke/speedup.png", None),
    "notebook": ("notebooks/04_features.ipynb", None),
    "notebook in the report": ("notebooks/04_features.html", None),
    "report of the checks": ("verified.txt", None),
}


@pytest.fixture(scope="module")
def copies(undisturbed: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two finished runs to do harm to."""
    return [Run(tmp_path_factory.mktemp("corrupted") / "copy", copied=undisturbed.folder) for _ in range(2)]


@pytest.fixture
def copy(copies: list[Run]) -> Run:
    """One of them."""
    return copies[0]


@pytest.fixture(scope="module")
def commands(copies: list[Run]) -> dict[str, str]:
    """The commands of its jobs."""
    return copies[0].commands()


def artefact(run: Run, kind: str) -> Path:
    return min(run.results.glob(KINDS[kind][0])).resolve()


def verify(run: Run) -> tuple[int, list[str]]:
    code, output = run.stage("verify-artefacts", "--configfile", run.configfile)
    return code, sorted(re.findall(r"^(\S+): damaged", output, flags=re.MULTILINE))


def names(run: Run, kinds: list[str]) -> list[str]:
    return sorted(str(artefact(run, kind).relative_to(run.folder.resolve())) for kind in kinds)


def place(run: Run, path: Path) -> tuple[str, str]:
    """The name of a file, or its folder and suffix: all of one kind have the same."""
    parts = Path(os.path.relpath(path.resolve(), run.results.resolve())).parts
    return (parts[0], path.suffix) if len(parts) > 1 else ("", path.name)


def test_there_is_no_other_kind(copy: Run) -> None:
    recorded = artefacts.verify([copy.results, copy.folder / "figures/smoke"], {}).whole
    assert recorded
    known = {place(copy, artefact(copy, kind)) for kind in KINDS}
    assert {place(copy, path) for path in recorded if path.suffix not in (".svg", ".pdf")} == known


def test_every_kind_of_artefact_is_checked(copy: Run, faults: list[Fault]) -> None:
    assert verify(copy) == (0, [])
    whole = {artefact(copy, kind): artefact(copy, kind).read_bytes() for kind in KINDS}
    assert len(whole) == len(KINDS)
    for damage, harm in DAMAGES.items():
        for path in whole:
            harm(path)
        assert verify(copy) == (1, names(copy, list(KINDS))), damage
        for path, data in whole.items():
            path.write_bytes(data)
    assert verify(copy) == (0, [])
    tried = len(DAMAGES) * len(KINDS)
    faults.append(Fault(f"{', '.join(DAMAGES)}: {', '.join(KINDS)}", tried, tried, "none", None))


def test_what_reads_it_refuses_it_and_says_its_name(
    copies: list[Run], undisturbed: Run, commands: dict[str, str], faults: list[Fault]
) -> None:
    read = [(kind, job) for kind, (_, job) in KINDS.items() if job is not None]

    def try_to_read(damaged: tuple[str, str], run: Run) -> None:
        kind, job = damaged
        path = artefact(run, kind)
        whole = path.read_bytes()
        flip_a_bit(path)
        code, output = run.reproduce("bash", "-c", commands[job])
        output += (run.results / f"logs/{job}.log").read_text()
        assert code != 0, kind
        assert re.search(rf"{re.escape(path.name)}: damaged", output), (kind, output)
        path.write_bytes(whole)

    on_two_cores(try_to_read, read, copies)
    # Nothing was written from what was damaged.
    for run in copies:
        assert differences(visible(run.outputs()), visible(undisturbed.outputs())) == []
    faults.append(Fault("a file with a bit flipped, read by a job", len(read), len(read), "none", len(read)))


@pytest.fixture
def interrupted(copy: Run, commands: dict[str, str]) -> Iterator[tuple[Path, str]]:
    """A training that was killed when it had been saved after a checkpoint: where, and its command."""
    command = commands[f"train/{TOKENIZED}"]
    folder = copy.results / "saes" / TOKENIZED / ".training"
    process = copy.start("bash", "-c", re.sub(r"--save-s \S+", "--save-s 0", command), output=subprocess.DEVNULL)
    while not ((folder / "state.safetensors").exists() and len(list(folder.glob("checkpoints/*/config.json"))) > 1):
        assert process.poll() is None
        time.sleep(0.01)
    kill_all(process)
    yield folder, command
    copy.clear()


@pytest.mark.parametrize(
    ("what", "name"), [("state", "state.safetensors"), ("first checkpoint", "checkpoints/*/sae.safetensors")]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_training_is_not_gone_on_from(
    copy: Run, undisturbed: Run, interrupted: tuple[Path, str], what: str, name: str, damage: str, faults: list[Fault]
) -> None:
    folder, command = interrupted
    DAMAGES[damage](min(folder.glob(name)))
    code, output = copy.reproduce("bash", "-c", command)
    assert code == 0, output
    assert re.search("damaged.*training starts from step 0|training starts from step 0.*damaged", output)
    assert "continues after step" not in output
    assert differences(copy.outputs(), undisturbed.outputs()) == []
    assert copy.left_behind() == []
    faults.append(Fault(f"{what} of a training under way, {damage}", 1, 1, "the training so far", 1))


@pytest.mark.parametrize("part", ["partial", "progress.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_documents_on_the_way_are_not_gone_on_from(
    tmp_path: Path, part: str, damage: str, monkeypatch: pytest.MonkeyPatch, faults: list[Fault]
) -> None:
    (tmp_path / "text.txt").write_text("".join(f"document {number}\n" for number in range(100)))
    source = {"kind": "files", "paths": [str(tmp_path / "text.txt")], "format": "lines"}
    corpus = Corpus.model_validate({"sources": [source]})
    output = tmp_path / "documents.jsonl"
    monkeypatch.setattr("tsae.text.write_documents.RECORDED_EVERY", 10)

    def full(self: object) -> None:
        raise ValueError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(_Partial, "finish", full)
        with pytest.raises(ValueError, match="interrupted"):
            write_documents(corpus, tmp_path, output)
    DAMAGES[damage](tmp_path / f".documents.jsonl.{part}")
    write_documents(corpus, tmp_path, output)
    texts = [json.loads(line)["text"] for line in output.read_text().splitlines()]
    assert texts == [f"document {number}" for number in range(100)]
    faults.append(Fault(f"documents on the way ({part}), {damage}", 1, None, "the documents so far", 1))
