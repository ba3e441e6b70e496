"""Plays a policy as the programs do, in the process of the test."""

from argparse import Namespace

from conftest import GOING_ON

from harness.flags import FLAGS, Use
from harness.settings import defaults
from harness.viewer import watching


def along_the_velocity(observation):
    """A policy that reaches MountainCar's flag."""
    return 2 if observation[1] >= 0 else 0


def play(policy=along_the_velocity, **given):
    """Play `policy`, a function of an observation, with settings as `watching` takes them."""
    standard = defaults(FLAGS, Use.PLAY) | {"episodes": 1, "seed": 1}
    settings = Namespace(**standard | given)
    with watching(settings, GOING_ON) as env:
        for _ in range(settings.episodes):
            observation, _ = env.reset()
            terminated = truncated = False
            while not (terminated or truncated):
                observation, _, terminated, truncated, _ = env.step(policy(observation))
