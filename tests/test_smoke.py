import run


def test_the_presets_change_known_hyperparameters_within_their_bounds():
    for values in run.PRESETS.values():
        for name, value in values.items():
            row = run.HYPERPARAMETERS[name]
            for number in value if isinstance(value, tuple) else (value,):
                assert row.least <= number <= row.most
