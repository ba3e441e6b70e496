import contextlib
import json
import random
import re
import sys

import h5py
import pytest
from conftest import ROOT, config_of_2018, random_weights

from harness.description import (
    DenseLayer,
    compare,
    dense_chain,
    description_of,
    first_difference,
    input_sizes,
)


@pytest.fixture(scope="module")
def networks(tensorflow):
    """Functions that make networks; their module imports Keras."""
    import networks

    return networks


def described(make):
    return description_of(make())


def test_chains_of_dense_layers_are_recognised(networks):
    chains = {name: dense_chain(described(make)) for name, make in networks.CHAINS.items()}
    assert all(chains.values()), chains
    activations = {name: [layer.activation for layer in chains[name]] for name in chains}
    for name in networks.ACTIVATIONS:
        assert activations[name] == ["relu", name, "linear"][-len(chains[name]) :]
    assert activations["a ReLU layer"] == activations["Sequential"] == ["relu", "linear"]
    assert activations["two layers of activations"] == ["relu", "linear"]
    assert activations["an Activation layer"] == ["tanh", "linear"]
    assert activations["a ReLU object"] == ["relu", "relu", "linear"]
    assert activations["an activation of its own"] == ["relu", "own_activation", "linear"]
    assert activations["linear"] == activations["an operation as the mask"] == ["linear"]
    assert chains["without bias"] == [
        DenseLayer("hidden_1", 8, False, "relu"),
        DenseLayer("output", 3, True, "linear"),
    ]


def test_other_networks_are_no_chains(networks):
    for name, make in networks.OTHERS.items():
        assert dense_chain(described(make)) is None, name
    assert dense_chain(described(networks.dense(dtype="float64"))) is None


def test_inputs_in_another_order_or_shape_are_no_chain(networks):
    keras = networks.keras
    observations, mask = keras.layers.Input((2,)), keras.layers.Input((2,))
    masked = keras.layers.Multiply()([keras.layers.Dense(2)(observations), mask])
    assert dense_chain(description_of(keras.Model([observations, mask], masked)))
    assert dense_chain(description_of(keras.Model([mask, observations], masked))) is None
    squared = keras.layers.Multiply()([keras.layers.Dense(2)(observations), observations])
    assert dense_chain(description_of(keras.Model(observations, squared))) is None
    both = [masked, observations]
    assert dense_chain(description_of(keras.Model([observations, mask], both))) is None
    picture = keras.layers.Input((4, 2))
    assert dense_chain(description_of(keras.Model(picture, keras.layers.Dense(3)(picture)))) is None


def test_what_keras_saves_is_what_describes_the_model(networks, tmp_path):
    for make in networks.dense(), networks.OTHERS["dueling"], networks.sequential:
        model = make()
        model.save(tmp_path / "model.h5")
        with h5py.File(tmp_path / "model.h5") as file:
            assert json.loads(file.attrs["model_config"]) == json.loads(description_of(model))
        # Other texts of Keras describe the same.
        assert first_difference(model.to_json(), description_of(model)) is None


def test_every_network_differs_from_all_others_but_not_from_itself(networks):
    makers = {**networks.CHAINS, **networks.OTHERS}
    texts = {name: (described(make), described(make)) for name, make in makers.items()}
    same = {}
    for name, (text, _) in texts.items():
        same[name] = {other for other in texts if first_difference(text, texts[other][1]) is None}
        assert name in same[name]
    # Whatever computes the same is the same.
    groups = {tuple(sorted(names)) for names in same.values() if len(names) > 1}
    assert sorted(groups) == [
        ("a ReLU layer", "two layers of activations"),
        ("a ReLU object", "relu"),
        ("an operation as the mask", "linear"),
    ]


def test_the_first_difference_names_the_layer(networks):
    dense, network, layers = networks.dense, networks.network, networks.layers
    plain = dense()
    both = " in the file than in create_model"
    for theirs, ours, expected in [
        (
            dense(first="tanh"),
            plain,
            "layer 'hidden_1' has activation tanh in the file, relu in create_model",
        ),
        (
            plain,
            lambda: network(layers.Dense(3, name="q")),
            "layer 'q' has activation relu in the file, linear in create_model",
        ),
        (
            plain,
            dense(("Dense", {"units": 3, "name": "second"})),
            "layer 'output' of create_model has no counterpart in the file",
        ),
        (
            plain,
            dense(("LeakyReLU", {"name": "leaky"})),
            "layer 'output' of the file is of type Dense; in its place create_model has 'leaky' "
            "of type LeakyReLU",
        ),
        (
            dense(("LayerNormalization", {"epsilon": 0.1, "name": "norm"})),
            dense(("LayerNormalization", {"name": "norm"})),
            "layer 'norm' has epsilon 0.1 in the file, 0.001 in create_model",
        ),
        (
            dense(("Rescaling", {"scale": [1.0] * 8, "name": "scale"})),
            dense(("Rescaling", {"scale": [2.0] * 8, "name": "scale"})),
            "layer 'scale' has another scale" + both,
        ),
        (
            lambda: network(lambda x: networks.nested(x, "tanh")),
            lambda: network(networks.nested),
            "in 'inner', layer 'DENSE' has activation tanh in the file, relu in create_model",
        ),
        (
            lambda: network(lambda x: networks.shared(x, 3)),
            lambda: network(networks.shared),
            "layer 'twice' takes 'observations'; then 'twice'; then 'twice' in the file, "
            "'observations'; then 'twice' in create_model",
        ),
        (
            lambda: network(lambda x: layers.Add(name="sum")([layers.Dense(3, name="a")(x)] * 2)),
            lambda: network(
                lambda x: layers.Add(name="sum")([layers.Dense(3, name="a")(x), x[:, :1]])
            ),
            "layer 'sum' of the file",
        ),
        (
            lambda: network(lambda x: layers.Dense(3, name="a")(x) * 2.0),
            lambda: network(lambda x: layers.Dense(3, name="a")(x) * 3.0),
            "is called with other arguments" + both,
        ),
        (
            lambda: network(layers.Dense(3), size=4),
            lambda: network(networks.residual),
            "layer 'observations' has another shape" + both,
        ),
    ]:
        found = first_difference(described(theirs), described(ours))
        found = re.sub(r"'dense(_\d+)?'", "'DENSE'", found or "none")
        assert expected in found


def test_unnamed_functions_are_compared_by_what_they_do_not_where_they_stand(networks):
    lambdas = [lambda x: x * 2.0, lambda x: x * 2.0, lambda x: x * 3.0]
    for place in "Lambda", "Dense":
        settings = [
            {"function": code, "name": "own"} if place == "Lambda" else
            {"activation": code, "units": 5, "name": "own"}
            for code in lambdas
        ]  # fmt: skip
        first, same, other = (described(networks.dense((place, each))) for each in settings)
        assert first_difference(first, same) is None
        assert "layer 'own' has another " in first_difference(other, same)


def test_a_file_of_keras_2_is_compared_with_a_model_of_keras_3(networks):
    config = config_of_2018(random_weights((2, 8, 3)))
    text = json.dumps(config)
    difference, names = compare(text, described(networks.dense()))
    assert (difference, names) == (None, [("dense_1", "hidden_1"), ("dense_2", "output")])
    assert first_difference(text, described(networks.dense(first="tanh"))) == (
        "layer 'hidden_1' has activation relu in the file, tanh in create_model"
    )
    assert input_sizes(text) == input_sizes(described(networks.dense())) == [2, 3]
    # Another function had this name in Keras 2.
    text = text.replace('"relu"', '"hard_sigmoid"')
    assert "hard_sigmoid of Keras 2" in first_difference(
        text, described(networks.dense(first="hard_sigmoid"))
    )
    assert dense_chain(text.replace("hard_sigmoid", "swish"))[0].activation == "silu"


def test_a_sequential_model_of_keras_2_1_is_a_list_of_layers():
    dense = [
        {"name": f"dense_{number}", "units": units, "activation": "linear", "use_bias": True}
        for number, units in enumerate((8, 3), start=1)
    ]
    layers = [{"class_name": "Dense", "config": config} for config in dense]
    layers.insert(1, {"class_name": "Activation", "config": {"name": "a", "activation": "relu"}})
    found = dense_chain(json.dumps({"class_name": "Sequential", "config": layers}))
    assert found == [
        DenseLayer("dense_1", 8, True, "relu"),
        DenseLayer("dense_2", 3, True, "linear"),
    ]


def altered(**changes):
    """A description whose layer `dense_2` has other settings."""
    config = config_of_2018(random_weights())
    for layer in config["config"]["layers"]:
        if layer["name"] == "dense_2":
            layer["config"].update(changes)
    return json.dumps(config)


def connected(name, *sources):
    """A description in which one layer takes other layers' outputs."""
    config = config_of_2018(random_weights())
    for layer in config["config"]["layers"]:
        if layer["name"] == name:
            layer["inbound_nodes"] = [[[source, 0, 0, {}] for source in sources]]
    return json.dumps(config)


def renamed(name):
    return json.dumps(config_of_2018(random_weights())).replace("dense_2", name)


NO_DESCRIPTIONS = {
    "deep lists": ("[" * 10**6, "isn't JSON"),
    "deep dicts": ('{"a":' * 10**5, "isn't JSON"),
    "deep connection": (connected("dense_2").replace("[[]]", "[" * 900 + "]" * 900), "isn't a"),
    "deep settings": (altered(x=1).replace('"x": 1', '"x": ' + "[" * 900 + "]" * 900), "isn't a"),
    "no JSON": ("{'class_name': Model}", "isn't JSON"),
    "long number": (altered().replace("8", "8" * 9000), "isn't JSON"),
    "a list": ("[]", "isn't a description"),
    "a number": ("7", "isn't a description"),
    "no layers": ('{"class_name": "Model", "config": {}}', "isn't a description"),
    "layers of numbers": (
        '{"class_name": "Sequential", "config": {"layers": [1, 2]}}',
        "isn't a description",
    ),
    "a layer's name is a number": (
        '{"class_name": "Sequential", "config": [{"class_name": "Dense", "config": {"name": 3}}]}',
        "isn't a description",
    ),
    "units are a text": (altered(units="8"), "isn't a description"),
    "units are no number": (altered(units=float("nan")), "isn't a description"),
    "an activation is a number": (altered(activation=8), "isn't a description"),
    "two of a name": (renamed("dense_1"), "have the same name"),
    "a circle": (connected("dense_1", "dense_3"), "form a circle"),
    "no such source": (connected("dense_1", "nowhere"), "isn't a description"),
    "another model": ('{"class_name": "Robot", "config": []}', "isn't a description"),
}


@pytest.mark.parametrize("name", NO_DESCRIPTIONS)
def test_what_is_no_description_is_refused(name):
    text, says = NO_DESCRIPTIONS[name]
    if name.startswith("deep") and sys.version_info >= (3, 13):  # its JSON reads deeper ones
        with contextlib.suppress(ValueError):
            assert dense_chain(text) is None
        return
    with pytest.raises(ValueError, match=re.escape(says)):
        dense_chain(text)


def test_layers_beside_the_chain_and_circles_elsewhere_make_it_no_chain():
    assert dense_chain(connected("dense_3", "dense_1")) is None
    assert dense_chain(connected("multiply", "dense_3")) is None
    assert dense_chain(connected("multiply", "multiply", "action_mask")) is None


def test_a_difference_is_one_short_line_whatever_a_file_says():
    ours = altered()
    for theirs in (
        renamed("\\u001b[2J\\n\\ud800").replace('"relu"', '"tanh"'),
        altered(activation="x\n" * 10**5),
        altered(**{"\x1b" * 10**5: 1}),
        altered().replace('"Dense"', '"' + "x" * 10**5 + '"'),
        connected("dense_1", *["observations"] * 9999),
    ):
        found = first_difference(theirs, ours)
        assert found.isprintable()
        assert len(found) < 400


ODD_VALUES = [None, True, -1, 1.5, "", [], {}, [[]], ["a", 0, 0], "Dense", "Multiply", "relu"]


def altered_at_random(value, share, rng):
    """A JSON value, of which a share of the parts is missing or something else."""
    if rng.random() < share:
        return rng.choice(ODD_VALUES)
    if isinstance(value, dict):
        kept = [name for name in value if rng.random() > share]
        return {name: altered_at_random(value[name], share, rng) for name in kept}
    if isinstance(value, list):
        return [altered_at_random(part, share, rng) for part in value if rng.random() > share]
    return value


def test_2000_descriptions_altered_at_random_are_read_or_refused(networks):
    rng = random.Random(4)
    texts = [json.dumps(config_of_2018(random_weights())), described(networks.OTHERS["nested"])]
    with h5py.File(ROOT / "assets" / "mountain.h5") as file:
        texts.append(file.attrs["model_config"])
    results = set()
    for number in range(2000):
        text = texts[number % 3]
        config = altered_at_random(json.loads(text), rng.choice([0.001, 0.01, 0.05]), rng)
        for read in dense_chain, input_sizes, lambda altered: first_difference(altered, text):  # noqa: B023
            try:
                results.add(str(read(json.dumps(config))))
            except ValueError as error:
                results.add(str(error))
    assert len(results) > 100
    assert all(result.isprintable() for result in results)
