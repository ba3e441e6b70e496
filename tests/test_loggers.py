"""The events file, read back, and shown by a real TensorBoard."""

import io
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from conftest import SCALARS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run
from harness import plots
from harness.settings import flags_of
from loggers import TensorBoardLogger


def events(folder):
    return EventAccumulator(str(folder), {"images": 0}).Reload()


def test_each_snapshot_comes_with_pictures_of_the_value_function_and_the_policy(runs):
    accumulator = events(runs / "car-log")
    assert set(accumulator.Tags()["images"]) == {"value_function", "policy"}
    for tag in ("value_function", "policy"):
        drawn = accumulator.Images(tag)
        assert [event.step for event in drawn] == [2500]
        for event in drawn:
            picture = Image.open(io.BytesIO(event.encoded_image_string))
            assert picture.format == "PNG"
            assert picture.size == plots.SIZE == (event.width, event.height)
    assert events(runs / "pole-log").Tags()["images"] == []  # four observed numbers


def test_what_is_plotted_is_in_the_file_at_once(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_scalars(20, loss=0.5)
    assert events(tmp_path).Tags()["scalars"] == ["loss"]
    logger.close()


@pytest.fixture(scope="module")
def tensorboard(runs):
    """Asks a real TensorBoard, which shows the two runs and one that goes on, over HTTP."""
    endless = "--name live --seed 1 --log-every 200 --eval-every 2500 --max-steps 100000000"
    training = [sys.executable, run.__file__, *endless.split()]
    server = [sys.executable, "-m", "tensorboard.main", "--logdir", runs]
    server += ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]

    def ask(path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address[0]}/data/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    with (
        subprocess.Popen(training, cwd=runs, stdout=subprocess.DEVNULL) as training,
        subprocess.Popen(server, stderr=subprocess.PIPE, text=True) as server,
    ):
        try:
            lines = iter(server.stderr.readline, "")
            address = next(filter(None, (re.search(r"http://127\S+:\d+", line) for line in lines)))
            threading.Thread(target=server.stderr.read, daemon=True).start()
            deadline, tags = time.monotonic() + 90, {}
            while set(tags.get("live-log", ())) != SCALARS and time.monotonic() < deadline:
                time.sleep(0.5)
                tags = json.loads(ask("plugin/scalars/tags"))
            assert training.poll() is None
            yield ask
        finally:
            training.kill()
            server.kill()


def test_tensorboard_follows_a_running_training_and_shows_eight_plots(tensorboard):
    tags = json.loads(tensorboard("plugin/scalars/tags"))
    assert set(tags) == {"car-log", "live-log", "pole-log"}
    assert set(tags["car-log"]) == set(tags["live-log"]) == SCALARS


def test_tensorboard_compares_the_last_points_of_the_runs(tensorboard):
    experiment = json.loads(tensorboard("plugin/hparams/experiment", {}))
    assert {metric["name"]["tag"] for metric in experiment["metricInfos"]} == SCALARS
    differs = [column["name"] for column in experiment["hparamInfos"] if column["differs"]]
    assert set(differs) == {"env", "eval_every", "eval_steps", "log_every", "max_steps"}
    assert differs == [column["name"] for column in experiment["hparamInfos"]][: len(differs)]
    body = {"startIndex": 0, "sliceSize": 9, "allowedStatuses": ["STATUS_UNKNOWN"], "colParams": []}
    groups = json.loads(tensorboard("plugin/hparams/session_groups", body))["sessionGroups"]
    rows = {group["name"]: group for group in groups}
    assert set(rows) == {"car-log", "live-log", "pole-log"}
    shown = {name for name, flag in flags_of(run.Settings).items() if "hparams" in flag.places}
    assert all(shown <= set(group["hparams"]) for group in groups)
    assert rows["car-log"]["hparams"]["gamma"] == 0.99
    last = {value["name"]["tag"]: value["value"] for value in rows["car-log"]["metricValues"]}
    assert last["episode_return_avg"] == -200


def test_tensorboard_shows_the_command_and_the_configuration(tensorboard):
    (text,) = json.loads(tensorboard("plugin/text/text?run=car-log&tag=configuration"))
    assert "max_steps&quot;: 2500" in text["text"].replace('"', "&quot;")
    assert "command" in text["text"]
