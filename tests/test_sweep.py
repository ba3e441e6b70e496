import argparse
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweeping import SWEEP, make

import run
import sweep
from harness.settings import as_text, flag_name, training_settings
from harness.start import read_command_line
from harness.sweeps import cluster
from harness.sweeps.grid import Trial, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("20", range(20)),
        ("5-5", [5]),
        ("0-4,10-14", [*range(5), *range(10, 15)]),
        ("7,3,5-8,7", [7, 3, 5, 6, 8]),  # each of them once
        ("2147483647,0", [2147483647, 0]),
    ],
)
def test_seeds_are_a_count_or_a_list_of_seeds_and_ranges(text, seeds):
    assert parse_seeds(text) == list(seeds)


@pytest.mark.parametrize("text", ["0", "9-3", "x", "1.5", "", "1,", "20000", "2147483648,1"])
def test_other_seeds_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected how many"):
        parse_seeds(text)


def test_every_combination_runs_with_every_seed():
    trials = make("--seeds 3 --learning-rate 0.001 0.0005 --hidden 32,32 64,64")
    rates, sizes = ("0.001", "0.0005"), ("32,32", "64,64")
    assert [(trial.configuration, trial.seed) for trial in trials] == [
        (f"--learning-rate {rate} --hidden {hidden}", seed)
        for rate, hidden, seed in itertools.product(rates, sizes, range(3))
    ]
    assert len({trial.name for trial in trials}) == 12


def test_every_hyperparameter_takes_several_values():
    for name, flag in sweep.TRAINER.flags.items():
        if "search" in flag.commands:
            value = as_text(flag.default)
            given = sweep.parse_arguments([flag_name(name), value, value])
            assert given[name] == [flag.default, flag.default]


def test_a_trial_is_the_run_that_its_flags_start():
    flags = "--preset tuned --epsilon 0.2 --set gravity=0.002 --set force=0.002 --until -110.0"
    (trial,) = make(f"--seeds 4-4 {flags}")
    assert " ".join(trial.arguments) == flags
    _, given = read_command_line(trial.arguments, run.Settings, run.PRESETS)
    settings = training_settings(run.Settings, given, run.PRESETS)
    assert (settings.epsilon, settings.n_step) == (0.2, run.PRESETS["tuned"]["n_step"])
    assert settings.set == {"gravity": 0.002, "force": 0.002}
    assert (trial.seed, trial.max_steps, settings.until) == (
        4,
        run.PRESETS["tuned"]["max_steps"],
        -110,
    )


def test_a_value_given_twice_runs_once():
    assert len(make("--seeds 1 --epsilon 0.1 0.10 --preset tuned tuned")) == 1


def test_repeated_set_changes_two_numbers_at_once():
    trials = make("--seeds 1 --set gravity=0.002 gravity=0.003 --set force=0.002")
    changes = [{"gravity": gravity, "force": 0.002} for gravity in (0.002, 0.003)]
    assert [t.flags["set"] for t in trials] == changes


def test_what_is_solved_depends_on_the_environment():
    trials = make("--seeds 1 --env MountainCar-v0 CartPole-v1")
    assert [t.solved_from for t in trials] == [-110, 475]
    assert [t.solved_from for t in make("--seeds 1 --until -100")] == [-110]


def test_what_solves_an_environment_without_a_threshold_is_until_or_a_goal():
    endless = "--seeds 1 --env conftest:Endless-v0 --set max_episode_steps=50"
    assert [
        make(f"{endless}{more}")[0].solved_from for more in ("", " --until 3", " --goal 4")
    ] == [*(None, 3, 4)]


def test_without_flags_the_tutorials_settings_run_with_ten_seeds():
    assert [t.name for t in make("")] == [f"preset-tutorial-seed-{seed}" for seed in range(10)]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--preset tuned --gamma 0.9 0.99 --epsilon 0.1", ["gamma-0.9", "gamma-0.99"]),
        ("--learning-rate 1e-5 0.1 --hidden 8,8", ["learning-rate-1e-05", "learning-rate-0.1"]),
        (
            "--set gravity=0.002 gravity=0.003 --set force=0.002",
            ["set-gravity=0.002", "set-gravity=0.003"],
        ),
        ("--preset tuned --max-steps 1000", ["preset-tuned"]),
        ("--max-steps 1000", ["run"]),
        ("", ["preset-tutorial"]),
    ],
)
def test_only_what_differs_names_a_configuration(arguments, names):
    assert [trial.name for trial in make(f"--seeds 3-3 {arguments}")] == [
        f"{name}-seed-3" for name in names
    ]


def test_added_seeds_keep_the_names():
    asked = sweep.parse_arguments(["--seeds", "2", "--max-steps", "1000"])
    before, after = sweep.plan(asked), sweep.plan(asked, [0, 1, 2])
    assert [trial.name for trial in after[:2]] == [trial.name for trial in before]


def test_long_names_are_cut_and_stay_unique():
    trials = make("--seeds", "1", "--hidden", *(",".join(["100"] * 80 + [i]) for i in "123"))
    assert len({trial.name for trial in trials}) == 3
    for trial in trials:
        assert len(f".{trial.name}-1000000000.partial.h5".encode()) <= 255
        assert trial.name.startswith("hidden-100,100,")


def test_names_with_characters_that_files_cannot_have_stay_unique():
    names = [Trial({"env": env}, 0, 1000, -110).name for env in ("a/b", "a:b", "é")]
    assert len(set(names)) == 3
    assert not set("".join(names)) & set("/:é")


def test_nodes_of_a_cluster_are_sent_the_program_and_the_users_own_modules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    registering = "import gym\ngym.register('{}', 'gym.envs.classic_control:MountainCarEnv')\n"
    (tmp_path / "lone.py").write_text(registering.format("Lone-v0"))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/hills.py").write_text(registering.format("Packed-v0"))
    make("--env", "lone:Lone-v0", "packed.hills:Packed-v0")
    sent = set(cluster.sent_modules())
    project = SWEEP.parent
    assert {project / "run.py", project / "loggers.py", project / "harness"} <= sent
    assert {tmp_path / "lone.py", tmp_path / "packed"} <= sent
    assert not {path.name for path in sent} & {"tests", "assets", ".git", "gym"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds 0", "--seeds: expected how many"),
        ("--epsilon 0.1 2", "--epsilon: expected a number from 0 to 1"),
        ("--preset best", "--preset: expected one of tutorial, tuned, not 'best'"),
        ("--jobs 0", "--jobs: expected a whole number"),
        ("--nonsense", "unrecognized argument --nonsense"),
        ("--address nowhere:1", "no cluster answers there"),
        ("--resume nowhere", "--resume 'nowhere': no such folder; there is no sweep here"),
        ("--resume .", "it has no sweep.json"),
        ("--resume x --gamma 0.9", "--gamma: a resumed sweep keeps what it was started with"),
        ("--eval-every 0", "a run is judged by its last evaluation"),
        ("--batch-size 64 60000", "--batch-size: expected no more than the --buffer-size"),
        ("--env Unheard-v0", "neither gym nor gymnasium knows it"),
        ("--set gravity=1 speed=2", "no such number"),
        ("--gamma 0.9:0.99", "--gamma: a range needs --search N"),
        ("--confirm 2", "--confirm does nothing without --search"),
        ("--confirm-seeds 2", "--confirm-seeds does nothing without --search"),
        ("--search 2", "nothing varies"),
        ("--search 2 --gamma 0.9 0.90", "nothing varies"),
        ("--search 2 --gamma 0.9:0.99 0.5", "one range, or several values"),
        ("--search 2 --gamma 0.9:0.99 --until -110", "leave it out"),
        ("--search 2 --preset tuned tutorial", "--preset: a search can't vary it"),
        (
            "--search 2 --gamma 0.8:0.9 --env CartPole-v1 Blackjack-v1",
            "name one for each with --goal",
        ),
        ("--search 2 --gamma 0.8:0.9 --goal 1 2", "expected one return for each --env, 1 of them"),
        ("--goal high", "expected a number from -1000000000 to 1000000000, not 'high'"),
        ("--output x.png", "--output does nothing without --show"),
        ("--search 2 --set gravity=1 gravity=2", "--set: a search can't vary it"),
        ("--search 2 --max-steps 100:200", "--max-steps: a search can't vary it"),
        ("--search 2 --batch-size 64:60000", "no more than the --buffer-size"),
        (
            "--search 2 --epsilon 0 1 --batch-size 64:1500 --buffer-size 1000:2000",
            "--batch-size: expected no more than the --buffer-size of 1000, not 1500",
        ),
        ("--search 2 --gamma 0.9 1 --max-steps 200:100", "expected a range from low to high"),
        ("--search 2 --gamma 0.9:1.1", "expected a number from 0 to 1, not '1.1'"),
        ("--search 2 --hidden 16:32", "expected layers"),
        ("--search 2 --n-step 1:x", "expected a whole number"),
        ("--search 2 --gamma 0.9:0.99 --confirm-seeds 2-11", "the search uses seed 2"),
        ("--search 2 --gamma 0.9:0.99 --seeds 2147483647,0", "no seeds follow"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, here, capsys):
    status = sweep.main(arguments.split())
    out, error = capsys.readouterr()
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("sweep.py: error: ") and message in error
    assert not any(here.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 1, "arguments": [], "seeds": [1]}',
        '{"version": VERSION, "seeds": [1]}',
        '{"version": VERSION, "arguments": ["--gamma", "2"], "seeds": [1]}',
    ],
)
def test_a_damaged_sweep_file_is_refused(text, here, capsys):
    (here / "sweep.json").write_text(text.replace("VERSION", json.dumps(sweep.VERSION)))
    assert sweep.main(["--resume", "."]) == 2
    assert capsys.readouterr().err.count("\n") == len(list(here.iterdir())) == 1


def test_help_and_mistakes_import_nothing_that_takes_long():
    code = (
        "import sys, sweep\n"
        "for arguments in (['--help'], ['--seeds', 'x'], ['--eval-every', '0']):\n"
        "    sweep.main(arguments)\n"
        "late = {'tensorflow', 'keras', 'ray', 'optuna', 'pandas', 'scipy', 'matplotlib'}\n"
        "print(sorted(late & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=SWEEP.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", ["ray", "optuna", "pandas", "scipy"])
def test_without_a_package_one_line_says_how_to_install_it(package, here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert sweep.main(["--seeds", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"sweep.py: error: no package {package}; to install: ")
    words = shlex.split(error)
    assert words[-4:-1] == ["pip", "install", "-r"]
    assert Path(words[-1]).resolve() == SWEEP.parent / "requirements-sweep.txt"
    assert not any(here.iterdir())


def test_what_a_preset_made_differ_has_a_column_too():
    tutorial, tuned = make("--seeds 1 --preset tutorial tuned --epsilon 0.1")
    defaults = {name: sweep.TRAINER.flags[name].default for name in run.PRESETS["tuned"]}
    differing = {n: v for n, v in run.PRESETS["tuned"].items() if v != defaults[n]}
    assert tuned.others == differing
    assert tutorial.others == {name: defaults[name] for name in differing}


def test_a_count_of_fresh_seeds_picks_those_after_the_searchs():
    search = "--search 2 --gamma 0.8:0.9 --confirm-seeds"
    assert make(f"{search} 2").fresh_seeds == [3, 4]
    assert make(f"{search} 7,9 --seeds 0-2").fresh_seeds == [7, 9]


def test_a_sweep_takes_the_cores_that_it_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5})
    assert cluster.usable_cores() == 3
    for quota, cores in ("max 100000", 3), ("200000 100000", 2), ("20000 100000", 1):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        assert cluster.usable_cores() == cores


def test_ray_gets_a_short_folder_whatever_tmpdir_is(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 70)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = Path(cluster.ray_folder())
    folder.rmdir()
    assert not folder.is_relative_to(long) and not any(long.iterdir())
    assert len(f"{folder}/session_2026-11-29_01-06-49_818203_4194304/sockets/plasma_store") <= 107


def test_without_room_for_rays_folder_one_line_says_the_cure_and_the_name_is_free(
    here, monkeypatch, capsys
):
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert sweep.main(["--seeds", "1", "--name", "x"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "100 MB" in error and "TMPDIR=" in error
    assert not any(here.iterdir())
