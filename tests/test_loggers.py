"""The events file, read back, and shown by a real TensorBoard."""

import io
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from conftest import SCALARS, train_by_command, weights_in
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run
from harness import plots


def events(folder):
    return EventAccumulator(str(folder), {"images": 0}).Reload()


def test_each_evaluation_draws_the_value_function_and_the_policy(runs):
    accumulator = events(runs.car)
    assert set(accumulator.Tags()["images"]) == {"value_function", "policy"}
    for tag in ("value_function", "policy"):
        drawn = accumulator.Images(tag)
        assert [event.step for event in drawn] == [1000, 2000, 2500]
        for event in drawn:
            picture = Image.open(io.BytesIO(event.encoded_image_string))
            assert picture.format == "PNG"
            assert picture.size == plots.SIZE == (event.width, event.height)


def test_an_environment_of_more_observed_numbers_gets_no_pictures(runs):
    assert events(runs.folder / "pole-log").Tags()["images"] == []


def test_drawing_changes_nothing_of_a_run(runs, here, monkeypatch):
    monkeypatch.setattr(plots, "draw_pictures", lambda env, q_function: {})
    train_by_command("--name", "undrawn")
    assert events("undrawn-log").Tags()["images"] == []
    drawn, undrawn = runs.car / "car-2500.h5", here / "undrawn-log/undrawn-2500.h5"
    assert all(map(np.array_equal, weights_in(drawn), weights_in(undrawn)))


@pytest.fixture(scope="module")
def tensorboard(runs):
    """Asks a real TensorBoard, which shows the two runs and one that goes on, over HTTP."""
    endless = "--name live --seed 1 --log-every 200 --eval-every 2500 --max-steps 100000000"
    training = subprocess.Popen(
        [sys.executable, run.__file__, *endless.split()],
        cwd=runs.folder,
        stdout=subprocess.DEVNULL,
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", runs.folder, "--port", "0"]
        + ["--host", "127.0.0.1", "--reload_interval", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    address = None
    while address is None:
        line = server.stderr.readline()
        assert line, "TensorBoard ended"
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
    threading.Thread(target=server.stderr.read, daemon=True).start()

    def ask(path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address[0]}/data/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    deadline, tags = time.monotonic() + 90, {}
    while set(tags.get("live-log", ())) != SCALARS and time.monotonic() < deadline:
        time.sleep(0.5)
        tags = json.loads(ask("plugin/scalars/tags"))
    assert training.poll() is None
    yield ask
    for process in (training, server):
        process.kill()
        process.wait()
    server.stderr.close()


def test_tensorboard_follows_a_running_training_and_shows_eight_plots(tensorboard):
    tags = json.loads(tensorboard("plugin/scalars/tags"))
    assert set(tags) == {"car-log", "live-log", "pole-log"}
    assert set(tags["car-log"]) == set(tags["live-log"]) == SCALARS


def test_tensorboard_shows_the_pictures(tensorboard):
    tags = json.loads(tensorboard("plugin/images/tags"))
    assert set(tags) == {"car-log", "live-log"}
    assert set(tags["car-log"]) == {"value_function", "policy"}
    query = "tag=policy&run=car-log&sample=0"
    (last,) = json.loads(tensorboard(f"plugin/images/images?{query}"))[-1:]
    png = tensorboard(f"plugin/images/individualImage?{last['query']}")
    assert Image.open(io.BytesIO(png)).size == plots.SIZE


def test_tensorboard_compares_the_runs_by_their_last_evaluation(tensorboard):
    experiment = json.loads(tensorboard("plugin/hparams/experiment", {}))
    shown = [metric["displayName"] for metric in experiment["metricInfos"]]
    assert shown == ["episode_return_avg"]
    body = {"startIndex": 0, "sliceSize": 9, "allowedStatuses": ["STATUS_UNKNOWN"], "colParams": []}
    groups = json.loads(tensorboard("plugin/hparams/session_groups", body))["sessionGroups"]
    assert {group["name"] for group in groups} == {"car-log", "live-log", "pole-log"}
    for group in groups:
        assert [metric["name"]["tag"] for metric in group["metricValues"]] == ["episode_return_avg"]
        assert set(run.HYPERPARAMETERS) <= set(group["hparams"])
        assert group["hparams"]["gamma"] == 0.99
        if group["name"] == "car-log":
            assert group["metricValues"][0]["value"] == -200


def test_tensorboard_shows_the_command_and_the_configuration(tensorboard):
    (text,) = json.loads(tensorboard("plugin/text/text?run=car-log&tag=configuration"))
    assert "max_steps&quot;: 2500" in text["text"].replace('"', "&quot;")
    assert "command" in text["text"]
