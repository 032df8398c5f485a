"""The OCR scorer on written text: scores, targets, provenance, options."""

# ruff: noqa: RUF001 - it is about characters that look alike

from __future__ import annotations

import os
import re
import socket

import numpy as np
import pytest
import torch
from written import FONTS, PHRASES, sign_request, written

from guardlit.rewards import OCR
from guardlit.rewards.ocr import engine as ocr_engine
from guardlit.rewards.ocr.engine import Readers
from guardlit.rewards.outcome import Outcome
from guardlit.types import Prompt, RewardRequest

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [256, 512])
def test_written_text_is_read(ocr, size):
    assert mean_accuracy(ocr, size, [(text, FONTS[i % 4], i) for i, text in enumerate(PHRASES[:8])]) >= 0.99


TYPOGRAPHY = [
    "IT’S OK",
    "rock ’n’ roll",
    "WAIT…",
    "10 °C",
    "10°",
    "Cafe\u0301",
    "1–2",
    "A — B",
    "5 − 3",
    "Wi‑Fi",
    "5′10″",
    "½ off",
    "H₂O",
    "oﬃce",
    "Straße",
    "STRASSE",
    "¡Hola!",
    "¿Qué?",
    "Æther",
    "İstanbul",
    "ΑΘΗΝΑ",
    "Łódź",
    "™ Brand",
    "€ 50",
    "EXIT →",
    "★ SALE",
    "A • B",
]


def test_perfectly_drawn_typography_scores_1(ocr):
    images = torch.stack([written(text, 256) for text in TYPOGRAPHY])
    result = ocr.score(RewardRequest(images, [f'a sign "{text}"' for text in TYPOGRAPHY], [{}] * len(TYPOGRAPHY)))
    assert {text: value for text, value in zip(TYPOGRAPHY, result.values.tolist(), strict=True) if value < 1} == {}


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ('a sign "Москва"', "м о с к в а"),
        ("a sign “שלום”", "ש ל ו ם"),
        ('a sign "한국"', "한 국"),
        ('a sign "Tiếng Việt"', "ế ệ"),
        ('a sign "हिन्दी"', "ह न द"),
        ('a sign "Ελλάδα"', "ά"),
    ],
)
def test_a_script_that_the_recognizer_cannot_read_is_refused(prompt, found):
    why = OCR().refusal(Prompt(prompt))
    assert why.startswith(f"reward 'ocr' cannot score the prompt {prompt!r}: the recognizer cannot read {found} in ")


def test_what_the_recognizer_reads_is_accepted():
    for text in (*PHRASES, *TYPOGRAPHY, "東京タワー", "欢迎光临", "ひらがな", "Smørrebrød", "ŽLUŤ", "Ñandú", "α = 2"):
        assert OCR("all").refusal(Prompt(f'a sign "{text}"')) == ""
    assert OCR("first").refusal(Prompt('"OPEN" and "Москва"')) == ""
    assert "м о с к в а" in OCR("all").refusal(Prompt('"OPEN" and "Москва"'))


def test_without_the_recognizer_only_the_quotes_are_checked(monkeypatch):
    monkeypatch.setattr("guardlit.rewards.ocr.scorer.missing_packages", lambda: ["rapidocr"])
    assert OCR().refusal(Prompt('a sign "Москва"')) == ""
    assert "no text in quotes" in OCR().refusal(Prompt("a sign"))


@pytest.mark.slow  # two minutes
@pytest.mark.parametrize("size", [256, 512])
def test_written_text_is_read_in_every_font(ocr, size):
    cases = [(text, font, 10 * i + j) for i, text in enumerate(PHRASES) for j, font in enumerate(FONTS)]
    mean = mean_accuracy(ocr, size, cases)
    print(f"{size} px: {len(cases)} images, mean accuracy {mean:.4f}")
    assert mean >= 0.99


def mean_accuracy(ocr: OCR, size: int, cases: list[tuple[str, str, int]]) -> float:
    images = torch.stack([written(text, size, font, seed) for text, font, seed in cases])
    result = ocr.score(RewardRequest(images, [f'a sign "{text}"' for text, *_ in cases], [{}] * len(cases)))
    assert result.valid.all()
    return result.values.mean().item()


def test_scores_are_in_order_and_those_of_one_image_alone(ocr):
    together = sign_request("Open", "Left", "Right", wanted=("Open", "Lift", "Fog"))
    result = ocr.score(together)
    assert result.values.tolist() == pytest.approx([1, 3 / 4, 0])
    assert result.details["exact"].tolist() == [1, 0, 0]
    assert result.reason == ""
    alone = [ocr.score(RewardRequest(together.images[[i]], [together.prompts[i]], [{}])) for i in (2, 1, 0)]
    assert [one.values.item() for one in alone] == result.values.flip(0).tolist()


def test_images_without_text_score_0(ocr):
    blank = torch.full((2, 3, 300, 200), 200, dtype=torch.uint8)
    tiny = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    assert ocr.score(RewardRequest(blank, ['"a"'] * 2, [{}] * 2)).values.tolist() == [0, 0]
    assert ocr.score(RewardRequest(tiny, ['"a"'], [{}])).values.tolist() == [0]
    assert ocr.score(RewardRequest(tiny[:0], [], [])).values.shape == (0,)


def test_text_upside_down_is_not_set_upright(ocr):
    """With a classifier that turns it, all of these score 1: a policy would not have to write upright."""
    upright = sign_request("Welcome home", "Open", "Coffee 24", "Library")
    turned = RewardRequest(upright.images.flip(2, 3), upright.prompts, upright.metadata)
    assert ocr.score(upright).values.tolist() == [1] * 4
    assert ocr.score(turned).values.max() < 0.8


def test_what_cannot_be_read_is_no_number(ocr):
    ocr.counters()
    nothing = torch.zeros(1, 3, 0, 0, dtype=torch.uint8)
    result = ocr.score(RewardRequest(nothing, ['"a"'], [{}]))
    assert result.values.isnan().all()
    assert result.details["exact"].isnan().all()
    assert not result.valid.any()
    assert "ZeroDivisionError" in result.reason
    assert ocr.counters() == {"failures": 1, "deaths": 0}
    assert ocr.counters() == {"failures": 0, "deaths": 0}


def test_provenance_names_engine_and_models(ocr):
    found = dict(ocr.provenance)
    hashes = [found.pop(f"{part}_sha256") for part in ("det", "rec")]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)
    assert len(set(hashes)) == 2
    assert found.pop("rapidocr").startswith("3.10.")
    assert re.match(r"\d+\.\d+", found.pop("onnxruntime"))
    assert found == {"scorer": "ocr", "targets": "first", "side": "512"}
    assert OCR.background


def test_the_engine_gets_blue_first_and_the_pinned_models(monkeypatch):
    """In this process, where no network can be used; a worker does the same."""

    def no_network(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    engine = ocr_engine._engine.__wrapped__(512)
    seen = []

    def watch(image: np.ndarray) -> object:
        seen.append(image)
        return engine(image)

    monkeypatch.setattr(ocr_engine, "_engine", lambda side: watch)
    image = written("Open", 256).permute(1, 2, 0).numpy()
    assert ocr_engine._read(image, 512, 60) == ["Open"]
    assert np.array_equal(seen[0][..., 0], image[..., 2])
    assert np.array_equal(seen[0][..., 2], image[..., 0])
    assert not np.array_equal(seen[0], image)
    assert engine.cfg.Det.model_path.endswith("PP-OCRv6_det_small.onnx")
    session = engine.text_rec.session.session
    assert session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize(
    ("targets", "boxes", "value", "exact"),
    [
        ("first", ["Left", "Right"], 1, 0),
        ("first", ["Left"], 1, 1),
        ("first", ["L eft"], 1, 1),
        ("first", ["Le", "ft"], 1, 1),
        ("first", ["Right"], 0, 0),
        ("first", [], 0, 0),
        ("all", ["Left", "Right"], 1, 1),
        ("all", ["Right", "Left"], 1, 1),
        ("all", ["Le", "ft", "Ri", "ght"], 1, 1),
        ("all", ["Left", "Right", "x"], 1, 0),
        ("all", ["Left", "Rigth", "x"], (1 + 3 / 5) / 2, 0),
        ("all", ["Left"], (1 + 1 / 5) / 2, 0),
        ("all", [], 0, 0),
    ],
)
def test_first_and_all_targets(monkeypatch, targets, boxes, value, exact):
    scorer = OCR(targets)
    scorer._readers = Readers(1, 512)
    monkeypatch.setattr(Readers, "read", lambda self, images: [Outcome(boxes)])
    result = scorer.score(RewardRequest(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ['"Left" and "Right"'], [{}]))
    assert result.values.item() == pytest.approx(value)
    assert result.details["exact"].item() == exact


def test_workers_and_options():
    with pytest.raises(ValueError, match="workers of the reward ocr is 0"):
        OCR(workers=0)
    with pytest.raises(ValueError, match="side of the reward ocr is 8"):
        OCR(side=8)


def test_cores_are_shared_by_the_ranks_of_a_machine(monkeypatch):
    from guardlit.rewards.ocr.scorer import _cores_of_this_rank

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert _cores_of_this_rank() == 16
    for ranks, share in [("8", 2), ("3", 5), ("32", 1)]:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert _cores_of_this_rank() == share
