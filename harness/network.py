"""The Q network's weights in forms that are fast to compute with."""

import numpy as np

from harness.backend import keras, tf


def q_function(weights, observations):
    """Q values as `predict` gives them, in NumPy: 6 µs for one observation, TensorFlow needs 80.

    Args:
        weights: list of float32 arrays, the layers' kernels and biases.
        observations: float32 array (n,) of one observation, or (batch, n).

    Returns:
        float32 array (n_actions,), or (batch, n_actions).
    """
    layer = observations
    for kernel, bias in zip(weights[0:-2:2], weights[1:-2:2]):  # noqa: B905, strict costs time
        layer = layer.dot(kernel)
        layer += bias
        np.maximum(layer, 0, out=layer)
    return layer.dot(weights[-2]) + weights[-1]


class FlatModel:
    """A compiled Keras model whose weights are one flat variable: θ in the tutorial's equations.

    A compiled step pays a few µs for each variable that it touches. The tutorial's network, its
    target network and Adam's moments are 26; flattened, they are 6, or 7 with an average.

    Attributes:
        keras_model: the keras.Model; its own weights stay as they are until `as_keras`.
        theta: keras.Variable, float32 (number of weights,).
        optimizer: the model's optimizer, made anew for `theta`.
        average: keras.Variable, the running average of `theta` over the steps (Polyak and Juditsky
            1992, doi.org/10.1137/0330046); without an `ema_momentum`, `theta` itself.
    """

    def __init__(self, keras_model, weights=None, ema_momentum=0):
        """Make one with the Keras model's weights, or others.

        Args:
            weights: list of arrays to start with, instead of the Keras model's own.
            ema_momentum: the share of `average` that a step keeps; the rest is from `theta`.
        """
        self.keras_model = keras_model
        self.input_shape, self.output_shape = keras_model.input_shape, keras_model.output_shape
        self.shapes = [tuple(weight.shape) for weight in keras_model.trainable_variables]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.theta = keras.Variable(np.zeros(sum(self.sizes), np.float32), name="theta")
        optimizer = keras_model.optimizer
        averaging = {"use_ema": ema_momentum > 0, "ema_momentum": ema_momentum}
        self.optimizer = type(optimizer).from_config(optimizer.get_config() | averaging)
        self.optimizer.build([self.theta])
        averages = [v for v in self.optimizer.variables if v.name == "theta_average"]
        self.average = averages[0] if averages else self.theta
        self.set_weights(weights or keras_model.get_weights())
        self.average.assign(self.theta)

    def set_weights(self, weights):
        """Take the weights from a list of arrays in the order of `keras_model.get_weights()`."""
        self.theta.assign(np.concatenate([np.ravel(weight) for weight in weights]))

    def get_weights(self):
        """The weights as the list of arrays that `keras_model.set_weights()` takes."""
        return self._apart(self.theta)

    def averaged_weights(self):
        """The running average of the weights, as `get_weights` gives those of now."""
        return self._apart(self.average)

    def as_keras(self):
        """The Keras model, with the averaged weights."""
        self.keras_model.set_weights(self.averaged_weights())
        return self.keras_model

    def get_state(self):
        """The weights and the optimizer's variables, as a dict of arrays."""
        variables = [self.theta, *self.optimizer.variables]
        return {str(number): variable.numpy() for number, variable in enumerate(variables)}

    def set_state(self, state):
        """Take over what `get_state` returned."""
        for number, variable in enumerate([self.theta, *self.optimizer.variables]):
            variable.assign(state[str(number)])

    def __call__(self, inputs):
        """The model's output for `inputs`."""
        parts = tf.split(tf.convert_to_tensor(self.theta.value), self.sizes)
        shaped = zip(parts, self.shapes, strict=True)
        weights = [tf.reshape(part, shape) for part, shape in shaped]
        return self.keras_model.stateless_call(weights, [], inputs)[0]

    def fit(self, inputs, targets):
        """One step of the optimizer on a batch, as `model.fit` does; return the loss, a scalar."""
        with tf.GradientTape() as tape:
            losses = keras.losses.get(self.keras_model.loss)(targets, self(inputs))
            loss = tf.reduce_mean(losses)
        self.optimizer.apply([tape.gradient(loss, self.theta.value)], [self.theta])
        return loss

    def _apart(self, flat):
        parts = np.split(flat.numpy(), np.cumsum(self.sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
