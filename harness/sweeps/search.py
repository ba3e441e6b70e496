"""The search of a sweep: Optuna proposes hyperparameters, and the worse half is stopped early.

Optuna keeps the proposals itself, in a journal in the sweep's folder: a search can be resumed from
it at any moment, and `optuna-dashboard` shows it.
"""

import math
import os
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from harness.environments import PATIENCE, make_environment
from harness.errors import UsageError
from harness.settings import Given, as_text
from harness.sweeps.grid import Trial
from harness.sweeps.runs import common_scores, is_finished, last_step, read_evaluations
from harness.sweeps.space import Range, Search
from harness.sweeps.trials import Job

JOURNAL_FILE = "search.journal"
STUDY = "search"
# All proposals get to this share of max_steps; at it, and at twice as much, the worse half stops.
FIRST_CUT = 0.3
MOST_REPEATS = 50  # proposals in a row that were made before: there is hardly a new one left
RANDOM_EPISODES = 20  # of random actions, which say what is no achievement


class Proposal:
    """Values of the searched flags, and the runs that judge them.

    Attributes:
        asked: Optuna's trial.
        values: of the searched flags, by their names.
        trials: one for each seed and environment.
        stopped: whether it was stopped early.
        ended: whether it needs no more training.
        failed: whether one of its runs has failed for good.
        training: the names of the trials that are being trained to the next cut.
    """

    def __init__(self, asked: optuna.Trial, values: Given, trials: list[Trial]) -> None:
        self.asked, self.values, self.trials = asked, values, trials
        self.stopped = self.ended = self.failed = False
        self.training: set[str] = set()


class Proposals:
    """What Optuna proposes, as a plan of what to train.

    A proposal is trained from cut to cut: when all its runs have paused there, ASHA (Li et al.
    2020, arXiv:1810.05934) decides whether it is trained further.

    Attributes:
        made: every Proposal so far.
        count: of proposals that were still to be ended when this began.
        scales: with several environments, what random actions return in each of them and what
            solves it; a run's score is then 0 at the one and 1 at the other. With one environment
            its score is its episode_return_avg.
    """

    def __init__(self, folder: Path, search: Search) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.search = folder, search
        self.space = {name: distribution(values) for name, values in search.searched.items()}
        first_cut = math.ceil(FIRST_CUT * search.max_steps)
        self.cuts = [first_cut, 2 * first_cut]
        self.pruner = optuna.pruners.SuccessiveHalvingPruner(first_cut, reduction_factor=2)
        try:
            self.study = self._open(folder / JOURNAL_FILE)
            self.made = self._load()
        except Exception:  # of any kind: it was changed by hand
            raise UsageError(f"--resume: {folder / JOURNAL_FILE} is damaged") from None
        self.scales = self._scales()
        # A search may have been killed before it decided about what was trained.
        for proposal in self.made:
            if not proposal.ended:
                self._decide(proposal)
        self.unfinished = deque(proposal for proposal in self.made if not proposal.ended)
        self.count = search.count - sum(proposal.ended for proposal in self.made)
        self.proposal_of: dict[str, Proposal] = {}  # by the names of its trials
        self.jobs: deque[Job] = deque()

    def next_job(self) -> Job | None:
        """A run of a proposal on its way; else one of the next proposal, if there is one left."""
        if not self.jobs:
            proposal = self.unfinished.popleft() if self.unfinished else self._propose()
            if proposal is None:
                return None
            self._train_to_next_cut(proposal)
        return self.jobs.popleft()

    def job_ended(self, trial: Trial, failed: bool) -> str | None:
        """Take note of the end of a job; return a line if its proposal has ended by that."""
        proposal = self.proposal_of[trial.name]
        proposal.training.remove(trial.name)
        proposal.failed |= failed
        if proposal.training:
            return None
        seeds = ",".join(map(str, self.search.seeds))
        label = f"{self.search.label(proposal.values)} seeds {seeds}"
        if proposal.failed:  # it stays open in the journal: a resumed search tries it again
            return f"{label} failed: see {self.folder}"
        self._decide(proposal)
        if not proposal.ended:
            self._train_to_next_cut(proposal)
            return None
        what = "score" if self.scales else "episode_return_avg"
        result = f"{what} {self.last_score(proposal):.3f}"
        if not proposal.stopped:
            return f"{label}: {result}"
        return f"{label} stopped early at step {max(self.scores(proposal))}: {result}"

    def score(self, trial: Trial, episode_return_avg: float) -> float:
        """What an evaluation of a trial is worth, comparable between environments."""
        if not self.scales:
            return episode_return_avg
        low, high = self.scales[trial.env]
        return (episode_return_avg - low) / (high - low)

    def scores(self, proposal: Proposal) -> dict[int, float]:
        """The mean score of a proposal's runs at each step that all of them have evaluated."""
        return common_scores(
            {
                int(row["step"]): self.score(trial, row["episode_return_avg"])
                for row in read_evaluations(self.folder / trial.log_folder)
            }
            for trial in proposal.trials
        )

    def last_score(self, proposal: Proposal) -> float:
        """The last of these means, NaN if there is none."""
        return [math.nan, *self.scores(proposal).values()][-1]

    def fresh_scores(self, trials: Sequence[Trial]) -> list[float]:
        """The last score of a contender for each fresh seed, the mean over its environments.

        NaN where a run has no finished end.
        """
        scores: dict[int, list[float]] = {}
        for trial in trials:
            rows = read_evaluations(self.folder / trial.log_folder)
            finished = is_finished(self.folder / trial.log_folder)
            average = rows[-1]["episode_return_avg"] if finished else math.nan
            scores.setdefault(trial.seed, []).append(self.score(trial, average))
        return [math.fsum(some) / len(some) for some in scores.values()]

    def best(self) -> list[Proposal]:
        """The finished proposals to confirm: those with the highest last mean, the best first."""
        scores = {
            proposal: self.last_score(proposal)
            for proposal in self.made
            if proposal.ended and not proposal.stopped
        }
        finished = [proposal for proposal, score in scores.items() if not math.isnan(score)]
        return sorted(finished, key=scores.__getitem__, reverse=True)[: self.search.confirmed]

    def _train_to_next_cut(self, proposal: Proposal) -> None:
        step = max(self.scores(proposal), default=0)
        pause = next((cut for cut in self.cuts if cut > step), math.inf)
        for trial in proposal.trials:
            self.proposal_of[trial.name] = proposal
            if not is_finished(self.folder / trial.log_folder):
                proposal.training.add(trial.name)
                self.jobs.append(Job(trial, pause))

    def _decide(self, proposal: Proposal) -> None:
        """Report what is new, and tell Optuna of the end if a proposal has finished or must stop.

        ASHA decides once at each cut, when a report has passed it.
        """
        asked = proposal.asked
        reported = self.study.trials[asked.number].intermediate_values
        # A search may have been killed when it had reported, and not decided yet.
        proposal.stopped = asked.should_prune()
        for step, score in self.scores(proposal).items():
            if step not in reported and not proposal.stopped:
                asked.report(score, step)
                proposal.stopped = asked.should_prune()
        if all(is_finished(self.folder / trial.log_folder) for trial in proposal.trials):
            proposal.stopped, score = False, self.last_score(proposal)
            if math.isnan(score):  # which Optuna takes for no value
                self.study.tell(asked, state=TrialState.PRUNED)
            else:
                self.study.tell(asked, score)
        elif proposal.stopped:
            self.study.tell(asked, state=TrialState.PRUNED)
        else:
            return
        proposal.ended = True

    def _propose(self) -> Proposal | None:
        """A proposal that wasn't made before; None if there are enough, or hardly another one."""
        if len(self.made) >= self.search.count:
            return None
        for _ in range(MOST_REPEATS):
            asked = self.study.ask(self.space)
            values = self._values(asked.params)
            if values not in [proposal.values for proposal in self.made]:
                asked.set_user_attr("flags", self.search.label(values))
                self.made.append(self._proposal(asked, values))
                return self.made[-1]
            self.study.tell(asked, state=TrialState.FAIL)  # what Optuna then ignores
        return None

    def _proposal(self, asked: optuna.Trial, values: Given) -> Proposal:
        return Proposal(asked, values, self.search.trials(values, self.search.seeds))

    def _values(self, params: dict[str, Any]) -> dict[str, Any]:
        return {name: self.search.value_of(name, params[name]) for name in self.space}

    def _open(self, path: Path) -> optuna.Study:
        mend_journal(path)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=STUDY,
            direction="maximize",
            pruner=self.pruner,
            load_if_exists=True,
        )
        # A resumed search needs a seed of its own: with the same, it would repeat itself.
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
        return study

    def _load(self) -> list[Proposal]:
        made = []
        for known in self.study.trials:
            if known.state == TrialState.FAIL:
                continue
            if known.params.keys() != self.space.keys():  # killed while it was proposed
                self.study.tell(known.number, state=TrialState.FAIL)
                continue
            asked = optuna.Trial(self.study, known._trial_id)
            proposal = self._proposal(asked, self._values(known.params))
            proposal.ended = known.state.is_finished()
            runs = [self.folder / trial.log_folder for trial in proposal.trials]
            proposal.stopped = proposal.ended and not all(map(is_finished, runs))
            made.append(proposal)
        return made

    def _scales(self) -> dict[str, tuple[float, float]]:
        """Measure once what random actions return in each of several environments."""
        trials = self.search.preset_trials()
        environments = {trial.env: trial for trial in trials}
        if len(environments) < 2:
            return {}
        known = self.study.user_attrs.get("scales", {})
        for env_id, trial in environments.items():
            if env_id not in known:
                known[env_id] = random_return(env_id, trial.flags.get("set", {})), trial.solved_from
                self.study.set_user_attr("scales", known)
            low, high = known[env_id]
            if not low < high:
                raise UsageError(
                    f"--env {env_id}: random actions return {low:.1f}, and {high:g} counts as "
                    "solved: there is nothing to search for; name another return with --goal"
                )
        return {env_id: (low, high) for env_id, (low, high) in known.items()}


def distribution(values: Range | list) -> BaseDistribution:
    """Optuna's distribution of a Range, or of a list of choices."""
    if not isinstance(values, Range):
        return CategoricalDistribution([as_text(value) for value in values])
    kind = IntDistribution if isinstance(values.low, int) else FloatDistribution
    return kind(values.low, values.high, log=values.logarithmic)


def mend_journal(path: Path) -> None:
    """Remove what a killed search may have left of a journal: half a line, and its lock."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n") and content:
        os.truncate(path, content.rfind(b"\n") + 1)


def random_return(env_id: str, changes: Given) -> float:
    """The mean return of RANDOM_EPISODES episodes of random actions.

    One that doesn't end is cut at PATIENCE steps.
    """
    rng = np.random.default_rng(0)
    total = 0.0
    with closing(make_environment(env_id, changes)) as env:
        for seed in range(RANDOM_EPISODES):
            env.reset(seed=seed)
            for _ in range(PATIENCE):
                _, reward, terminated, truncated, _ = env.step(int(rng.integers(env.n_actions)))
                total += float(reward)
                if terminated or truncated:
                    break
    return total / RANDOM_EPISODES


def budget(proposals: Proposals) -> str:
    """One line: the steps that proposals were trained for, beside those of full trainings."""
    ended = [proposal for proposal in proposals.made if proposal.ended]
    trials = [trial for proposal in ended for trial in proposal.trials]
    trained = sum(last_step(proposals.folder / trial.log_folder) for trial in trials)
    full = sum(trial.max_steps for trial in trials)
    stopped = sum(proposal.stopped for proposal in ended)
    return (
        f"ASHA stopped {stopped} of {len(ended)} proposals early: {trained} steps trained "
        f"instead of {full}, {1 - trained / full:.0%} saved"
    )
