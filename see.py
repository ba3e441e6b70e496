"""Watch an agent that acts at random: in MountainCar it never reaches the flag."""

import sys

if __name__ == "__main__":
    from harness.program import prepare

    prepare("see.py", ("numpy", "gym", "pygame", "pillow", "rich", "psutil"))

from typing import Any

from harness.command_line import Parser, one_dict
from harness.program import Program
from harness.settings import PlaySettings, flags_of, playing_settings
from harness.watching import watching

EPISODES = 5


def play(settings: PlaySettings, stop: Any) -> None:
    """Play `settings.episodes` episodes with random actions."""
    with watching(settings, stop) as (env, watcher):
        env.action_space.seed(settings.seed)
        for episode in range(settings.episodes):
            env.reset(seed=settings.seed + episode)
            watcher.reset()
            terminated = truncated = False
            while not (terminated or truncated):
                action = env.action_space.sample()
                _observation, reward, terminated, truncated, _ = env.step(action)
                watcher.step(action, reward, terminated or truncated)


def main(argv: list[str] | None = None) -> int:
    """Play as the command line says; return the exit status."""
    with Program("see.py") as program:
        parser = Parser(prog="see.py", description=__doc__)
        flags = flags_of(PlaySettings)
        parser.add_flags({name: flag for name, flag in flags.items() if "see" in flag.commands})
        given = parser.parse(argv)
        if "set" in given:
            given["set"] = one_dict(given["set"])
        play(playing_settings(given, {}, EPISODES), program.stop)
    return program.status


if __name__ == "__main__":
    sys.exit(main())
