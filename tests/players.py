"""Plays a policy as the programs do, in the process of the test."""

from types import SimpleNamespace

from conftest import GOING_ON

from harness.watching import watching

STANDARD = {
    "env": "MountainCar-v0",
    "set": {},
    "seed": 1,
    "episodes": 1,
    "gif": None,
    "images": False,
    "force": False,
    "eval": False,
    "csv": None,
}


def along_the_velocity(observation):
    """A policy that reaches MountainCar's flag."""
    return 2 if observation[1] >= 0 else 0


def play(policy=along_the_velocity, stop=GOING_ON, **given):
    """Play `policy`, a function of an observation, with settings as `watching` takes them."""
    settings = SimpleNamespace(**STANDARD | given)
    with watching(settings, stop) as (env, watcher):
        for episode in range(settings.episodes):
            play_episode(env, policy, watcher, settings.seed + episode)


def play_episode(env, policy, listener, seed):
    """Play an episode as `evaluate` does, and tell a listener of it."""
    observation, _ = env.reset(seed=seed)
    listener.reset()
    ended = False
    while not ended:
        action = policy(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
        listener.step(action, reward, ended)
