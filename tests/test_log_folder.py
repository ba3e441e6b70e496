"""A log folder is what it holds, not what it is called; and one process at a time uses it."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.log_folder import (
    create_log_folder,
    find_log_folder,
    find_snapshot,
    locked,
    snapshot_of,
)


def make_run(name, *files, age=0):
    """A folder with empty files in it, changed so many seconds ago."""
    folder = Path(name)
    folder.mkdir()
    for file in files or ("state.npz",):
        (folder / file).touch()
    then = time.time() - age
    os.utime(folder, (then, then))
    return folder


def error_of(function, *arguments):
    with pytest.raises(UsageError) as error:
        function(*arguments)
    message = str(error.value)
    assert message.isprintable()
    return message


def test_a_folder_is_found_by_its_path_or_its_runs_name(here):
    folder = make_run("car-log")
    moved = make_run("elsewhere")
    (here / "car").mkdir()  # holds no run
    assert find_log_folder("car-log") == find_log_folder("car-log/") == folder
    assert find_log_folder("car") == folder
    assert find_log_folder("elsewhere") == moved
    assert find_log_folder(str(here / "car")) == here / "car-log"


def test_the_current_folder_can_be_the_log_folder(here, monkeypatch):
    monkeypatch.chdir(make_run("car-log"))
    assert find_log_folder(".") == Path()


def test_a_sweeps_folder_is_found_by_its_own_name(here):
    make_run("car-log")
    folder = make_run("car-sweep", "sweep.json")
    assert find_log_folder("car", "--resume", "sweep") == folder
    error = error_of(find_log_folder, "nope-sweep", "--resume", "sweep")
    assert error == "--resume 'nope-sweep': no such folder; the newest sweeps here: car-sweep"


def test_a_wrong_name_lists_the_newest_runs_of_that_place(here):
    for number in range(8):
        make_run(f"run{number}-log", age=100 * number)
    make_run("no-run", "notes.txt")
    make_run("web", "config.json")  # of another program
    newest = "run0-log, run1-log, run2-log, run3-log, run4-log"
    says = f"no such folder; the newest runs here: {newest}"
    assert error_of(find_log_folder, "nope-log") == f"--resume 'nope-log': {says}"
    assert error_of(find_log_folder, "nope", "--model") == f"--model 'nope': {says}"
    assert error_of(find_log_folder, "") == f"--resume '': {says}"
    make_run("other")
    make_run("other/b-log", "config.json")
    error = error_of(find_log_folder, "other/nope")
    assert error == "--resume 'other/nope': no such folder; the newest runs in other: b-log"


@pytest.mark.parametrize("text", ["", "x", "x/y/z-log", "a" * 300, "a\nb", "\0", "..", "/", "~"])
def test_where_there_is_no_run_a_line_says_so(here, text):
    message = error_of(find_snapshot, text)
    assert "no such folder; there is no run" in message or "isn't a log folder" in message


def test_a_file_that_is_missing_lists_the_runs_too(here):
    make_run("car-log")
    error = error_of(find_snapshot, "x.h5")
    assert error == "can't use x.h5: no such file; the newest runs here: car-log"


def test_a_snapshot_is_found_as_a_file_or_as_the_best_of_a_folder(here):
    folder = make_run("car-log", "car-best.h5", "car-50000.h5")
    best = folder / "car-best.h5"
    assert find_snapshot("car-log/car-50000.h5") == folder / "car-50000.h5"
    assert find_snapshot("car-log") == find_snapshot("car") == best
    Path("link.h5").symlink_to("loop.h5")
    assert find_snapshot("link.h5") == Path("link.h5")  # whose reader says what is wrong


def test_a_copied_moved_or_renamed_folder_keeps_its_best_snapshot(here):
    folder = make_run("car-log", "car-best.h5", "car-50000.h5", "state.npz")
    shutil.copytree(folder, "copy of car")
    assert snapshot_of(Path("copy of car")) == Path("copy of car/car-best.h5")
    renamed = folder.rename("van-log")
    assert snapshot_of(renamed) == renamed / "car-best.h5"
    (renamed / "van-best.h5").touch()  # resumed under the new name
    os.utime(renamed / "van-best.h5", (1, 1))
    assert snapshot_of(renamed) == renamed / "van-best.h5"
    renamed = renamed.rename("bus-log")
    assert snapshot_of(renamed) == renamed / "car-best.h5"  # the newest


TABLE = "step,episode,episode_return_avg,avg_max_q_value\n"


@pytest.mark.parametrize(
    ("evaluations", "says"),
    [
        (TABLE + "20000,10,nan,-1.0\n40000,12,nan,-2.0\n", "no evaluation completed an episode"),
        (TABLE + "20000,10,nan,-1.0\n40000,12,-200.0,-2.0\n", "it was moved or couldn't be saved"),
        (TABLE, "it was never evaluated"),
        (None, "it was never evaluated"),
        ("a,b\n1,2\n", "its evaluations.csv can't be read"),
    ],
)
def test_a_folder_without_a_best_snapshot_says_why_and_names_another(here, evaluations, says):
    folder = make_run("car-log", "state.npz", "car-50000.h5", ".car-9.partial.h5")
    make_older(folder / "car-20000.h5")
    if evaluations is not None:
        (folder / "evaluations.csv").write_text(evaluations)
    assert error_of(snapshot_of, folder) == (
        f"--model: car-log has no best snapshot, since {says}; "
        "name another one, such as car-log/car-50000.h5"
    )


def make_older(path):
    path.touch()
    os.utime(path, (1, 1))


def test_a_run_that_was_not_evaluated_is_played_from_its_only_snapshot(here):
    folder = make_run("car-log", "state.npz", "car-50000.h5", ".car-9.partial.h5")
    assert find_snapshot("car") == folder / "car-50000.h5"


def test_a_folder_without_any_snapshot_says_what_it_is(here):
    started = make_run("car-log", "config.json")
    assert "holds no snapshot yet" in error_of(snapshot_of, started)
    assert error_of(snapshot_of, started).endswith("training there, start it again")
    (started / "state.npz").touch()
    assert error_of(snapshot_of, started).endswith("continue it with --resume car-log")
    other = make_run("photos", "1.png")
    assert "photos isn't a log folder" in error_of(snapshot_of, other)


def test_a_folder_can_be_locked_once(here):
    folder = make_run("car-log")
    with locked(folder):
        assert error_of(lock, folder) == "--resume: another process is using car-log"
    lock(folder)


def lock(folder):
    with locked(folder):
        pass


def test_what_was_half_written_is_removed_and_nothing_stays(here):
    folder = make_run("car-log", "state.npz", ".state.partial.npz")
    lock(folder)
    assert [path.name for path in folder.iterdir()] == ["state.npz"]


def test_a_folder_that_is_missing_or_none_is_refused(here):
    Path("file").touch()
    assert error_of(lock, Path("gone-log")) == "can't use gone-log: no such file or directory"
    assert error_of(lock, Path("file")) == "can't use file: not a directory"


def test_a_folder_that_cannot_be_written_is_refused_at_once(here, monkeypatch):
    folder = make_run("car-log")

    def read_only(path, *_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "touch", read_only)
    assert error_of(lock, folder) == "can't write in car-log: read-only file system"


def test_a_folder_of_the_kernel_is_refused_even_for_root():
    assert error_of(lock, Path("/proc/self")).startswith("can't write in /proc/self: ")


def test_a_name_that_is_no_unicode_can_be_given(here):
    assert create_log_folder(os.fsdecode(b"caf\xe9")).is_dir()
