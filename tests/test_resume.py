"""`--resume`: what it refuses, and what a state that someone has altered can't do."""

import itertools
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
from forked import EVERYTHING, train_forked

import run
from harness import start
from harness.errors import UsageError
from harness.log_folder import STATE_FILE, locked
from harness.state import VERSION, load_state
from harness.whole_files import seal


@pytest.fixture
def folder(unbroken, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(unbroken(EVERYTHING), tmp_path / "whole-log")


def rewrite(path, change):
    """Change a state file, and seal it again as one who means harm would."""
    with np.load(path) as file:
        arrays = dict(file)
    document = json.loads(arrays.pop("json").tobytes())
    change(document, arrays)
    arrays["json"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes() + seal(path.read_bytes()))


def test_a_finished_run_is_not_resumed(folder, refused):
    equal = "--seed", "1", "--hidden", "8,8", "--env", "MountainCar-v0", "--n-step", "3"
    finished = "the run is finished at step 400; raise --max-steps or --until to go on"
    for flags in ((), equal):
        assert finished in refused("--resume", folder, *flags)


def test_conflicting_flags_are_refused(folder, refused):
    conflicts = ("--gamma", "0.5"), ("--seed", "2"), ("--env", "CartPole-v1"), ("--hidden", "8")
    for flags in conflicts:
        assert flags[0] in refused("--resume", folder, *flags)


def test_until_needs_evaluations_in_a_resumed_run_too(folder, refused):
    rewrite(folder / STATE_FILE, lambda document, _: document["settings"].update(eval_every=0))
    flags = "--max-steps", "90000", "--until", "-110"
    assert "--until needs evaluations" in refused("--resume", folder, *flags)


def test_a_folder_without_state_is_refused(tmp_path, refused):
    assert "no run was saved there; start it again" in refused("--resume", tmp_path)
    assert "no such folder" in refused("--resume", tmp_path / "nothing")


def test_a_state_that_is_no_file_is_refused(tmp_path, refused):
    os.mkfifo(tmp_path / STATE_FILE)
    assert "isn't a file" in refused("--resume", tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda document, arrays: document.update(version=VERSION + 1),
        lambda document, arrays: document["settings"].pop("env"),
    ],
)
def test_a_state_of_another_version_is_refused(folder, refused, change):
    rewrite(folder / STATE_FILE, change)
    assert "another version" in refused("--resume", folder)


def test_a_damaged_state_is_refused(folder, refused):
    path = folder / STATE_FILE
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "the file isn't whole" in refused("--resume", folder)
    path.write_bytes(data[:100] + b"?" + data[101:])
    assert "the file is damaged" in refused("--resume", folder)


def test_a_state_made_to_do_harm_is_refused(folder, refused):
    path = folder / STATE_FILE
    good = path.read_bytes()
    marker = folder / "executed"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")

    class Harm:
        def __reduce__(self):
            return open, (str(marker), "w")

    def imported(document, arrays):
        document["settings"]["env"] = "whole-log.evil:Car-v0"

    def pickled(document, arrays):
        arrays["q_values"] = np.array([Harm()])

    for change in pickled, imported:
        path.write_bytes(good)
        rewrite(path, change)
        refused("--resume", folder, "--max-steps", "500")
    with np.load(path) as file:
        np.savez_compressed(path, **file)  # could be a bomb
    path.write_bytes(path.read_bytes() + seal(path.read_bytes()))
    assert "isn't a state" in refused("--resume", folder)
    path.write_bytes(seal(b""))
    refused("--resume", folder)
    assert not marker.exists()


def test_a_state_of_impossible_settings_is_refused(folder, refused):
    path = folder / STATE_FILE
    good = path.read_bytes()
    for name in (*run.HYPERPARAMETERS, "seed", "threads", "env", "set"):
        for value in (None, "x", -1, 10**30, math.nan, {"x": "y"}, [1.5, "x"]):
            path.write_bytes(good)
            rewrite(path, lambda document, _: document["settings"].update({name: value}))  # noqa: B023
            refused("--resume", folder, "--max-steps", "500")
    for part, value in itertools.product(("settings", "progress"), ([], None, "x", 1.5)):
        path.write_bytes(good)
        rewrite(path, lambda document, _: document.update({part: value}))  # noqa: B023
        assert "isn't a state" in refused("--resume", folder, "--max-steps", "500")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.0", lambda array: array[:-1]),
        ("q_values", lambda array: array[:0]),
        ("replay_buffer.next_row", lambda array: array + 10**6),
        ("replay_buffer.pending_rewards", lambda array: np.zeros(1000)),
        ("progress", lambda progress: {**progress, "step": True}),
        ("progress", lambda progress: {**progress, "evaluations": [[1, 2], "x"]}),
        ("episode", lambda episode: {**episode, "seed": -1}),
        ("episode", lambda episode: {**episode, "actions": ["x"]}),
    ],
)
def test_a_state_that_does_not_fit_its_settings_is_refused(folder, name, change):
    def rewritten(document, arrays):
        parts = arrays, document, document["progress"]
        (part,) = (part for part in parts if name in part)
        part[name] = change(part[name])

    rewrite(folder / STATE_FILE, rewritten)
    training = train_forked(folder.parent, "--resume whole-log --max-steps 500")
    assert training.exitcode == 2
    assert re.fullmatch(
        r"run.py: error: --resume: (the state doesn't fit its own settings|.* isn't a state .*)\n",
        training.output,
    )


def test_a_run_goes_on_with_more_steps_and_other_threads(folder):
    more = train_forked(folder.parent, "--resume whole-log --max-steps 450 --threads 0")
    assert more.exitcode == 0, more.output
    assert (folder / "whole-450.h5").exists()


def test_two_processes_do_not_train_in_one_folder(folder, refused):
    with locked(folder):
        error = refused("--resume", folder, "--max-steps", "500")
    assert "another process is using" in error


def test_the_state_is_read_by_one_that_has_locked_the_folder(folder, monkeypatch):
    """Else it could be that of a process which saves a later one before it ends."""
    read = start.load_state

    def checked(path):
        with pytest.raises(UsageError, match="another process is using"), locked(folder):
            pass
        return read(path)

    monkeypatch.setattr(start, "load_state", checked)
    assert run.main(["--resume", str(folder), "--max-steps", "410"]) == 0


def test_a_run_that_has_saved_nothing_yet_is_in_use_not_lost(tmp_path, refused):
    (tmp_path / "new-log").mkdir()
    with locked(tmp_path / "new-log"):
        assert "another process is using" in refused("--resume", "new-log")


def test_an_environment_that_ignores_its_seed_goes_on_with_a_new_episode(train, here, capsys):
    few = {"max_steps": 305, "train_start": 50, "eval_every": 100, "eval_steps": 20, "n_step": 5}
    train(name="u", env="Wayward-v0", seed=1, epsilon=0.5, **few)
    before = load_state(here / "u-log" / STATE_FILE)
    assert before.progress.episode.actions  # it stopped within an episode
    capsys.readouterr()
    assert run.main(["--resume", "u-log", "--max-steps", "400"]) == 0
    number = before.progress.episode.number
    line = f"Wayward-v0 ignores its seed: episode {number} can't be taken up where it was"
    assert f"{line}; episode {number + 1} begins\n" in capsys.readouterr().out
    assert load_state(here / "u-log" / STATE_FILE).progress.step == 400


def test_resuming_repeats_no_table_of_layers(train, here, capsys):
    train(name="once", env="Corridor-v0", seed=1, max_steps=30, eval_every=0)
    assert "q_network" in capsys.readouterr().out
    assert run.main(["--resume", "once-log", "--max-steps", "60"]) == 0
    assert capsys.readouterr().out.startswith("Resumed once-log at step 30\n")


def test_a_run_that_was_renamed_and_resumed_still_names_its_best_snapshot(train, here, capsys):
    few = {"max_steps": 400, "train_start": 50, "eval_every": 200, "eval_steps": 200}
    train(name="former", env="Corridor-v0", seed=1, **few)
    (here / "former-log").rename("later-log")
    best = {"best_average": 5.0}  # no evaluation to come is better
    rewrite(here / "later-log" / STATE_FILE, lambda document, _: document["progress"].update(best))
    capsys.readouterr()
    assert run.main(["--resume", "later", "--max-steps", "401"]) == 0
    assert "run.py --model later-log/former-best.h5 --eval\n" in capsys.readouterr().out
