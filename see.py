"""Watch an agent that acts at random: in MountainCar it never reaches the flag."""

import os
import signal
import sys

if __name__ == "__main__":  # Ctrl-C during the imports below: no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from harness.requirements import check_requirements

    check_requirements("see.py", ("numpy", "gym", "pygame", "pillow", "tqdm"))

from harness.arguments import ENVIRONMENT, Parser, add_playing_flags, whole
from harness.errors import UsageError
from harness.terminal import StopSignal, start_program
from harness.viewer import watching

EPISODES = 5


def play(settings, stop):
    """Play `settings.episodes` episodes with random actions."""
    with watching(settings, stop) as env:
        for _ in range(settings.episodes):
            env.reset()
            terminated = truncated = False
            while not (terminated or truncated):
                action = env.action_space.sample()
                _observation, _reward, terminated, truncated, _ = env.step(action)


def main(argv=None):
    """Play as the command line says; return the exit status."""
    start_program()
    parser = Parser(prog="see.py", description=__doc__)
    parser.add_argument("--env", default=ENVIRONMENT, metavar="ID", help=f"default {ENVIRONMENT}")
    parser.add_argument("--seed", type=whole(0, 2**31 - 1), metavar="N", help="default: random")
    add_playing_flags(parser, f"{EPISODES}, or 1 for --gif and --images")
    settings = parser.parse_args(argv)
    if "episodes" not in settings:
        settings.episodes = 1 if "gif" in settings or "images" in settings else EPISODES
    with StopSignal() as stop:
        try:
            play(settings, stop)
        except UsageError as error:
            print(f"see.py: error: {error}", file=sys.stderr)
            return 2
        return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
