"""A Keras network in forms that are fast to compute with: whatever network it is.

Everything here computes what the Keras model computes. What can't be trained so is refused before
a run begins.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.arrays import Array, Arrays, Weights
from harness.backend import compile_step, keras, start_tensorflow, tf
from harness.description import DenseLayer, dense_chain, description_of, first_difference
from harness.environments import Environment, observation_centres_and_scales
from harness.errors import UsageError
from harness.snapshots import Snapshot, can_be_saved, check_fit_for
from harness.terminal import log

QFunction = Callable[[Array], Array]  # Q values (n_actions,) of an observation (n,), or of a batch
Predict = Callable[[Any, Any], Any]  # run.predict: a model and observations to Q values, a tensor

# Optimizers that treat each weight alone, so that all weights may lie in one variable.
ELEMENTWISE = {
    *("SGD", "RMSprop", "Adam", "AdamW", "Adadelta", "Adagrad", "Adamax", "Ftrl", "Nadam", "Lion"),
}
PROBES = 16  # observations on which NumPy must agree with `predict`
LARGE = 30  # an observed number that can be larger is scaled in each step, not at the start alone


def _relu(layer: Array) -> Array:
    return np.maximum(layer, 0, out=layer)


def _sigmoid(layer: Array) -> Array:
    return 0.5 * np.tanh(0.5 * layer) + 0.5  # exp(-layer) can overflow


def _softplus(layer: Array) -> Array:
    small = np.exp(-np.minimum(abs(layer), 80))  # beyond that, it underflows
    return np.maximum(layer, 0) + np.log1p(small)


def _elu(layer: Array) -> Array:
    return np.where(layer > 0, layer, np.expm1(np.minimum(layer, 0)))


# What NumPy computes. A network with another activation is computed by TensorFlow.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda layer: layer,
    "relu": _relu,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "silu": lambda layer: layer * _sigmoid(layer),
    "elu": _elu,
    "selu": lambda layer: 1.05070098 * np.where(layer > 0, layer, 1.67326324 * _elu(layer)),
    "softplus": _softplus,
    "leaky_relu": lambda layer: np.where(layer > 0, layer, np.float32(0.2) * layer),
}


def can_compute(layers: Sequence[DenseLayer]) -> bool:
    """Whether NumPy computes all activations of a chain."""
    return all(layer.activation in ACTIVATIONS for layer in layers)


def chain_q_function(layers: Sequence[DenseLayer], weights: Weights) -> QFunction:
    """The Q function of a chain of Dense layers, in NumPy: 6 µs for an observation.

    Args:
        layers: whose activations NumPy can compute.
        weights: a kernel and perhaps a bias for each of the layers, in turn.

    Returns:
        function of float32 (observation_size,), or (batch, observation_size), that returns float32
        (n_actions,), or (batch, n_actions).
    """
    left = iter(weights)
    steps = [
        (next(left), next(left) if layer.use_bias else np.float32(0), ACTIVATIONS[layer.activation])
        for layer in layers
    ]

    def q_function(observations: Array) -> Array:
        layer = observations
        for kernel, bias, activation in steps:
            layer = layer.dot(kernel)
            layer += bias
            layer = activation(layer)
        return layer

    return q_function


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
        inputs: InputScaling, None where it isn't needed.
    """

    def __init__(
        self, keras_model: Any, optimizer: Any = None, inputs: "InputScaling | None" = None
    ) -> None:
        """Make one with the Keras model's weights."""
        self.keras_model, self.optimizer, self.inputs = keras_model, optimizer, inputs
        self.input_shape, self.output_shape = keras_model.input_shape, keras_model.output_shape
        self.shapes = [tuple(weight.shape) for weight in keras_model.trainable_variables]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        weights = [weight.numpy() for weight in keras_model.trainable_variables]
        if inputs:
            weights = inputs.scaled(weights)
        self.theta = keras.Variable(flat(weights), dtype="float32", name="theta")
        self.average = self.theta
        if optimizer:
            optimizer.build([self.theta])
            if optimizer.use_ema:
                (self.average,) = (v for v in optimizer.variables if v.name == "theta_average")
                self.average.assign(self.theta)

    def set_weights(self, weights: Weights) -> None:
        """Take the weights from arrays in the order of `keras_model.trainable_variables`."""
        if self.inputs:
            weights = self.inputs.scaled(weights)
        self.theta.assign(flat(weights))

    def get_weights(self) -> Weights:
        """The weights in the order of `keras_model.trainable_variables`."""
        return self._apart(self.theta)

    def averaged_weights(self) -> Weights:
        """The running average of the weights, as `get_weights` gives those of now."""
        return self._apart(self.average)

    def scale_unbounded_inputs(self, observations: Array) -> None:
        """Scale the observed numbers without bounds by observations (n, observation_size)."""
        if self.inputs and not self.inputs.bounded.all():
            self.set_weights(self.inputs.by_observations(self.get_weights(), observations))
            self.average.assign(self.theta)

    def as_keras(self) -> Any:
        """The Keras model, with the averaged weights."""
        weights = self.averaged_weights()
        for variable, weight in zip(self.keras_model.trainable_variables, weights, strict=True):
            variable.assign(weight)
        return self.keras_model

    def get_state(self) -> Arrays:
        """The weights, the optimizer's variables and the scaling of the inputs, copied.

        And, as a text, what is fitted how.
        """
        variables = {
            str(number): np.array(variable.numpy())
            for number, variable in enumerate(self._variables())
        }
        return variables | {
            "made_of": np.frombuffer(json.dumps(self._made_of()).encode(), np.uint8)
        }

    def _made_of(self) -> dict[str, str]:
        loss = keras.losses.get(self.keras_model.loss)
        own = loss.get_config() if hasattr(loss, "get_config") else loss.__name__
        return {
            "network": description_of(self.keras_model),
            "optimizer": self._optimizer_made_of(),
            "loss": f"{type(loss).__name__} {own}",
        }

    def _optimizer_made_of(self) -> str:
        if self.optimizer is None:
            return ""
        # A name is numbered anew in each process; the rate may be changed in the course of a run.
        settings = self.optimizer.get_config().items()
        kept = {name: value for name, value in settings if name not in ("name", "learning_rate")}
        rate = type(self.optimizer._learning_rate).__name__
        return f"{type(self.optimizer).__name__} {rate} {kept}"

    def set_state(self, state: Arrays) -> None:
        """Take over what `get_state` returned.

        Raises:
            UsageError: if it is of another network, optimizer or loss.
        """
        theirs, ours = json.loads(state["made_of"].tobytes()), self._made_of()
        difference = first_difference(theirs["network"], ours["network"])
        changed = [name for name in ("optimizer", "loss") if theirs[name] != ours[name]]
        if changed and not difference:
            difference = f"create_model compiles another {' and '.join(changed)}"
        if difference:
            raise UsageError(
                f"--resume: {difference.replace('in the file', 'in the run')}; undo the change, or "
                "begin a new run"
            )
        for number, variable in enumerate(self._variables()):
            variable.assign(state[str(number)])

    def __call__(self, inputs: Sequence[Any]) -> Any:
        """The model's output for `inputs`."""
        return self._call(inputs)[0]

    def fit(self, inputs: Sequence[Any], targets: Any) -> Any:
        """One step of the optimizer on a batch, as `model.fit` does.

        Returns:
            the loss, a scalar, with the losses that layers add, such as those of regularizers.
        """
        with tf.GradientTape() as tape:
            output, added = self._call(inputs, training=True)
            losses = keras.losses.get(self.keras_model.loss)(targets, output)
            loss = tf.reduce_mean(losses)
            for other in added:
                loss += tf.reduce_sum(other)
        self.optimizer.apply([tape.gradient(loss, self.theta.value)], [self.theta])
        return loss

    def _call(self, inputs: Sequence[Any], training: bool = False) -> tuple[Any, list[Any]]:
        parts = tf.split(tf.convert_to_tensor(self.theta.value), self.sizes)
        weights = [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]
        if self.inputs:
            weights = self.inputs.unscaled(weights)
        output, _, losses = self.keras_model.stateless_call(
            weights, [], inputs, training=training, return_losses=True
        )
        return output, losses

    def _variables(self) -> list[Any]:
        variables = [self.theta, *(self.optimizer.variables if self.optimizer else ())]
        return variables + ([self.inputs.centre, self.inputs.scale] if self.inputs else [])

    def _apart(self, variable: Any) -> Weights:
        parts = np.split(np.array(variable.numpy()), np.cumsum(self.sizes)[:-1])
        weights = [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        if self.inputs:
            weights = [np.asarray(weight) for weight in self.inputs.unscaled(weights)]
        return weights


class InputScaling:
    """Lets the first layers start out, and learn, as if they saw (observation - centre) / scale.

    They don't: the optimizer moves weights for such inputs, and the model computes with weights
    for the observations as they are, which make the same function. So a snapshot remains an
    ordinary network, and an observed number of 100 000 doesn't make steps 100 000 times too long.
    Numbers that are near 0 are scaled at the start alone.

    Attributes:
        factor: what the first layers' initial weights are multiplied by, besides; None leaves them.
        layers: the index of the kernel and of the bias among the weights, for each Dense layer that
            sees the observations.
        bounded: bool (observation_size,), which numbers have bounds.
        centre, scale: keras.Variables, float32 (observation_size,), 0 and 1 for those near 0.
    """

    def __init__(self, keras_model: Any, env: Environment, factor: float | None) -> None:
        """Take the bounds of the observations."""
        self.factor, self.layers = factor, first_layers(keras_model)
        self.bounds_centre, self.bounds_scale, self.bounded = observation_centres_and_scales(env)
        self.centre = keras.Variable(np.zeros(env.observation_size, np.float32), name="centre")
        self.scale = keras.Variable(np.ones(env.observation_size, np.float32), name="scale")

    @property
    def lasts(self) -> bool:
        """Whether it is needed for longer than the initial weights."""
        far = is_far(self.bounds_centre, self.bounds_scale)
        return bool(self.layers) and bool((far | ~self.bounded).any())

    def by_bounds(self, weights: Weights) -> Weights:
        """The model's first weights, with the numbers scaled that have bounds."""
        return self._first(weights, self.bounds_centre, self.bounds_scale, self.bounded)

    def by_observations(self, weights: Weights, observations: Array) -> Weights:
        """The same for numbers without bounds, by observations (n, observation_size).

        One whose mean is further from 0 than it ranges is centred, too.
        """
        mean, deviation = observations.mean(axis=0), observations.std(axis=0)
        centre = np.where(abs(mean) > 2 * deviation, mean, 0)
        scale = np.where(centre == 0, abs(mean), 0) + 2 * deviation
        scale = np.where(scale > 0, scale, 1)
        return self._first(weights, centre, scale, ~self.bounded)

    def _first(
        self, weights: Weights, centre: Array, scale: Array, chosen: npt.NDArray[np.bool_]
    ) -> Weights:
        weights = list(weights)
        far = chosen & is_far(centre, scale)
        self.centre.assign(np.where(far, centre, self.centre.numpy()))
        self.scale.assign(np.where(far, scale, self.scale.numpy()))
        if self.factor is None:
            return weights
        centre = np.where(chosen, centre, 0).astype(np.float32)
        for kernel, bias in self.layers:
            scaled = weights[kernel] * self.factor / scale[:, None]
            weights[kernel] = np.where(chosen[:, None], scaled, weights[kernel]).astype(np.float32)
            weights[bias] = weights[bias] - centre @ weights[kernel]
        return weights

    def unscaled(self, weights: Sequence[Any]) -> list[Any]:
        """The model's weights for the optimizer's: arrays or tensors."""
        weights = list(weights)
        for kernel, bias in self.layers:
            weights[kernel] = weights[kernel] / self.scale.value[:, None]
            weights[bias] = weights[bias] - tf.tensordot(self.centre.value, weights[kernel], 1)
        return weights

    def scaled(self, weights: Weights) -> Weights:
        """The optimizer's weights for the model's."""
        weights = list(weights)
        centre, scale = self.centre.numpy(), self.scale.numpy()
        for kernel, bias in self.layers:
            weights[bias] = weights[bias] + centre @ weights[kernel]
            weights[kernel] = weights[kernel] * scale[:, None]
        return weights


def first_layers(keras_model: Any) -> list[tuple[int, int]]:
    """The indices of kernel and bias, among the weights, of each Dense layer that sees the input.

    One without a bias, or of another kind, can't be scaled.
    """
    order = {id(variable): n for n, variable in enumerate(keras_model.trainable_variables)}
    found = []
    for layer in keras_model.layers:
        if type(layer) is keras.layers.Dense and layer.use_bias and len(layer._inbound_nodes) == 1:
            (source,) = layer._inbound_nodes[0].input_tensors
            if source is keras_model.inputs[0]:
                found.append((order[id(layer.kernel)], order[id(layer.bias)]))
    return found


def make_models(
    keras_model: Any, env: Environment, scale_inputs: float, snapshot: Snapshot | None
) -> tuple[FlatModel, FlatModel]:
    """The model to fit and its target network, with the same weights.

    Args:
        scale_inputs: unless it is 0, initial weights are scaled, and multiplied by it.
        snapshot: the weights to start from, instead of the Keras model's.

    Raises:
        UsageError: if the network can't be trained, or isn't the snapshot's.
    """
    variables = keras_model.trainable_variables
    if snapshot:
        for variable, weight in zip(variables, snapshot.weights_for(keras_model), strict=True):
            variable.assign(weight)
    inputs = None
    if scale_inputs:
        inputs = InputScaling(keras_model, env, None if snapshot else scale_inputs)
        if not inputs.layers:
            log("--scale-inputs does nothing: no Dense layer with a bias sees the observations")
        weights = inputs.by_bounds([variable.numpy() for variable in variables])
        for variable, weight in zip(variables, weights, strict=True):
            variable.assign(weight)
        inputs = inputs if inputs.lasts else None
    model = FlatModel(keras_model, keras_model.optimizer, inputs)
    return model, FlatModel(keras_model, None, inputs)


def is_far(centre: Array, scale: Array) -> npt.NDArray[np.bool_]:
    """Which observed numbers are far from 0 or large: bool (n,)."""
    return (centre != 0) | (scale > LARGE)


def flat(weights: Weights) -> Array:
    """The weights one after the other, (number of weights,)."""
    return np.concatenate([np.ravel(weight) for weight in weights])


def compile_q_function(
    predict: Predict, model: FlatModel, env: Environment
) -> Callable[[Weights], QFunction]:
    """The fastest way to compute single Q values as `predict` does, for weights to come.

    That is NumPy for a chain of Dense layers, if it gives what `predict` gives for some
    observations. For any other network, it is one compiled call.

    Returns:
        function of weights that returns a QFunction, to be used before the next is asked for.
    """
    layers = dense_chain(description_of(model.keras_model))
    if layers is not None and can_compute(layers):
        centre, scale, _ = observation_centres_and_scales(env)
        rng = np.random.default_rng(0)
        probes = centre + scale * rng.uniform(-1, 1, (PROBES, env.observation_size))
        probes = probes.astype(np.float32)
        expected = np.asarray(predict(model, probes))
        found = chain_q_function(layers, model.get_weights())(probes)
        if np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()):
            return lambda weights: chain_q_function(layers, weights)
    player = FlatModel(model.keras_model)
    compiled = compile_step(
        lambda observation: predict(player, observation[None])[0], (env.observation_size,)
    )

    def q_function(observations: Array) -> Array:
        if observations.ndim == 1:
            return compiled(observations)
        return np.asarray(predict(player, observations))

    def with_weights(weights: Weights) -> QFunction:
        player.set_weights(weights)
        return q_function

    return with_weights


def load_q_function(
    snapshot: Snapshot, env: Environment, predict: Predict, make_model: Callable[[], Any]
) -> QFunction:
    """The Q function of a snapshot, just as the file describes its network.

    Args:
        make_model: makes the only other network that can be played than Dense layers.

    Raises:
        UsageError: if the network is of another size than `env`, or isn't that of `make_model`.
    """
    if snapshot.chain and can_compute(snapshot.chain):
        check_fit_for(env, snapshot)
        # Its weights have a bias for each layer, of zeros where the file has none.
        layers = [layer._replace(use_bias=True) for layer in snapshot.chain]
        return chain_q_function(layers, snapshot.weights)
    start_tensorflow(1, 0)
    keras_model = make_model()
    check_network(keras_model, env)
    model = FlatModel(keras_model)
    return compile_q_function(predict, model, env)(snapshot.weights_for(keras_model))


@contextlib.contextmanager
def network_errors() -> Iterator[None]:
    """Report in one line what Keras finds wrong with the network that `create_model` makes."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"create_model: {' '.join(str(error).split())}") from None


def check_network(keras_model: Any, env: Environment) -> None:
    """Raise UsageError if a model can't be trained here: it says why, and what to do."""
    observation_size, n_actions = env.observation_size, env.n_actions
    expected = [(None, observation_size), (None, n_actions)]
    inputs = [tuple(tensor.shape) for tensor in getattr(keras_model, "inputs", None) or ()]
    if inputs != expected:
        raise UsageError(
            f"create_model: its inputs have the shapes {inputs}; expected {expected}, observations "
            "and action_mask"
        )
    names = [tensor.name for tensor in keras_model.inputs]
    if names == ["action_mask", "observations"]:
        raise UsageError("create_model: expected the inputs [observations, action_mask], in order")
    outputs = [tuple(tensor.shape) for tensor in keras_model.outputs]
    if outputs != [(None, n_actions)]:
        raise UsageError(
            f"create_model: its output has the shape {outputs}; expected {(None, n_actions)}, a Q "
            "value for each action"
        )
    if not keras_model.trainable_variables:
        raise UsageError("create_model: it has no weights that can be trained")
    for layer in keras_model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, keras.Model):
            continue  # its own layers follow
        what = f"create_model: layer {layer.name!r} ({type(layer).__name__})"
        if not layer.trainable and layer.weights:
            raise UsageError(f"{what} is frozen, and all weights are trained here; unfreeze it")
        if layer.non_trainable_variables:
            raise UsageError(
                f"{what} has state that isn't trained, such as statistics or random numbers; "
                "leave it out (LayerNormalization works)"
            )
        for variable in layer.trainable_variables:
            if variable.constraint is not None:
                raise UsageError(
                    f"{what} has a constraint, which isn't applied here; leave it out, or use a "
                    "regularizer"
                )
        if {layer.dtype, layer.compute_dtype} != {"float32"}:
            raise UsageError(f"{what} computes in {layer.compute_dtype}; expected float32")
    if reason := can_be_saved(keras_model):
        raise UsageError(f"create_model: {reason}")
    _check_compiled(keras_model)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(PROBES, observation_size)).astype(np.float32)
    mask = rng.integers(2, size=(PROBES, n_actions)).astype(np.float32)
    # Random weights: initial ones may be all zeros. The more inputs a layer has, the smaller they
    # are, so that no depth makes the numbers infinite.
    weights = [
        rng.standard_normal(variable.shape, np.float32) / math.prod(variable.shape[:1]) ** 0.5
        for variable in keras_model.trainable_variables
    ]
    q_values, masked = (
        np.asarray(keras_model.stateless_call(weights, [], [observations, one])[0])
        for one in (np.ones_like(mask), mask)
    )
    if n_actions > 1 and not np.ptp(q_values, axis=1).any():
        raise UsageError(
            "create_model: it gives all actions the same Q value; the layer that is multiplied by "
            f"action_mask needs a unit for each of the {n_actions} actions"
        )
    if not np.allclose(masked, mask * q_values, rtol=1e-4, atol=1e-6):
        raise UsageError(
            "create_model: its output isn't its Q values times action_mask; multiply them by it at "
            "the end, as the layer filtered_output does"
        )


def _check_compiled(keras_model: Any) -> None:
    optimizer, loss = (getattr(keras_model, name, None) for name in ("optimizer", "loss"))
    if optimizer is None or loss is None:
        raise UsageError("create_model: expected a compiled model, with an optimizer and a loss")
    kind = type(optimizer).__name__
    if kind not in ELEMENTWISE:
        raise UsageError(
            f"create_model: the optimizer {kind} isn't supported; expected one of "
            f"{', '.join(sorted(ELEMENTWISE))}"
        )
    if optimizer.clipnorm is not None:
        raise UsageError(
            "create_model: the optimizer's clipnorm clips each layer's gradient alone, which isn't "
            "supported; use global_clipnorm, which is what Keras 2's clipnorm did"
        )
    if hasattr(optimizer, "_exclude_from_weight_decay"):
        raise UsageError(
            "create_model: the optimizer's exclude_from_weight_decay has no effect here, where all "
            "weights are one variable; leave it out, or use a kernel_regularizer"
        )
    if keras_model._compile_loss._user_loss_weights is not None:
        raise UsageError("create_model: loss_weights aren't supported; leave them out")
    try:
        keras.losses.get(loss)
    except (TypeError, ValueError):
        raise UsageError(
            f"create_model: {loss!r} isn't a loss; expected the name of one, such as "
            "'huber', or a keras.losses.Loss"
        ) from None
