"""The stages of a sweep, on a started Ray: a grid; or a search, and its confirmation."""

import importlib
import math
import threading
from collections import deque
from collections.abc import Sequence

from harness.sweeps.grid import Trial
from harness.sweeps.progress import STOPPED, is_finished, read_evaluations
from harness.sweeps.space import Search
from harness.sweeps.trials import Job, Sweep, run_trials
from harness.terminal import log
from harness.whole_files import attempt

REPORT = "harness.sweeps.tables"  # imports what takes long: Pandas, SciPy, Matplotlib
ENDED = {"finished", "failed", STOPPED}


class Missing:
    """A plan that trains a list of trials to their ends, one after the other."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        self.folder, self.count, self.waiting = sweep.folder, len(trials), deque(trials)
        self.loading: threading.Thread | None = None

    def next_job(self) -> Job | None:
        """The next trial, to its end."""
        if self.waiting:
            return Job(self.waiting.popleft())
        if not self.loading:  # a core is free: the time to load what the report needs
            self.loading = threading.Thread(target=importlib.import_module, args=(REPORT,))
            self.loading.start()
        return None

    def take_in(self, trial: Trial, failed: bool) -> str:
        """A line about a trial that ended."""
        if failed:
            return f"{trial.name} failed: see {self.folder / trial.name}.txt"
        last = [math.nan, *read_evaluations(self.folder / trial.log_folder).values()][-1]
        return f"{trial.name}: episode_return_avg {last:.3f}"


def run_missing(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, str]:
    """Run what is missing of a list of trials; return the status of those that failed."""
    missing = [trial for trial in trials if not is_finished(sweep.folder / trial.log_folder)]
    log(f"{len(missing)} of {len(trials)} trials to run")
    failed = run_trials(sweep, Missing(sweep, missing)) if missing else ()
    return dict.fromkeys(failed, "failed")


def run_grid(sweep: Sweep, trials: Sequence[Trial]) -> tuple[bool, bool]:
    """Run what is missing of a grid, and report; return whether all has ended, and finished."""
    statuses = run_missing(sweep, trials)
    from harness.sweeps.tables import show_results

    results = show_results(sweep.folder, trials, statuses)
    found = set(results["status"])
    return found <= ENDED, found == {"finished"}


def run_search(sweep: Sweep, search: Search) -> tuple[bool, bool]:
    """Run what is missing of a Search, and report; return whether all has ended, and finished."""
    from harness.sweeps.confirmation import best, budget, verdict
    from harness.sweeps.pictures import draw_search
    from harness.sweeps.search import Proposals
    from harness.sweeps.tables import show_results

    folder, stop = sweep.folder, sweep.stop
    proposals = Proposals(folder, search)
    left = proposals.count
    log(f"{left} of {search.count} proposals to train, each on {len(search.seeds)} seeds")
    statuses = dict.fromkeys(run_trials(sweep, proposals), "failed") if left else {}
    made = proposals.made
    if not made:  # Ray has failed, or a signal came first
        return False, False
    for proposal in made:
        if proposal.stopped:
            statuses |= {trial.name: STOPPED for trial in proposal.trials}
        elif proposal.failed:  # with the other runs, which weren't trained to the end
            statuses |= {trial.name: "failed" for trial in proposal.trials}
    trials = [trial for proposal in made for trial in proposal.trials]
    confirmation: list[Trial] = []
    ended = [proposal for proposal in made if proposal.ended]
    if ended:
        log(budget(folder, ended))
        attempt(draw_search, folder / "search.png", search.searched, ended)
    finalists = best(ended, search.confirmed)
    if finalists and not stop.number:
        log(f"Confirming the best {len(finalists)} on fresh seeds")
        confirmation = search.confirmation([proposal.values for proposal in finalists])
        statuses |= run_missing(sweep, confirmation)
    results = show_results(folder, trials + confirmation, statuses, search.fresh_seeds)
    if not finalists and not stop.number and all(p.ended or p.failed for p in made):
        if ended:
            log("No proposal's last evaluation completed an episode; try a larger --eval-steps")
        return True, False
    found = set(results["status"])
    all_ended = bool(confirmation) and found <= ENDED
    if all_ended:
        for line in verdict(results, confirmation):
            log(line)
    return all_ended, all_ended and "failed" not in found
