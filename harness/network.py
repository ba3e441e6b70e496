"""The Q network's weights in forms that are fast to compute with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.arrays import Array, Arrays, Weights
from harness.backend import keras, tf


def q_function(weights: Weights, observations: Array) -> Array:
    """Q values as `predict` gives them, in NumPy: 6 µs for one observation, TensorFlow needs 80.

    Args:
        weights: the layers' kernels and biases.
        observations: float32 (observation_size,) of one observation, or (batch, observation_size).

    Returns:
        float32 (n_actions,), or (batch, n_actions).
    """
    layer = observations
    for kernel, bias in zip(weights[0:-2:2], weights[1:-2:2]):  # noqa: B905, strict costs time
        layer = layer.dot(kernel)
        layer += bias
        np.maximum(layer, 0, out=layer)
    return layer.dot(weights[-2]) + weights[-1]


class FlatModel:
    """A Keras model whose weights are one flat variable: θ in the tutorial's equations.

    A compiled step pays a few µs for each variable that it touches. The tutorial's network, its
    target network and Adam's moments are 26; flattened, they are 6, or 7 with an average.

    Attributes:
        keras_model: the keras.Model; its own weights stay as they are until `as_keras`.
        theta: keras.Variable, float32 (number of weights,).
        optimizer: that of the Keras model, which then belongs to `theta`; None for a network that
            is never fitted, as the target network is.
        average: keras.Variable, the running average of `theta` over the steps (Polyak and Juditsky
            1992, doi.org/10.1137/0330046) where the optimizer keeps one; else `theta` itself.
    """

    def __init__(self, keras_model: Any, optimizer: Any = None) -> None:
        """Make one with the Keras model's weights."""
        self.keras_model, self.optimizer = keras_model, optimizer
        self.input_shape, self.output_shape = keras_model.input_shape, keras_model.output_shape
        self.shapes = [tuple(weight.shape) for weight in keras_model.trainable_variables]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        weights = flat(keras_model.get_weights())
        self.theta = keras.Variable(weights, dtype="float32", name="theta")
        self.average = self.theta
        if optimizer:
            optimizer.build([self.theta])
            if optimizer.use_ema:
                (self.average,) = (v for v in optimizer.variables if v.name == "theta_average")
                self.average.assign(self.theta)

    def set_weights(self, weights: Weights) -> None:
        """Take the weights from arrays in the order of `keras_model.get_weights()`."""
        self.theta.assign(flat(weights))

    def get_weights(self) -> Weights:
        """The weights as `keras_model.set_weights()` takes them."""
        return self._apart(self.theta)

    def averaged_weights(self) -> Weights:
        """The running average of the weights, as `get_weights` gives those of now."""
        return self._apart(self.average)

    def as_keras(self) -> Any:
        """The Keras model, with the averaged weights."""
        self.keras_model.set_weights(self.averaged_weights())
        return self.keras_model

    def get_state(self) -> Arrays:
        """The weights and the optimizer's variables, copied."""
        return {
            str(number): np.array(variable.numpy())
            for number, variable in enumerate(self._variables())
        }

    def set_state(self, state: Arrays) -> None:
        """Take over what `get_state` returned."""
        for number, variable in enumerate(self._variables()):
            variable.assign(state[str(number)])

    def __call__(self, inputs: Sequence[Any]) -> Any:
        """The model's output for `inputs`."""
        parts = tf.split(tf.convert_to_tensor(self.theta.value), self.sizes)
        weights = [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return self.keras_model.stateless_call(weights, [], inputs)[0]

    def fit(self, inputs: Sequence[Any], targets: Any) -> Any:
        """One step of the optimizer on a batch, as `model.fit` does; return the loss, a scalar."""
        with tf.GradientTape() as tape:
            losses = keras.losses.get(self.keras_model.loss)(targets, self(inputs))
            loss = tf.reduce_mean(losses)
        self.optimizer.apply([tape.gradient(loss, self.theta.value)], [self.theta])
        return loss

    def _variables(self) -> list[Any]:
        return [self.theta, *(self.optimizer.variables if self.optimizer else ())]

    def _apart(self, variable: Any) -> Weights:
        parts = np.split(np.array(variable.numpy()), np.cumsum(self.sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def flat(weights: Weights) -> Array:
    """The weights one after the other, (number of weights,)."""
    return np.concatenate([np.ravel(weight) for weight in weights])
