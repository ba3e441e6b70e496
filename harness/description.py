"""Which network a `model_config` describes, read as text: nothing is built from it.

Keras writes a model's layers and their connections into its `.h5` file as JSON. The words of
Keras 2 and of Keras 3 differ in details, and both are read here; the models that a program has
made itself are described by the same text.
"""

import base64
import contextlib
import itertools
import json
import marshal
import warnings
from collections.abc import Iterator
from types import CodeType
from typing import Any, NamedTuple

MODELS = {"Sequential", "Functional", "Model"}
# What changes nothing that a network computes.
IGNORED = {
    *("name", "trainable", "module", "registered_name", "batch_input_shape", "build_input_shape"),
    *("build_config", "compile_config", "shared_object_id", "__passive_serialization__"),
}
IGNORED_ENDINGS = ("_initializer", "_regularizer", "_constraint")
OTHER_NAMES = {"swish": "silu", "hard_swish": "hard_silu"}  # of the same activation


class DenseLayer(NamedTuple):
    """A Dense layer of a chain; `activation` is named as in Keras, "linear" if there is none."""

    name: str
    units: int
    use_bias: bool
    activation: str


class Output(NamedTuple):
    """What a layer returns: its position among the model's layers, which call, which tensor."""

    layer: int
    call: int
    tensor: int


class Call(NamedTuple):
    """The arguments of a layer's call, with an Output for each layer's output."""

    args: list[Any]
    kwargs: dict[str, Any]


class Layer(NamedTuple):
    """A layer, with the settings that change what it computes and the arguments of its calls."""

    name: str
    kind: str
    settings: dict[str, Any]
    calls: list[Call]
    model: "Model | None"  # that it is itself


class Model(NamedTuple):
    """A model; a Sequential one is described as the Functional one that computes the same."""

    kind: str
    layers: list[Layer]
    inputs: Any
    outputs: Any


def description_of(keras_model: Any) -> str:
    """The `model_config` of a keras.Model, as it stands in its `.h5` file.

    Of functions without a name, as Lambda layers have them, Keras keeps the code. Here it doesn't
    say in which file and line it was written, so that the same code is the same text.
    """
    from keras.src.legacy.saving import json_utils, saving_options, saving_utils

    with warnings.catch_warnings(), saving_options.keras_option_scope(use_legacy_config=True):
        warnings.simplefilter("ignore")  # on code in a file, which isn't run here
        metadata = saving_utils.model_metadata(keras_model, include_optimizer=False)
        text = json.dumps(metadata["model_config"], default=json_utils.get_json_type)
    return json.dumps(_without_places(json.loads(text)))


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Say of whatever goes wrong with a text that it isn't a description."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("its model_config isn't a description of a Keras model") from None


@_understood()
def layer_names(model_config: str) -> list[str]:
    """The names of the layers that a description lists; ValueError if it isn't one."""
    return [layer.name for layer in _parse(model_config).layers]


@_understood()
def input_sizes(model_config: str) -> list[int | None]:
    """How many numbers each input of a model takes, None where its description doesn't say."""
    model = _parse(model_config)
    shapes = [model.layers[end.layer].settings.get("shape") for end in _listed(model.inputs)]
    return [shape[-1] if shape else None for shape in shapes]


@_understood()
def dense_chain(model_config: str) -> list[DenseLayer] | None:
    """The Dense layers that a description lists, from the observations to the output.

    Their activations may be layers of their own, and a mask may be multiplied at the end.

    Returns:
        None if it describes a network of another kind.

    Raises:
        ValueError: if it isn't the description of a Keras model.
    """
    return _chain(_parse(model_config))


def first_difference(file_config: str, model_config: str) -> str | None:
    """How a file's network differs from the one of `create_model`: its first layer that does.

    Layers are compared by their positions; names, initial values and whatever else changes
    nothing that is computed may differ.

    Returns:
        a clause such as "layer 'hidden_1' has activation tanh in the file, relu in create_model",
        None if both compute the same.

    Raises:
        ValueError: if one isn't the description of a Keras model.
    """
    return compare(file_config, model_config)[0]


@_understood()
def compare(file_config: str, model_config: str) -> tuple[str | None, list[tuple[str, str]]]:
    """The `first_difference`, and the names of each two layers that compute the same."""
    theirs, ours = _parse(file_config), _parse(model_config)
    chains = _chain(theirs), _chain(ours)
    if chains[0] and chains[1]:  # the same by other layers: a mask more, an activation apart
        theirs, ours = _model_of_chain(chains[0]), _model_of_chain(chains[1])
    names = [(their.name, our.name) for their, our in zip(theirs.layers, ours.layers)]  # noqa: B905
    return _difference(theirs, ours), names


def quoted(name: str) -> str:
    """A name that a stranger chose, short and without control characters, for a message."""
    return repr(name[:60])


def _without_places(value: Any) -> Any:
    """The same JSON value; the code of unnamed functions is without its file and its lines."""
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__lambda__":
        return {**value, "config": {**value["config"], "code": _code(value["config"]["code"])}}
    value = {name: _without_places(part) for name, part in value.items()}
    activation = value.get("activation")
    if isinstance(activation, dict) and activation.keys() == {"value"}:  # an unnamed function, too
        code, *others = activation["value"]
        value["activation"] = {"value": [_code(code), *others]}
    return value


def _code(text: str) -> str:
    """Code as Keras writes it, base64 of what `marshal` makes: only ever of our own model."""

    def placeless(code: CodeType) -> CodeType:
        constants = tuple(
            placeless(part) if isinstance(part, CodeType) else part for part in code.co_consts
        )
        return code.replace(co_filename="", co_firstlineno=1, co_linetable=b"", co_consts=constants)

    code = placeless(marshal.loads(base64.b64decode(text)))
    # Later versions of the format depend on which objects happen to be shared.
    return base64.b64encode(marshal.dumps(code, 2)).decode()


def _parse(text: str) -> Model:
    """The model that a text describes; ValueError if it describes none."""
    try:
        # Infinity and NaN may stand in it; as words they equal themselves.
        content = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        raise ValueError("its model_config isn't JSON") from None
    return _model(content["class_name"], content["config"], '"batch_input_shape"' in text)


def _model(kind: str, config: Any, keras_2: bool) -> Model:
    entries = config if isinstance(config, list) else config["layers"]  # a list in Keras 2.1
    if not isinstance(kind, str) or not isinstance(entries, list):
        raise TypeError("a model has a type and a list of layers")
    if kind == "Sequential":
        layers = [_layer(entry, {}, keras_2) for entry in entries]
        if not layers or layers[0].kind != "InputLayer":
            layers.insert(0, Layer("input", "InputLayer", {}, [], None))
        layers[1:] = [
            layer._replace(calls=[Call([Output(number, 0, 0)], {})])
            for number, layer in enumerate(layers[1:])
        ]
        return Model("Functional", layers, [Output(0, 0, 0)], [Output(len(layers) - 1, 0, 0)])
    positions = {_layer_name(entry): number for number, entry in enumerate(entries)}
    if len(positions) < len(entries):
        raise ValueError("two layers of its model_config have the same name")
    layers = [_layer(entry, positions, keras_2) for entry in entries]
    ends = [_ends(config[name], positions) for name in ("input_layers", "output_layers")]
    return Model("Functional" if kind in MODELS else kind, layers, *ends)


def _layer_name(entry: dict[str, Any]) -> str:
    # A layer of one's own may leave its name out of its settings.
    name = entry.get("name") or entry["config"].get("name") or entry["class_name"]
    if not isinstance(name, str):
        raise TypeError("a layer's name is a text")
    return name


def _layer(entry: dict[str, Any], positions: dict[str, int], keras_2: bool) -> Layer:
    kind, config = entry["class_name"], entry["config"]
    if not isinstance(kind, str):
        raise TypeError("a layer's type is a text")
    model, settings = None, {}
    if kind in MODELS or "input_layers" in config:
        model = _model(kind, config, keras_2)
    elif kind == "InputLayer":
        settings = {"shape": config.get("batch_shape") or config.get("batch_input_shape")}
        settings |= {name: True for name in ("sparse", "ragged", "optional") if config.get(name)}
    else:
        settings = _essential(config)
        if settings.get("activation") == "hard_sigmoid" and keras_2:
            settings["activation"] = "hard_sigmoid of Keras 2"  # a steeper line
    calls = [_call(node, positions) for node in entry.get("inbound_nodes") or []]
    return Layer(_layer_name(entry), kind, settings, calls, model)


def _essential(value: Any) -> Any:
    """A layer's settings that change what it computes, in one form for all versions of Keras."""
    if isinstance(value, list):
        return [_essential(part) for part in value]
    if not isinstance(value, dict):
        return value
    settings = {}
    for name, part in value.items():
        if name in IGNORED or name.endswith(IGNORED_ENDINGS):
            continue
        essential = _dtype(part) if name == "dtype" else _essential(part)
        if name == "activation":
            essential = _activation(essential)
        if essential is not None:  # what an older version doesn't know is None in a newer one
            settings[name] = essential
    return settings


def _dtype(value: Any) -> Any:
    name = value["config"]["name"] if isinstance(value, dict) else value
    return None if name == "float32" else name


def _activation(value: Any) -> Any:
    if isinstance(value, dict) and value.get("class_name") == "function":
        value = value["config"]
    elif isinstance(value, dict) and value.get("class_name") == "ReLU":
        value = "relu" if _is_plain_relu(value["config"]) else value
    return OTHER_NAMES.get(value, value) if isinstance(value, str) else value or "linear"


def _is_plain_relu(settings: dict[str, Any]) -> bool:
    return "max_value" not in settings and not any(settings.values())


def _call(node: Any, positions: dict[str, int]) -> Call:
    """A call; `layers.Add()([a, b])` and `ops.add(a, b)`, of the same name, become the same."""
    if isinstance(node, dict):
        args, kwargs = (_resolved(node[name], positions) for name in ("args", "kwargs"))
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        return Call(args[0] if len(args) == 1 and isinstance(args[0], list) else args, kwargs)
    kwargs = {}  # Keras 2: a list of name, call, tensor and other arguments
    for part in node:
        kwargs.update(*part[3:])
    return Call(_ends([part[:3] for part in node], positions), kwargs)


def _resolved(value: Any, positions: dict[str, int]) -> Any:
    """An argument of Keras 3, with an Output wherever it has a layer's output."""
    if isinstance(value, list):
        return [_resolved(part, positions) for part in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__keras_tensor__":
        return _ends(value["config"]["keras_history"], positions)
    return {name: _resolved(part, positions) for name, part in value.items()}


def _ends(value: Any, positions: dict[str, int]) -> Any:
    """The Output that `[name, call, tensor]` means, or lists and dicts of them."""
    if isinstance(value, dict):
        return {name: _ends(part, positions) for name, part in value.items()}
    if len(value) == 3 and isinstance(value[0], str):
        return Output(positions[value[0]], value[1], value[2])
    return [_ends(part, positions) for part in value if isinstance(part, list | dict)]


def _listed(ends: Any) -> list[Any]:
    """The inputs or the outputs of a model; those that have names aren't in a list."""
    if isinstance(ends, Output):
        return [ends]
    return ends if isinstance(ends, list) else []


def _chain(model: Model) -> list[DenseLayer] | None:
    """The Dense layers of a model that is a chain of them, None if it isn't."""
    inputs, outputs = _listed(model.inputs), _listed(model.outputs)
    if model.kind != "Functional" or not inputs or len(outputs) != 1:
        return None
    output, chain, masks = outputs[0], list[Layer](), list[Output]()
    while output != inputs[0]:
        if len(chain) + len(masks) > len(model.layers):
            raise ValueError("the layers of its model_config form a circle")
        if not isinstance(output, Output) or output[1:] != (0, 0):
            return None
        layer = model.layers[output.layer]
        if len(layer.calls) != 1 or layer.calls[0].kwargs:
            return None
        sources = layer.calls[0].args
        if not chain and not masks and layer.kind == "Multiply" and not layer.settings:
            masks += [source for source in sources if source in inputs[1:]]
            sources = [source for source in sources if source not in masks]
        else:
            chain.append(layer)
        if len(sources) != 1:
            return None
        output = sources[0]
    # All else that there is: the observations; the mask and its multiplication.
    if len(inputs) != 1 + len(masks) or len(model.layers) != 1 + len(chain) + 2 * len(masks):
        return None
    for end in inputs:
        shape = model.layers[end.layer].settings
        if shape.keys() - {"shape"} or len(shape.get("shape") or (0, 0)) != 2:
            return None
    return _dense_layers(chain[::-1])


def _dense_layers(chain: list[Layer]) -> list[DenseLayer] | None:
    """The Dense layers of a chain, each with the activation that may follow as a layer."""
    dense: list[DenseLayer] = []
    for layer in chain:
        settings = dict(layer.settings)
        activation = settings.pop("activation", "linear")
        if layer.kind == "ReLU" and _is_plain_relu(settings):
            activation, settings = "relu", {}
        elif layer.kind == "Dense":
            units, use_bias = settings.pop("units"), settings.pop("use_bias", True)
            if type(units) is not int or type(use_bias) is not bool:
                raise TypeError("a number of units, and whether there is a bias")
            dense.append(DenseLayer(layer.name, units, use_bias, "linear"))
        elif layer.kind != "Activation":
            return None
        if not isinstance(activation, str | dict):
            raise TypeError("an activation is a name or an object")
        if settings or not isinstance(activation, str):
            return None
        if activation != "linear":
            if not dense or dense[-1].activation != "linear":
                return None
            dense[-1] = dense[-1]._replace(activation=activation)
    return dense or None


def _model_of_chain(chain: list[DenseLayer]) -> Model:
    layers = []
    for layer in chain:
        name, *settings = layer
        names = DenseLayer._fields[1:]
        layers.append(Layer(name, "Dense", dict(zip(names, settings, strict=True)), [], None))
    return Model("Functional", layers, [], [])


def _difference(theirs: Model, ours: Model) -> str | None:
    """`first_difference` of two models."""
    if theirs.kind != ours.kind:
        return f"the model is of type {_of_both(theirs.kind, ours.kind)}"
    for their, our in itertools.zip_longest(theirs.layers, ours.layers):
        if their is None:
            return f"layer {quoted(our.name)} of create_model has no counterpart in the file"
        if our is None:
            return f"layer {quoted(their.name)} of the file has no counterpart in create_model"
        name = f"layer {quoted(our.name)}"
        if their.kind != our.kind:
            return (
                f"layer {quoted(their.name)} of the file is of type {_word(their.kind)}; in its "
                f"place create_model has {quoted(our.name)} of type {_word(our.kind)}"
            )
        for setting in sorted({*their.settings, *our.settings}):
            values = their.settings.get(setting), our.settings.get(setting)
            if values[0] != values[1]:
                return f"{name} has {_setting(setting, *values)}"
        if their.model and our.model:
            inner = _difference(their.model, our.model)
            if inner:
                return f"in {quoted(our.name)}, {inner}"
        if their.calls != our.calls:
            sources = _sources(theirs, their), _sources(ours, our)
            if sources[0] != sources[1]:
                return f"{name} takes {_of_both(*sources)}"
            return f"{name} is called with other arguments in the file than in create_model"
    for ends in ("inputs", "outputs"):
        if getattr(theirs, ends) != getattr(ours, ends):
            return f"the {ends} are other ones in the file than in create_model"
    return None


def _of_both(theirs: object, ours: object) -> str:
    return f"{_word(theirs)} in the file, {_word(ours)} in create_model"


def _setting(name: str, theirs: Any, ours: Any) -> str:
    short = str | int | float | None
    if isinstance(theirs, short) and isinstance(ours, short):
        return f"{_word(name)} {_of_both(theirs, ours)}"
    return f"another {_word(name)} in the file than in create_model"


def _sources(model: Model, layer: Layer) -> str:
    """The names of the layers whose outputs a layer takes, call by call."""

    def names(value: Any) -> list[str]:
        if isinstance(value, Output):
            return [model.layers[value.layer].name]
        if isinstance(value, dict):
            value = list(value.values())
        return [name for part in value for name in names(part)] if isinstance(value, list) else []

    calls = [" and ".join(map(quoted, names([*call]))) for call in layer.calls]
    return "; then ".join(calls) or "nothing"


def _word(value: object) -> str:
    """A value for a message: short, and without control characters."""
    text = "none" if value is None else str(value)
    return text if text.isprintable() and len(text) < 90 else quoted(text)
