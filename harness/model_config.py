"""Which network the `model_config` of a snapshot describes, read as text: nothing is built from it.

Keras saves a model's layers and their connections as JSON. The formats of Keras 1, 2 and 3 differ
in details, and all are read here.
"""

import json
from typing import Any, NamedTuple, NoReturn

MOST_DEPTH = 20  # of lists and dicts around the names of a layer's inputs
ACTIVATIONS = {"Activation", "ReLU"}  # layers of their own
# Dropout isn't among them: its policy plays the same, but `--train` would train another network.
KINDS = {"InputLayer", "Dense", "Multiply", *ACTIVATIONS}


class Layer(NamedTuple):
    """One layer of a description; `sources` names the layers whose outputs it takes."""

    name: str
    kind: str
    config: dict[str, Any]
    sources: list[str]


class DenseLayer(NamedTuple):
    """What is needed of a Dense layer: its name, and its units where they are given."""

    name: str
    units: int | None
    activation: str


def dense_layers(text: str) -> list[DenseLayer]:
    """The Dense layers that a `model_config` describes, from the input to the output.

    Raises:
        ValueError: if it describes anything but the network that we play: Dense layers with ReLU
            one after the other, a linear one at the end, and perhaps the mask. It names the layer.
    """
    try:
        model = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ValueError("its model_config isn't JSON") from None
    try:
        return _check_activations(_chain(model["class_name"], model["config"]))
    except (LookupError, TypeError, AttributeError):
        raise ValueError("its model_config isn't a description of a Keras model") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} isn't JSON")


def _chain(kind: str, config: Any) -> list[Layer]:
    """The layers between the observations and the mask, in order."""
    if kind not in ("Sequential", "Functional", "Model"):
        raise ValueError(f"its model is of type {_word(kind)}; expected a chain of Dense layers")
    entries = config if isinstance(config, list) else config["layers"]  # Keras 1: a list
    layers = [_layer(entry) for entry in entries]
    for layer in layers:
        if layer.kind not in KINDS:
            raise ValueError(
                f"layer {_name(layer.name)} is of type {_word(layer.kind)}; "
                "expected a chain of Dense layers"
            )
    if kind == "Sequential":
        return [layer for layer in layers if layer.kind != "InputLayer"]
    return _follow_connections(layers, _inputs(config["output_layers"]))


def _layer(entry: dict[str, Any]) -> Layer:
    config = entry["config"]
    name, kind = entry.get("name") or config["name"], entry["class_name"]
    if not (isinstance(name, str) and isinstance(kind, str) and isinstance(config, dict)):
        raise TypeError("a layer has a name, a type and a dict of settings")
    nodes = entry.get("inbound_nodes") or []
    if len(nodes) > 1:
        raise ValueError(f"layer {_name(name)} is used more than once; expected a chain")
    return Layer(name, kind, config, _inputs(nodes))


def _inputs(node: Any, depth: int = 0) -> list[str]:
    """The names of the layers that a connection comes from, in Keras 2's lists or 3's dicts."""
    if depth > MOST_DEPTH:
        raise TypeError("no connection is nested like this")
    if isinstance(node, dict):
        if node.get("class_name") == "__keras_tensor__":
            return _inputs(node["config"]["keras_history"], depth + 1)
        node = list(node.values())
    if not isinstance(node, list):
        return []
    inner = [name for part in node for name in _inputs(part, depth + 1)]
    if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int):
        return [node[0], *inner]
    return inner


def _follow_connections(layers: list[Layer], outputs: list[str]) -> list[Layer]:
    """Walk from the output to the observations; ValueError where it isn't a plain chain."""
    named = {layer.name: layer for layer in layers}
    if len(named) < len(layers):
        raise ValueError("two layers of its model_config have the same name")
    if len(outputs) != 1:
        raise ValueError(f"its network has {len(outputs)} outputs; expected one")
    layer = named[outputs[0]]
    chain: list[Layer] = []
    mask = None
    unused = dict(named)
    if layer.kind == "Multiply":
        masks = [name for name in layer.sources if named[name].kind == "InputLayer"]
        others = [name for name in layer.sources if name not in masks]
        if len(masks) != 1 or len(others) != 1:
            raise ValueError(
                f"layer {_name(layer.name)} multiplies {_listed(layer.sources)}; "
                "expected the output and an action mask"
            )
        del unused[layer.name]
        mask, layer = unused.pop(masks[0]), named[others[0]]
    while layer.kind != "InputLayer":
        if layer.kind == "Multiply" or len(layer.sources) != 1 or layer.name not in unused:
            raise ValueError(
                f"layer {_name(layer.name)} takes {_listed(layer.sources)}; expected a chain"
            )
        chain.append(unused.pop(layer.name))
        layer = named[layer.sources[0]]
    if mask is layer:
        raise ValueError(f"layer {_name(outputs[0])} multiplies by the observations, not a mask")
    del unused[layer.name]
    if unused:
        name = next(iter(unused))
        raise ValueError(f"layer {_name(name)} doesn't lead to the output; expected a chain")
    return chain[::-1]


def _check_activations(chain: list[Layer]) -> list[DenseLayer]:
    """The Dense layers of a chain; ValueError unless the last is linear and all others ReLU."""
    dense: list[DenseLayer] = []
    for layer in chain:
        activation = _activation(layer)
        if layer.kind == "Dense":
            if not layer.config.get("use_bias", layer.config.get("bias", True)):
                raise ValueError(f"layer {_name(layer.name)} has no bias; expected one")
            units = layer.config.get("units")
            if units is not None and type(units) is not int:
                raise TypeError("the units must be a whole number")
            dense.append(DenseLayer(layer.name, units, activation))
        elif layer.kind in ACTIVATIONS and activation != "linear":
            if not dense or dense[-1].activation != "linear" or activation != "relu":
                raise ValueError(
                    f"layer {_name(layer.name)} has the activation {_word(activation)}; "
                    "expected relu, after a Dense layer without one"
                )
            dense[-1] = dense[-1]._replace(activation=activation)
    for number, used in enumerate(dense, start=1):
        expected = "relu" if number < len(dense) else "linear"
        if used.activation != expected:
            raise ValueError(
                f"layer {_name(used.name)} has the activation {_word(used.activation)}; "
                f"expected {expected}"
            )
    return dense


def _activation(layer: Layer) -> str:
    value = layer.config.get("activation") or "linear"
    if layer.kind == "ReLU":
        value = {"class_name": "ReLU", "config": layer.config}
    if isinstance(value, str):
        return value
    kind, config = value["class_name"], value["config"]
    if kind == "ReLU":  # a layer object, or given as an activation
        limits = [config.get(name) for name in ("max_value", "negative_slope", "threshold")]
        return "relu" if limits[0] is None and not any(limits) else "ReLU with limits"
    return str(config if kind == "function" else kind)


def _listed(names: list[str]) -> str:
    return " and ".join(map(_name, names[:4])) or "no input"


def _name(name: str) -> str:
    """A name that a stranger chose, short and without control characters, for a message."""
    return repr(name[:60])


def _word(text: object) -> str:
    """A type or an activation for a message, quoted unless it is one short plain word."""
    word = str(text)
    return word if word.isidentifier() and len(word) < 40 else _name(word)
