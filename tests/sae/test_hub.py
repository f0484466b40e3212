import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import huggingface_hub
import pytest
import torch
from fixtures import ROOT
from fixtures.hub import TOKEN, Hub, serving
from fixtures.saes import TOKENS, X
from fixtures.shared import BASELINE, TOKENIZED, write_results

from tsae.__main__ import app
from tsae.commands.table import GROUPS
from tsae.sae.checkpoint import load
from tsae.sae.exchange.hub import pull, push

REPO = "me/saes"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results/p")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the real one, and an empty cache."""
    with serving() as started:
        settings = {
            "ENDPOINT": started.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{started.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield started


def test_what_is_pushed_is_pulled(results: Path, hub: Hub, tmp_path: Path) -> None:
    pushed = push([results], REPO, license="mit")
    sha, files = hub.at(REPO) or ("", {})
    assert pushed == f"{REPO}@{sha}"
    push([results], folder=tmp_path / "out", license="mit")
    there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files.keys() == there | {".gitattributes"}
    for name in (TOKENIZED, BASELINE):
        folder = Path(pull(f"{REPO}/{name}"))
        assert folder.is_relative_to(tmp_path / "cache")
        # The copy for SAELens stays where it is.
        fetched = {path.name for path in folder.iterdir()}
        assert {"sae.safetensors", ".sae.safetensors.sha256", "history.csv", "metrics.json"} < fetched
        assert not fetched & {"cfg.json", "sae_weights.safetensors", "token_biases.safetensors"}
        assert torch.equal(load(folder)(X, TOKENS), load(results / "saes" / name)(X, TOKENS))
        assert pull(f"{REPO}@{sha}/{name}", tmp_path / "copy" / name) == str(tmp_path / "copy" / name)
        assert load(tmp_path / "copy" / name).metadata == load(folder).metadata


def test_a_push_over_another_is_asked_for_and_an_earlier_revision_stays(results: Path, hub: Hub) -> None:
    first = push([results], REPO)
    with pytest.raises(ValueError, match=r"me/saes: it holds \d+ files already; give --overwrite to replace its SAEs"):
        push([results], REPO)
    _, files = hub.at(REPO) or ("", {})
    hub.commit(REPO, files | {"notes.md": b"theirs"})
    push([results / "saes" / BASELINE], REPO, overwrite=True)
    sha, files = hub.at(REPO) or ("", {})
    assert {name.rpartition("/")[0] for name in files} == {"", BASELINE}
    assert files["notes.md"] == b"theirs"
    assert sha in pull(REPO)
    with pytest.raises(ValueError, match=rf"{first}: 2 SAEs; add one of {TOKENIZED}, {BASELINE}$"):
        pull(first)
    assert load(pull(f"{first}/{TOKENIZED}")).W_lookup is not None


def test_a_new_repository_of_the_hub_is_free(results: Path, hub: Hub) -> None:
    hub.commit(REPO, {".gitattributes": b""})
    push([results / "saes" / BASELINE], REPO)
    assert "README.md" in (hub.at(REPO) or ("", {}))[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("me/other", "me/other: no such repository on the hub, or it is private; correct the name or log in"),
        (f"{REPO}@v7", f"{REPO}: no revision v7; name a commit, branch or tag of it"),
        (f"{REPO}/layer1/none", f"no SAE layer1/none; there are {BASELINE}"),
        (f"{REPO}/../../etc", "no subfolder of an SAE"),
        ("nothing", "nothing: neither a folder nor USER/NAME"),
    ],
)
def test_what_is_not_there_is_one_line(results: Path, hub: Hub, source: str, message: str) -> None:
    push([results / "saes" / BASELINE], REPO)
    with pytest.raises(ValueError, match=message) as error:
        pull(source)
    assert "\n" not in str(error.value)


def test_a_file_that_was_changed_on_the_hub_is_not_pulled(results: Path, hub: Hub) -> None:
    push([results / "saes" / BASELINE], REPO)
    _, files = hub.at(REPO) or ("", {})
    name = f"{BASELINE}/sae.safetensors"
    hub.commit(REPO, files | {name: files[name][:-1] + b"\xff"})
    with pytest.raises(ValueError, match=r"sae\.safetensors: damaged, its sha256 is not the recorded one"):
        pull(REPO)


def test_who_may_not_push_is_told_so(results: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--repo saes: not the name of a repository, USER/NAME"):
        push([results], "saes")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ValueError, match=r"me/saes: your token may not do this \(401\); use one that can write to it"):
        push([results], REPO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="me/saes: no token of the Hugging Face hub; log in with `hf auth login`"):
        push([results], REPO)
    assert REPO not in hub.repos


def test_a_hub_out_of_reach_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="me/saes: the hub could not be reached") as error:
        pull(REPO)
    assert "\n" not in str(error.value)


def test_the_commands(results: Path, hub: Hub, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        environment = os.environ | hub.environment(tmp_path / "home")
        command = [sys.executable, "-m", "tsae", *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    pushed = run("push", "--repo", REPO, "--license", "mit", str(results / "saes" / TOKENIZED))
    folder = run("pull", "--source", pushed)
    assert torch.equal(load(folder)(X, TOKENS), load(results / "saes" / TOKENIZED)(X, TOKENS))


DOCUMENT = (ROOT / "docs/sharing.md").read_text()


def test_the_commands_of_the_document_are_commands() -> None:
    lines = re.findall(r"^python -m tsae (.*)$", DOCUMENT.replace("\\\n", ""), re.MULTILINE)
    assert {line.split()[0] for line in lines} == set(GROUPS["Sharing"])
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        command = app.get_command(click.Context(app), name)
        assert command is not None
        command.make_context(name, words)


def test_the_snippet_of_the_document_runs(results: Path, hub: Hub) -> None:
    push([results], REPO)
    snippet = next(
        found for found in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL) if "hub import pull" in found
    )
    found: dict[str, Any] = {}
    exec(snippet.replace("USER/NAME/layer12/topk-k32-x4-learned-s0", f"{REPO}/{TOKENIZED}"), found)
    assert torch.equal(found["sae"](X, TOKENS), load(results / "saes" / TOKENIZED)(X, TOKENS))
