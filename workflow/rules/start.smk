"""What a run sees to before its first job."""

from pathlib import Path

from snakemake.exceptions import WorkflowError

from tsae.store.clocks import lower_times
from tsae.store.locks import hold


def one_run_at_a_time():
    """Lock the profile, and what this run fetches for others too, until this process ends, however it does.

    Snakemake's own lock, which the profile in profiles/default turns off, outlives a process that was killed.
    """
    fetching = [job for job in workflow.dag.needrun_jobs() if job.rule.name == "fetch"]
    # One order for all, so that of two runs one has all of them. What a storage holds is fetched to a place of each run's own.
    to_fetch = sorted(Path(file) for job in fetching for file in job.output if not file.is_storage)
    try:
        hold(Path(RESULTS), to_fetch)
    except (ValueError, OSError) as error:
        raise WorkflowError(str(error))


def no_file_from_the_future():
    """Correct what a clock that jumped back has left: results, figures, and the files of the project that they depend on."""
    project = [Path(workflow.basedir, folder) for folder in ("config", "docs", "notebooks", "tsae", "workflow")]
    mine = [Path(RESULTS), layout.figures_of(CONFIG.profile)]
    lower_times([*mine, layout.SOURCES, Path("results/tiny"), *project])


def wake_when_a_job_ends():
    """Take away Snakemake's limit on jobs per second where they run on this machine.

    For the limit it looks for jobs to start every second, and once more per second for each job that has ended (9.27). Late in
    a run of 379 jobs that took half a core.
    """
    if not workflow.non_local_exec:
        workflow.scheduler.job_rate_limiter = None
