"""What a run does before its first job."""

from pathlib import Path

from snakemake.exceptions import WorkflowError

from tsae.store.clocks import lower_times
from tsae.store.locks import hold


def one_run_at_a_time():
    """Lock the profile and the files that this run fetches until this process ends.

    Snakemake's own lock outlives a killed process, so profiles/default turns it off.
    """
    fetching = [job for job in workflow.dag.needrun_jobs() if job.rule.name == "fetch"]
    # Sorted, so that two runs cannot wait for one another. Remote storage has a local copy for each run.
    to_fetch = sorted(Path(file) for job in fetching for file in job.output if not file.is_storage)
    try:
        hold(Path(RESULTS), to_fetch)
    except (ValueError, OSError) as error:
        raise WorkflowError(str(error))


def no_file_from_the_future():
    """Lower the times of results, figures and project files that a clock which jumped back left in the future."""
    project = [Path(PROJECT, folder) for folder in ("config", "docs", "notebooks", "tsae", "workflow")]
    mine = [Path(RESULTS), layout.figures_of(CONFIG.profile)]
    lower_times([*mine, layout.SOURCES, Path("results/tiny"), *project])


def wake_when_a_job_ends():
    """Remove Snakemake's limit on jobs per second for jobs on this machine.

    Because of the limit Snakemake 9.27 looks for jobs to start every second, and once more for each ended job. Late in a run of
    379 jobs that took half a core.
    """
    if not workflow.non_local_exec:
        workflow.scheduler.job_rate_limiter = None
