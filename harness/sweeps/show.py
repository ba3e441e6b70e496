"""Runs that exist, against each other: `sweep.py --show`, which trains nothing."""

import itertools
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import UsageError, usage_error
from harness.log_folder import CONFIG_FILE, SWEEP_FILE, find_log_folder
from harness.plots import attempt_picture
from harness.sweeps.grid import Trainer, Trial, shared_words, solved_at, words_of
from harness.sweeps.pictures import draw_curves
from harness.sweeps.results import FINISHED, UNFINISHED, Run, make_row, summarise
from harness.sweeps.runs import is_finished, last_step
from harness.sweeps.tables import shared_text, summary_table
from harness.terminal import log


def show(trainer: Trainer, names: Sequence[str], allowed: Sequence[str], output: str) -> None:
    """Print the table of runs, and draw their learning curves.

    Args:
        names: of runs, and of sweeps, which stand for their runs.
        allowed: environments that are code of the user's, which may be imported.
        output: file of the picture.

    Raises:
        UsageError: if there is nothing to show.
    """
    found = {name: folders_of(name) for name in names}
    trials = {
        folder: read_trial(trainer, folder, allowed)
        for folder in itertools.chain(*found.values())
        if last_step(folder)
    }
    if not trials:
        raise UsageError("--show: none of these runs has an evaluation yet")
    shared = shared_words(trial.flags for trial in trials.values())
    runs = []
    for name, folders in found.items():
        for folder in folders:
            if folder not in trials:
                log(f"{folder} has no evaluation yet")
                continue
            differing = [pair for pair in words_of(trials[folder].flags) if pair not in shared]
            text = shlex.join(itertools.chain(*differing))
            if len(found) > 1 or not text:
                text = ": ".join(filter(None, [re.sub(r"-(log|sweep)/?$", "", name), text]))
            if not is_finished(folder):
                text += f" (unfinished, at step {last_step(folder)})"
            runs.append(Run(trials[folder], folder, text))
    results = pd.DataFrame([make_row(run, (FINISHED, UNFINISHED)) for run in runs])
    for env_id in dict.fromkeys(trial.env for trial in trials.values()):
        if may_not_be_imported(env_id, allowed):
            log(f"--env {env_id} would tell what solves it")
    common = shared_text(list(trials.values()))
    if common:
        log(f"All runs have {common}")
    log(summary_table(summarise(results, [], (FINISHED, UNFINISHED)), without="mean\n± sd"))
    attempt_picture(draw_curves, Path(output), runs, common)


def folders_of(name: str) -> list[Path]:
    """The log folders that a name, or the path of a folder, stands for."""
    for path in (Path(name), Path(f"{name}-sweep")):
        if (path / SWEEP_FILE).exists():
            folders = sorted(path.glob(f"*/{CONFIG_FILE}"), key=lambda found: found.stat().st_ctime)
            return [found.parent for found in folders]
    folder = find_log_folder(name, "--show")
    if not (folder / CONFIG_FILE).exists():
        raise UsageError(f"--show: {folder} isn't a run's folder: it has no {CONFIG_FILE}")
    return [folder]


def read_trial(trainer: Trainer, folder: Path, allowed: Sequence[str]) -> Trial:
    """A run as the trial of a sweep: the flags that start it."""
    path = folder / CONFIG_FILE
    flags = trainer.flags
    with usage_error(f"--show: can't read {path}"):
        config = json.loads(path.read_text(encoding="utf-8"))
        settings = {
            name: flag.check(config.get(name, flag.default)) for name, flag in flags.items()
        }
        seed = int(config["seed"])
    standard: dict[str, Any] = {name: flag.default for name, flag in flags.items()}
    standard |= trainer.presets.get(settings["preset"], {})
    given = {name: value for name, value in settings.items() if value != standard[name]}
    if settings["preset"]:
        given = {"preset": settings["preset"]} | given
    env_id = settings["env"]
    solved_from = None if may_not_be_imported(env_id, allowed) else solved_at(env_id)
    if solved_from is None:
        solved_from = settings["until"]
    return Trial(given, seed, settings["max_steps"], solved_from)


def may_not_be_imported(env_id: str, allowed: Sequence[str]) -> bool:
    """Whether an environment is code of the user's that no flag allows to import."""
    return ":" in env_id and env_id not in allowed
