import json

import h5py
import numpy as np
import pytest
from conftest import equal, random_weights, snapshot_of_2018

from harness import snapshots
from harness.environments import make_environment
from harness.errors import UsageError
from harness.snapshots import can_be_saved, check_fit_for, load_snapshot, save_snapshot


@pytest.fixture(scope="module")
def networks(tensorflow):
    """Functions that make networks; their module imports Keras."""
    import networks

    return networks


def test_every_kind_of_network_is_saved_and_read_as_it_is(tmp_path, networks, monkeypatch):
    """By its own weights in another model, and by Keras' own reading of the file."""
    import keras

    own = {each.__name__: each for each in (networks.Dueling, networks.own_activation)}
    rng = np.random.default_rng(0)
    observations, mask = rng.normal(size=(20, 2)).astype(np.float32), np.ones((20, 3), np.float32)
    monkeypatch.setattr(snapshots, "_read_apart", snapshots.read_snapshot)
    for name, make in {**networks.CHAINS, **networks.OTHERS}.items():
        if name in networks.ACTIVATIONS[2:]:  # all the same here
            continue
        model, other = make(), make()
        model.set_weights([rng.normal(size=each.shape) for each in model.get_weights()])
        inputs = [observations, mask] if len(model.inputs) == 2 else observations
        assert can_be_saved(model) is None, name
        save_snapshot(tmp_path / "x.h5", model, {"env": name})
        snapshot = load_snapshot(tmp_path / "x.h5")
        assert snapshot.origin == {"env": name}
        for variable, value in zip(
            other.trainable_variables, snapshot.weights_for(other), strict=True
        ):
            variable.assign(value)
        expected = model(inputs)
        assert np.array_equal(other(inputs), expected), name
        if name not in networks.UNREADABLE:
            loaded = keras.models.load_model(tmp_path / "x.h5", own, False, safe_mode=False)
            assert np.array_equal(loaded(inputs), expected), name
        if snapshot.chain:
            arrays = iter(model.get_weights())
            for layer, (kernel, bias) in zip(
                snapshot.chain, zip(*[iter(snapshot.weights)] * 2, strict=True), strict=True
            ):
                assert np.array_equal(kernel, next(arrays))
                zeros = np.zeros(layer.units)
                assert np.array_equal(bias, next(arrays) if layer.use_bias else zeros)


def test_saving_says_nothing(tmp_path, networks, capfd, recwarn):
    model = networks.OTHERS["unnamed activation"]()
    assert can_be_saved(model) is None
    save_snapshot(tmp_path / "x.h5", model)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_a_network_that_no_file_can_describe_is_found_before(networks):
    keras, layers = networks.keras, networks.layers

    class Subclass(keras.Model):
        def __init__(self):
            super().__init__()
            self.output_layer = layers.Dense(3)

        def call(self, inputs):
            return self.output_layer(inputs[0])

    class Dense(layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    class Undescribed(layers.Layer):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def call(self, inputs):
            return self.function(inputs)

    class SameNames(layers.Layer):
        def build(self, shape):
            self.pair = [self.add_weight(shape=(3,), name="w") for _ in range(2)]

        def call(self, inputs):
            return inputs * self.pair[0] + self.pair[1]

    def relu(x):
        return 2 * x

    subclass = Subclass()
    subclass([np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32)])
    for model, says in [
        (subclass, "it is a subclass of keras.Model; make it with keras.Model(inputs, outputs)"),
        (networks.network(Dense(3, name="odd")), "layer 'odd' is made with another Dense than"),
        (networks.network(layers.Dense(3, relu, name="odd")), "'odd' is made with another relu"),
        (networks.network(Undescribed(lambda x: x[:, :1])), "Undescribed"),
        (networks.network(lambda x: SameNames()(layers.Dense(3)(x))), "name already exists"),
        (networks.dense(dtype="float64")(), "its weights aren't float32"),
    ]:
        why = can_be_saved(model)
        assert says in why
        assert why.isprintable()


def test_weights_for_another_network_are_refused_by_its_layer(tmp_path, networks):
    save_snapshot(tmp_path / "x.h5", networks.OTHERS["its own layer"]())
    snapshot = load_snapshot(tmp_path / "x.h5")
    dueling = networks.Dueling(3.0, name="duel")
    with pytest.raises(UsageError) as error:
        snapshot.weights_for(networks.network(lambda layer: dueling(networks.heads(layer))))
    assert str(error.value) == (
        f"can't use {snapshot.path}: layer 'duel' has start 2.0 in the file, 3.0 in create_model"
    )
    snapshot.arrays["duel"] = [np.ones(2, np.float32)]
    with pytest.raises(
        UsageError, match=r"weights of shape \(2,\) in the file, \(\) in create_model"
    ):
        snapshot.weights_for(networks.OTHERS["its own layer"]())
    with pytest.raises(UsageError, match="isn't a chain"):
        _ = snapshot.weights


def test_a_network_for_another_environment_is_refused(tmp_path, networks):
    cart = make_environment("CartPole-v1")
    for make in networks.dense(), networks.OTHERS["Add"]:
        save_snapshot(tmp_path / "x.h5", make())
        snapshot = load_snapshot(tmp_path / "x.h5")
        check_fit_for(make_environment("MountainCar-v0"), snapshot)
        with pytest.raises(UsageError, match=r"have 2 numbers and its actions are 3, but CartPole"):
            check_fit_for(cart, snapshot)


def test_the_layers_of_2018_are_ordered_by_their_connections_not_by_the_file(tmp_path, networks):
    weights = random_weights((2, 8, 3))

    def reverse(file):
        layers = file["model_weights"]
        layers.attrs["layer_names"] = layers.attrs["layer_names"][::-1]
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].reverse()
        file.attrs["model_config"] = json.dumps(config)

    path = tmp_path / "reversed.h5"
    path.write_bytes(snapshot_of_2018(weights, reverse))
    snapshot = load_snapshot(path)
    assert equal(snapshot.weights, weights)
    assert equal(snapshot.weights_for(networks.dense()()), weights)


def test_a_layer_of_very_long_names_is_read(networks, tmp_path):
    """Keras cuts them in parts, since HDF5 takes only so much."""
    layers = [networks.layers.Dense(2, name=f"{number}{'x' * 900}") for number in range(40)]
    deep = networks.keras.Sequential(layers, name="deep")
    model = networks.network(lambda layer: networks.layers.Dense(3)(deep(layer)))
    save_snapshot(tmp_path / "deep.h5", model)
    with h5py.File(tmp_path / "deep.h5") as file:
        assert "weight_names" not in file["model_weights/deep"].attrs
    assert equal(load_snapshot(tmp_path / "deep.h5").weights_for(model), model.get_weights())
