"""The fields of a settings class, which are the flags."""

import dataclasses

import pytest

import run
from harness.errors import UsageError
from harness.settings import COMMANDS, EVERYWHERE, Actions, PlaySettings, flags_of

WORDS = {*COMMANDS, "change", "sweep", "search", "see"}


@pytest.mark.parametrize("kind", [run.Settings, Actions, PlaySettings])
def test_every_field_is_a_flag_with_bounds_help_and_commands(kind):
    flags = flags_of(kind, presets=run.PRESETS)
    assert set(flags) == {field.name for field in dataclasses.fields(kind)}
    for flag in flags.values():
        assert flag.kind in (int, float, bool, str, tuple, dict)
        if flag.kind in (int, float, tuple):
            assert flag.least < flag.most
        assert flag.help and flag.group and flag.commands
        assert flag.commands <= WORDS and flag.places <= EVERYWHERE
        assert flag.default is None or flag.check(flag.default) == flag.default


def test_a_field_that_is_no_setting_is_named():
    kind = dataclasses.make_dataclass("Mine", [("reward_scale", float, 1.0)])
    with pytest.raises(UsageError, match=r"Mine.reward_scale: expected setting\(default, least"):
        flags_of(kind)


def test_a_preset_holds_values_that_its_flags_take():
    flags = flags_of(run.Settings)
    for values in run.PRESETS.values():
        assert all(flags[name].check(value) == value for name, value in values.items())
        assert all("sweep" in flags[name].commands for name in values)
