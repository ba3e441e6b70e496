"""`--resume`: what it refuses, and what a state that someone has altered can't do."""

import itertools
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
from conftest import weights_in
from endings import assert_same_end, points_in
from forked import EPISODE, EVERYTHING, train_forked
from tensorboard.backend.event_processing.directory_loader import DirectoryLoader
from tensorboard.backend.event_processing.event_file_loader import TimestampedEventFileLoader
from tensorboard.backend.event_processing.io_wrapper import IsSummaryEventsFile

import run
from harness import start
from harness.errors import UsageError
from harness.log_folder import RESULT_FILE, STATE_FILE, locked
from harness.settings import flags_of
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
    finished = "the run is finished at step 400; raise --max-steps to continue it"
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


def test_a_folder_that_has_lost_its_state_names_what_to_train_on_from(folder, refused):
    (folder / STATE_FILE).unlink()
    says = "no state was saved there; train its policy further: --model {} --train\n"
    assert says.format(folder) in refused("--resume", folder)
    (folder / "whole-best.h5").unlink()
    assert says.format(folder / "whole-97.h5") in refused("--resume", folder)


def test_a_sweep_is_resumed_by_the_program_for_sweeps(here, refused):
    (here / "car-sweep").mkdir()
    (here / "car-sweep/sweep.json").write_text("{}")
    for name in ("car-sweep", "car"):
        error = refused("--resume", name)
        assert "--resume: car-sweep is a sweep; resume it with " in error
        assert error.endswith("sweep.py --resume car-sweep\n")


def test_settings_that_no_longer_exist_are_named(folder, refused):
    unknown = {"warp": 9, "speed_of_light": 1}
    rewrite(folder / STATE_FILE, lambda document, _: document["settings"].update(unknown))
    error = refused("--resume", folder)
    assert "the state has settings that this version doesn't know: speed_of_light, warp" in error


def test_settings_edited_by_hand_are_named(folder, refused):
    rewrite(folder / STATE_FILE, lambda document, _: document["settings"].update(gamma=7))
    assert "--gamma: expected a number from 0 to 1, not 7" in refused("--resume", folder)


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
        arrays["q_validation_observations"] = np.array([Harm()])

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
    kept = [flag for flag in flags_of(run.Settings).values() if "config" in flag.places]
    for flag in kept:
        if flag.kind is str and flag.name != "env":
            continue  # a name of any kind; a preset's is looked up nowhere
        for value in (None, "x", -1, 10**30, math.nan, {"x": [1]}, [1.5, "x"]):
            if value is None and flag.default is None and flag.name != "seed":
                continue
            if value == -1 and flag.name == "until":
                continue
            path.write_bytes(good)
            rewrite(path, lambda document, _: document["settings"].update({flag.name: value}))  # noqa: B023
            refused("--resume", folder, "--max-steps", "500")
    for part, value in itertools.product(("settings", "progress"), ([], None, "x", 1.5)):
        path.write_bytes(good)
        rewrite(path, lambda document, _: document.update({part: value}))  # noqa: B023
        assert "isn't a state" in refused("--resume", folder, "--max-steps", "500")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.0", lambda array: array[:-1]),
        ("replay_buffer.next_row", lambda array: array + 10**6),
        ("replay_buffer.rows", lambda array: array[:, 1:]),
        ("q_validation_observations", lambda array: array[:, 1:]),
        ("rng", lambda generator: {**generator, "state": -1}),
        ("progress", lambda progress: {**progress, "step": True}),
        ("progress", lambda progress: {**progress, "evaluations": [[1, 2], "x"]}),
        ("progress", lambda progress: {**progress, "episode_returns": ["x"]}),
    ],
)
def test_a_state_that_does_not_fit_its_settings_is_refused(folder, name, change):
    def rewritten(document, arrays):
        parts = arrays, document, document["progress"], document["generators"]
        (part,) = (part for part in parts if name in part)
        part[name] = change(part[name])

    rewrite(folder / STATE_FILE, rewritten)
    training = train_forked(folder.parent, "--resume whole-log --max-steps 500")
    assert training.exitcode == 2
    assert re.fullmatch(
        r"run.py: error: --resume: (the state doesn't fit its own settings|.* isn't a state .*)\n",
        training.output,
    )


@pytest.mark.parametrize("episode", [EPISODE, 120], ids=["saved at its end", "saved before"])
def test_a_finished_run_with_more_steps_becomes_a_longer_one(unbroken, tmp_path, episode):
    """Its episodes end at step 407, or at 360 and 480, beyond the longer run's next evaluation."""
    flags = EVERYTHING.replace("=37", f"={episode}")
    shorter, longer = unbroken(flags), unbroken(f"{flags} --max-steps 500")
    folder = shutil.copytree(shorter, tmp_path / "whole-log")
    final = (folder / "whole-400.h5").read_bytes()
    assert load_state(folder / STATE_FILE).progress.step == {EPISODE: 407, 120: 360}[episode]
    training = train_forked(tmp_path, "--resume whole-log --max-steps 500 --threads 0")
    assert training.exitcode == 0, training.output
    threads = {"threads": 1}
    rewrite(folder / STATE_FILE, lambda document, _: document["settings"].update(threads))
    for path in shorter.glob("*.h5"):  # each snapshot says how long its run was meant to be
        ours, theirs = folder / path.name, longer / path.name
        if path.name != "whole-400.h5":
            assert all(map(np.array_equal, weights_in(ours), weights_in(theirs)))
            shutil.copy(theirs, ours)
    assert_same_end(folder, longer)
    assert (folder / "whole-400.h5").read_bytes() == final


def test_a_run_that_goes_on_has_no_result_until_it_ends(folder):
    assert json.loads((folder / RESULT_FILE).read_text())["status"] == "finished"
    accident = "step", 20, os._exit, 9
    train_forked(folder.parent, "--resume whole-log --max-steps 500", accident)
    assert not (folder / RESULT_FILE).exists()


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


def test_resuming_repeats_no_table_of_layers(train, here, capsys):
    train(name="once", env="Corridor-v0", seed=1, max_steps=30, train_start=9, eval_every=0)
    assert "q_network" in capsys.readouterr().out
    assert run.main(["--resume", "once-log", "--max-steps", "60"]) == 0
    assert capsys.readouterr().out.startswith("Resumed once-log at step 3")


def test_a_run_that_was_renamed_and_resumed_still_names_its_best_snapshot(train, here, capsys):
    few = {"max_steps": 400, "train_start": 50, "eval_every": 200, "eval_steps": 200}
    train(name="former", env="Corridor-v0", seed=1, **few)
    (here / "former-log").rename("later-log")
    best = {"best_average": 5.0, "evaluations": []}  # no evaluation to come is better
    rewrite(here / "later-log" / STATE_FILE, lambda document, _: document["progress"].update(best))
    capsys.readouterr()
    assert run.main(["--resume", "later", "--max-steps", "401"]) == 0
    assert "run.py --model later-log/former-best.h5 --eval\n" in capsys.readouterr().out


# TensorBoard's points


def events_files(folder):
    return sorted(path for path in folder.glob("events*") if not path.name.endswith("hparams"))


def several_files_at_once(folder):
    """The steps of an average's points, as `--reload_multifile=true` reads them."""
    loader = DirectoryLoader(
        str(folder),
        TimestampedEventFileLoader,
        path_filter=IsSummaryEventsFile,
        active_filter=lambda timestamp: True,
    )
    return [
        event.step
        for event in loader.Load()
        for value in event.summary.value
        if value.tag == "episode_return_avg"
    ]


def test_all_points_are_shown_though_the_clock_was_set_back(folder):
    """The events file is a day ahead, and of another host."""
    (file,) = events_files(folder)
    number = int(file.name.split(".")[3]) + 86400
    later = file.rename(folder / f"events.out.tfevents.{number}.zzz.1")
    before = points_in(folder)
    accident = "step", 20, os._exit, 9
    for accidents in ([accident], []):  # a resumed run that is killed, and the next one
        training = train_forked(folder.parent, "--resume whole-log --max-steps 500", *accidents)
    assert training.exitcode == 0
    assert events_files(folder)[0] == later
    assert len(events_files(folder)) == 3
    points = points_in(folder)["episode_return_avg"]
    assert [step for step, _ in points] == list(range(50, 501, 50))
    assert several_files_at_once(folder) == list(range(50, 501, 50))
    assert points[:8] == before["episode_return_avg"]


def test_the_point_at_the_step_of_the_state_stays(train, here):
    """An episode ended at the step that was evaluated and saved last."""
    few = {"max_steps": 40, "train_start": 10, "eval_every": 20, "eval_steps": 1, "hidden": (4,)}
    changes = {"set": {"max_episode_steps": 20}}
    folder, _ = train(name="x", env="Endless-v0", seed=1, log_every=20, **few, **changes)
    assert load_state(folder / STATE_FILE).progress.step == 40
    assert run.main(["--resume", "x-log", "--max-steps", "80"]) == 0
    for tag in "episode_return_avg", "episode_return", "avg_max_q_value":
        assert [step for step, _ in points_in(folder)[tag]] == [20, 40, 60, 80]


def test_an_environment_that_ignores_its_seed_goes_on_with_the_next_episode(train, here, capsys):
    few = {"max_steps": 305, "train_start": 50, "eval_every": 100, "eval_steps": 20, "n_step": 5}
    train(name="u", env="Wayward-v0", seed=1, epsilon=0.5, **few)
    before = load_state(here / "u-log" / STATE_FILE).progress
    assert run.main(["--resume", "u-log", "--max-steps", "400"]) == 0
    after = load_state(here / "u-log" / STATE_FILE).progress
    assert after.step >= 400
    assert after.episode_steps[: before.episode] == before.episode_steps
    assert len(after.episode_steps) == after.episode
