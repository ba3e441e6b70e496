"""`run.py --test`: every phase of the tool, or an environment of the user's own, is tried."""

import contextlib
import tempfile
from collections.abc import Callable

from harness.errors import TrainingError
from harness.examination import examine
from harness.settings import Given
from harness.terminal import StopSignal, log

FEW = "--max-steps 3000 --snapshot-every 2500 --eval-every 1500 --eval-steps 600"
PHASES = (
    f"--name test --seed 1 {FEW}",
    "--resume test-log --max-steps 3500",
    f"--model test-log/test-best.h5 --train --preset tuned --hidden 32,32 --name again {FEW}",
    "--model again-log/again-3000.h5 --eval --episodes 5",
    "--model test-log/test-best.h5 --gif test.gif",
)


def run(main: Callable[[list[str], StopSignal], int], given: Given, stop: StopSignal) -> None:
    """Examine the environment that `--env` names; without it, try `main` in a temporary folder.

    Raises:
        TrainingError: if something doesn't work.
    """
    if "env" in given:
        if not examine(given["env"], given.get("set", {}), log):
            raise TrainingError(f"the environment {given['env']} can't be trained as it is")
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for phase in PHASES:
            log(f"> python run.py {phase}")
            status = main(phase.split(), stop)
            if stop.number:
                return
            if status:
                raise TrainingError(f"the self-check failed at: python run.py {phase}")
    log("Everything works.")
