"""What a run cost: the record in docs/cost.json, the plans at the head of profiles, the blocks of docs/scale.md."""

import re
from pathlib import Path

from performance import measured
from run import RESULTS, ROOT, manifest, size_on_disk, write_json

from tsae.plan import plan
from tsae.plan.plan import Machine, Plan
from tsae.profile import config
from tsae.profile.config import Config
from tsae.store import layout
from tsae.store.markdown import markdown_table

SCALED = ROOT / "config/gpt2.yaml"
TOKENS = {"1 M": 10**6, "100 M": 10**8, "1 G": 10**9, "100 G": 10**11}
# The lines between these, in the comment at the head of a profile.
HEAD = re.compile(r"(# begin plan\n).*?(# end plan\n)", re.DOTALL)


def profiles() -> list[Path]:
    """The profiles that state their plan."""
    return [path for path in sorted((ROOT / "config").glob("*.yaml")) if HEAD.search(path.read_text(encoding="utf-8"))]


def write_record() -> None:
    """Write docs/cost.json from the last run and what `make bench` measured of it.

    Raises:
        NotMeasuredError: there is no finished run, or `make bench` has not been run.
    """
    bench, starts = measured("stages"), measured("processes")["starts"]
    settings = config.parse(manifest()["config"], str(RESULTS / layout.MANIFEST))
    known = {"cores": bench["machine"]["cores"], "start": starts["training"], "start_model": starts["evaluation"]}
    fitted = plan.fit_rates(settings, bench["stages"], bench["saes"], **known)
    record = {
        "config": settings.model_dump(mode="json", exclude_defaults=True),
        "rates": fitted.model_dump(),
        "dag_s": bench["run"]["dag_s"],
        "disk_bytes": size_on_disk(),
        "stages": bench["stages"],
        "saes": bench["saes"],
    }
    write_json(plan.MEASURED, record)


def with_plan(path: Path) -> str:
    """The text of a profile with its plan as it is now."""
    stated = plan.summary(plan.plan(config.load(path), plan.read_rates(), Machine()))
    comment = "".join(f"# {line}\n" for line in stated.splitlines())
    return HEAD.sub(lambda match: match[1] + comment + match[2], path.read_text(encoding="utf-8"))


def scaled(n_tokens: int, streamed: bool = False) -> Config:
    """The sweep of the paper on so many training tokens, each seen once."""
    settings = config.load(SCALED).model_dump(mode="json")
    settings["tokens"]["train"] = settings["training"]["tokens"] = n_tokens
    settings["residuals"]["disk_gb"] = None
    kept = config.parse(settings)
    if not streamed:
        return kept
    settings["residuals"]["disk_gb"] = 1.001 * kept.cache_bytes(streamed=True) / 1e9
    return config.parse(settings)


def scale() -> str:
    """What the sweep of the paper takes, by training tokens."""
    rows: list[dict[str, object]] = []
    for name, n_tokens in TOKENS.items():
        kept, streamed = (
            plan.plan(scaled(n_tokens, streamed), plan.read_rates(), Machine()) for streamed in (False, True)
        )
        memory = max(stage.cost.memory for stage in kept.stages)
        rows.append(
            {
                "training tokens": name,
                "text": plan.in_bytes(kept.disk["documents"]),
                "residuals kept": plan.in_bytes(kept.disk["residuals"]),
                "residuals streamed": plan.in_bytes(streamed.disk["residuals"]),
                "all else on disk": plan.in_bytes(sum(kept.disk.values()) - kept.disk["residuals"]),
                "largest memory": f"{plan.in_bytes(memory)} (`{largest(kept)}`)",
                "text, in one process [h]": plan.in_digits(text_hours(kept)),
                "GPU hours, kept": plan.in_digits(kept.gpu_hours),
                "GPU hours, streamed": plan.in_digits(streamed.gpu_hours),
                "hours on 2 cores": plan.in_digits(kept.hours),
                "of GPU hours, training": f"{training_share(kept):.0%}",
            }
        )
    return markdown_table(rows)


def text_hours(planned: Plan) -> float:
    """Hours of the processes that read and tokenise text, and count phrases, one after the other."""
    return sum(stage.hours for stage in planned.stages if stage.cost.text_tokens)


def largest(planned: Plan) -> str:
    """The stage whose job takes the most memory."""
    return max(planned.stages, key=lambda stage: stage.cost.memory).cost.stage


def training_share(planned: Plan) -> float:
    """Share of the hours on a GPU that training takes."""
    return next(stage.gpu_hours for stage in planned.stages if stage.cost.stage == "train") / planned.gpu_hours


def rates() -> str:
    """How fast the machine of the last run was."""
    found = plan.read_rates()
    rows: list[dict[str, object]] = [
        {"rate": field.description, "value": f"{getattr(found, name):.4g}"}
        for name, field in plan.Rates.model_fields.items()
    ]
    return markdown_table(rows)


BLOCKS = (scale, rates)
