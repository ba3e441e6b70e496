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

from harness.arrays import aligned_buffer


class LazyModule:
    """A module that is imported when something of it is first asked for."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, attribute):
        if self._name not in sys.modules:
            with quiet():
                importlib.import_module(self._name)
        return getattr(sys.modules[self._name], attribute)


keras = LazyModule("keras")
tf = LazyModule("tensorflow")


@contextlib.contextmanager
def quiet():
    """Keep what TensorFlow and CUDA print while they start off the screen, unless they fail.

    They write to the file descriptor from C++, past Python's logging, so that is redirected, too.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes on what it compiled
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's other projects need
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # too small a network to gain from a GPU
    logging.getLogger("absl").setLevel(logging.ERROR)  # Keras: ".h5 is a legacy format"
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            yield
        except BaseException:
            noise.seek(0)
            os.write(screen, noise.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def start_tensorflow(threads, seed):
    """Import TensorFlow, give it `threads` threads (0: all cores) and seed its generators."""
    with quiet():
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        keras.utils.set_random_seed(seed)
        tf.zeros(1)  # the device is made, and complains of missing GPUs, on first use


def compile_step(function, *shapes):
    """Compile a function of float32 tensors with XLA; return it, called the short way.

    A call of a `tf.function` spends longer in Python, checking its arguments, than this network's
    gradient takes to compute. The returned function copies its arrays, which may lie anywhere and
    be of any real dtype, into buffers that TensorFlow shares, and runs the one compiled graph by
    its name, as TensorFlow's own generated operations do. That entry isn't public, which is one
    reason why TensorFlow is pinned; a test compares both ways, bit for bit.

    Returns:
        a function of NumPy arrays of just `shapes` that returns one NumPy array; it raises
        ValueError for other shapes.
    """
    from tensorflow.python.eager import context, execute

    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    compiled = tf.function(function, jit_compile=True, autograph=False, input_signature=specs)
    graph = compiled.get_concrete_function()
    name, eager = graph.name.decode(), context.context()
    buffers = [aligned_buffer(shape) for shape in shapes]
    shared = [tf.experimental.dlpack.from_dlpack(buffer.__dlpack__()) for buffer in buffers]
    inputs = [*shared, *graph.captured_inputs]

    def step(*arrays):
        for buffer, array in zip(buffers, arrays, strict=True):
            if array.shape != buffer.shape:  # it would be broadcast
                raise ValueError(f"expected an array of shape {buffer.shape}, not {array.shape}")
            buffer[...] = array
        (output,) = execute.execute(name, 1, inputs, (), eager)
        return output.numpy()

    step.compiled = compiled  # the same graph, called TensorFlow's way
    return step
