"""What a run says of itself when it goes wrong, and that it says nothing when it doesn't.

`histories.json` holds the figures of real runs, each under its command: `run.py` and the key.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import diagnosis
from harness.environments import PATIENCE

HISTORIES = json.loads((Path(__file__).parent / "histories.json").read_text())
TUNED = [
    command
    for command in HISTORIES
    if command.startswith("--preset tuned") and "--seed" in command.split("--env")[0][-10:]
    if not {"--learning-rate", "--epsilon-decay-steps", "--clipnorm"} & set(command.split())
]


def history(command, step=math.inf):
    """A real run as it was at a step: its progress, and the other arguments of `diagnose`."""
    run = HISTORIES[command]
    rows = [row for row in run["evaluations"] if row[0] <= step]
    episodes = [
        one
        for one in zip(run["episode_steps"], run["episode_returns"], strict=True)
        if one[0] <= step
    ]
    progress = SimpleNamespace(
        step=min(step, run["settings"]["max_steps"]),
        evaluations=rows,
        episode_steps=[at for at, _ in episodes],
        episode_returns=[value for _, value in episodes],
        least_reward=run["rewards"][0],
        largest_reward=run["rewards"][1],
        confirmed_average=-math.inf,
        diagnosis=[],
    )
    settings = SimpleNamespace(**run["settings"], largest_gamma=run["settings"]["gamma"])
    return progress, settings, run["threshold"], run["time_limit"]


def said(command):
    """What a real run says, by the steps, and what it repeats at its end."""
    lines, progress = {}, None
    for step, *_ in HISTORIES[command]["evaluations"]:
        before = progress.diagnosis if progress else []
        progress, *others = history(command, step)
        progress.diagnosis = before
        for line in diagnosis.new_findings(progress, *others):
            lines[step] = line
    return lines, diagnosis.diagnose(progress, *others)


def learned_nothing(command):
    return diagnosis.learned_nothing(*history(command)[:3])


def short(**changes):
    """A short run of MountainCar with the tutorial's settings that found nothing."""
    progress, settings, threshold, time_limit = history(TUTORIAL, 40000)
    for name, value in changes.items():
        setattr(progress if hasattr(progress, name) else settings, name, value)
    return progress, settings, threshold, time_limit


def evaluations(*averages, q_values=(), episodes=10):
    """Rows of evaluations.csv, one after every 5000 steps."""
    q_values = q_values or [-10.0] * len(averages)
    return [
        [5000 * number, 10 * number, episodes, average, average, average, q_value, 1.0]
        for number, (average, q_value) in enumerate(zip(averages, q_values, strict=True), start=1)
    ]


TUTORIAL = "--seed 1 --max-steps 60000 --eval-every 5000 --eval-steps 2000"
FORTY = "--max-steps 40000 --eval-every 5000 --eval-steps 2000"
CARTPOLE = "--seed 1 --env CartPole-v1 --max-steps 30000 --eval-every 2000 --eval-steps 2000"


def test_there_are_healthy_runs_of_three_environments():
    assert len(TUNED) == 18
    assert len({history(command)[1].env for command in TUNED}) == 3


@pytest.mark.parametrize("command", TUNED)
def test_a_run_that_learns_is_blamed_for_nothing(command):
    assert said(command) == ({}, [])
    assert not learned_nothing(command)


@pytest.mark.parametrize(
    "command",
    [
        f"--seed 1 {FORTY} --learning-rate 10",
        f"--seed 1 {FORTY} --learning-rate 0.1",
        "--preset tuned --max-steps 30000 --seed 1 --learning-rate 10",
        "--preset tuned --max-steps 30000 --seed 1 --learning-rate 0.1",
        "--preset tuned --max-steps 30000 --seed 2 --learning-rate 10 --env CartPole-v1",
        "--preset tuned --max-steps 30000 --seed 2 --learning-rate 0.1 --env Acrobot-v1",
        f"{CARTPOLE} --learning-rate 0.02 --target-update-every 1",
    ],
)
def test_a_learning_rate_that_ruins_the_network_is_named_once_and_at_the_end(command):
    lines, closing = said(command)
    (line,) = lines.values()
    assert line.startswith(diagnosis.RATE) and line.endswith("try --learning-rate 0.001")
    (last,) = closing
    assert last.startswith(diagnosis.RATE) and learned_nothing(command)


def test_weights_that_were_good_from_the_start_are_not_nothing():
    first = [0, 1, 10, -115.0, -117.0, -110.0, math.nan, 1.0]
    good = {
        "evaluations": [first, *evaluations(*[-115.0 - number for number in range(8)])],
        "episode_returns": [-114.0, -116.0] * 100,
    }
    assert not diagnosis.learned_nothing(*short(**good)[:3])
    assert diagnosis.diagnose(*short(**good, learning_rate=0.1)) == []
    good["evaluations"] = good["evaluations"][1:]
    assert diagnosis.learned_nothing(*short(**good)[:3])


def test_a_high_learning_rate_that_learns_all_the_same_is_not_blamed():
    for command in HISTORIES:
        if "--learning-rate 0.03" in command or "--clipnorm 1000 --learning-rate 0.02" in command:
            assert said(command) == ({}, [])


def test_a_goal_that_was_never_found_is_told_and_no_longer_true_once_it_is_found():
    lines, closing = said(TUTORIAL)
    assert lines == {
        25000: "every return is the same: all 125 episodes returned -200, so all actions look "
        "alike; random actions must find a better return first; try --preset tuned, or "
        "--epsilon-decay-steps 7000 --max-repeat 50, or another --seed"
    }
    assert closing == [] and not learned_nothing(TUTORIAL)
    assert diagnosis.learned_nothing(*short()[:3])
    assert "--preset" not in diagnosis.diagnose(*short(preset="tuned"))[0]


def test_epsilon_that_fell_too_early_is_told():
    command = "--preset tuned --max-steps 20000 --seed 1 --epsilon-decay-steps 500"
    assert said(command) == ({}, [])  # it was found at step 9964
    progress, settings, *others = history(command, 9000)
    settings.max_steps = 9000  # as if it had ended there
    (line,) = diagnosis.diagnose(progress, settings, *others)
    assert line.startswith("epsilon fell too early: it was down to 0.01 at step 500, before random")
    assert line.endswith("try --epsilon-decay-steps 7000, or another --seed")
    (line,) = diagnosis.diagnose(*short(epsilon_decay_steps=9000, max_repeat=1))
    assert "--epsilon-decay-steps 30000 --max-repeat 50" in line


def test_a_run_that_ends_while_it_explores_is_too_short():
    progress, settings, *others = history(TUTORIAL, 5000)
    settings.epsilon_decay_steps, settings.max_steps = 7000, 6000
    assert diagnosis.diagnose(progress, settings, *others) == []
    settings.max_steps = 5000
    (line,) = diagnosis.diagnose(progress, settings, *others)
    assert line.endswith("so the run was too short; try --max-steps 30000")


def test_the_same_return_is_no_fault_where_it_is_a_good_one_or_there_are_few():
    progress, settings, _, time_limit = short()
    assert diagnosis.diagnose(progress, settings, -200, time_limit) == []
    assert diagnosis.diagnose(progress, settings, -199, time_limit)
    assert diagnosis.diagnose(*short(until=-150.0, confirmed_average=-140.0)) == []
    assert diagnosis.diagnose(*short(until=-150.0))
    rounded = evaluations(*[-200.00000000000003] * 8)
    assert diagnosis.diagnose(*short(evaluations=rounded))
    few = {"episode_steps": [200, 400, 600], "episode_returns": [-200.0] * 3}
    assert diagnosis.diagnose(*short(max_steps=40000, **few)) == []
    assert not diagnosis.learned_nothing(*short(step=1999)[:3])


def test_values_beyond_what_rewards_allow_are_told():
    command = f"{CARTPOLE} --learning-rate 0.01 --clipnorm 1000 --target-update-every 10"
    lines, closing = said(command)
    line = (
        "impossible Q values: avg_max_q_value is 442.5, but with a reward of 1 at each step, a "
        "discounted return lies between 0 and 100, so the network learns from its own errors; try "
        "--learning-rate 0.003"
    )
    assert lines == {8000: line}
    (last,) = closing
    assert last.startswith("impossible Q values: avg_max_q_value is ") and last != line


@pytest.mark.parametrize(
    ("q_values", "blamed"),
    [
        ((-109.0, -109.0, -109.0), False),  # in the slack
        ((-111.0, -111.0, -111.0), True),
        ((-50.0, -111.0, -120.0), False),  # it may come back
        ((11.0, 11.0, 11.0), True),  # no reward was positive
        ((300.0, 150.0, 80.0), False),  # it comes back
        ((-50.0, -50.0, 1100.0), True),  # far off
    ],
)
def test_values_may_be_a_little_beyond_or_on_their_way_back(q_values, blamed):
    run = short(evaluations=evaluations(-200.0, -190.0, -180.0, q_values=q_values))
    assert (diagnosis.impossible_values(*run[:2]) is not None) == blamed


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({}, "--learning-rate 0.0003, or --target-update-every 4000"),
        ({"learning_rate": 0.05}, "--learning-rate 0.001"),
        ({"learning_rate": 0.004}, "--learning-rate 0.001"),
        ({"target_update_every": 10}, "--target-update-every 400"),
        ({"largest_gamma": 0.998}, "--learning-rate 0.0003, or --gamma 0.99"),
        (
            {"least_reward": -300.0},
            "--learning-rate 0.0003, or an environment whose rewards are divided by 300",
        ),
    ],
)
def test_the_cure_for_impossible_values_is_what_these_settings_lack(changes, cure):
    run = short(evaluations=evaluations(-200.0, q_values=[1e7]), **changes)
    assert diagnosis.impossible_values(*run[:2]).endswith(f"; try {cure}")


@pytest.mark.parametrize(
    ("least", "largest", "gamma", "possible"),
    [
        (-1.0, -1.0, 0.99, (-100.0, 0.0)),
        (1.0, 1.0, 0.5, (0.0, 2.0)),
        (-2.0, 3.0, 0.0, (-2.0, 3.0)),
        (0.0, 0.0, 0.99, None),  # a goal's reward hasn't been seen
        (-1.0, -1.0, 1.0, None),
        (math.inf, -math.inf, 0.9, None),  # no step was taken
    ],
)
def test_possible_q_values_are_sums_of_rewards(least, largest, gamma, possible):
    found = diagnosis.possible_q_values(least, largest, gamma)
    assert found == (possible and pytest.approx(possible))


def test_a_policy_that_was_good_and_fell_back_is_told():
    command = "--seed 1 --env Acrobot-v1 --max-steps 60000 --eval-every 5000 --eval-steps 2000"
    lines, closing = said(command)
    line = (
        "the policy fell back: episode_return_avg was -394.0 at step 40000, and at most -500.0 in "
        "the last 3 evaluations; the best snapshot is kept, and --model plays it; for a steadier "
        "run, try --ema-momentum 0.999, or --learning-rate 0.0003"
    )
    assert (lines, closing) == ({55000: line}, [line])


def test_a_run_that_ends_no_better_than_it_began_has_learned_nothing():
    found = {"episode_returns": [-200.0] * 199 + [-170.0], "max_steps": 40000}
    run = short(evaluations=evaluations(-200.0, -200.0, -200.0), **found)
    (line,) = diagnosis.diagnose(*run)
    assert line.startswith(
        "nothing was learned: the best episode_return_avg is -200.0, hardly better"
    )
    assert line.endswith("try --preset tuned, or --max-steps 80000, or another --seed")
    assert diagnosis.learned_nothing(*run[:3])
    assert not diagnosis.diagnose(run[0], run[1], -200, run[3]), "it is solved"
    run[0].step = 30000
    assert not diagnosis.diagnose(*run), "it has time left"
    better = short(evaluations=evaluations(-200.0, -200.0, -196.0), **found)
    assert not diagnosis.diagnose(*better) and not diagnosis.learned_nothing(*better[:3])


@pytest.mark.parametrize(
    ("averages", "blamed"),
    [
        ((-200, -110, -190, -190, -190), True),
        ((-200, -110, -190, -190), False),  # not for long
        ((-200, -110, -190, -150, -190), False),  # not so far
        ((-200, -110, -190, -190, -190, -105), False),  # it came back
        ((-200, -198, -200, -200, -200), False),  # it was never good
    ],
)
def test_only_a_long_and_far_fall_is_one(averages, blamed):
    returns = [-200.0, -110.0, -190.0]
    run = short(
        evaluations=evaluations(*averages),
        episode_returns=returns,
        episode_steps=[200, 310, 500],
        step=5000 * len(averages),
        max_steps=100000,
    )
    assert (diagnosis.fell_back(*run[:2]) is not None) == blamed


def test_the_longer_a_run_the_longer_a_fall_must_last():
    averages = (-200, -110, *[-130] * 3, *[-190] * 3)
    run = short(evaluations=evaluations(*averages), step=40000, episode_returns=[-200.0, -110.0])
    run[0].episode_steps, run[1].max_steps = [200, 310], 100000
    assert diagnosis.fell_back(*run[:2])
    run[1].max_steps = 200000
    assert not diagnosis.fell_back(*run[:2])


def test_a_fall_far_below_the_beginning_is_one_however_deep():
    averages = (-200, 250, -600, -7000, -13000, -9000)
    found = {"episode_steps": [500, 9000, 25000], "episode_returns": [-400.0, 250.0, -20000.0]}
    run = short(
        evaluations=evaluations(*averages),
        step=30000,
        largest_gamma=0.998,
        ema_momentum=0.9,
        **found,
    )
    line = diagnosis.fell_back(*run[:2])
    assert line.startswith("the policy fell back: episode_return_avg was 250.0 at step 10000")
    assert line.endswith("try --gamma 0.99, or --learning-rate 0.0003")


def test_episodes_that_do_not_end_are_told_unless_they_are_limited():
    nan = [5000, 1, 0, math.nan, math.nan, math.nan, 1.0, 1.0]
    for changes in (
        {"evaluations": [nan]},
        {"evaluations": evaluations(1.0, 2.0, episodes=9)},
        {"evaluations": [], "episode_steps": [], "episode_returns": [], "step": PATIENCE},
        {"evaluations": [], "episode_steps": [7], "episode_returns": [1.0], "step": PATIENCE + 7},
    ):
        progress, settings, threshold, time_limit = short(**changes)
        (line,) = diagnosis.diagnose(progress, settings, threshold, None)
        assert line.endswith("; try --set max_episode_steps=1000")
        assert line not in diagnosis.diagnose(progress, settings, threshold, time_limit)
    running = short(evaluations=[], episode_steps=[7], episode_returns=[1.0], step=PATIENCE + 6)
    assert diagnosis.endless(running[0], None) is None
