"""What goes wrong in a run, recognised from its figures, and what to do about it.

Each fault is one line, `TITLE: what was seen, why; what to try`. Thresholds are wide: a run that
learns must never be blamed.
"""

import math
from typing import NamedTuple

import numpy as np

from harness.environments import PATIENCE
from harness.settings import RunSettings
from harness.state import Progress

USUAL_GAMMA = 0.99
USUAL_RATE = 0.01  # Adam's learning rates are seldom larger, and networks seldom learn with them
SLACK = 0.1  # of the range of possible Q values, by which they may be exceeded
ABSURD = 10  # ranges beyond which one evaluation says enough
ROUNDING = 1e-6  # relative; a mean of equal numbers may differ from them
FEW = 3  # evaluations that may all be bad by chance
SEVERAL = 5
FEW_EPISODES = 3  # so few may all return the same by chance
SAME_EPISODES = 100  # that all return the same after exploration: `tuned` needed up to 80
FALLEN = 0.25  # of the way from the worst evaluation to the best: a policy below it fell back
FALLEN_SHARE = 0.1  # of a run's steps, for which it must have stayed there
EPISODES = 10  # that each evaluation plays at least, unless one doesn't end

QS = "impossible Q values"
RATE = "the learning rate is too high"
EPSILON = "epsilon fell too early"
SAME = "every return is the same"
NOTHING = "nothing was learned"
FELL = "the policy fell back"
ENDLESS = "an episode doesn't end"


class Evaluation(NamedTuple):
    """A row of `evaluations.csv`."""

    step: int
    training_episode: int
    evaluation_episodes: int
    episode_return_avg: float  # NaN where no episode ended
    lower_quartile: float
    upper_quartile: float
    avg_max_q_value: float
    seconds: float


def new_findings(
    run: Progress, settings: RunSettings, threshold: float | None, time_limit: int | None
) -> list[str]:
    """The faults that a run shows now and didn't show before; they are added to its `diagnosis`.

    Call it after each evaluation, where an episode doesn't end, and at the end of the run.

    Args:
        threshold: the mean return that solves the environment, or None.
        time_limit: the steps after which an episode is truncated, or None.
    """
    said = {_title(line) for line in run.diagnosis}
    found = diagnose(run, settings, threshold, time_limit)
    new = [line for line in found if _title(line) not in said]
    run.diagnosis.extend(new)
    return new


def diagnose(
    run: Progress, settings: RunSettings, threshold: float | None, time_limit: int | None
) -> list[str]:
    """A line for each fault that a run shows now, in today's figures: its closing lines.

    The arguments are `new_findings`'s.
    """
    lines = (
        endless(run, time_limit),
        impossible_values(run, settings),
        too_high_rate(run, settings, threshold),
        never_found(run, settings, threshold),
        no_progress(run, settings, threshold),
        fell_back(run, settings),
    )
    return [line for line in lines if line]


def _title(line: str) -> str:
    return line.partition(":")[0]


def learned_nothing(run: Progress, settings: RunSettings, threshold: float | None) -> bool:
    """Whether a run has nothing to show: no evaluation is better than what came before learning.

    It is only said of a run that had the chance to learn.
    """
    return run.step >= settings.train_start and (
        _one_return(run, settings, threshold) is not None or _no_better(run, settings, threshold)
    )


def possible_q_values(least: float, largest: float, gamma: float) -> tuple[float, float] | None:
    """The least and the largest return that rewards between two values can sum up to.

    0 is among them, since an episode may end at once.

    Returns:
        None where nothing is known: without any reward but 0, or without discount.
    """
    if not (math.isfinite(least) and math.isfinite(largest)) or gamma >= 1 or least == largest == 0:
        return None
    return min(0.0, least / (1 - gamma)), max(0.0, largest / (1 - gamma))


def impossible_values(run: Progress, settings: RunSettings) -> str | None:
    """Q values that no rewards can sum up to: the network learns from its own errors.

    A young network may begin outside and find its way in, so they must stay outside for three
    evaluations without coming half the way back, or be far off.
    """
    possible = possible_q_values(run.least_reward, run.largest_reward, settings.largest_gamma)
    values = [row.avg_max_q_value for row in _since_learning(run, settings)]
    if possible is None or not values:
        return None
    low, high = possible
    beyond = [max(low - value, value - high) / (high - low) for value in values[-FEW:]]
    stays = len(beyond) == FEW and min(beyond) > SLACK and beyond[-1] > 0.5 * max(beyond)
    if not (stays or beyond[-1] > ABSURD):
        return None
    rewards = f"rewards from {run.least_reward:g} to {run.largest_reward:g}"
    if run.least_reward == run.largest_reward:
        rewards = f"a reward of {run.least_reward:g} at each step"
    return (
        f"{QS}: avg_max_q_value is {values[-1]:.4g}, but with {rewards}, a discounted return lies "
        f"between {low:.4g} and {high:.4g}, so the network learns from its own errors; try "
        f"{_calmer(run, settings)}"
    )


def _calmer(run: Progress, settings: RunSettings) -> str:
    """What keeps Q values from running away, by what these settings are."""
    rate = f"--learning-rate {_lower(settings.learning_rate)}"
    largest = max(abs(run.least_reward), abs(run.largest_reward))
    if settings.learning_rate > 0.002:
        return rate
    if settings.target_update_every < 400:
        return f"--target-update-every {max(400, 10 * settings.target_update_every)}"
    if largest > 10:
        return f"{rate}, or an environment whose rewards are divided by {largest:g}"
    if settings.largest_gamma > USUAL_GAMMA:
        return f"{rate}, or --gamma {USUAL_GAMMA}"
    return f"{rate}, or --target-update-every {4 * settings.target_update_every}"


def _lower(rate: float) -> str:
    return "0.001" if rate > USUAL_RATE else f"{rate / 4:.1g}"


def too_high_rate(run: Progress, settings: RunSettings, threshold: float | None) -> str | None:
    """A learning rate far above the usual ones, with which nothing was learned.

    One large step kills the ReLUs: the network answers every observation alike.
    """
    if settings.learning_rate <= USUAL_RATE:
        return None
    same = _one_return(run, settings, threshold)
    if same is not None:
        seen = f"every episode returned {same:g}"
    elif _no_better(run, settings, threshold):
        seen = "no evaluation was better than the episodes before learning"
    else:
        return None
    return (
        f"{RATE}: {seen}, with --learning-rate {settings.learning_rate:g}; usual rates are below "
        f"{USUAL_RATE:g}, and larger ones can leave a network that gives the same Q values for all "
        "observations; try --learning-rate 0.001"
    )


def never_found(run: Progress, settings: RunSettings, threshold: float | None) -> str | None:
    """Every return the same: whatever else the environment rewards, it was never found."""
    same = _one_return(run, settings, threshold)
    if same is None or settings.learning_rate > USUAL_RATE:
        return None
    decay = settings.epsilon_decay_steps
    seen = f"all {len(run.episode_returns)} episodes returned {same:g}"
    if run.step < decay:
        return (
            f"{SAME}: {seen}; epsilon is still falling, until step {decay}, so the run was too "
            f"short; try --max-steps {_round_up(4 * decay)}"
        )
    if decay:
        repeat = "" if settings.max_repeat > 1 else " --max-repeat 50"
        return (
            f"{EPSILON}: it was down to {settings.epsilon:g} at step {decay}, before random "
            f"actions had found anything: {seen}; try --epsilon-decay-steps "
            f"{_round_up(max(3 * decay, 7000))}{repeat}, or another --seed"
        )
    return (
        f"{SAME}: {seen}, so all actions look alike; random actions must find a better return "
        "first; "
        f"try {_preset(settings)}--epsilon-decay-steps 7000 --max-repeat 50, or another --seed"
    )


def _preset(settings: RunSettings) -> str:
    return "" if settings.preset == "tuned" else "--preset tuned, or "


def no_progress(run: Progress, settings: RunSettings, threshold: float | None) -> str | None:
    """At a run's end: whatever random actions have found, too little was made of it."""
    if (
        run.step < settings.max_steps
        or settings.learning_rate > USUAL_RATE
        or _one_return(run, settings, threshold) is not None
        or not _no_better(run, settings, threshold)
    ):
        return None
    best = max(row.episode_return_avg for row in _since_learning(run, settings))
    return (
        f"{NOTHING}: the best episode_return_avg is {best:.1f}, hardly better than the episodes "
        f"before learning; random actions found too little; try {_preset(settings)}"
        f"--max-steps {_round_up(2 * settings.max_steps)}, or another --seed"
    )


def _round_up(number: int) -> int:
    """The next number with one digit before its zeros."""
    unit = 10 ** (len(str(number)) - 1)
    return -(-number // unit) * unit


def fell_back(run: Progress, settings: RunSettings) -> str | None:
    """A policy that was good and has been far worse for a while."""
    rows = _since_learning(run, settings)
    averages = [row.episode_return_avg for row in rows]
    recent = sum(row.step > run.step - FALLEN_SHARE * settings.max_steps for row in rows)
    last = averages[-max(FEW, recent) :]
    if len(averages) <= FEW or not run.episode_returns or run.step < settings.epsilon_decay_steps:
        return None
    best = max(averages)
    at = rows[averages.index(best)].step
    # What comes after the best evaluation may be far worse than all that came before it.
    worst = min(row.episode_return_avg for row in _evaluations(run) if row.step <= at)
    pairs = zip(run.episode_steps, run.episode_returns, strict=True)
    before = [value for step, value in pairs if step <= at]
    if worst == best or not before:
        worst, before = (
            min(row.episode_return_avg for row in _evaluations(run)),
            run.episode_returns,
        )
    low, high = np.quantile(before, (0.1, 0.9))  # without the worst accidents
    gained = best - worst
    if gained < FALLEN * (high - low) or max(last) >= worst + FALLEN * gained:
        return None
    cures = [f"--learning-rate {_lower(settings.learning_rate)}"]
    if settings.largest_gamma > USUAL_GAMMA:
        cures.insert(0, f"--gamma {USUAL_GAMMA}")
    if not settings.ema_momentum:
        cures.insert(0, "--ema-momentum 0.999")
    cure = ", or ".join(cures)
    return (
        f"{FELL}: episode_return_avg was {best:.1f} at step {at}, and at most "
        f"{max(last):.1f} in the last {len(last)} evaluations; the best snapshot is kept, and "
        f"--model plays it; for a steadier run, try {cure}"
    )


def endless(run: Progress, time_limit: int | None) -> str | None:
    """An episode that goes on and on, where nothing limits it."""
    if time_limit is not None:
        return None
    last = run.episode_steps[-1] if run.episode_steps else 0
    evaluations = [Evaluation(*row) for row in run.evaluations[-1:]]
    if any(row.evaluation_episodes < EPISODES for row in evaluations):
        where = "an evaluation"
    elif run.step - last >= PATIENCE:
        where = "training"
    else:
        return None
    return (
        f"{ENDLESS}: one in {where} took more than {PATIENCE} steps, and the environment has no "
        "time limit; try --set max_episode_steps=1000"
    )


def _evaluations(run: Progress) -> list[Evaluation]:
    """The evaluations with a mean."""
    rows = [Evaluation(*row) for row in run.evaluations]
    return [row for row in rows if math.isfinite(row.episode_return_avg)]


def _since_learning(run: Progress, settings: RunSettings) -> list[Evaluation]:
    """Those since learning began; all of a run that began with weights, which starts with one."""
    rows = _evaluations(run)
    began_with_weights = bool(rows) and rows[0].step == 0
    return [row for row in rows if began_with_weights or row.step > settings.train_start]


def _one_return(run: Progress, settings: RunSettings, threshold: float | None) -> float | None:
    """The return of all episodes, if it is one, and there were enough of them to say so."""
    returns = run.episode_returns
    ended = run.step >= settings.max_steps
    explored = max(settings.train_start, settings.epsilon_decay_steps)
    fresh = sum(step > explored for step in run.episode_steps)
    enough = ended or (fresh >= SAME_EPISODES and len(_since_learning(run, settings)) >= FEW)
    if len(returns) <= FEW_EPISODES or not enough or run.step < settings.train_start:
        return None
    values = [*returns]
    for row in _evaluations(run):
        values += row.episode_return_avg, row.lower_quartile, row.upper_quartile
    same = returns[0]
    if max(values) - min(values) > ROUNDING * max(1.0, abs(same)):
        return None
    solved = threshold is not None and same >= threshold
    reached = settings.until is not None and run.confirmed_average >= settings.until
    return None if solved or reached else same


def _no_better(run: Progress, settings: RunSettings, threshold: float | None) -> bool:
    """Whether the evaluations are no better than the training before learning began.

    It says nothing of a run that began with weights: they may have been good.
    """
    if run.evaluations and Evaluation(*run.evaluations[0]).step == 0:
        return False
    averages = [row.episode_return_avg for row in _since_learning(run, settings)]
    pairs = zip(run.episode_steps, run.episode_returns, strict=True)
    before = [value for step, value in pairs if step <= settings.train_start]
    exploring = run.step < settings.epsilon_decay_steps
    enough = FEW if run.step >= settings.max_steps else SEVERAL
    if exploring or len(averages) < enough or len(before) <= FEW_EPISODES:
        return False
    margin = SLACK * (max(run.episode_returns) - min(run.episode_returns))
    solved = threshold is not None and max(averages) >= threshold
    return not solved and max(averages) <= sum(before) / len(before) + margin
