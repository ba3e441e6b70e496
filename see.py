"""Watch an agent that acts at random in MountainCar: it never reaches the flag."""

import os
import secrets
import signal
import sys

if __name__ == "__main__":  # Ctrl-C during the imports below: no traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from arguments import ENVIRONMENT, Parser, UsageError, add_playing_flags, whole
from checkpoint import StopSignal
from viewer import watch

EPISODES = 5


def main(argv=None):
    """Play the random agent as the command line says; return the exit status."""
    stop = StopSignal()
    parser = Parser(prog="see.py", description=__doc__)
    parser.add_argument(
        "--seed", type=whole(0, 2**31 - 1), metavar="N", help="seed (default random)"
    )
    add_playing_flags(parser, "5, or 1 for --gif and --images")
    given = vars(parser.parse_args(argv))
    seed = given.pop("seed", secrets.randbelow(2**31))
    given.setdefault("episodes", 1 if "gif" in given or "images" in given else EPISODES)
    try:
        watch(ENVIRONMENT, {}, lambda _, rng: int(rng.integers(3)), stop, seed, **given)
    except UsageError as error:
        print(f"see.py: error: {error}", file=sys.stderr)
        return 2
    return stop.exit_status


if __name__ == "__main__":
    sys.exit(main())
