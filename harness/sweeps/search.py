"""The search of a sweep: Optuna proposes hyperparameters, and stops the hopeless early."""

import json
import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from harness.errors import UsageError
from harness.flags import as_text
from harness.sweeps.grid import Trial
from harness.sweeps.progress import STOPPED, Evaluations, common_evaluations, is_finished
from harness.sweeps.space import Range, Search
from harness.sweeps.trials import Job
from harness.whole_files import write_json

PROPOSALS_FILE = "proposals.json"
# All proposals get to this share of max_steps; at it, and at twice as much, the worse half stops.
FIRST_CUT = 0.3
MOST_REPEATS = 200  # proposals in a row that were made before: there is hardly a new one left


@dataclass
class Proposal:
    """Values of the searched flags, and the runs that judge them, one for each seed."""

    values: dict
    trials: list[Trial]
    folder: Path  # of the sweep
    stopped: bool = False  # early
    failed: bool = False
    reported: int = 0  # the last step that ASHA was told of
    training: set[str] = field(default_factory=set)  # names of trials on their way to a cut

    @property
    def evaluations(self) -> Evaluations:
        """The mean over its runs at each step that all of them have evaluated."""
        return common_evaluations(self.folder, self.trials)

    @property
    def last(self) -> float:
        """The last of these means, NaN if there is none."""
        return [math.nan, *self.evaluations.values()][-1]

    @property
    def finished(self) -> bool:
        """Whether all its runs have reached their end."""
        return all(is_finished(self.folder / trial.log_folder) for trial in self.trials)

    @property
    def ended(self) -> bool:
        """Whether it needs no more training."""
        return self.stopped or self.finished


class Proposals:
    """What Optuna proposes, as a plan of what to train.

    A proposal is trained from cut to cut: when all its runs have paused there, ASHA (Li et al.
    2020, arXiv:1810.05934) decides whether it goes on. The proposals are kept in a file: a resumed
    search goes on with all of them.

    Attributes:
        made: every Proposal so far.
        count: of proposals that were still to be ended when this began.
    """

    def __init__(self, folder: Path, search: Search) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.search = folder, search
        self.space = {name: distribution(values) for name, values in search.searched.items()}
        self.made = self._load()
        first_cut = math.ceil(FIRST_CUT * search.max_steps)
        self.cuts = [first_cut, 2 * first_cut]
        self.study = optuna.create_study(
            direction="maximize",
            # A resumed search needs a seed of its own: with the same, it would repeat itself.
            sampler=optuna.samplers.TPESampler(seed=len(self.made)),
            pruner=optuna.pruners.SuccessiveHalvingPruner(first_cut, reduction_factor=2),
        )
        self.asked: dict[str, tuple[Proposal, optuna.Trial]] = {}  # by the names of its trials
        self.jobs: deque[Job] = deque()
        ended = [proposal for proposal in self.made if proposal.ended]
        self.unfinished = deque(proposal for proposal in self.made if not proposal.ended)
        self.count = search.count - len(ended)
        for proposal in ended:
            asked = self._ask_for(proposal)
            self._is_hopeless(proposal, asked)  # ASHA remembers what it is told
            self._tell(proposal, asked)

    def next_job(self) -> Job | None:
        """A run of a proposal on its way; else one of the next proposal, if there is one left."""
        if not self.jobs:
            proposal = self._next_proposal()
            if proposal is None:
                return None
            self._go_on(proposal)
        return self.jobs.popleft()

    def take_in(self, trial: Trial, failed: bool) -> str | None:
        """Take in the end of a job; return a line if its proposal has ended by that."""
        proposal, asked = self.asked[trial.name]
        proposal.training.remove(trial.name)
        proposal.failed |= failed
        if proposal.training:
            return None
        seeds = ",".join(str(other.seed) for other in proposal.trials)
        label = f"{trial.configuration} seeds {seeds}"
        if proposal.failed:
            self.study.tell(asked, state=TrialState.FAIL)
            return f"{label} failed: see {self.folder}"
        hopeless = self._is_hopeless(proposal, asked)
        result = f"episode_return_avg {proposal.last:.3f}"
        if proposal.finished:
            self._tell(proposal, asked)
            return f"{label}: {result}"
        if not hopeless:
            self._go_on(proposal)
            return None
        proposal.stopped = True
        self._save()
        self._tell(proposal, asked)
        return f"{label} {STOPPED} at step {max(proposal.evaluations)}: {result}"

    def _go_on(self, proposal: Proposal) -> None:
        """Train a proposal up to its next cut."""
        step = max(proposal.evaluations, default=0)
        pause = next((cut for cut in self.cuts if cut > step), math.inf)
        for trial in proposal.trials:
            if not is_finished(self.folder / trial.log_folder):
                proposal.training.add(trial.name)
                self.jobs.append(Job(trial, pause))

    def _next_proposal(self) -> Proposal | None:
        """One that was interrupted, or one that wasn't made before; None if none is left."""
        if self.unfinished:
            proposal = self.unfinished.popleft()
            asked = self._ask_for(proposal)
        elif len(self.made) < self.search.count:
            for _ in range(MOST_REPEATS):
                asked = self.study.ask(self.space)
                values = {k: self._rounded(k, value) for k, value in asked.params.items()}
                if values not in [proposal.values for proposal in self.made]:
                    break
                self.study.tell(asked, state=TrialState.FAIL)  # what Optuna then ignores
            else:
                return None
            proposal = self._proposal(values)
            self.made.append(proposal)
            self._save()
        else:
            return None
        self.asked |= {trial.name: (proposal, asked) for trial in proposal.trials}
        return proposal

    def _ask_for(self, proposal: Proposal) -> optuna.Trial:
        """Let Optuna propose what was proposed before."""
        self.study.enqueue_trial(proposal.values)
        return self.study.ask(self.space)

    def _is_hopeless(self, proposal: Proposal, asked: optuna.Trial) -> bool:
        """Report what a proposal came to at the cuts it has passed; return what ASHA says to it."""
        evaluations, hopeless = proposal.evaluations, False
        for cut in self.cuts:
            step = next((step for step in evaluations if step >= cut), 0)
            if step > proposal.reported:
                asked.report(evaluations[step], step)
                hopeless = asked.should_prune()
                proposal.reported = step
        return hopeless

    def _tell(self, proposal: Proposal, asked: optuna.Trial) -> None:
        """Tell Optuna how a proposal ended."""
        if math.isnan(proposal.last):
            self.study.tell(asked, state=TrialState.FAIL)
        elif proposal.stopped:
            self.study.tell(asked, state=TrialState.PRUNED)
        else:
            self.study.tell(asked, proposal.last)

    def _proposal(self, values: dict, stopped: bool = False) -> Proposal:
        return Proposal(values, self.search.trials(values), self.folder, stopped)

    def _rounded(self, name: str, value: object) -> object:
        ends = self.search.searched[name]
        if not (isinstance(value, float) and isinstance(ends, Range)):
            return value
        return min(max(float(f"{value:.3g}"), ends.low), ends.high)

    def _load(self) -> list[Proposal]:
        path = self.folder / PROPOSALS_FILE
        try:
            made = json.loads(path.read_text(encoding="utf-8"))["proposals"]
            return [self._proposal(proposal["values"], proposal["stopped"]) for proposal in made]
        except FileNotFoundError:
            return []
        except Exception:  # of any kind: it was changed by hand
            raise UsageError(f"--resume: {path} is damaged") from None

    def _save(self) -> None:
        made = [{"values": one.values, "stopped": one.stopped} for one in self.made]
        write_json(self.folder / PROPOSALS_FILE, {"proposals": made})


def distribution(values: Range | list) -> BaseDistribution:
    """Optuna's distribution of a Range, or of a list of choices."""
    if not isinstance(values, Range):
        return CategoricalDistribution([as_text(value) for value in values])
    kind = IntDistribution if isinstance(values.low, int) else FloatDistribution
    return kind(values.low, values.high, log=values.logarithmic)
