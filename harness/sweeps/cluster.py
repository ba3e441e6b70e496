"""Ray, started on this machine or found on a cluster, and files on their way between its nodes."""

import functools
import os
import signal
import socket
import warnings
from pathlib import Path

from harness.errors import UsageError

PROJECT = Path(__file__).parents[2]  # on a node of a cluster: the copy that Ray made there
CONNECT_SECONDS = 5
RAY = {  # what Ray reads when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # it would send statistics to its makers
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run writes its own events
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # It would kill its own small processes when the runs, or other programs, fill the memory.
    "RAY_memory_monitor_refresh_ms": "0",
}


def ray_options(address, jobs):
    """ray.init's options for this machine or a cluster; UsageError if none is at `address`."""
    if address is None:
        return {"address": "local", "include_dashboard": False, "num_cpus": jobs}
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), port), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"--address {address}: no cluster answers there: {error}") from None
    # The nodes need not have this project; the programs and harness/ are sent to them.
    others = [p.name for p in PROJECT.iterdir() if p.suffix != ".py" and p.name != "harness"]
    excluded = ["__pycache__", *(f"/{name}" for name in others)]
    environment = {"working_dir": str(PROJECT), "excludes": excluded}
    return {"address": address, "runtime_env": environment}


def start_ray(options):
    """Start Ray, or connect to a cluster, until this program ends; UsageError if that fails."""
    os.environ.update(RAY)
    if options["address"] == "local":
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listens to this machine alone
    elif Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does by itself
    import ray
    from ray._private import services

    warnings.filterwarnings("ignore", module="ray")
    # A signal to the process group, of a closed terminal say, is for this program, which then ends
    # Ray's processes: they get groups of their own.
    services.ConsolePopen = functools.partial(services.ConsolePopen, process_group=0)
    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray replaces it
    try:
        # The live table has a line where Ray's log has a page about each failure.
        ray.init(log_to_driver=False, logging_level="CRITICAL", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"can't use Ray: {' '.join(str(error).split())}") from None
    signal.signal(signal.SIGTERM, on_sigterm)


def on_node(node, function, *arguments):
    """What `function` returns on a node of the cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    remote = ray.remote(function).options(num_cpus=0, scheduling_strategy=there)
    return ray.get(remote.remote(*arguments))


def pack(folder, name):
    """A trial's files, a dict of path: content."""
    paths = [folder / f"{name}.txt", *(folder / f"{name}-log").rglob("*")]
    return {path.relative_to(folder): path.read_bytes() for path in paths if path.is_file()}


def unpack(folder, files):
    """Put into `folder` what `pack` packed."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
