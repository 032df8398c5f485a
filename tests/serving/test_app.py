"""The reward server: scores, refusals, limits, and many clients at once."""

from __future__ import annotations

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from brightness import Brightness
from served import Gate, message, pixels, png, post, wait_for
from servers import serving

from guardlit.rewards.remote.wire import JSON, MSGPACK, pack, unpack
from guardlit.types import RewardRequest


@pytest.fixture(scope="module")
def url():
    with serving({"bright": Brightness("fail"), "other": Brightness()}) as url:
        yield url


# scores --------------------------------------------------------------------------------------------------------------


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


def test_a_score_that_is_not_finite_is_an_error_of_its_item(url: str):
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
    assert none["error"].startswith("reward 'digitprobability' cannot score the prompt 'no number': it names no digits")
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
GRAY = np.zeros((8, 8, 3), np.uint8)
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
    "a misspelled key": (message(scorer="bright", scorers="x"), "scorers: Unexpected keyword argument"),
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
    "no PNG": (_item(data=b"\x89PNG and so on"), "items[0].image.data: not an intact PNG file"),
    "half a PNG": (_item(data=png(pixels(1, 64)[0].permute(1, 2, 0).numpy())[:900]), "not an intact PNG file"),
    "a PNG with transparency": (_item(data=png(GRAY, "RGBA")), "a PNG of 8 bit RGB is needed, found mode RGBA"),
    "a JPEG": (_item(data=b"\xff\xd8\xff\xe0" + bytes(50)), "items[0].image.data: not an intact PNG file"),
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
    error = response.json()["error"]
    assert (response.status_code, "\n" in error) == (400, False)
    assert expected in error
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


def test_a_body_or_an_image_that_is_too_large():
    with serving({"bright": Brightness()}, max_body_mb=0.1) as url:
        response = post(url, message(pixels(1, 200)))
        assert response.status_code == 413
        assert "limits.max_body_mb=0.1" in response.json()["error"]

        def in_pieces():
            for _ in range(300):
                yield bytes(1000)

        with httpx2.Client(trust_env=False) as client:  # without a content-length
            headers = {"content-type": MSGPACK}
            assert client.post(f"{url}/v1/score", content=in_pieces(), headers=headers).status_code == 413
        small_file = png(np.zeros((1000, 1000, 3), np.uint8))
        assert len(small_file) < 10_000
        response = post(url, _item(data=small_file) | {"scorer": None})
        assert response.status_code == 413
        assert "1000 x 1000 pixels are more than this server takes" in response.json()["error"]
        assert post(url, message()).status_code == 200


def test_an_upload_has_a_timeout():
    with serving({"bright": Brightness()}, upload_s=0.2) as url:

        def slow():
            yield b"x"
            time.sleep(1)
            yield b"x"

        with httpx2.Client(trust_env=False) as client:
            response = client.post(f"{url}/v1/score", content=slow(), headers={"content-type": MSGPACK})
        assert response.status_code == 408


def test_a_token_is_required():
    with serving({"bright": Brightness()}, token="secret") as url:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"authorization": "é"}):
            response = post(url, message(), **{k: v.encode("latin-1") for k, v in headers.items()})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        with httpx2.Client(trust_env=False) as client:
            assert client.get(f"{url}/info").status_code == 401
            assert client.get(f"{url}/healthz").status_code == 200
        assert post(url, message(), authorization="Bearer secret").status_code == 200


# many clients --------------------------------------------------------------------------------------------------------


def test_many_clients_get_their_own_scores_from_one_thread():
    gate = Gate()
    gate.opened.set()
    with serving({"gate": gate}) as url, ThreadPoolExecutor(16) as clients:
        images = [pixels(1 + k % 3, seed=k) for k in range(60)]
        answers = clients.map(lambda batch: unpack(post(url, message(batch)).content)["items"], images)
        for batch, items in zip(images, answers, strict=True):
            assert [item["value"] for item in items] == batch.float().mean((1, 2, 3)).tolist()
    assert len(gate.threads) == 1
    assert sorted(gate.batches) == sorted(len(batch) for batch in images)  # no requests were batched
    assert gate.closed


def test_the_queue_is_bounded_and_the_event_loop_free():
    gate = Gate()
    with serving({"gate": gate}, queue=3) as url, ThreadPoolExecutor(8) as clients:
        waiting = [clients.submit(post, url, message()) for _ in range(3)]
        wait_for(url, in_progress=3)
        refused = post(url, message())
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json() == {"error": "3 requests are in progress already"}
        large = post(url, message(pixels(8, 512)))  # its body is read, so that the client sees the response
        assert large.status_code == 429
        gate.opened.set()
        assert [future.result().status_code for future in waiting] == [200, 200, 200]
        assert post(url, message()).status_code == 200


def test_a_client_that_disconnects_leaves_the_queue():
    gate = Gate()
    with serving({"gate": gate}) as url, ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, url, message(pixels(1)))
        assert gate.entered.wait(30)
        with pytest.raises(httpx2.TimeoutException):
            post(url, message(pixels(2)), timeout=0.5)
        wait_for(url, in_progress=1)
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


def test_a_shutdown_answers_requests_in_progress():
    gate = Gate()
    with ThreadPoolExecutor(2) as clients:
        with serving({"gate": gate}) as url:
            waiting = [clients.submit(post, url, message()) for _ in range(2)]
            wait_for(url, in_progress=2)
            threading.Timer(0.3, gate.opened.set).start()  # after the server has begun to stop
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert gate.closed
