"""Trainings forked from one process that has imported TensorFlow: each starts in 0.5 s, not 5.

A training can be given an accident: something that happens to it at the Nth call of one of its
functions.
"""

import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from unittest import mock

FEW = (
    "--seed 1 --max-steps 400 --train-start 60 --target-update-every 40 --snapshot-every 97 "
    "--eval-every 50 --eval-steps 100 --buffer-size 150 --batch-size 16 --log-every 50 "
    "--q-validation-size 40 --hidden 8,8 --epsilon 0.3 --set max_episode_steps=37"
)
EVERYTHING = (
    f"{FEW} --n-step 3 --one-step 1 --double-q 1 --gamma-decay-steps 300 --max-repeat 40 "
    "--initial-epsilon 0.9 --epsilon-decay-steps 300 --ema-momentum 0.9"
)

# In MountainCar, each episode lasts as long as it may: no untrained policy reaches the flag.
EPISODE = 37

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "keras",
        "h5py",
        "gym.envs.classic_control.mountain_car",
        "tensorboard.plugins.hparams.api",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ]
)
ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "OPENBLAS_NUM_THREADS": "1",  # a fork copies one thread
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles faster
}


class Training(FORKING.Process):
    """`python run.py COMMAND` in the folder `cwd`, forked; started at once."""

    def __init__(self, cwd, command, *accidents, output=None, draws=False):
        """Start it.

        Args:
            accidents: tuples `(function, number, action, …)`: at the call of that number, call
                the action, with the further items as arguments.
            output: path that standard output and error go to.
            draws: whether pictures are drawn, which takes longer than all the rest.
        """
        super().__init__(daemon=True)
        self.cwd, self.words, self.accidents = cwd, command.split(), accidents
        self.draws = draws
        self.path = Path(output or cwd / f"output-{time.monotonic_ns()}")
        with mock.patch.dict(os.environ, ENVIRONMENT):  # of the process that forks, if it is new
            self.start()

    def wait(self):
        """Wait for the end; the exit status, negative for a signal's number."""
        self.join(timeout=300)
        assert self.exitcode is not None
        return self.exitcode

    @property
    def output(self):
        """What it has printed."""
        return self.path.read_text()

    def run(self):
        """In the forked process: run run.py, and leave."""
        import run
        from harness import training_run

        output = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w", buffering=1)
        os.chdir(self.cwd)
        sys.argv = ["run.py", *self.words]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        if not self.draws:
            training_run.TrainingRun._draw = lambda run: None
        for accident in self.accidents:
            cause(*accident)
        sys.exit(run.main(self.words))


def train_forked(*arguments, **options):
    """A forked training that has ended."""
    training = Training(*arguments, **options)
    training.wait()
    return training


def kill_soon(number, seconds):
    """A signal that arrives while the function is running."""
    timer = threading.Timer(seconds, os.kill, [os.getpid(), number])
    timer.daemon = True
    timer.start()


def limit(size):
    """A disk that is full: no file may grow beyond `size` bytes; -1 frees it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def cause(function, number, action, *arguments):
    """Let `action` happen right before the call of `function` of that number.

    Steps count from the training's beginning, not those of the check before it.
    """
    from tensorflow.python.eager import execute

    import run
    from harness import whole_files
    from harness.environments import Environment

    owner = {
        "step": Environment,  # of the training's environment and of the evaluation's
        "execute": execute,  # the first call compiles
        "seal": whole_files,  # the content is written, its checksum isn't
        "fsync": whole_files.os,
        "replace": whole_files.os,
    }.get(function, run)

    def watch():
        original, calls = getattr(owner, function), 0

        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                action(*arguments)
            return original(*args, **kwargs)

        setattr(owner, function, wrapper)

    start = run.start_tensorflow

    def begin(*args):
        start(*args)
        watch()

    if function == "step":
        run.start_tensorflow = begin
    else:
        watch()
