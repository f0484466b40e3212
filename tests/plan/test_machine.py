"""What a machine or its container leaves to jobs, read from made-up control groups, and what is said if it is too little."""

import math
from pathlib import Path
from typing import Any

import pytest
from fixtures import ROOT

from tsae.plan.costs import costs
from tsae.plan.machine import LOWER, core_limit, jobs_memory, memory_limit, too_large
from tsae.profile import config

GB = 10**9
NO_LIMIT = 9223372036854771712  # as version 1 writes it


def process(folder: Path, groups: str, *mounts: str) -> Path:
    """A folder as /proc/self, of a process in these groups; a mount is `root place kind options` below the folder."""
    (folder / "self").mkdir()
    (folder / "self/cgroup").write_text(groups)
    lines = []
    for number, mount in enumerate(mounts):
        root, place, kind, options = mount.split()
        where = str(folder / place).replace(" ", r"\040")
        lines.append(f"{30 + number} 1 0:{number} {root} {where} rw,nosuid shared:4 - {kind} {kind} {options}\n")
    (folder / "self/mountinfo").write_text("".join(lines))
    return folder / "self"


def write(folder: Path, **values: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_the_smallest_limit_up_the_tree_holds(tmp_path: Path) -> None:
    me = process(tmp_path, "0::/user/job/step\n", "/ cg cgroup2 rw")
    write(tmp_path / "cg/user/job/step", memory__max="max", cpu__max="max 100000")
    write(tmp_path / "cg/user/job", memory__max=6 * GB, cpu__max="350000 100000")
    write(tmp_path / "cg/user", memory__max=9 * GB, memory__high="max", cpu__max="1600000 100000")
    assert (memory_limit(me), core_limit(me)) == (6 * GB, 4)
    write(tmp_path / "cg/user", memory__high=5 * GB, cpu__max="50000 100000")
    assert (memory_limit(me), core_limit(me)) == (5 * GB, 1)


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    groups = "5:memory:/docker/a b\n4:cpu,cpuacct:/docker/c\n1:name=systemd:/docker/d\n0::/\n"
    me = process(
        tmp_path, groups, "/ memory cgroup rw,memory", "/ cpu cgroup rw,cpu,cpuacct", "/ unified cgroup2 rw,nsdelegate"
    )
    write(tmp_path / "memory", memory__limit_in_bytes=NO_LIMIT)
    write(tmp_path / "memory/docker/a b", memory__limit_in_bytes=3 * GB)
    write(tmp_path / "cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert (memory_limit(me), core_limit(me)) == (3 * GB, None)
    write(tmp_path / "cpu/docker/c", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000)
    assert core_limit(me) == 2


@pytest.mark.parametrize("root", ["/docker/x", "/elsewhere"])
def test_a_container_sees_its_own_group_as_the_topmost(tmp_path: Path, root: str) -> None:
    me = process(tmp_path, "0::/docker/x\n", f"{root} cg cgroup2 rw")
    write(tmp_path / "cg", memory__max=2 * GB)
    assert memory_limit(me) == 2 * GB


def test_no_control_groups_no_limit(tmp_path: Path) -> None:
    me = process(tmp_path, "0::/\n", "/ cg cgroup2 rw")
    assert (memory_limit(me), core_limit(me)) == (math.inf, None)
    assert (memory_limit(tmp_path / "nowhere"), core_limit(tmp_path / "nowhere")) == (math.inf, None)


def test_an_eighth_is_left_to_the_rest() -> None:
    assert jobs_memory(16 * GB) == 14_000
    assert jobs_memory(16 * GB, 6 * GB) == 5_250
    assert jobs_memory(16 * GB, NO_LIMIT) == 14_000


def test_the_largest_job_that_is_to_run_must_have_room() -> None:
    needs = {"train": 3_000, "evaluate": 5_000, "ablate": 9_000}
    assert too_large(needs, {"train", "evaluate"}, 5_000, "7/8 of all") is None
    assert too_large(needs, {"pareto"}, 1, "7/8 of all") is None
    said = too_large(needs, {"train", "evaluate"}, 4_999, "7/8 of all")
    assert said == (
        "a job of evaluate needs 5.0 GB of memory, and 5.0 GB are there for jobs (7/8 of all); "
        "lower evaluation.batch_sequences, or try all the same with --resources mem_mb=5000"
    )


def lowered(data: dict[str, Any], key: str) -> dict[str, Any]:
    section, _, name = key.partition(".")
    if section == "model":
        return data | {"model": data["model"] | {"vocab_size": data["model"]["vocab_size"] // 2}}
    if section == "sweep":
        return data | {"sweep": {block: grids for block, grids in data["sweep"].items() if block != "encoder"}}
    return data | {section: data[section] | {name: data[section][name] * 3 // 4}}


def test_lowering_what_is_named_lowers_the_memory() -> None:
    profile = config.load(ROOT / "config/gpt2.yaml")
    before = {cost.stage: cost.memory for cost in costs(profile)}
    assert LOWER.keys() >= before.keys() - {"prepare_documents"}
    for stage, named in LOWER.items():
        data = lowered(profile.model_dump(mode="json"), named.partition(" ")[0])
        after = {cost.stage: cost.memory for cost in costs(config.parse(data))}
        assert after.get(stage, 0) < before[stage], stage
