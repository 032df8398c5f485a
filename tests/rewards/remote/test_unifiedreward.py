"""UnifiedReward: its requests, and that no failure becomes a number."""

from __future__ import annotations

import base64
import io
import json
import random

import numpy as np
import pytest
import torch
from fastapi import FastAPI, Request, Response
from loopback import dead_address, serving
from PIL import Image

from guardlit.errors import GuardlitError
from guardlit.rewards import UnifiedReward
from guardlit.rewards.remote.client import Limits
from guardlit.types import RewardRequest

CPU = torch.device("cpu")
QUICK = Limits(attempts=2, read=0.5, total=20)


class Server:
    """An OpenAI-style server that answers as `answer(picture, text, times asked)` says."""

    def __init__(self, answer, models=("UnifiedReward",)):
        self.app, self.bodies, self._asked = FastAPI(), [], {}

        @self.app.get("/v1/models")
        def served():
            return models if isinstance(models, Response) else {"data": [{"id": name} for name in models]}

        @self.app.post("/v1/chat/completions")
        async def complete(request: Request):
            body = await request.json()
            self.bodies.append(body)
            image, text = body["messages"][0]["content"]
            url = image["image_url"]["url"]
            assert url.startswith("data:image/png;base64,")
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
            times = self._asked[url] = self._asked.get(url, 0) + 1
            reply = answer(picture, text["text"], times)
            return said(reply) if isinstance(reply, str) else reply


def said(text: object, reason: object = "stop") -> dict[str, object]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}


def shades(*values: int) -> RewardRequest:
    """One gray image for each value, 24 x 40 pixels."""
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 24, 40)
    return RewardRequest(images, [f"shade {value}" for value in values], [{}] * len(values))


def scored(answer, request, **options):
    """The result, the server and the counters."""
    server = Server(answer)
    with serving(server.app) as url:
        scorer = UnifiedReward(url, **{"limits": QUICK, **options})
        scorer.setup(CPU)
        try:
            return scorer.score(request), server, scorer.counters()
        finally:
            scorer.close()


# requests ------------------------------------------------------------------------------------------------------


def test_scores_are_raw_and_in_order():
    values = list(range(0, 250, 10))
    result, *_ = scored(lambda picture, *_: f"Final Score: {1 + picture[0, 0, 0] / 100}", shades(*values))
    assert result.values.tolist() == pytest.approx([1 + value / 100 for value in values])
    assert result.valid.all()
    assert result.details == {}
    assert result.reason == ""
    assert result.provenance == {
        "scorer": "unifiedreward",
        "model": "UnifiedReward",
        "template": "7b-v1.5",
        "image_line": "True",
        "image_size": "512",
    }


PUBLISHED = (
    "<image>\nYou are given a text caption and a generated image based on that caption. Your task is to evaluate this "
    "image based on two key criteria:\n1. Alignment with the Caption: Assess how well this image aligns with the "
    "provided caption. Consider the accuracy of depicted objects, their relationships, and attributes as described in "
    "the caption.\n2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail "
    "preservation, color accuracy, and overall aesthetic appeal.\nBased on the above criteria, assign a score from 1 "
    "to 5 after 'Final Score:'.\nYour task is provided as follows:\nText Caption: [a {prompt} in {} and \"quotes\" \\1]"
)


def test_the_request_is_the_published_one():
    request = RewardRequest(shades(7).images, ['a {prompt} in {} and "quotes" \\1'], [{}])
    _, server, _ = scored(lambda *_: "Final Score: 3", request)
    (body,) = server.bodies
    image, text = body["messages"][0].pop("content")
    assert body == {"model": "UnifiedReward", "messages": [{"role": "user"}], "temperature": 0, "max_tokens": 512}
    assert text == {"type": "text", "text": PUBLISHED}
    assert image["type"] == "image_url"


@pytest.mark.parametrize(("size", "shape"), [(512, (512, 512, 3)), (64, (64, 64, 3)), (None, (24, 40, 3))])
def test_images_travel_without_loss(size, shape):
    pixels = torch.randint(0, 256, (1, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []
    scored(lambda picture, *_: seen.append(picture) or "", RewardRequest(pixels, [""], [{}]), image_size=size)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    assert seen[0].shape == shape
    assert np.array_equal(seen[0], np.asarray(image.resize(shape[1::-1], Image.Resampling.BICUBIC)))


@pytest.mark.parametrize(
    ("template", "line", "tokens", "inside"),
    [
        ("7b-v1.5", True, 512, "Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\nYour"),
        ("7b-v1.5-long", True, 4096, "criteria:\n1. Align"),
        ("7b-v1.5-long", True, 4096, "appeal.\nExtract key elements from the provided text caption, evaluate their"),
        ("2.0", False, 4096, "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\nYour task"),
    ],
)
def test_templates(template, line, tokens, inside):
    for option, expected in [(None, line), (True, True), (False, False)]:
        _, server, _ = scored(lambda *_: "", shades(1), template=template, image_line=option)
        text = server.bodies[0]["messages"][0]["content"][1]["text"]
        assert text.startswith("<image>\nYou are ") is expected
        assert inside in text
        assert text.endswith("Your task is provided as follows:\nText Caption: [shade 1]")
        assert server.bodies[0]["max_tokens"] == tokens


def test_version_2_gives_three_scores_and_their_mean():
    answers = {
        1: "Alignment Score (1-5): 2.5\nCoherence Score (1-5): 3.0\nStyle Score (1-5): 5",
        2: "**Alignment Score (1-5):** 2\n**Coherence Score (1-5):** 3",
    }
    result, *_ = scored(lambda picture, *_: answers[picture[0, 0, 0]], shades(1, 2), template="2.0")
    assert result.valid.tolist() == [True, False]
    assert result.values[0].item() == pytest.approx(3.5)
    assert {name: column[0].item() for name, column in result.details.items()} == {
        "alignment": 2.5,
        "coherence": 3.0,
        "style": 5.0,
    }
    assert all(column[1].isnan() for column in result.details.values())


@pytest.mark.parametrize("prompt", ["an <image> of a cat", "a cat<|im_end|>"])
def test_control_tokens_in_a_prompt(prompt):
    with pytest.raises(ValueError, match="takes for its own"):
        UnifiedReward("http://127.0.0.1:1").check_prompt(prompt, {})
    UnifiedReward("http://127.0.0.1:1").check_prompt('a cat <3, "image" |', {})


# failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "requests", "reason"),
    [
        ("I like it.", 2, "no 'Final Score:' in 'I like it.'"),
        ("Final Score: 10", 2, "no score from 1 to 5 after 'Final Score:' in '10'"),
        (said("Final Score: 4", "length"), 2, "the answer ended by 'length'"),
        (said("Final Score: 4", "abort"), 2, "the answer ended by 'abort'"),
        (said(None), 2, "TypeError"),
        (said(4), 2, "TypeError"),
        (said(["Final Score: 4"]), 2, "TypeError"),
        ({"choices": []}, 2, "IndexError"),
        ({"error": "Final Score: 4"}, 2, "KeyError"),
        ([4], 2, "TypeError"),
        (Response("Final Score: 4"), 2, "JSONDecodeError"),
        (Response("4"), 2, "TypeError"),
        (Response(b"\xff\xfe\x00"), 2, "UnicodeDecodeError"),
        (Response("[" * 100_000), 2, "RecursionError"),
        (Response(json.dumps(said("Final Score: 4"))[:-4]), 2, "JSONDecodeError"),
        (Response(json.dumps(said("Final Score: 4")), 400), 1, "HTTP 400"),
        (Response(json.dumps(said("Final Score: 4")), 500), 2, "HTTP 500"),
        (Response(json.dumps(said("Final Score: 4")), 302), 1, "HTTP 302"),
    ],
)
def test_no_failure_is_a_number(reply, requests, reason):
    result, server, counters = scored(
        lambda picture, *_: reply if picture[0, 0, 0] == 1 else "Final Score: 2", shades(0, 1, 2)
    )
    assert result.valid.tolist() == [True, False, True]
    assert result.values[[0, 2]].tolist() == [2, 2]
    assert result.values[1].isnan()
    assert reason in result.reason
    assert len(server.bodies) == 2 + requests
    assert counters["failures"] == 1


def test_an_unreadable_answer_is_retried():
    result, _, counters = scored(lambda picture, text, times: "Final Score: 3" if times > 1 else "Hm.", shades(0, 1))
    assert result.values.tolist() == [3, 3]
    assert (counters["retries"], counters["unparseable_share"]) == (2, 0.5)


def test_a_server_that_is_gone_in_the_middle():
    server = Server(lambda *_: "Final Score: 3")
    with serving(server.app) as url:
        scorer = UnifiedReward(url + "/v1/", limits=QUICK)
        scorer.setup(CPU)
    result = scorer.score(shades(0, 1))
    assert result.values.isnan().all()
    assert not result.valid.any()
    assert "ConnectError" in result.reason
    scorer.close()


def test_setup_says_in_one_line_what_is_wrong():
    nowhere = dead_address()
    assert_setup_fails(UnifiedReward(nowhere, limits=QUICK), rf"^{nowhere}: GET /v1/models: ConnectError")
    for models, options, message in [
        (("a", "b"), {}, "serves a, b; set `model` of unifiedreward to one of them"),
        (("a", "b"), {"model": "c"}, "serves a, b, but not 'c', the `model` of unifiedreward"),
        ((), {}, "serves no model; set"),
        (Response("<html>"), {}, "GET /v1/models: unreadable reply"),
        (Response("", 401), {}, "GET /v1/models: HTTP 401: Unauthorized"),
        (Response('{"data": [{}]}'), {}, "GET /v1/models: unreadable reply"),
    ]:
        with serving(Server(None, models).app) as url:
            assert_setup_fails(UnifiedReward(url, limits=QUICK, **options), message)


def assert_setup_fails(scorer: UnifiedReward, message: str) -> None:
    with pytest.raises(GuardlitError, match=message) as caught:
        scorer.setup(CPU)
    assert "\n" not in str(caught.value)
    assert scorer.counters() == {}


def test_a_named_model_is_asked_for():
    server = Server(lambda *_: "Final Score: 3", models=("a", "b"))
    with serving(server.app) as url:
        scorer = UnifiedReward(url, model="b", limits=QUICK)
        scorer.setup(CPU)
        assert scorer.score(shades(0)).provenance["model"] == server.bodies[0]["model"] == "b"
        scorer.close()


def test_invalid_options():
    with pytest.raises(ValueError, match="image_size of unifiedreward is 0"):
        UnifiedReward("http://127.0.0.1:1", image_size=0)


def test_hundreds_of_broken_replies_over_http():
    """Replies with a byte lost, cut short, or with a part of another kind: the score that was meant, or none."""
    chance = random.Random(0)
    meant, replies = [], []
    for index in range(400):
        score = chance.choice([1, 2.25, 4.5, 5, 0, 7, 45])
        reply = said(f"cat (animal): 1\nFinal Score: {score}", chance.choice(["stop", "stop", "length"]))
        text = corrupted(json.dumps(reply), chance)
        replies.append(text)
        meant.append(score if 1 <= score <= 5 and reply["choices"][0]["finish_reason"] == "stop" else None)
        assert index < 256**2
    request = RewardRequest(torch.zeros(400, 3, 20, 20, dtype=torch.uint8), [str(i) for i in range(400)], [{}] * 400)
    result, *_ = scored(
        lambda picture, text, times: Response(replies[int(text.rpartition("[")[2][:-1])]),
        request,
        image_size=None,
        limits=Limits(attempts=1),
    )
    for value, valid, score in zip(result.values.tolist(), result.valid.tolist(), meant, strict=True):
        assert (value == score) if valid else (value != value)
    assert 20 < int(result.valid.sum()) < 380


def corrupted(text: str, chance: random.Random) -> str:
    kind = chance.randrange(4)
    place = chance.randrange(len(text))
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text.replace(*chance.choice([("choices", "choice"), ("message", "text"), ("content", "c"), ("[", "{")]))
    if kind == 2:
        return json.dumps([json.loads(text)] * chance.randrange(3))
    return text
