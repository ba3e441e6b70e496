"""The stages of a sweep, on a started Ray: a grid; or a search, and its confirmation."""

from harness.sweeps.confirmation import best, budget, verdict
from harness.sweeps.pictures import draw_search
from harness.sweeps.results import STOPPED, is_finished
from harness.sweeps.search import Proposals, scheduler
from harness.sweeps.tables import report
from harness.sweeps.trials import run_trials
from harness.terminal import log
from harness.whole_files import attempt

ENDED = {"finished", "failed", STOPPED}


def run_missing(folder, trials, jobs, stop):
    """Run what is missing of a list of trials; return the status of those that failed, a dict."""
    missing = [trial for trial in trials if not is_finished(folder / f"{trial.name}-log")]
    log(f"{len(missing)} of {len(trials)} trials to run")
    failed = run_trials(folder, jobs, stop, missing) if missing else ()
    return dict.fromkeys(failed, "failed")


def run_grid(folder, trials, jobs, stop):
    """Run what is missing of a grid, and report; return whether all has ended, and finished."""
    results = report(folder, trials, run_missing(folder, trials, jobs, stop))
    statuses = set(results["status"])
    return statuses <= ENDED, statuses == {"finished"}


def run_search(folder, search, jobs, stop):
    """Run what is missing of a Search, and report; return whether all has ended, and finished."""
    proposals, statuses = Proposals(folder, search, stop), {}
    left = search.count - len(proposals.ended)
    log(f"{left} of {search.count} proposals to train, each on {len(search.seeds)} seeds")
    if left:
        asha = scheduler(search.max_steps, proposals.ended)
        options = {"search_alg": proposals, "scheduler": asha, "num_samples": left}
        statuses |= dict.fromkeys(run_trials(folder, jobs, stop, **options), "failed")
    made = proposals.made
    if not made:  # Ray has failed
        return False, False
    statuses |= {trial.name: STOPPED for one in made if one.stopped for trial in one.trials}
    trials, confirmation = [trial for one in made for trial in one.trials], []
    ended = [one for one in made if one.ended]
    if ended:
        log(budget(folder, ended))
        attempt(draw_search, folder / "search.png", search.searched, ended)
    finalists = best(ended, search.confirmed)
    if finalists and not stop.number:
        log(f"Confirming the best {len(finalists)} on fresh seeds")
        confirmation = search.confirmation([one.values for one in finalists])
        statuses |= run_missing(folder, confirmation, jobs, stop)
    results = report(folder, trials + confirmation, statuses, search.fresh_seeds)
    if not finalists and not stop.number and len(ended) == len(made):
        log("No proposal's last evaluation completed an episode; try a larger --eval-steps")
        return True, False
    ended = bool(confirmation) and set(results["status"]) <= ENDED
    if ended:
        for line in verdict(results, confirmation):
            log(line)
    return ended, ended and "failed" not in set(results["status"])
