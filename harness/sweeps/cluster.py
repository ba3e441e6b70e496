"""Ray, started on this machine or found on a cluster, and files on their way between its nodes."""

import contextlib
import functools
import io
import os
import signal
import socket
import tarfile
import warnings
from pathlib import Path

from harness.errors import UsageError

PROJECT = Path(__file__).parents[2]  # on a node of a cluster: the copy that Ray made there
CONNECT_SECONDS = 5
RAY_TOKEN = Path("~/.ray/auth_token")
RAY = {  # what Ray reads when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # it would send statistics to its makers
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run writes its own events
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # It would kill its own small processes when the runs, or other programs, fill the memory.
    "RAY_memory_monitor_refresh_ms": "0",
}


def connection_options(address):
    """ray.init's options for a cluster at `address`; UsageError if nothing answers there."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), port), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"--address {address}: no cluster answers there: {error}") from None
    # The nodes need not have this project; the programs and harness/ are sent to them.
    others = [p.name for p in PROJECT.iterdir() if p.suffix != ".py" and p.name != "harness"]
    excluded = ["__pycache__", *(f"/{name}" for name in others)]
    return {"runtime_env": {"working_dir": str(PROJECT), "excludes": excluded}}


@contextlib.contextmanager
def ray_cluster(address, cpus, jobs):
    """Inside the `with`, Ray runs: at `address`, or here with cores for `jobs` trials if given.

    Raises:
        UsageError: if it can't be used for trials of `cpus` cores each.
    """
    os.environ.update(RAY)
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listens to this machine alone
        options = {"include_dashboard": False, "num_cpus": jobs and jobs * cpus}
    else:
        if RAY_TOKEN.expanduser().exists():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does by itself
        options = connection_options(address)
    import ray
    from ray._private import services

    warnings.filterwarnings("ignore", module="ray")
    # A signal to the process group, of a closed terminal say, is for this program, which then ends
    # Ray's processes: they get groups of their own.
    services.ConsolePopen = functools.partial(services.ConsolePopen, process_group=0)
    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray replaces it
    try:
        # The live table has a line where Ray's log has a page about each failure.
        ray.init(address or "local", log_to_driver=False, logging_level="CRITICAL", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where, why = address or "this machine", " ".join(str(error).split())
        hint = "; a cluster with a token needs RAY_AUTH_MODE=token set here too" if address else ""
        raise UsageError(f"can't use Ray at {where}: {why}{hint}") from None
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        if cpus > most:
            raise UsageError(f"--cpus: the largest node has {most:g} cores, not {cpus}")
        yield
    finally:
        ray.shutdown()


def on_node(node, function, *arguments):
    """What `function` returns on a node of the cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    remote = ray.remote(function).options(num_cpus=0, scheduling_strategy=there)
    return ray.get(remote.remote(*arguments))


def pack(folder, name):
    """A trial's files, as the bytes of a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in (folder / f"{name}-log", folder / f"{name}.txt"):
            if path.exists():
                tar.add(path, path.name)
    return archive.getvalue()


def unpack(folder, archive):
    """Put into `folder` what `pack` packed."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
