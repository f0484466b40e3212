"""Plans against counts by hand, the embedded run, and the heads of profiles."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cost
import fill
import pytest
from fixtures import ROOT

from tsae.plan import plan
from tsae.plan.cost import Cost
from tsae.plan.costs import costs, train
from tsae.plan.plan import Machine, Rates
from tsae.plan.sizes import disk, sae_bytes
from tsae.profile import config
from tsae.profile.config import Config

RECORD = json.loads(plan.MEASURED.read_text())
EMBEDDED = config.parse(RECORD["config"] | {"figures": []})  # they take no time, and new ones may need another sweep
GPT2 = config.load(ROOT / "config/gpt2.yaml")
RATES = Rates(cores=2, start=2, start_model=6, model=1e11, dense=5e10, sparse=1e10, stream=1e8, text=5e4)


def by_stage(settings: Config) -> dict[str, Cost]:
    return {stage.stage: stage for stage in costs(settings)}


def changed(settings: Config, section: str, **values: Any) -> Config:
    data = settings.model_dump(mode="json")
    data[section] |= values
    return config.parse(data)


def heavy() -> list[dict[str, Any]]:
    """Recorded stages with more than 3% of the time."""
    whole = sum(row["wall_s"] for row in RECORD["stages"])
    return [row for row in RECORD["stages"] if row["wall_s"] > 0.03 * whole]


def test_stages_take_what_they_took_within_a_third() -> None:
    rates, planned = plan.read_rates(), by_stage(EMBEDDED)
    assert {"train", "evaluate", "measure_curve", "cache_residuals"} <= {row["stage"] for row in heavy()}
    for row in heavy():
        threads = 1 if row["jobs"] > 1 else rates.cores
        assert plan.seconds(planned[row["stage"]], rates) / threads == pytest.approx(row["wall_s"], rel=1 / 3), row


def test_the_whole_takes_what_it_took_within_a_fifth() -> None:
    planned = plan.plan(EMBEDDED, plan.read_rates(), Machine())
    assert planned.hours * 3600 == pytest.approx(RECORD["dag_s"], rel=1 / 5)
    assert sum(planned.disk.values()) == pytest.approx(RECORD["disk_bytes"], rel=1 / 10)


def test_memory_is_what_it_was_within_a_half() -> None:
    planned = by_stage(EMBEDDED)
    for row in heavy():
        took = row["peak_rss_mb"] * 1e6
        assert took / 1.5 < planned[row["stage"]].memory < took * 1.5, row
    largest = max(row["peak_rss_mb"] for row in RECORD["stages"]) * 1e6
    assert max(stage.memory for stage in planned.values()) == pytest.approx(largest, rel=1 / 3)


def test_jobs_are_those_that_ran() -> None:
    planned = by_stage(EMBEDDED)
    for row in RECORD["stages"]:
        if row["stage"] in planned:
            assert planned[row["stage"]].jobs == row["jobs"]


def test_rates_are_found_again() -> None:
    """From the times on a machine of known rates."""
    planned = by_stage(EMBEDDED)
    stages = [
        {
            "stage": name,
            "jobs": stage.jobs,
            "wall_s": plan.seconds(stage, RATES) / (1 if stage.jobs > 1 else RATES.cores if stage.on_gpu else 1),
        }
        for name, stage in planned.items()
    ]
    jobs = {job.point.id: job for job in EMBEDDED.jobs()}
    saes = [row | {"train_s": plan.seconds(train(EMBEDDED, [jobs[row["point"]]]), RATES)} for row in RECORD["saes"]]
    found = plan.fit_rates(EMBEDDED, stages, saes, cores=2, start=2, start_model=6)
    for name, value in RATES:
        assert getattr(found, name) == pytest.approx(value, rel=0.02), name


def test_times_that_say_nothing() -> None:
    stages = [{"stage": name, "jobs": stage.jobs, "wall_s": 1e4} for name, stage in by_stage(EMBEDDED).items()]
    saes = [row | {"train_s": 1e6 / row["n_features"]} for row in RECORD["saes"]]
    with pytest.raises(ValueError, match="on an idle machine"):
        plan.fit_rates(EMBEDDED, stages, saes, cores=2, start=2, start_model=6)


def test_residuals_of_the_paper_are_a_terabyte_and_a_half() -> None:
    train, heldout = 131_072_000, 262_144
    assert disk(changed(GPT2, "residuals", disk_gb=None))["residuals"] == 7 * (train + heldout) * (2 * 768 + 12)


def test_an_sae_on_disk() -> None:
    point = next(job.point for job in GPT2.jobs() if job.point.table == "learned" and job.point.expansion == 16)
    weights, table = 2 * 12288 * 768 + 12288 + 768, 50257 * 768
    assert sae_bytes(GPT2, point) == 4 * (weights + table) + 8 * 12288
    assert sae_bytes(GPT2, point.without_table()) == 4 * weights + 8 * 12288
    # At most as many bigrams as tokens have rows.
    assert sae_bytes(GPT2, point.model_copy(update={"rows": "bigram"})) == 4 * (weights + 2 * table) + 8 * 12288


def test_training_is_the_encoders_product_and_what_active_features_touch() -> None:
    tokens, jobs = 131_072_000, GPT2.jobs()
    train = by_stage(changed(GPT2, "residuals", disk_gb=None))["train"]
    assert (train.jobs, train.trained_tokens, train.model_tokens) == (len(jobs), tokens * len(jobs), 0)
    assert train.dense_flops == sum(tokens * 2 * 768 * 768 * job.point.expansion for job in jobs)


def test_tokens_through_the_model() -> None:
    stages = by_stage(GPT2)
    scored, heldout = 262_144, 262_144
    assert stages["cache_residuals"].model_tokens == 131_072_000 + heldout
    assert stages["ablate"].model_tokens == 7 * 3 * scored
    # The divergence: eight sequences, with and without the SAE.
    assert stages["evaluate"].model_tokens == len(GPT2.jobs()) * (scored + 2 * 8 * 256)
    assert stages["measure_curve"].model_tokens == len(GPT2.jobs("headline")) * 8 * 64 * 256


def test_heldout_tokens_are_encoded_once() -> None:
    """Whatever share of them the loss takes."""
    few, all_of_them = (by_stage(changed(GPT2, "evaluation", ce_sequences=limit)) for limit in (8, None))
    for stage in ("evaluate", "measure_curve"):
        assert few[stage].model_tokens < all_of_them[stage].model_tokens
        assert few[stage].dense_flops == all_of_them[stage].dense_flops
        assert few[stage].sparse_flops == all_of_them[stage].sparse_flops


def test_memory_of_text_stages_hardly_grows() -> None:
    small, large = (by_stage(cost.scaled(n)) for n in (10**8, 10**9))
    assert small["find_phrases"].memory == large["find_phrases"].memory < 2e9
    assert large["tokenize"].memory < 2 * small["tokenize"].memory < 2e9


def test_streamed_tokens_keep_their_id_once_and_a_norm_at_each_layer() -> None:
    sample, train, heldout = 10**7, 131_072_000, 262_144
    kept = changed(GPT2, "residuals", disk_gb=None, mean_tokens=sample)
    assert kept.cache_bytes(streamed=False) - kept.cache_bytes(streamed=True) == (train - sample) * (
        7 * (2 * 768 + 12) - 4 * (1 + 7)
    )
    assert kept.cache_bytes(streamed=False) == 7 * (train + heldout) * (2 * 768 + 12)


def test_streaming_takes_the_model_in_place_of_the_disk() -> None:
    kept, streamed = (changed(GPT2, "residuals", disk_gb=limit) for limit in (None, 100))
    assert streamed.streams and not kept.streams
    assert disk(streamed)["residuals"] < 0.1 * disk(kept)["residuals"]
    assert by_stage(streamed)["train"].model_tokens == by_stage(kept)["train"].trained_tokens
    assert plan.plan(streamed, RATES, Machine()).gpu_hours > plan.plan(kept, RATES, Machine(disk_gb_per_s=10)).gpu_hours


def test_tokens_of_first_letters_are_chosen_among_those_of_the_mean() -> None:
    few, more = (by_stage(changed(GPT2, "residuals", mean_tokens=n)) for n in (10**6, 2 * 10**6))
    assert more["letter_tokens"].read_bytes == 2 * few["letter_tokens"].read_bytes
    assert few["letter_tokens"].read_bytes == few["conditional_means"].read_bytes * 10**6 / 131_072_000
    assert not few["letter_tokens"].loads_model and few["letter_tokens"].jobs == 7


def test_a_slow_disk_and_a_fast_gpu() -> None:
    hours = {
        (tflops, disk_speed): plan.plan(GPT2, RATES, Machine(tflops, disk_speed)).gpu_hours
        for tflops in (10, 1000)
        for disk_speed in (0.1, 1000)
    }
    assert hours[1000, 1000] < hours[10, 1000] < hours[10, 0.1]
    assert hours[1000, 0.1] > 2 * hours[1000, 1000]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tsae", "plan", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("profile", ["gpt2", "pythia", "gpt2-small-budget"])
def test_a_profile_states_what_the_command_prints(profile: str) -> None:
    path = ROOT / f"config/{profile}.yaml"
    assert path in cost.profiles()
    assert path.read_text() == cost.with_plan(path), "run `make docs`"
    printed = command("--configfile", str(path))
    assert printed.returncode == 0, printed.stderr
    stated = path.read_text().split("# begin plan\n")[1].split("# end plan\n")[0].splitlines()
    assert len(stated) == 4
    assert [line.removeprefix("# ") for line in stated] == printed.stdout.splitlines()[-4:]


def test_the_page_on_scale_is_up_to_date(tmp_path: Path) -> None:
    text = (ROOT / "docs/scale.md").read_text()
    copy = tmp_path / "scale.md"
    copy.write_text(text.replace("100 M", "101 M"))
    fill.fill(copy)
    assert copy.read_text().replace("101 M", "100 M") == text, "run `make docs`"
    assert text.count("| 100 M |") == 1


def test_bottlenecks_named_on_the_page_are_those_of_the_table() -> None:
    plans = {name: plan.plan(cost.scaled(n), plan.read_rates(), Machine()) for name, n in cost.TOKENS.items()}
    assert cost.training_share(plans["1 M"]) < 0.5 < cost.training_share(plans["100 M"])
    assert cost.largest(plans["1 G"]) == "measure_baselines"
    assert plans["100 M"].disk["residuals"] > 1e12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--configfile", "config/nowhere.yaml"], "config/nowhere.yaml: cannot be read"),
        (["--configfile", "config/claims.yaml"], "config/claims.yaml: expected a mapping of sections"),
        (["--configfile", "config/gpt2.yaml", "--measured", "nowhere.json"], "nowhere.json: no such file"),
        (["--configfile", "config/gpt2.yaml", "--measured", "README.md"], "README.md: not the record of a run"),
        (["--configfile", "config/gpt2.yaml", "--measured", "docs/record.json"], "not the record of a run"),
        (["--configfile", "config/gpt2.yaml", "--gpu-tflops", "0"], "--gpu-tflops"),
    ],
)
def test_a_mistake_is_one_clear_error(arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_rate_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(json.dumps(RECORD | {"rates": RECORD["rates"] | {"dense": 0}}))
    with pytest.raises(ValueError, match=r"cost\.json: rates: dense: .*greater than 0"):
        plan.read_rates(tmp_path / "cost.json")
