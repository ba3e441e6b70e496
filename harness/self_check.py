"""`run.py --test`: every phase of the tool, tried with small numbers."""

import contextlib
import tempfile
from collections.abc import Callable

from harness.errors import TrainingError
from harness.terminal import StopSignal, log

FEW = "--max-steps 3000 --snapshot-every 2500 --eval-every 1500 --eval-steps 600"
PHASES = (
    f"--name test --seed 1 {FEW}",
    "--resume test-log --max-steps 3500",
    f"--model test-log/test-best.h5 --train --preset tuned --hidden 32,32 --name again {FEW}",
    "--model again-log/again-3000.h5 --eval --episodes 5",
    "--model test-log/test-best.h5 --gif test.gif",
)


def self_check(main: Callable[[list[str], StopSignal], int], stop: StopSignal) -> None:
    """Run `main` for each phase in a temporary folder; TrainingError if one fails."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for phase in PHASES:
            log(f"> python run.py {phase}")
            status = main(phase.split(), stop)
            if stop.number:
                return
            if status:
                raise TrainingError(f"the self-check failed at: python run.py {phase}")
    log("Everything works.")
