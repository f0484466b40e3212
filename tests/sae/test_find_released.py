"""The authors' files in a profile: how they are found, and every mistake in their folder."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import ROOT
from fixtures.authors import D, F, released_config, truncate, write

from tsae.profile import config
from tsae.profile.point import Point
from tsae.sae.exchange.released import (
    find_released,
    token_bias_reference,
)


def test_a_profile_finds_its_released_saes(tmp_path: Path) -> None:
    names = [
        "gpt2_resid_pre_2_o30.pt",
        "gpt2_resid_pre_1_ot30.pt",
        "gpt2_resid_pre_1_o20.pt",
        "gpt2_resid_pre_1_ot5.pt",
    ]
    paths = {name: write(tmp_path, name) for name in names}
    (tmp_path / "README.md").write_text("left alone")
    profile = released_config(tmp_path)
    found = find_released(profile)
    assert {job: file.path.name for job, file in found.items()} == {
        "layer1/released-o20": names[2],
        "layer1/released-ot30": names[1],
        "layer1/released-ot5": names[3],
        "layer2/released-o30": names[0],
    }
    assert found["layer1/released-o20"].path == paths[names[2]]
    job = found["layer1/released-ot30"].job
    assert job.subject == "released-ot30"
    assert (job.labels["k"], job.labels["table"], job.labels["expansion"]) == (30, "learned", 1.5)
    assert [job.labels[name] for name in ("seed", "lookup_scale", "start", "encoder_scale")] == [None] * 4
    assert type(job).model_validate_json(config.to_json(job)) == job
    compared = {name: token_bias_reference(profile, found, file.job) for name, file in found.items()}
    references = {name: job.id for name, job in compared.items() if job}
    assert references == {
        "layer1/released-o20": "layer1/released-ot30",
        "layer1/released-ot30": "layer1/released-ot30",
        "layer1/released-ot5": "layer1/released-ot5",
        "layer2/released-o30": "layer2/topk-k4-x4-learned-s0",
    }


def test_a_job_of_the_sweep_is_written_as_before() -> None:
    (job, *_) = config.load(ROOT / "config/smoke.yaml").jobs()
    assert set(json.loads(config.to_json(job))) == {"layer", "point", "seed"}


def test_every_mistake_in_the_folder_is_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, "gpt2_resid_pre_1_ot30.pt")
    write(tmp_path, "other_resid_pre_1_ot30.pt")
    truncate(write(tmp_path / "init-sweep", "gpt2_resid_pre_1_ot30_i0.1.pt"))
    write(tmp_path / "old", "gpt2_resid_pre_1_t.pt")
    write(tmp_path / "my sweep", "gpt2_resid_pre_2_ot30.pt")
    with pytest.raises(ValueError) as error:
        find_released(released_config(tmp_path))
    lines = str(error.value).splitlines()
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == [
        str(tmp_path / f"{name}.pt")
        for name in (
            "init-sweep/gpt2_resid_pre_1_ot30_i0.1",
            "my sweep/gpt2_resid_pre_2_ot30",
            "old/gpt2_resid_pre_1_t",
            "other_resid_pre_1_ot30",
        )
    ]
    for line, message in zip(
        lines, ("truncated", "call the folder something of", "not a name like", "as is "), strict=True
    ):
        assert message in line


THEIRS = (
    "gpt2-layers/gpt2_resid_pre_1_ot30.pt",
    "gpt2-layers/gpt2_resid_pre_2_ot30.pt",
    "gpt2-layers/gpt2_resid_pre_3_ot30.pt",
    "gpt2-layers/gpt2_resid_pre_2_o30.pt",
    "pareto-sweep/gpt2_resid_pre_2_ot30.pt",
    "pareto-sweep/gpt2_resid_pre_2_ot20.pt",
    "pareto-sweep/gpt2_resid_pre_2_o20.pt",
    "pareto-sweep/gpt2_resid_pre_2_t16.pt",
    "init-sweep/pythia_resid_pre_16_ot30_i0.1.pt",
    "init-sweep/gpt2_resid_pre_2_ot30_i0.1.pt",
    "expansion-sweep/gpt2_resid_pre_2_o30_x8.pt",
    "old/gpt2_resid_pre_2_t8.pt",
    "gpt2_resid_pre_2_t4.pt",
)


def test_folders_are_taken_as_they_lie(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in THEIRS:
        write(tmp_path / Path(name).parent, Path(name).name)
    # Ignored: the shadow files of an archive, hidden and deeper folders, and a damaged file of another layer.
    for name in (
        "__MACOSX/._gpt2_resid_pre_1_ot30.pt",
        ".cache/gpt2_resid_pre_1_ot5.pt",
        "a/b/gpt2_resid_pre_1_ot5.pt",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    truncate(tmp_path / THEIRS[2])
    profile = released_config(tmp_path)
    found = find_released(profile)
    assert {job: str(file.path.relative_to(tmp_path)) for job, file in found.items()} == {
        "layer1/released-gpt2-layers-ot30": THEIRS[0],
        "layer2/released-gpt2-layers-ot30": THEIRS[1],
        "layer2/released-gpt2-layers-o30": THEIRS[3],
        "layer2/released-pareto-sweep-ot30": THEIRS[4],
        "layer2/released-pareto-sweep-ot20": THEIRS[5],
        "layer2/released-pareto-sweep-o20": THEIRS[6],
        "layer2/released-pareto-sweep-t16": THEIRS[7],
        "layer2/released-init-sweep-ot30_i0.1": THEIRS[9],
        "layer2/released-expansion-sweep-o30_x8": THEIRS[10],
        "layer2/released-old-t8": THEIRS[11],
        "layer2/released-t4": THEIRS[12],
    }
    (message,) = caplog.messages
    assert "2 of 13 files in " in message and "of layers [3, 16], which the profile does not compare" in message

    def reading(job: str) -> tuple[Any, ...]:
        point = found[f"layer2/released-{job}"].job.point
        return point.architecture, point.k, point.encoder_input

    assert reading("old-t8") == reading("t4") == ("relu", None, "without_unigram")
    assert reading("pareto-sweep-t16") == ("relu", None, "residual")
    assert reading("pareto-sweep-o20") == ("topk", 20, "residual")
    labels = found["layer2/released-old-t8"].job.labels
    assert (labels["l1"], labels["k"], labels["architecture"]) == (None, None, "relu")

    def reference(job: str) -> str:
        found_reference = token_bias_reference(profile, found, found[f"layer2/released-{job}"].job)
        assert found_reference
        return found_reference.subject

    assert reference("old-t8") == "released-old-t8"
    assert reference("gpt2-layers-o30") == "released-gpt2-layers-ot30"
    assert reference("pareto-sweep-o20") == "released-pareto-sweep-ot20"
    # Its folder has no table, so it gets the first by name of the other SAEs with k = 30 and its size.
    assert reference("expansion-sweep-o30_x8") == "released-gpt2-layers-ot30"


def test_the_reading_of_names_without_o_is_set_by_folder(tmp_path: Path) -> None:
    for name in ("old/gpt2_resid_pre_2_t8.pt", "old/gpt2_resid_pre_2_8.pt", "new/gpt2_resid_pre_2_t8.pt"):
        write(tmp_path / Path(name).parent, Path(name).name)

    def points(**settings: Any) -> dict[str, Point]:
        profile = released_config(tmp_path, released={"folder": str(tmp_path), **settings})
        return {file.job.subject: file.job.point for file in find_released(profile).values()}

    found = points(without_o="topk", encoder_input={"new": "remainder"})
    topk = Point(k=8, expansion=F / D, table="learned", topk_relu=False)
    assert found == {
        "released-old-t8": topk,
        "released-old-8": topk.model_copy(update={"table": "none"}),
        "released-new-t8": topk.model_copy(update={"encoder_input": "remainder"}),
    }
    for wrong in ("odl", "old/", "."):
        with pytest.raises(
            ValueError, match=r"released\.encoder_input: '.*' is none of the folders .* \['new', 'old'\]"
        ):
            points(encoder_input={wrong: "remainder"})
    with pytest.raises(
        ValueError, match=r"released\.encoder_input\.old: .*'residual', 'remainder' or 'without_unigram'"
    ):
        points(encoder_input={"old": "unigram"})
    with pytest.raises(ValueError, match=r"released\.without_o: .*'relu' or 'topk'"):
        points(without_o="gated")


def test_files_of_other_layers_alone_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "gpt2-layers", "gpt2_resid_pre_3_ot30.pt")
    with pytest.raises(
        ValueError, match=r"1 of 1 files in .* are of layers \[3\], and the profile compares layers \[1, 2\]"
    ):
        find_released(released_config(tmp_path))


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"released\.folder: there is no file \*\.pt in "):
        find_released(released_config(tmp_path))
    with pytest.raises(ValueError, match=r"released\.folder: there is no folder .*absent"):
        find_released(released_config(tmp_path / "absent"))
    assert find_released(config.load(ROOT / "config/smoke.yaml")) == {}


def test_a_profile_with_released_saes_needs_their_residuals(tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    with pytest.raises(ValueError, match=r"released: .*set model\.compatibility_mode: true"):
        config.parse(data | {"released": {"folder": "somewhere"}})
    data["sweep"]["released"] = copy.deepcopy(data["sweep"]["headline"])
    with pytest.raises(ValueError, match="sweep: 'released' is the name of another table"):
        config.parse(data)
