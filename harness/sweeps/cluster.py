"""Ray, started on this machine or found on a cluster, and files on their way between its nodes."""

import os
import signal
import socket
import sys
import sysconfig
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
starting_ray = False


def ray_options(address: str | None, jobs: int | None) -> dict[str, Any]:
    """ray.init's options for this machine or a cluster; UsageError if none is at `address`."""
    if address is None:
        return {"address": "local", "include_dashboard": False, "num_cpus": jobs}
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"--address {address}: no cluster answers there: {error}") from None
    # The nodes need not have this project, nor the user's own modules.
    modules = {PROJECT / "harness", *PROJECT.glob("*.py"), *own_modules()}
    environment = {"py_modules": sorted(map(str, modules)), "excludes": ["__pycache__"]}
    return {"address": address, "runtime_env": environment}


def own_modules() -> Iterator[Path]:
    """The files and packages, but installed ones, that `--env MODULE:ID` has imported."""
    installed = [sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")]
    for name in {name.partition(".")[0] for name in registered}:
        module = sys.modules[name]
        # A package without an __init__.py has no __file__.
        path = next(iter(getattr(module, "__path__", ())), None) or module.__file__
        if path and not any(Path(path).is_relative_to(folder) for folder in installed):
            yield Path(path).resolve()


def start_ray(options: dict[str, Any]) -> None:
    """Start Ray, or connect to a cluster, until this program ends; UsageError if that fails."""
    global starting_ray  # noqa: PLW0603
    os.environ.update(RAY)
    if options["address"] == "local":
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listens to this machine alone
    elif Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does by itself
    import ray

    warnings.filterwarnings("ignore", module="ray")
    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray replaces it
    starting_ray = True
    try:
        ray.init(log_to_driver=False, logging_level="CRITICAL", **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UsageError(f"can't use Ray: {' '.join(str(error).split())}") from None
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
