"""The search of a sweep: Optuna proposes hyperparameters, ASHA stops the hopeless."""

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from harness.arguments import as_text
from harness.errors import UsageError
from harness.sweeps.results import common_evaluations, is_finished
from harness.sweeps.space import Range
from harness.whole_files import write_json

PROPOSALS_FILE = "proposals.json"
JUDGED_BY = {"metric": "episode_return_avg", "mode": "max"}
# All proposals get to this share of max_steps; at it, and at twice as much, the worse half stops.
FIRST_CUT = 0.3
MOST_REPEATS = 200  # proposals in a row that were made before: there is hardly a new one left


@dataclass
class Proposal:
    """Values of the searched flags, and the runs that judge them, one for each seed."""

    values: dict
    trials: list
    stopped: bool  # by ASHA
    folder: object  # Path of the sweep

    @property
    def evaluations(self):
        """The mean over its runs at each step that all of them have evaluated, a Series."""
        return common_evaluations(self.folder, self.trials)

    @property
    def last(self):
        """The last of these means, NaN if there is none."""
        return float([math.nan, *self.evaluations][-1])

    @property
    def finished(self):
        """Whether all its runs have reached their end."""
        return all(is_finished(self.folder / f"{trial.name}-log") for trial in self.trials)

    @property
    def ended(self):
        """Whether it needs no more training."""
        return (self.stopped or self.finished) and len(self.evaluations) > 0


class Proposals(OptunaSearch):
    """What Optuna has proposed, kept in a file: a resumed search goes on with all of it."""

    def __init__(self, folder, search, stop):
        """`search` is a Search."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.search, self.stop = folder, search, stop
        self.made = self._load()
        self.ended = [one for one in self.made if one.ended]
        self.asked = {}  # a trial's id: Optuna's id of the proposal, the Proposal
        self.asked_values = [one.values for one in self.ended]
        super().__init__(
            {name: distribution(values) for name, values in search.searched.items()},
            points_to_evaluate=[one.values for one in self.made if one not in self.ended],
            # A seed of its own for a resumed search, which would else propose the same again.
            sampler=optuna.samplers.TPESampler(seed=len(self.made)),
            **JUDGED_BY,
        )
        for one in self.ended:
            self.add_evaluated_point(one.values, one.last, error=math.isnan(one.last))

    def suggest(self, trial_id):
        """Tune asks for the next proposal; gets one that wasn't made before, or no more."""
        for repeat in range(MOST_REPEATS):
            asked = f"{trial_id}-{repeat}"
            values = {k: self._rounded(k, v) for k, v in super().suggest(asked).items()}
            if values not in self.asked_values:
                break
            super().on_trial_complete(asked, error=True)  # what Optuna then ignores
        else:
            return Searcher.FINISHED
        self.asked_values.append(values)
        proposal = next((one for one in self.made if one.values == values), None)
        if proposal is None:
            proposal = self._proposal(values, stopped=False)
            self.made.append(proposal)
            self._save()
        self.asked[trial_id] = asked, proposal
        return {"trials": proposal.trials}

    def on_trial_result(self, trial_id, result):
        """Optuna wants to know the last result only."""

    def on_trial_complete(self, trial_id, result=None, error=False):
        """Tell Optuna the last result; remember that ASHA stopped it, if it did."""
        asked, proposal = self.asked[trial_id]
        super().on_trial_complete(asked, result, error)
        # A signal ends all trials, which then go on when the sweep is resumed.
        if result and not (error or self.stop.number or result["finished"]):
            proposal.stopped = True
            self._save()

    def _proposal(self, values, stopped):
        return Proposal(values, self.search.trials(values), stopped, self.folder)

    def _rounded(self, name, value):
        if not isinstance(value, float):
            return value
        ends = self.search.searched[name]
        return min(max(float(f"{value:.3g}"), ends.low), ends.high)

    def _load(self):
        path = self.folder / PROPOSALS_FILE
        try:
            made = json.loads(path.read_text(encoding="utf-8"))["proposals"]
            return [self._proposal(one["values"], one["stopped"]) for one in made]
        except FileNotFoundError:
            return []
        except Exception:  # of any kind: it was changed by hand
            raise UsageError(f"--resume: {path} is damaged") from None

    def _save(self):
        made = [{"values": one.values, "stopped": one.stopped} for one in self.made]
        write_json(self.folder / PROPOSALS_FILE, {"proposals": made})


def distribution(values):
    """Optuna's distribution of a Range, or of a list of choices."""
    if not isinstance(values, Range):
        return CategoricalDistribution([as_text(value) for value in values])
    kind = IntDistribution if isinstance(values.low, int) else FloatDistribution
    return kind(values.low, values.high, log=values.logarithmic)


def scheduler(max_steps, ended):
    """ASHA (Li et al. 2020, arXiv:1810.05934), which remembers the Proposals that ended before."""
    options = {"max_t": max_steps, "grace_period": FIRST_CUT * max_steps, "reduction_factor": 2}
    asha = ASHAScheduler("step", stop_last_trials=False, **options, **JUDGED_BY)
    for number, proposal in enumerate(ended):
        former = SimpleNamespace(trial_id=f"former-{number}")
        asha.on_trial_add(None, former)
        for step, average in proposal.evaluations.items():
            asha.on_trial_result(None, former, {"step": step, "episode_return_avg": average})
    return asha
