"""The stages of a sweep, on a started Ray: a grid; or a search, and its confirmation."""

from collections import deque
from collections.abc import Sequence

from harness.sweeps.grid import Trial
from harness.sweeps.runs import is_finished, read_evaluations
from harness.sweeps.space import Search
from harness.sweeps.trials import Job, Sweep, run_trials
from harness.terminal import log


class Missing:
    """A plan that trains a list of trials to their ends, one after the other."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        self.folder, self.count, self.waiting = sweep.folder, len(trials), deque(trials)

    def next_job(self) -> Job | None:
        """The next trial, to its end."""
        return Job(self.waiting.popleft()) if self.waiting else None

    def job_ended(self, trial: Trial, failed: bool) -> str:
        """A line about a trial that ended."""
        if failed:
            return f"{trial.name} failed: see {self.folder / trial.name}.txt"
        rows = read_evaluations(self.folder / trial.log_folder)
        return f"{trial.name}: episode_return_avg {rows[-1]['episode_return_avg']:.3f}"


def run_missing(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, str]:
    """Run what is missing of a list of trials; return the status of those that failed."""
    missing = [trial for trial in trials if not is_finished(sweep.folder / trial.log_folder)]
    log(f"{len(missing)} of {len(trials)} trials to run")
    failed = run_trials(sweep, Missing(sweep, missing)) if missing else ()
    return dict.fromkeys(failed, "failed")


def run_grid(sweep: Sweep, trials: Sequence[Trial]) -> tuple[bool, bool]:
    """Run what is missing of a grid, and report; return whether all has ended, and finished."""
    statuses = run_missing(sweep, trials)
    from harness.sweeps.report import show_results
    from harness.sweeps.results import FINISHED, UNFINISHED, runs_of

    found = set(show_results(sweep.folder, runs_of(sweep.folder, trials, statuses))["status"])
    return UNFINISHED not in found, found == {FINISHED}


def run_search(sweep: Sweep, search: Search) -> tuple[bool, bool]:
    """Run what is missing of a Search, and report; return whether all has ended, and finished."""
    from harness.sweeps.report import show_results, verdict
    from harness.sweeps.results import FAILED, STOPPED, UNFINISHED, runs_of
    from harness.sweeps.search import Proposals, budget

    folder, stop = sweep.folder, sweep.stop
    proposals = Proposals(folder, search)
    made, left = proposals.made, proposals.count
    log(f"{left} of {search.count} proposals to train, each {search.judged_on}")
    statuses = dict.fromkeys(run_trials(sweep, proposals), FAILED) if left else {}
    if not made:  # Ray has failed, or a signal came first
        return False, False
    for proposal in made:
        if proposal.stopped or proposal.failed:  # with runs that weren't trained to the end
            status = STOPPED if proposal.stopped else FAILED
            statuses |= {trial.name: status for trial in proposal.trials}
    trials = [trial for proposal in made for trial in proposal.trials]
    ended = [proposal for proposal in made if proposal.ended]
    if ended:
        log(budget(proposals))
    contenders: dict[str, list[Trial]] = {}
    finalists = proposals.best()
    if finalists and not stop.number:
        log(f"Confirming the best {len(finalists)} on fresh seeds")
        for proposal in finalists:
            label = search.label(proposal.values)
            contenders[label] = search.trials(proposal.values, search.fresh_seeds)
        contenders[search.preset_label] = search.preset_trials()
        confirmation = [trial for some in contenders.values() for trial in some]
        statuses |= run_missing(sweep, confirmation)
        trials += confirmation
    results = show_results(folder, runs_of(folder, trials, statuses), search.fresh_seeds)
    found = set(results["status"])
    if contenders and UNFINISHED not in found:
        scores = {label: proposals.fresh_scores(some) for label, some in contenders.items()}
        commands = {search.label(p.values): search.arguments(p.values) for p in finalists}
        for line in verdict(scores, search.preset_label, commands):
            log(line)
        return True, FAILED not in found
    if not finalists and not stop.number and all(p.ended or p.failed for p in made):
        if ended:
            log("No proposal's last evaluation completed an episode; try a larger --eval-steps")
        return True, False
    return False, False
