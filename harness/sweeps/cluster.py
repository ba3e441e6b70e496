"""Ray, started on this machine or found on a cluster, and files on their way between its nodes."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import PROJECT
from harness.errors import UsageError
from harness.registries import registered

CONNECT_SECONDS = 5
RAY = {  # what Ray reads when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # it would send statistics to its makers
    # It would kill its own small processes when the runs, or other programs, fill the memory.
    "RAY_memory_monitor_refresh_ms": "0",
    # Where Ray prints a page about a lost worker, the sweep has a line.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # The runs have the priority that run.py has; by default, any other program goes first.
    "RAY_worker_niceness": "0",
}
# A socket's path has at most 107 bytes, and Ray's end on
# /session_2026-11-29_01-06-49_818203_4194304/sockets/plasma_store.
LONGEST_FOLDER = 107 - 64
FREE_MEGABYTES = 100  # that Ray's folder needs, for its logs
MOST_SHOWN = 300  # characters of an error of Ray's, which may be pages
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
starting_ray = False


def usable_cores() -> int:
    """The cores that this process may use: of those it is bound to, and of its container's share.

    The machine may have more, which other programs, or a cluster's other jobs, use.
    """
    bound = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if bound else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max", or no Linux
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, round(quota / period))
    return max(1, cores)


def check_address(address: str) -> None:
    """UsageError if no cluster is at an address; Ray itself would try for many minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"--address {address}: no cluster answers there: {error}") from None


def sent_modules() -> set[Path]:
    """What the nodes of a cluster need not have: this project, and the user's own modules.

    These are the files and packages, but installed ones, that `--env MODULE:ID` has imported.
    """
    installed = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")]
    modules = {PROJECT / "harness", *PROJECT.glob("*.py")}
    for name in {name.partition(".")[0] for name in registered}:
        module = sys.modules[name]
        # A package without an __init__.py has no __file__.
        path = next(iter(getattr(module, "__path__", ())), None) or module.__file__
        if path and not any(Path(path).is_relative_to(folder) for folder in installed):
            modules.add(Path(path).resolve())
    return modules


@contextlib.contextmanager
def ray_running(address: str | None, jobs: int | None) -> Iterator[None]:
    """Inside the `with`, Ray runs: the cluster at `address`, or one of this machine's own.

    Args:
        jobs: how many to run at a time on this machine; None for as many as there are cores.

    Raises:
        UsageError: if it can't be started, or connected to.
    """
    os.environ.update(RAY)
    with contextlib.ExitStack() as stack:
        if address is None:
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listens to this machine alone
            # A word of its own, which Ray would otherwise keep in the home folder, if it can write.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            folder = ray_folder()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            options = {"address": "local", "_temp_dir": folder, "include_dashboard": False}
            options["num_cpus"] = jobs or usable_cores()
        else:
            if os.path.exists(os.path.expanduser("~/.ray/auth_token")):
                # As `ray start` does by itself.
                os.environ.setdefault("RAY_AUTH_MODE", "token")
            sent = {"py_modules": sorted(map(str, sent_modules())), "excludes": ["__pycache__"]}
            options = {"address": address, "runtime_env": sent}
        start_ray(options)
        import ray

        stack.callback(ray.shutdown)
        yield


def ray_folder() -> str:
    """A new folder for Ray, whose default one may belong to another user, or have too long a path.

    Raises:
        UsageError: if there is no place for it.
    """
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    for place in dict.fromkeys(places):
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free < FREE_MEGABYTES * 2**20:
                continue
            folder = tempfile.mkdtemp(prefix="ray-", dir=place)
            if len(os.fsencode(folder)) <= LONGEST_FOLDER:
                return folder
            os.rmdir(folder)
    raise UsageError(
        f"Ray needs a folder with {FREE_MEGABYTES} MB free, and a short path; name one: "
        "TMPDIR=/FOLDER python sweep.py …"
    )


def start_ray(options: dict[str, Any]) -> None:
    """Start Ray, or connect to it; UsageError if that fails."""
    global starting_ray  # noqa: PLW0603
    import ray

    # A notebook may have imported Ray before, with other settings.
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    warnings.filterwarnings("ignore", module="ray")
    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray replaces it
    starting_ray = True
    try:
        ray.init(log_to_driver=False, logging_level="CRITICAL", **options)
    except Exception as error:  # of any kind: it finds out only then what it can't use
        raise UsageError(f"can't use Ray: {textwrap.shorten(str(error), MOST_SHOWN)}") from None
    finally:
        starting_ray = False
    signal.signal(signal.SIGTERM, on_sigterm)


def leave_process_group() -> None:
    """Called in each child between fork and exec: Ray's processes get groups of their own.

    A signal to the process group, of a closed terminal or of `timeout`, is for the sweep, which
    then ends Ray's processes when the trials have saved their states.
    """
    if starting_ray:
        os.setpgid(0, 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=leave_process_group)


def on_node(node: str, function: Callable, *arguments: object) -> Any:
    """What `function` returns on a node of the cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    remote = ray.remote(function).options(num_cpus=0, scheduling_strategy=there)
    return ray.get(remote.remote(*arguments))


def read_files(folder: Path, name: str) -> dict[Path, bytes]:
    """A trial's files by their paths in the sweep's folder."""
    paths = [folder / f"{name}.txt", *(folder / f"{name}-log").rglob("*")]
    return {path.relative_to(folder): path.read_bytes() for path in paths if path.is_file()}


def write_files(folder: Path, files: dict[Path, bytes]) -> None:
    """Put into `folder` what `read_files` has read."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
