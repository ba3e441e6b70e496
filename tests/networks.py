"""Networks of many kinds, each a function that makes one of two inputs, as `create_model` does."""

import keras
from keras import layers, ops


def network(body, size=2, actions=3):
    """The model of `body(observations)` with a mask at its end."""
    observations = layers.Input((size,), name="observations")
    mask = layers.Input((actions,), name="action_mask")
    output = layers.Multiply(name="filtered_output")([body(observations), mask])
    return keras.Model([observations, mask], output)


def dense(*between, first="relu", **options):
    """A function that makes a network of Dense layers with others between the last two."""

    def make():
        def body(layer):
            layer = layers.Dense(8, first, name="hidden_1", **options)(layer)
            for kind, settings in between:
                layer = getattr(layers, kind)(**settings)(layer)
            return layers.Dense(3, name="output")(layer)

        return network(body)

    return make


def sequential():
    return keras.Sequential(
        [layers.Input((2,)), layers.Dense(8), layers.ReLU(), layers.Dense(3, use_bias=False)]
    )


def concatenated(layer):
    hidden = layers.Dense(8, activation="tanh")(layer)
    return layers.Dense(3)(layers.Concatenate(name="both")([hidden, layer]))


def residual(layer):
    first = layers.Dense(8, activation="relu")(layer)
    second = layers.Dense(8, activation="relu")(first)
    return layers.Dense(3)(layers.Add(name="shortcut")([first, second]))


def heads(layer):
    hidden = layers.Dense(8, activation="relu")(layer)
    return layers.Dense(1, name="value")(hidden), layers.Dense(3, name="advantage")(hidden)


def dueling(layer):
    value, advantage = heads(layer)
    return value + advantage - ops.mean(advantage, axis=1, keepdims=True)


class Dueling(layers.Layer):
    """A value and advantages, with a weight of its own."""

    def __init__(self, start=1.0, **options):
        super().__init__(**options)
        self.start = start

    def build(self, shapes):
        self.scale = self.add_weight(name="scale", initializer="ones")

    def call(self, inputs):
        value, advantage = inputs
        return self.start * value + self.scale * (advantage - ops.mean(advantage, 1, True))

    def get_config(self):
        return {**super().get_config(), "start": self.start}


def unnamed(layer):
    value, advantage = heads(layer)
    return layers.Lambda(lambda x: x[0] + x[1] - x[1][:, :1], name="duel")([value, advantage])


def nested(layer, activation="relu"):
    inner = keras.Sequential(
        [layers.Dense(8, activation), layers.PReLU(), layers.Dense(4)], name="inner"
    )
    return layers.Dense(3)(inner(layer))


def shared(layer, times=2):
    twice = layers.Dense(2, activation="relu", name="twice")
    for _ in range(times):
        layer = twice(layer)
    return layers.Dense(3)(layer)


def in_turns(layer):
    first, second = layers.Dense(2, "tanh"), layers.Dense(2, "tanh")
    return layers.Dense(3)(first(second(first(layer))))


def sliced(layer):
    parts = layers.Dense(4, "elu")(layer[:, :1] * 10.0), layers.Dense(4)(layer[:, 1:])
    hidden = ops.leaky_relu(ops.concatenate(parts, axis=-1), negative_slope=0.3)
    return ops.where(hidden[:, :3] > 0, layers.Dense(3)(hidden), float("-inf"))


def masked_by_operation():
    observations, mask = layers.Input((2,)), layers.Input((3,))
    return keras.Model([observations, mask], layers.Dense(3)(observations) * mask)


def own_activation(x):
    return ops.sin(x)


ACTIVATIONS = [
    *("relu", "tanh", "sigmoid", "elu", "selu", "softplus", "softsign", "silu", "gelu"),
    *("leaky_relu", "relu6", "exponential", "hard_sigmoid", "mish", "linear", "softmax"),
]
CHAINS = {
    **{name: dense(("Dense", {"units": 5, "activation": name})) for name in ACTIVATIONS},
    "a ReLU layer": dense(("ReLU", {}), first=None),
    "an Activation layer": dense(("Activation", {"activation": "tanh"}), first=None),
    "a ReLU object": dense(("Dense", {"units": 5, "activation": layers.ReLU()})),
    "without bias": dense(use_bias=False),
    "Sequential": sequential,
    "two layers of activations": dense(
        ("Activation", {"activation": "linear"}), ("ReLU", {}), first=None
    ),
    "linear": lambda: network(layers.Dense(3)),
    "an operation as the mask": masked_by_operation,
    "an activation of its own": dense(("Dense", {"units": 5, "activation": own_activation})),
}
OTHERS = {
    "LeakyReLU": dense(("LeakyReLU", {"negative_slope": 0.1})),
    "PReLU": dense(("PReLU", {})),
    "LeakyReLU object": dense(("Dense", {"units": 5, "activation": layers.LeakyReLU()})),
    "ReLU with limits": dense(("ReLU", {"max_value": 6})),
    "ReLU with a limit of 0": dense(("ReLU", {"max_value": 0.0}), first=None),
    "two activations": dense(("Activation", {"activation": "relu"}), first="tanh"),
    "Rescaling": dense(("Rescaling", {"scale": [1.0] * 7 + [3.0]})),
    "LayerNormalization": dense(("LayerNormalization", {})),
    "Dropout": dense(("Dropout", {"rate": 0.5})),
    "Concatenate": lambda: network(concatenated),
    "Add": lambda: network(residual),
    "dueling": lambda: network(dueling),
    "its own layer": lambda: network(lambda layer: Dueling(2.0, name="duel")(heads(layer))),
    "unnamed": lambda: network(unnamed),
    "unnamed activation": dense(("Dense", {"units": 5, "activation": lambda x: ops.sin(x) + x})),
    "nested": lambda: network(nested),
    "shared": lambda: network(shared),
    "shared in turns": lambda: network(in_turns),
    "sliced": lambda: network(sliced),
    "an operation": lambda: network(
        lambda layer: layers.Dense(3)(ops.relu(layers.Dense(8)(layer)))
    ),
}
# What Keras saves but can't read itself: operations, and functions without a name.
UNREADABLE = {"an operation as the mask", "unnamed activation", "dueling", "sliced", "an operation"}
