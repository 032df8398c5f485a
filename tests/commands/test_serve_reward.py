"""`guardlit serve-reward`: the documented request, shutdown, and errors in the settings."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from brightness import Brightness
from PIL import Image
from runs import guardlit
from served import pixels
from servers import process, serving


def test_curl_and_a_shutdown_that_finishes_requests_in_progress(tmp_path: Path):
    """The example of docs/serving.md, and SIGTERM."""
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    script = page.split("<!-- curl -->\n```sh\n")[1].split("```")[0]
    assert shutil.which("curl")
    Image.fromarray(pixels(1, 32)[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    with process(tmp_path, {"digits": "DigitProbability"}, "--token_env", "TOKEN", TOKEN="s3cret") as (url, server):
        script = script.replace("http://127.0.0.1:8765", url).replace("$REWARD_TOKEN", "s3cret")
        done = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout.splitlines()[-1])
        assert 0 <= answer["items"][0]["value"] <= 1
        assert len(answer["provenance"]["weights_sha256"]) == 64
        server.stdout.close()  # as behind `| head -n 1`
        server.send_signal(signal.SIGTERM)
        err = server.stderr.read()
        server.wait(60)
    assert server.returncode == -signal.SIGTERM
    assert err == "guardlit serve-reward: stopping after the requests in progress\n"


SETTINGS = {
    "no config": ([], "missing scorers: give --scorers or set it in a --config file"),
    "an empty one": (["--scorers", "{}"], "scorers: at least one is needed"),
    "a typo": (["--scorers.a", "PikScore"], "'PikScore' is no known Scorer; did you mean PickScore?"),
    "an odd name": (["--scorers", "{'a b': JPEGCompressibility}"], "scorers: the name 'a b' must be of letters"),
    "a port": (["--scorers.a", "JPEGCompressibility", "--port", "70000"], "port=70000 is none"),
    "a limit": (["--scorers.a", "JPEGCompressibility", "--limits.queue", "0"], "limits.queue=0 must be positive"),
    "merging": (["--scorers.a", "JPEGCompressibility", "--merge.b", "3"], "merge: b: 3 is not a served scorer"),
    "the network": (["--scorers.a", "JPEGCompressibility", "--host", "0.0.0.0"], "add --allow_remote true to mean it"),
    "no token": (["--scorers.a", "JPEGCompressibility", "--token_env", "ABSENT"], "the environment variable ABSENT"),
    "a device": (["--scorers.a", "JPEGCompressibility", "--device", "tpu9"], "device 'tpu9' is none of this machine's"),
    "a host": (["--scorers.a", "JPEGCompressibility", "--host", "no.such.invalid", "--allow_remote", "true"],
        "cannot listen on no.such.invalid:8765"),
    "weights": (["--scorers.a", "{class_path: DigitProbability, init_args: {path: /nowhere}}", "--port", "0"],
        "/nowhere/proxy.safetensors: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", SETTINGS)
def test_a_mistake_in_the_settings_is_one_line(mistake: str, capsys: pytest.CaptureFixture[str]):
    options, expected = SETTINGS[mistake]
    assert guardlit("serve-reward", *options) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("guardlit serve-reward: error: ")
    assert expected in err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]):
    with serving({"bright": Brightness()}) as url:
        port = url.rpartition(":")[2]
        assert guardlit("serve-reward", "--scorers.a", "JPEGCompressibility", "--port", port) == 2
    assert "Address already in use" in capsys.readouterr().err


def test_without_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("guardlit.commands.serve_reward.find_spec", lambda name: None)
    assert guardlit("serve-reward", "--help") == 0
    assert "--scorers" in capsys.readouterr().out
    assert guardlit("serve-reward", "--scorers.a", "JPEGCompressibility") == 2
    assert "fastapi and uvicorn not installed: pip install 'guardlit[serve]'" in capsys.readouterr().err


def test_serving_without_a_token_warns(caplog: pytest.LogCaptureFixture):
    from guardlit.commands.serve_reward import ServerSettings, token_of
    from guardlit.rewards import JPEGCompressibility

    assert token_of(ServerSettings({"a": JPEGCompressibility()}, host="0.0.0.0", allow_remote=True)) is None
    assert "0.0.0.0 serves every client that can reach it" in caplog.text
