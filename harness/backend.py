"""TensorFlow for a program that calls it 200 000 times: imported late and quietly, called directly.

`keras` and `tf` here import on first use, since TensorFlow takes seconds: `--help`, a mistyped
flag and watching a policy answer without it. README.md, "What makes it fast", has the figures.
"""

import contextlib
import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy.typing as npt

from harness.arrays import Array, aligned_buffer
from harness.errors import UsageError

# What a user has set for other projects, in files and variables; KERAS_HOME names a folder whose
# keras.json is read.
CONFIGURATION = ("KERAS_", "TF_", "TF2_", "XLA_", "NVIDIA_TF32_")
HARMLESS = ("TF_CPP_", "TF_FORCE_GPU_", "TF_GPU_")  # log messages, a GPU's memory and threads
# Keras imports these where it finds them, for what isn't used here: a fifth of its start.
UNUSED = ("matplotlib", "pandas")


class LazyModule:
    """A module that is imported when something of it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if self._name not in sys.modules:
            ignore_configuration()
            with quiet(), hidden(UNUSED):
                importlib.import_module(self._name)
        return getattr(sys.modules[self._name], attribute)


keras = LazyModule("keras")
tf = LazyModule("tensorflow")


def ignore_configuration() -> None:
    """Let nothing that the user has set for TensorFlow and Keras elsewhere change what is computed.

    They read it when they are imported. An unknown flag in XLA_FLAGS even ends the process.
    """
    if "tensorflow" in sys.modules:
        return
    for name in list(os.environ):
        if name.startswith(CONFIGURATION) and not name.startswith(HARMLESS):
            del os.environ[name]
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["KERAS_HOME"] = os.devnull  # holds no keras.json, and none can be made there


@contextlib.contextmanager
def hidden(packages: Sequence[str]) -> Iterator[None]:
    """Let packages that aren't imported yet seem not to be installed."""
    absent = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: there is none
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what TensorFlow and CUDA print while they start off the screen, unless they fail.

    They write to the file descriptor from C++, past Python's logging, so that is redirected, too.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes on what it compiled
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # too small a network to gain from a GPU
    logging.getLogger("absl").setLevel(logging.ERROR)  # Keras: ".h5 is a legacy format"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # on a user's own matplotlibrc
    sys.stderr.flush()
    screen = os.dup(2)
    with _scratch_file() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            yield
        except Exception:
            noise.seek(0)
            os.write(screen, noise.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def _scratch_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # there is no folder for one, or it is full
        return open(os.devnull, "w+b")


def start_tensorflow(threads: int, seed: int) -> None:
    """Import TensorFlow, give it `threads` threads (0: all cores) and seed its generators.

    Raises:
        UsageError: if eager execution was switched off before.
    """
    with quiet():
        # Where Keras was imported before, as in a notebook, it may have been told otherwise.
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        # An environment that computes with TensorFlow, or a notebook, may have started it: it then
        # keeps its threads, and only its speed differs.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        keras.utils.set_random_seed(seed)
        tf.zeros(1)  # the device is made, and complains of missing GPUs, on first use
    if not tf.executing_eagerly():
        raise UsageError(
            "a module in this process has switched TensorFlow's eager execution off, which "
            "training needs; leave out its disable_eager_execution() or disable_v2_behavior()"
        )


class CompiledStep:
    """A compiled function of NumPy arrays, called the short way.

    A call of a `tf.function` spends longer in Python, checking its arguments, than this network's
    gradient takes to compute. This one copies its arrays, which may lie anywhere and be of any real
    dtype, into buffers that TensorFlow shares, and runs the one compiled graph by its name, as
    TensorFlow's own generated operations do. That entry isn't public, which is one reason why
    TensorFlow is pinned; a test compares both ways, bit for bit.

    Attributes:
        compiled: the same graph as a tf.function, called TensorFlow's way.
    """

    def __init__(self, compiled: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
        from tensorflow.python.eager import context, execute

        self.compiled = compiled
        graph = compiled.get_concrete_function()
        self._name = graph.name.decode()
        self._context = context.context()
        self._execute = execute
        self._buffers = [aligned_buffer(shape) for shape in shapes]
        shared = [
            tf.experimental.dlpack.from_dlpack(buffer.__dlpack__()) for buffer in self._buffers
        ]
        self._inputs = [*shared, *graph.captured_inputs]

    def __call__(self, *arrays: npt.NDArray[Any]) -> Array:
        """Call it with arrays of just its shapes; ValueError for any other shape."""
        for buffer, array in zip(self._buffers, arrays, strict=True):
            if array.shape != buffer.shape:  # it would be broadcast
                raise ValueError(f"expected an array of shape {buffer.shape}, not {array.shape}")
            buffer[...] = array
        (output,) = self._execute.execute(self._name, 1, self._inputs, (), self._context)
        return output.numpy()


def compile_step(function: Callable[..., Any], *shapes: tuple[int, ...]) -> CompiledStep:
    """Compile a function of float32 tensors of these shapes, which returns one tensor, with XLA."""
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    compiled = tf.function(function, jit_compile=True, autograph=False, input_signature=specs)
    return CompiledStep(compiled, shapes)
