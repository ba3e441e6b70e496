"""gym environments: made quietly, checked for what the tool can train, changed by --set."""

import contextlib
import inspect
import io

import numpy as np

from harness.errors import UsageError

ENVIRONMENT = "MountainCar-v0"
MOST_BOUND = 1e6  # of an observed number; one that can be larger, or infinite, has no real bound
# What the observed numbers and the actions are, where gym's documentation names them.
NAMES = {"MountainCar": (("position", "velocity"), ("push left", "no push", "push right"))}


def make_environment(env_id, changes=None, render_mode=None):
    """Make a gym environment with a flat Box observation and Discrete actions.

    Args:
        env_id: gym's name of it, such as "MountainCar-v0".
        changes: dict of numbers of the environment to replace, such as {"gravity": 0.002}.
        render_mode: None, "human" (gym's window) or "rgb_array" (frames).

    Raises:
        UsageError: if gym can't make it, or it isn't of that kind.
    """
    # gym's notice that it is unmaintained is nothing that a user of this tool can act on.
    with contextlib.redirect_stderr(io.StringIO()):
        import gym
    try:
        # The checker breaks on NumPy 2 and costs time in every step.
        env = gym.make(env_id, render_mode=render_mode, disable_env_checker=True)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"--env {env_id}: gym can't make it: {reason}") from None
    observations, actions = env.observation_space, env.action_space
    supported = "only a flat Box observation with Discrete actions is supported"
    if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
        raise UsageError(f"--env {env_id}: its observation is {observations}; {supported}")
    if not isinstance(actions, gym.spaces.Discrete) or actions.start != 0:
        raise UsageError(f"--env {env_id}: its action is {actions}; {supported}")
    if changes:
        change_numbers(env.unwrapped, changes)
        try:
            env.reset()
            env.step(0)
            if render_mode:
                env.render()
        except Exception as error:
            raise UsageError(f"--set: {env_id} doesn't work with these numbers: {error}") from None
    return env


def change_numbers(env, changes):
    """Replace numbers of the environment itself, and recompute what its constructor derives.

    Raises:
        UsageError: if it has no such number, or one that follows from others; names those.
    """
    known = {
        name: value
        for name, value in inspect.getmembers_static(env)
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and not name.startswith(("_", "screen_"))
    }
    for name in changes:
        if name not in known:
            raise UsageError(
                f"--set {name}: the environment has no such number, only {', '.join(known)}"
            )
        sources = []
        for other in known.keys() - {name}:
            construct_again(env, {other: 2 * known[other] + 1})
            if getattr(env, name) != known[name]:
                sources.append(other)
        if sources:
            sources = " and ".join(sorted(sources))
            raise UsageError(f"--set {name}: it follows from {sources}; set those instead")
    construct_again(env, changes)


def construct_again(env, changes):
    """Run the environment's own constructor once more, with numbers that it can't overwrite."""
    kind = type(env)
    fixed = {
        name: property(lambda _, value=value: value, lambda _, ignored: None)
        for name, value in changes.items()
    }
    env.__dict__ = {"spec": env.spec}
    env.__class__ = type(kind.__name__, (kind,), fixed)
    env.__init__(**env.spec.kwargs)
    env.__class__ = kind
    vars(env).update(changes)


def observation_bounds(env):
    """The largest absolute value of each observed number, float32 (n,); 1 where there is none."""
    bounds = np.maximum(abs(env.observation_space.low), abs(env.observation_space.high))
    return np.where((bounds > 0) & (bounds < MOST_BOUND), bounds, 1)


def names(env):
    """What the observed numbers and the actions are called, two sequences."""
    numbers, actions = range(env.observation_space.shape[0]), range(env.action_space.n)
    numbered = tuple(f"observation {n}" for n in numbers), tuple(f"action {n}" for n in actions)
    return NAMES.get(env.spec.name, numbered)
