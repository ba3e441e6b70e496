"""A sweep over a cluster of two nodes, one of which is lost: `python -m pytest -m cluster`.

Not among the daily tests, since it takes a minute and may make a network of its own: Ray's nodes
listen to everyone, so they get one in which nobody else is.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys

import psutil
import pytest
from sweeping import SWEEP, rows_of, tree, wait_for

ALONE = ["unshare", "--map-root-user", "--net", "--mount"]
ADDRESS = "127.0.0.1:6390"
TRIALS = 6
ARGUMENTS = (
    f"--env hills:Hill-v0 --seeds {TRIALS} --max-steps 8000 --eval-every 4000 "
    "--snapshot-every 1000 --name both"
)
# An environment of the user's own, in the folder where the sweep is started, and nowhere else.
HILLS = """
import gym
from gym.envs.classic_control import MountainCarEnv
gym.register("Hill-v0", MountainCarEnv, max_episode_steps=200)
"""


@pytest.mark.cluster
def test_a_node_lost_midway_costs_no_trial(tmp_path):
    if not shutil.which("unshare") or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("a network of its own isn't allowed here")
    place, token = tmp_path / "place", tmp_path / ".ray" / "auth_token"
    place.mkdir(), token.parent.mkdir()
    token.write_text("0" * 64)
    (place / "hills.py").write_text(HILLS)
    story = subprocess.run(
        [*ALONE, sys.executable, __file__],
        cwd=place,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHONPATH": f"{SWEEP.parent}:{SWEEP.parent / 'tests'}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    print(story.stdout, story.stderr)
    assert story.returncode == 0
    assert "Retrying" in story.stdout
    folder = place / "both-sweep"
    rows = rows_of(folder).values()
    assert [row["status"] for row in rows] == ["finished"] * TRIALS
    for row in rows:
        assert list((folder / row["folder"]).glob("*-8000.h5"))


def tell():
    """Start both nodes and the sweep; kill the second node while a trial runs there."""
    del os.environ["PYTHONPATH"]  # the nodes don't find the project by it
    loopback_up()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"]
    ray += ["--node-ip-address", "127.0.0.1", "--disable-usage-stats"]
    # The second node has a disk of its own: what is in this folder isn't there.
    own_disk = 'mount -t tmpfs none "$PWD" && cd "$PWD" && exec "$@"'
    head = start([*ray, "--head", "--port", "6390", "--include-dashboard", "false"])
    wait_for(answers, head)
    second = start(["unshare", "--mount", "sh", "-c", own_disk, "sh", *ray, "--address", ADDRESS])
    sweep = subprocess.Popen([sys.executable, SWEEP, *ARGUMENTS.split(), "--address", ADDRESS])
    try:
        wait_for(lambda: trains(second), sweep)
        kill(second)
        return sweep.wait()
    finally:
        kill(sweep), kill(second), kill(head)


def loopback_up():
    with socket.socket() as any_socket:
        request = struct.pack("16sh22x", b"lo", 0x1)  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def start(command):
    nowhere, token = subprocess.DEVNULL, {"RAY_AUTH_MODE": "token"}
    return subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env={**os.environ, **token})


def trains(node):
    """Whether a worker of the node has begun to write a run's output."""
    for worker in tree(node):
        with contextlib.suppress(psutil.Error):
            if any("-seed-" in file.path for file in worker.open_files()):
                return True
    return False


def kill(process):
    for one in tree(process):
        one.kill()
    process.kill()


def answers():
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 6390)) == 0


if __name__ == "__main__":
    sys.exit(tell())
