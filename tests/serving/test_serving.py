"""The reward server: what it takes, what it refuses, and that nothing brings it down."""

from __future__ import annotations

import base64
import io
import json
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from brightness import Brightness
from PIL import Image
from runs import guardlit
from servers import process, serving

from guardlit.rewards.base import Scorer
from guardlit.rewards.remote.wire import JSON, MSGPACK, pack, score_message, unpack
from guardlit.serving.worker import Worker
from guardlit.types import RewardRequest, RewardResult


def pixels(count: int = 1, side: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def message(images: torch.Tensor | None = None, prompt: str = "a cat", scorer: str | None = None, **changes) -> dict:
    images = pixels() if images is None else images
    request = RewardRequest(images, [prompt] * len(images), [{}] * len(images))
    return score_message(request, scorer, "raw") | changes


def post(url: str, body: object, kind: str = MSGPACK, timeout: float = 30, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else pack(body) if kind == MSGPACK else json.dumps(body).encode()
    with httpx2.Client(trust_env=False, timeout=timeout) as client:
        return client.post(f"{url}/v1/score", content=content, headers={"content-type": kind, **headers})


def png(image: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode or "RGB").save(file, format="PNG")
    return file.getvalue()


class Gate(Scorer):
    """Mean grey level, once the gate is open; notes how many images came at once."""

    def __init__(self) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.closed = False

    def setup(self, device: torch.device) -> None: ...

    def score(self, request: RewardRequest) -> RewardResult:
        self.entered.set()
        assert self.opened.wait(30)
        self.batches.append(len(request))
        self.threads.add(threading.get_ident())
        if "poison" in request.prompts:
            raise ArithmeticError("first line\nsecond line")
        return self.result(request.images.float().mean((1, 2, 3)))

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def url():
    with serving({"bright": Brightness("fail"), "other": Brightness()}) as url:
        yield url


# answers -------------------------------------------------------------------------------------------------------------


def test_raw_png_and_json_give_the_scorers_own_values(url: str):
    images = pixels(3)
    expected = Brightness().score(RewardRequest(images, ["a cat"] * 3, [{}] * 3)).values.tolist()
    files = [png(image.permute(1, 2, 0).numpy()) for image in images]
    as_png = message(scorer="bright", items=[{"prompt": "a cat", "image": {"data": file}} for file in files])
    as_json = [{"prompt": "a cat", "image": {"data": base64.b64encode(file).decode()}} for file in files]
    answers = [
        unpack(post(url, message(images, scorer="bright")).content),
        unpack(post(url, as_png).content),
        post(url, {"protocol": 1, "scorer": "bright", "items": as_json}, JSON).json(),
    ]
    for answer in answers:
        assert [item["value"] for item in answer["items"]] == expected
        assert answer["provenance"] == {"scorer": "brightness"}
        assert (answer["protocol"], answer["scorer"]) == (1, "bright")


def test_a_score_that_is_no_number_is_an_error_of_its_item(url: str):
    mixed = message(pixels(2), scorer="bright")
    mixed["items"][0]["prompt"] = "fail"
    bad, good = unpack(post(url, mixed).content)["items"]
    assert bad == {"error": "the score is no finite number"}
    assert good.keys() == {"value"}


def test_a_prompt_that_cannot_be_scored_is_an_error_of_its_item(tmp_path: Path):
    from guardlit.rewards import DigitProbability

    digits = DigitProbability()
    digits.setup(torch.device("cpu"))
    images = pixels(3, 32)
    with serving({"digits": digits}) as url:
        mixed = message(images, "a handwritten one")
        mixed["items"][1]["prompt"] = "no number"
        one, none, two = unpack(post(url, mixed).content)["items"]
    alone = digits.score(RewardRequest(images[[0, 2]], ["a handwritten one"] * 2, [{}] * 2)).values.tolist()
    assert [one["value"], two["value"]] == alone
    assert none["error"].startswith("prompt 'no number': names no digits")
    assert none["details"] == {"success": None}


def test_health_and_info(url: str):
    with httpx2.Client(trust_env=False) as client:
        assert client.get(f"{url}/healthz").json() == {"status": "ok", "under_way": 0}
        info = client.get(f"{url}/info").json()
    assert info["protocol"] == 1
    assert info["scorers"] == {name: {"provenance": {"scorer": "brightness"}} for name in ("bright", "other")}
    assert info["limits"] == {"queue": 64, "max_body_bytes": 256_000_000}


# refusals ------------------------------------------------------------------------------------------------------------


def _item(**image: object) -> dict:
    return message(scorer="bright", items=[{"prompt": "a cat", "image": image}])


RAW = {"format": "raw", "shape": [3, 8, 8], "data": bytes(192)}
GREY = np.zeros((8, 8, 3), np.uint8)
MALFORMED = {
    "not msgpack": (b"\xc1garbage", "the body is not msgpack"),
    "nothing": (b"", "the body is not msgpack"),
    "cut short": (pack(message())[:-5], "the body is not msgpack"),
    "something after it": (pack(message()) + b"x", "the body is not msgpack"),
    "not a mapping": ([1, 2], "the body: "),
    "a map with odd keys": (b"\x81\x80\x01", "the body is not msgpack"),
    "nested without end": (b"\x91" * 100_000, "the body is not msgpack"),
    "another protocol": (message(protocol=2), "protocol: Input should be 1"),
    "no protocol": ({"items": []}, "protocol: Field required"),
    "no items": (message(scorer="bright", items=[]), "items: at least one is needed"),
    "items of another kind": (message(items=3), "items: "),
    "a misspelt key": (message(scorer="bright", scorers="x"), "scorers: Unexpected keyword argument"),
    "no prompt": (message(items=[{"image": RAW}]), "items[0].prompt: Field required"),
    "a prompt that is no text": (message(items=[{"prompt": 3, "image": RAW}]), "items[0].prompt: "),
    "metadata of another kind": (message(items=[{"prompt": "", "image": RAW, "metadata": 3}]), "items[0].metadata: "),
    "no image": (message(items=[{"prompt": "a"}]), "items[0].image: Field required"),
    "another format": (_item(**RAW | {"format": "jpeg"}), "items[0].image.format: "),
    "another dtype": (_item(**RAW, dtype="float32"), "items[0].image.dtype: Input should be 'uint8'"),
    "no shape": (_item(format="raw", data=bytes(192)), "items[0].image.shape: expected [3, height, width], found None"),
    "channels last": (_item(**RAW | {"shape": [8, 8, 3]}), "items[0].image.shape: expected [3, height, width]"),
    "an empty image": (_item(**RAW | {"shape": [3, 0, 8], "data": b""}), "items[0].image.shape: "),
    "a negative shape": (_item(**RAW | {"shape": [3, -8, -8]}), "items[0].image.shape: "),
    "bytes missing": (_item(**RAW | {"data": bytes(191)}), "items[0].image.data: shape [3, 8, 8] takes 192 bytes"),
    "no PNG": (_item(data=b"\x89PNG and so on"), "items[0].image.data: not a whole PNG file"),
    "half a PNG": (_item(data=png(pixels(1, 64)[0].permute(1, 2, 0).numpy())[:900]), "not a whole PNG file"),
    "a PNG with transparency": (_item(data=png(GREY, "RGBA")), "a PNG of 8 bit RGB is needed, found mode RGBA"),
    "a JPEG": (_item(data=b"\xff\xd8\xff\xe0" + bytes(50)), "items[0].image.data: not a whole PNG file"),
    "two sizes": (
        message(scorer="bright", items=message(pixels(1))["items"] + message(pixels(1, 16))["items"]),
        "items[1].image: images of a request must be of one size, found 8 x 8 and 16 x 16",
    ),
    "which scorer": (message(), "scorer: several are served, name one of bright, other"),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_request_is_named_in_one_line(url: str, fault: str):
    body, expected = MALFORMED[fault]
    response = post(url, body)
    said = response.json()["error"]
    assert (response.status_code, "\n" in said) == (400, False)
    assert expected in said
    assert post(url, message(scorer="bright")).status_code == 200


def test_malformed_json(url: str):
    for body, expected in ((b'{"pro', "the body: Invalid JSON"), (b'{"protocol": 1}', "items: Field required")):
        response = post(url, body, JSON)
        assert response.status_code == 400
        assert expected in response.json()["error"]
    not_base64 = {"protocol": 1, "items": [{"prompt": "a", "image": {"data": "%%%"}}]}
    assert "items[0].image.data: " in post(url, not_base64, JSON).json()["error"]


def test_other_statuses(url: str):
    assert post(url, message(scorer="absent")).status_code == 404
    assert post(url, message(scorer="absent")).json()["error"] == (
        "scorer 'absent' is not served here; there are bright, other"
    )
    for kind in ("text/plain", "application/x-pickle", ""):
        assert post(url, b"x", kind).status_code == 415
    with httpx2.Client(trust_env=False) as client:
        assert client.get(f"{url}/v1/scores").status_code == 404
        assert client.get(f"{url}/v1/score").status_code == 405
        assert client.get(f"{url}/v1/scores").json() == {"error": "Not Found"}


def test_a_body_or_a_picture_that_is_too_large():
    with serving({"bright": Brightness()}, max_body_mb=0.1) as url:
        response = post(url, message(pixels(1, 200)))
        assert response.status_code == 413
        assert "limits.max_body_mb=0.1" in response.json()["error"]

        def in_pieces():
            for _ in range(300):
                yield bytes(1000)

        with httpx2.Client(trust_env=False) as client:  # without a length that could be looked at before
            headers = {"content-type": MSGPACK}
            assert client.post(f"{url}/v1/score", content=in_pieces(), headers=headers).status_code == 413
        small_file = png(np.zeros((1000, 1000, 3), np.uint8))
        assert len(small_file) < 10_000
        response = post(url, _item(data=small_file) | {"scorer": None})
        assert response.status_code == 413
        assert "1000 x 1000 pixels are more than this server takes" in response.json()["error"]
        assert post(url, message()).status_code == 200


def test_a_body_that_never_ends_is_given_up():
    with serving({"bright": Brightness()}, upload_s=0.2) as url:

        def slow():
            yield b"x"
            time.sleep(1)
            yield b"x"

        with httpx2.Client(trust_env=False) as client:
            response = client.post(f"{url}/v1/score", content=slow(), headers={"content-type": MSGPACK})
        assert response.status_code == 408


def test_a_token_is_asked_for():
    with serving({"bright": Brightness()}, token="secret") as url:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"authorization": "é"}):
            response = post(url, message(), **{k: v.encode("latin-1") for k, v in headers.items()})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        with httpx2.Client(trust_env=False) as client:
            assert client.get(f"{url}/info").status_code == 401
            assert client.get(f"{url}/healthz").status_code == 200
        assert post(url, message(), authorization="Bearer secret").status_code == 200


# many at once --------------------------------------------------------------------------------------------------------


def test_many_clients_get_their_own_answers_from_one_thread():
    gate = Gate()
    gate.opened.set()
    with serving({"gate": gate}) as url, ThreadPoolExecutor(16) as clients:
        images = [pixels(1 + k % 3, seed=k) for k in range(60)]
        answers = clients.map(lambda batch: unpack(post(url, message(batch)).content)["items"], images)
        for batch, items in zip(images, answers, strict=True):
            assert [item["value"] for item in items] == batch.float().mean((1, 2, 3)).tolist()
    assert len(gate.threads) == 1
    assert sorted(gate.batches) == sorted(len(batch) for batch in images)  # nothing was put together
    assert gate.closed


def test_the_queue_is_bounded_and_the_event_loop_free():
    gate = Gate()
    with serving({"gate": gate}, queue=3) as url, ThreadPoolExecutor(8) as clients:
        waiting = [clients.submit(post, url, message()) for _ in range(3)]
        _wait_for(url, under_way=3)
        refused = post(url, message())
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json() == {"error": "3 requests are under way already"}
        large = post(url, message(pixels(8, 512)))  # its body is taken in, so that the answer is seen
        assert large.status_code == 429
        gate.opened.set()
        assert [future.result().status_code for future in waiting] == [200, 200, 200]
        assert post(url, message()).status_code == 200


def _wait_for(url: str, under_way: int) -> None:
    with httpx2.Client(trust_env=False, timeout=10) as client:
        while client.get(f"{url}/healthz").json()["under_way"] != under_way:
            pass


def test_a_client_that_hangs_up_leaves_the_queue():
    gate = Gate()
    with serving({"gate": gate}) as url, ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, url, message(pixels(1)))
        assert gate.entered.wait(30)
        with pytest.raises(httpx2.TimeoutException):
            post(url, message(pixels(2)), timeout=0.5)
        _wait_for(url, under_way=1)
        gate.opened.set()
        assert first.result().status_code == 200
        assert post(url, message(pixels(3))).status_code == 200
    assert gate.batches == [1, 3]


def test_a_scorer_that_raises_fails_its_items_alone():
    gate = Gate()
    gate.opened.set()
    with serving({"gate": gate}) as url:
        items = unpack(post(url, message(pixels(2), "poison")).content)["items"]
        assert items == [{"error": "ArithmeticError: first line second line"}] * 2
        assert post(url, message()).status_code == 200


def _submit(worker: Worker, batches: list[torch.Tensor], prompts: list[str]) -> list:
    """Queue the first batch, and the others once it is being scored."""
    futures = []
    for batch, prompt in zip(batches, prompts, strict=True):
        futures.append(worker.submit("gate", RewardRequest(batch, [prompt] * len(batch), [{}] * len(batch))))
        assert worker.scorers["gate"].entered.wait(30)
    return futures


def test_requests_are_put_together_where_that_is_asked_for():
    gate = Gate()
    worker = Worker({"gate": gate}, {"gate": 6})
    batches = [pixels(2, 16 if k == 3 else 8, seed=k) for k in range(7)]
    futures = _submit(worker, batches, ["a cat"] * 7)
    gate.opened.set()
    for batch, future in zip(batches, futures, strict=True):
        assert [item["value"] for item in future.result().items] == batch.float().mean((1, 2, 3)).tolist()
    assert gate.batches == [2, 6, 2, 4]  # the first alone; then what fits together, in order; the odd size by itself
    worker.close()


def test_a_request_that_fails_does_not_take_others_along():
    gate = Gate()
    worker = Worker({"gate": gate}, {"gate": 100})
    batches = [pixels(2, seed=k) for k in range(4)]
    futures = _submit(worker, batches, ["a cat", "a cat", "poison", "a dog"])
    gate.opened.set()
    for batch, future in zip(batches, futures, strict=True):
        values = [item.get("value") for item in future.result().items]
        assert values == ([None, None] if future is futures[2] else batch.float().mean((1, 2, 3)).tolist())
    worker.close()


def test_what_is_cancelled_is_not_scored():
    gate = Gate()
    worker = Worker({"gate": gate}, {})
    futures = _submit(worker, [pixels(1), pixels(2), pixels(3)], ["a cat"] * 3)
    assert futures[1].cancel()
    gate.opened.set()
    assert len(futures[2].result().items) == 3
    assert gate.batches == [1, 3]
    worker.close()


def test_a_scorer_that_gives_too_few_values_fails_all():
    class Short(Gate):
        def score(self, request: RewardRequest) -> RewardResult:
            return self.result(torch.ones(1))

    worker = Worker({"short": Short()}, {})
    items = worker.submit("short", RewardRequest(pixels(3), ["a"] * 3, [{}] * 3)).result().items
    assert [item["error"] for item in items] == ["RuntimeError: 3 images got values of shape (1,)"] * 3
    worker.close()


# the command ---------------------------------------------------------------------------------------------------------


def test_curl_and_a_shutdown_that_finishes_what_is_under_way(tmp_path: Path):
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
    assert err == "guardlit serve-reward: stopping; what is under way is finished first\n"


def test_a_shutdown_answers_what_is_under_way():
    gate = Gate()
    with ThreadPoolExecutor(2) as clients:
        with serving({"gate": gate}) as url:
            waiting = [clients.submit(post, url, message()) for _ in range(2)]
            _wait_for(url, under_way=2)
            threading.Timer(0.3, gate.opened.set).start()  # the server is told to stop before
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert gate.closed


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


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], url: str):
    assert guardlit("serve-reward", "--scorers.a", "JPEGCompressibility", "--port", url.rpartition(":")[2]) == 2
    assert "Address already in use" in capsys.readouterr().err


def test_without_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("guardlit.commands.serve_reward.find_spec", lambda name: None)
    assert guardlit("serve-reward") == 2
    assert "fastapi and uvicorn not installed: pip install 'guardlit[serve]'" in capsys.readouterr().err


def test_everybody_is_served_with_a_warning(caplog: pytest.LogCaptureFixture):
    from guardlit.commands.serve_reward import ServerSettings, token_of
    from guardlit.rewards import JPEGCompressibility

    assert token_of(ServerSettings({"a": JPEGCompressibility()}, host="0.0.0.0", allow_remote=True)) is None
    assert "0.0.0.0 serves everybody who reaches it" in caplog.text
