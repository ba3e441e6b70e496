"""Watch an agent that acts at random: in MountainCar it never reaches the flag."""

import os
import signal
import sys

if __name__ == "__main__":  # Ctrl-C during the imports below: no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from harness.requirements import check_requirements

    check_requirements("see.py", ("numpy", "gym", "pygame", "pillow", "tqdm", "psutil"))

from argparse import Namespace

from harness.errors import EnvironmentFault, UsageError, report_crash
from harness.flags import FLAGS, Parser, Use
from harness.settings import changes, defaults
from harness.terminal import StopSignal, start_program
from harness.viewer import watching

EPISODES = 5


def play(settings: Namespace, stop: StopSignal) -> None:
    """Play `settings.episodes` episodes with random actions."""
    with watching(settings, stop) as env:
        for _ in range(settings.episodes):
            env.reset()
            terminated = truncated = False
            while not (terminated or truncated):
                action = env.action_space.sample()
                _observation, _reward, terminated, truncated, _ = env.step(action)


def main(argv: list[str] | None = None) -> int:
    """Play as the command line says; return the exit status."""
    start_program()
    parser = Parser(prog="see.py", description=__doc__)
    parser.add_flags(FLAGS, Use.SEE)
    given = parser.parse(argv)
    few = "gif" in given or "images" in given
    standard = defaults(FLAGS, Use.SEE) | {"episodes": 1 if few else EPISODES, "eval": False}
    try:
        if "set" in given:
            given["set"] = changes(given["set"])
        with StopSignal() as stop:
            play(Namespace(**standard | given), stop)
    except EnvironmentFault as error:
        report_crash("see.py", error)
        return 1
    except UsageError as error:
        print(f"see.py: error: {error}", file=sys.stderr)
        return 2
    return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
