"""Text accuracy: what is asked for, how it is scored, what is read, and what happens to the processes that read."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from written import FONTS, PHRASES, written

from guardlit.data.prompts import load_prompts
from guardlit.errors import GuardlitError
from guardlit.rewards import OCR
from guardlit.rewards.ocr import engine as ocr_engine
from guardlit.rewards.ocr.engine import Readers
from guardlit.rewards.ocr.text import accuracy, quoted_texts
from guardlit.rewards.outcome import Outcome
from guardlit.types import RewardRequest

CPU = torch.device("cpu")
PUBLISHED = Path(__file__).parents[3] / "shared" / "prompts" / "ocr_test.txt"


@pytest.fixture(scope="module")
def ocr() -> Iterator[OCR]:
    scorer = OCR(workers=1)
    scorer.setup(CPU)
    yield scorer
    scorer.close()


def request(*texts: str, size: int = 256, wanted: tuple[str, ...] = ()) -> RewardRequest:
    images = torch.stack([written(text, size) for text in texts])
    return RewardRequest(images, [f'a sign "{text}"' for text in wanted or texts], [{}] * len(texts))


# what a prompt asks for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "Open"', ["Open"]),
        ("a sign “Open”, lit", ["Open"]),
        ('"A" over “B c” over "d"', ["A", "B c", "d"]),
        ("""the dog's "Don't" sign""", ["Don't"]),
        ("a “Don’t” sign", ["Don’t"]),  # noqa: RUF001
        ('"""', None),
        ('a 12" vinyl "Hits"', None),
        ("a sign 'Open'", None),
        ("a sign ‘Open’", None),  # noqa: RUF001
        ("a sign", None),
        ("", None),
        ('a sign ""', None),
        ('a sign " \t"', None),
        ('"A" and ""', None),
        ('a sign "Open', None),
        ("a sign “Open", None),
        ("a sign Open”", None),
        ("”Open“", None),
        ('“Open"', None),
        ('“say "Open" now”', None),
    ],
)
def test_targets_are_the_texts_in_double_quotes(prompt, texts):
    if texts is not None:
        assert quoted_texts(prompt) == texts
        OCR().check_prompt(prompt, {})
        return
    with pytest.raises(ValueError, match=re.escape(repr(prompt))) as caught:
        OCR().check_prompt(prompt, {})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published prompts are not here")
def test_every_published_prompt_has_a_target():
    prompts = [prompt.text for prompt in load_prompts(str(PUBLISHED))]
    refused = []
    for number, prompt in enumerate(prompts, 1):
        try:
            assert quoted_texts(prompt)[0] == prompt.split('"')[1]
        except ValueError as error:
            refused.append(f"line {number}: {error}")
    assert len(prompts) == 1018
    assert refused == []


# the published formula ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "read", "value"),
    [
        ("Open", "OPEN", 1),
        ("Open", "we are o p e n", 1),  # spaces and what stands around play no part
        ("O p\te n", "open", 1),
        ("Open", "", 0),
        ("Open", "ope", 1 - 1 / 4),
        ("Open", "opens", 1),
        ("Open", "0pen", 1 - 1 / 4),
        ("Open", "op en!?", 1),
        ("Open", "opxn-and-much-more", 0),  # distance 15, capped at the length
        ("Open", "xyzw", 0),
        ("ab", "ba", 0),
        ("a", "b", 0),
        ("Café", "cafe", 1 - 1 / 4),
        ("kitten", "sitting", 1 - 3 / 6),
    ],
)
def test_accuracy(target, read, value):
    assert accuracy(target, read) == pytest.approx(value)


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


# what is read -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [256, 512])
def test_written_text_is_read(ocr, size):
    assert mean_accuracy(ocr, size, [(text, FONTS[i % 4], i) for i, text in enumerate(PHRASES[:8])]) >= 0.99


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
    together = request("Open", "Left", "Right", wanted=("Open", "Lift", "Fog"))
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
    hashes = [found.pop(f"{part}_sha256") for part in ("det", "cls", "rec")]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)
    assert len(set(hashes)) == 3
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


# its processes ------------------------------------------------------------------------------------------------------


def test_a_process_that_dies_costs_no_result(ocr):
    ocr.counters()
    (pid,) = ocr._readers._executor._processes
    os.kill(pid, signal.SIGKILL)
    assert ocr.score(request("Open", "Left")).values.tolist() == [1, 1]
    assert ocr.counters() == {"failures": 0, "deaths": 1}


def test_processes_that_always_die_give_no_number_and_no_hang():
    scorer = OCR(workers=1)
    scorer._readers = Readers(1, 512, seconds=0.001)  # too short for anything: each process ends itself
    try:
        result = scorer.score(request("Open", "Left"))
        assert result.values.isnan().all()
        assert result.reason == "the process that read the image died, and so did the one of the retry"
        assert scorer.counters() == {"failures": 2, "deaths": 2}
    finally:
        scorer.close()
    assert scorer.counters() == {}


def test_processes_end_with_close():
    readers = Readers(1, 512)
    readers.self_test()
    before = {child.pid for child in multiprocessing.active_children()}
    pids = set(readers._executor._processes)
    assert pids <= before
    readers.close()
    assert not pids & {child.pid for child in multiprocessing.active_children()}
    readers.close()


SCRIPT = """
import os, signal, sys, torch
from guardlit.rewards import OCR
if __name__ == "__main__":
    scorer = OCR(workers=1)
    scorer.setup(torch.device("cpu"))
    print(*scorer._readers._executor._processes, flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["exits", pytest.param("killed", marks=pytest.mark.slow)])
def test_processes_end_with_their_parent(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, how], capture_output=True, text=True, timeout=120)
    assert done.returncode == (0 if how == "exits" else -signal.SIGKILL)
    assert how == "killed" or done.stderr == ""  # else Python's own warning of what a killed process leaves
    assert ended(int(done.stdout))


def ended(pid: int) -> bool:
    """Whether a process ends within half a minute."""
    for _ in range(600):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # exited, and not reaped yet
            return True
        time.sleep(0.05)
    return False


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


# a broken installation ----------------------------------------------------------------------------------------------


def test_a_missing_package(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rapidocr" else find(name))
    assert setup_error() == "reading text needs rapidocr: pip install 'guardlit[ocr]'"


def test_a_missing_model(monkeypatch):
    monkeypatch.setitem(ocr_engine.MODELS, "Det", "PP-OCRv9.onnx")
    assert re.fullmatch(r".*/PP-OCRv9.onnx: missing from this rapidocr; pip install .*", setup_error())


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome(["GUAPO"]), "GUARD was read as ['GUAPO']"),
        (Outcome([]), "GUARD was read as []"),
        (Outcome(error="ImportError: libGL.so.1: no such file"), "ImportError: libGL.so.1: no such file"),
    ],
)
def test_an_engine_that_does_not_read(monkeypatch, outcome, problem):
    monkeypatch.setattr(Readers, "read", lambda self, images: [outcome] * len(images))
    assert setup_error() == (
        f"rapidocr does not work here ({problem}); try pip install --force-reinstall 'guardlit[ocr]'"
    )


def setup_error() -> str:
    with pytest.raises(GuardlitError) as caught:
        OCR(workers=2).setup(CPU)
    return str(caught.value)
