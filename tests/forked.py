"""Trainings forked from one process that has imported TensorFlow: each starts in 0.5 s, not 5.

`Forks` is the tests' side; run as a program, this file is the process that forks. A training can
be given an accident: something that happens to it at the Nth call of one of its functions.
"""

import json
import os
import queue
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

FEW = (
    "--seed 1 --max-steps 400 --train-start 60 --target-update-every 40 --snapshot-every 23 "
    "--eval-every 50 --eval-steps 100 --buffer-size 150 --batch-size 16 --log-every 50 "
    "--q-validation-size 40 --hidden 8,8 --epsilon 0.3"
)
EVERYTHING = f"{FEW} --n-step 3 --max-repeat 40 --initial-epsilon 0.9 --epsilon-decay-steps 300"


class Forks:
    """Starts the process that forks, and trainings in it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": "1",  # a fork copies one thread
                "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles faster
            },
        )
        self.started, self.statuses = queue.Queue(), {}
        self.lock, self.news = threading.Lock(), threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            pid, status = json.loads(line)
            if status is None:
                self.started.put(pid)
            else:
                with self.news:
                    self.statuses[pid] = status
                    self.news.notify_all()

    def start(self, cwd, command, *accidents, output=None):
        """Start `python run.py COMMAND` in the folder `cwd`.

        Args:
            accidents: lists `[function, number, action, …]`: at the call of that number, do the
                action, which is one of ACTIONS below, with the further items as arguments.
            output: path that standard output and error go to.
        """
        output = Path(output or cwd / f"output-{time.monotonic_ns()}")
        request = {"cwd": str(cwd), "argv": command.split(), "output": str(output)}
        with self.lock:
            self.process.stdin.write(json.dumps({**request, "accidents": accidents}) + "\n")
            self.process.stdin.flush()
            return Training(self, self.started.get(timeout=60), output)

    def run(self, *arguments, **options):
        """Start a training and wait for its end."""
        training = self.start(*arguments, **options)
        training.wait()
        return training

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


class Training:
    """A forked training: its process number, and once it ended its exit status and output."""

    def __init__(self, forks, pid, output):
        self.forks, self.pid, self.path = forks, pid, output

    def wait(self, timeout=120):
        """Wait for the end; the exit status, negative for a signal's number."""
        with self.forks.news:
            assert self.forks.news.wait_for(lambda: self.pid in self.forks.statuses, timeout)
        self.status = self.forks.statuses[self.pid]
        return self.status

    @property
    def output(self):
        return self.path.read_text()


def kill(number):
    os.kill(os.getpid(), getattr(signal, number))


def kill_soon(number, seconds):
    """A signal that arrives while the function is running."""
    training = os.getpid()
    if not os.fork():
        time.sleep(seconds)
        if os.getppid() == training:  # else it is over, and another process is the parent
            os.kill(training, getattr(signal, number))
        os._exit(0)


def limit(size):
    """A disk that is full: no file may grow beyond `size` bytes; -1 frees it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


ACTIONS = {
    "kill": kill,
    "kill_soon": kill_soon,
    "limit": limit,
    "move": shutil.move,
    "remove": shutil.rmtree,
}


def cause(function, number, action, *arguments):
    """Let `action` happen right before the call of `function` of that number."""
    from gym.wrappers import TimeLimit
    from tensorflow.python.eager import execute

    import run
    from harness import whole_files

    owner = {
        "step": TimeLimit,  # of the training's environment and of the evaluation's
        "execute": execute,  # the first call compiles
        "seal": whole_files,  # the content is written, its checksum isn't
        "fsync": whole_files.os,
        "replace": whole_files.os,
    }.get(function, run)
    original, calls = getattr(owner, function), 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            ACTIONS[action](*arguments)
        return original(*args, **kwargs)

    setattr(owner, function, wrapper)


def train(request):
    """In a forked process: run run.py as the request says, and leave."""
    import run

    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.chdir(request["cwd"])
    sys.argv = ["run.py", *request["argv"]]
    for accident in request["accidents"]:
        cause(*accident)
    sys.exit(run.main(request["argv"]))


def serve():
    """Fork a training for each line on standard input; print its process number, then status."""
    sys.path.insert(0, str(ROOT))
    from harness.backend import keras, tf
    from harness.environments import make_environment

    tf.Variable, keras.Model, make_environment("MountainCar-v0")
    import h5py  # noqa: F401
    from tensorboard.compat.proto import event_pb2  # noqa: F401
    from tensorboard.plugins.hparams import summary_v2  # noqa: F401

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    running = True
    while running:
        if select.select([sys.stdin], [], [], 0.01)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            pid = os.fork()
            if not pid:
                train(json.loads(line))
            print(json.dumps([pid, None]), flush=True)
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                print(json.dumps([pid, os.waitstatus_to_exitcode(status)]), flush=True)
        except ChildProcessError:
            pass


if __name__ == "__main__":
    serve()
