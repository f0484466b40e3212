"""What a run may take of this machine, and how long it still takes."""

from snakemake.logging import logger
from snakemake.utils import available_cpu_count

from tsae.plan import machine
from tsae.plan.plan import read_rates
from tsae.plan.progress import Progress, job_seconds, speed_of

GIVEN_MEMORY = workflow.global_resources.get("mem_mb").value
JOBS_MEMORY = GIVEN_MEMORY or machine.jobs_memory(machine.total_memory(), machine.memory_limit())
WHOSE_MEMORY = (
    "--resources mem_mb"
    if GIVEN_MEMORY
    else f"7/8 of {'the limit of its control group' if machine.memory_limit() < machine.total_memory() else 'all'}"
)
LARGEST = {stage: memory_of(stage)({}, 1) for stage in MEMORY}

machine.name_the_user()
# Else Snakemake ends with a traceback when it makes its folder.
if not os.access(".snakemake" if os.path.isdir(".snakemake") else ".", os.W_OK):
    raise WorkflowError(
        f"{os.getcwd()}: cannot be written; a run keeps its state and its results there, so copy the project"
    )

if HERE and workflow.is_main_process:
    # Snakemake knows which cores this process may run on, and not how much of their time a container gives it.
    allowed = machine.core_limit()
    if allowed is not None and workflow._cores == available_cpu_count() > allowed:
        workflow.register_resource("_cores", allowed)
    if GIVEN_MEMORY is None:
        workflow.register_resource("mem_mb", JOBS_MEMORY)
    # An option --resources replaces that of profiles/default.
    if workflow.global_resources.get("gpu").value is None:
        workflow.register_resource("gpu", 1)
    largest = max(LARGEST, key=LARGEST.get)
    together = JOBS_MEMORY // LARGEST[largest]
    if together < (workflow._cores or 1):
        logger.info(
            f"Jobs take at most {JOBS_MEMORY / 1000:.1f} GB of memory together ({WHOSE_MEMORY}): {max(1, together)} of {largest} at "
            f"a time on {workflow._cores} cores."
        )


def room_for_every_job():
    """Refuse a run with a job that needs more memory than all jobs may take together."""
    running = {job.rule.name for job in workflow.dag.needrun_jobs()}
    if HERE and (problem := machine.too_large(LARGEST, running, JOBS_MEMORY, WHOSE_MEMORY)):
        raise WorkflowError(problem)


def say_the_time_left():
    """Add the time left to Snakemake's count of steps, on this machine and if the plan's rates are there."""
    if workflow.non_local_exec:
        return
    try:
        rates = read_rates()
    except ValueError:
        return
    took = job_seconds(CONFIG, rates, on_gpu=bool(GPU))
    planned = {
        job.jobid: took.get(sae_of(job), took.get(job.rule.name, rates.start / rates.cores))
        for job in workflow.dag.needrun_jobs()
    }
    logger.addHandler(Progress(planned, speed_of(workflow._cores, rates, on_gpu=bool(GPU))))


def sae_of(job):
    """The id of the SAE that a job trains; None of other jobs."""
    return job_of(job.wildcards).id if job.rule.name == "train" else None
