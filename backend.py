"""TensorFlow for a program that calls it 200 000 times: imported late and quietly, called directly.

`keras` and `tf` here import on first use, since TensorFlow takes seconds: `--help`, a mistyped
flag and watching a policy answer without it. `FlatModel` and `compile_step` are the two reasons
that a training step is fast; README.md, "What makes it fast", has the figures.
"""

import contextlib
import importlib
import logging
import os
import sys
import tempfile

import numpy as np


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

    They write to the file descriptor from C++, past Python's logging, so that is what is turned.
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


class FlatModel:
    """A compiled Keras model whose weights are one flat variable: θ in the tutorial's equations.

    A compiled step pays a few µs for each variable that it touches. The tutorial's network, its
    target network and Adam's moments have 26, flattened they are 6.

    Attributes:
        model: the keras.Model; its own weights stay as they are until someone sets them.
        theta: keras.Variable, float32 (number of weights,).
        optimizer: the model's optimizer, made anew for `theta`.
    """

    def __init__(self, model):
        self.model = model
        self.input_shape, self.output_shape = model.input_shape, model.output_shape
        self.shapes = [tuple(weight.shape) for weight in model.trainable_variables]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.theta = keras.Variable(np.zeros(sum(self.sizes), np.float32), name="theta")
        # Keras clips the gradient of each kernel and bias by itself; so fit() does that.
        config = {**model.optimizer.get_config(), "clipnorm": None}
        self.optimizer = type(model.optimizer).from_config(config)
        self.optimizer.build([self.theta])
        self.set_weights(model.get_weights())

    def set_weights(self, weights):
        """Take the weights from a list of arrays in the order of `model.get_weights()`."""
        self.theta.assign(np.concatenate([np.ravel(weight) for weight in weights]))

    def get_weights(self):
        """The weights as the list of arrays that `model.set_weights()` takes."""
        return self._split(self.theta.numpy())

    def get_average(self):
        """The optimizer's moving average of the weights; the weights themselves if it has none."""
        averages = [v for v in self.optimizer.variables if v.path.endswith("theta_average")]
        trained = bool(self.optimizer.iterations.numpy())
        return self._split((averages[0] if averages and trained else self.theta).numpy())

    def get_state(self):
        """The weights and the optimizer's variables, as a dict of arrays."""
        variables = [self.theta, *self.optimizer.variables]
        return {str(number): variable.numpy() for number, variable in enumerate(variables)}

    def set_state(self, state):
        """Take over what `get_state` returned."""
        for number, variable in enumerate([self.theta, *self.optimizer.variables]):
            variable.assign(state[str(number)])

    def __call__(self, inputs, weights=None):
        """The model's output for `inputs`, with `weights` (by default its own)."""
        return self.model.stateless_call(weights or self._tensors(), [], inputs)[0]

    def fit(self, inputs, targets):
        """One step of the optimizer on a batch, as `model.fit` does; return the loss, a scalar."""
        weights = self._tensors()
        with tf.GradientTape() as tape:
            tape.watch(weights)
            losses = keras.losses.get(self.model.loss)(targets, self(inputs, weights))
            loss = tf.reduce_mean(losses)
        clipnorm = self.model.optimizer.clipnorm
        gradients = [tf.clip_by_norm(g, clipnorm) for g in tape.gradient(loss, weights)]
        flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
        self.optimizer.apply([flat], [self.theta])
        return loss

    def _tensors(self):
        parts = tf.split(tf.convert_to_tensor(self.theta.value), self.sizes)
        return [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _split(self, flat):
        parts = np.split(flat, np.cumsum(self.sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def compile_step(function, *shapes):
    """Compile a function of float32 tensors with XLA; return it, called the short way.

    A call of a `tf.function` spends longer in Python, checking its arguments, than this network's
    gradient takes to compute. The returned function takes float32 NumPy arrays of just `shapes`,
    shares their memory with TensorFlow instead of copying it, and runs the one compiled graph by
    its name, as TensorFlow's own generated operations do. That entry isn't public, which is one
    reason why TensorFlow is pinned; a test compares both ways, bit for bit.

    Returns:
        a function of NumPy arrays that returns one NumPy array.
    """
    from tensorflow.python.eager import context, execute

    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    compiled = tf.function(function, jit_compile=True, autograph=False, input_signature=specs)
    graph = compiled.get_concrete_function()
    name, variables, eager = graph.name.decode(), graph.captured_inputs, context.context()
    share = tf.experimental.dlpack.from_dlpack

    def step(*arrays):
        inputs = [share(array.__dlpack__()) for array in arrays]
        (output,) = execute.execute(name, 1, [*inputs, *variables], (), eager)
        return output.numpy()

    step.compiled = compiled  # the same graph, called TensorFlow's way
    return step
