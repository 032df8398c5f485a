"""Text recognition: rapidocr with the models of its wheel, in single-threaded subprocesses."""

from __future__ import annotations

import faulthandler
import functools
import importlib.metadata
import importlib.util
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np

from guardlit.errors import GuardlitError
from guardlit.files import sha256
from guardlit.rewards.ocr.text import squeezed
from guardlit.rewards.outcome import Outcome

MODELS = {
    "Det": "PP-OCRv6_det_small.onnx",
    "Rec": "PP-OCRv6_rec_small.onnx",
}
"""Models that detect and recognize text: the files of rapidocr 3.10."""

_PACKAGES = ("onnxruntime", "rapidfuzz", "rapidocr")
_TRIES = 2
_WORD = "GUARD"


def engine_provenance() -> dict[str, str]:
    """Versions and the SHA-256 of the models; raises `GuardlitError` where a package or a model is missing."""
    if missing := missing_packages():
        raise GuardlitError(f"reading text needs {', '.join(missing)}: pip install 'guardlit[ocr]'")
    versions = {name: importlib.metadata.version(name) for name in ("rapidocr", "onnxruntime")}
    hashes = {f"{part.lower()}_sha256": sha256(path) for part, path in _model_paths().items()}
    return {**versions, **hashes}


def missing_packages() -> list[str]:
    """Names of the packages that are needed and not installed."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def _model_paths() -> dict[str, Path]:
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None
    assert spec.origin is not None
    paths = {part: Path(spec.origin).parent / "models" / file for part, file in MODELS.items()}
    for path in paths.values():
        if not path.is_file():
            raise GuardlitError(f"{path}: missing from this rapidocr; pip install --force-reinstall 'rapidocr==3.10.*'")
    return paths


@functools.cache
def known_characters() -> frozenset[str]:
    """The characters that the recognizer can give, `squeezed`; its model file lists them.

    Raises:
        GuardlitError: the model file is missing or lists no characters.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nothing is computed
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = _model_paths()["Rec"]
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    listed = session.get_modelmeta().custom_metadata_map.get("character", "")
    if not listed:
        raise GuardlitError(f"{path}: lists no characters; pip install --force-reinstall 'rapidocr==3.10.*'")
    return frozenset(squeezed(listed))


class Readers:
    """Subprocesses that read text in images.

    A subprocess that dies, or exits because one image took longer than `seconds`, costs no result: the images that were
    not read are retried once in new subprocesses, and fail if these die too.

    Args:
        workers: number of subprocesses, with one thread each.
        side: images with a shorter edge are enlarged to it before text detection, in pixels.
        seconds: time-out of one image, with loading the models.
    """

    def __init__(self, workers: int, side: int, seconds: float = 120.0) -> None:
        self.workers, self.side, self.seconds = workers, side, seconds
        self.deaths = 0
        self._executor: ProcessPoolExecutor | None = None

    def read(self, images: Sequence[np.ndarray]) -> list[Outcome[list[str]]]:
        """The texts in each image, (height, width, 3) uint8 RGB: one a box, from top to bottom.

        Outcomes are in the order of the images. Where a subprocess raised or died, they hold an error.
        """
        outcomes: list[Outcome[list[str]] | None] = [None] * len(images)
        for _ in range(_TRIES):
            rows = [row for row, outcome in enumerate(outcomes) if outcome is None]
            for row, outcome in zip(rows, self._read_once([images[row] for row in rows]), strict=True):
                outcomes[row] = outcome
            if None not in outcomes:
                break
            self.deaths += 1
            self.close()
        died = Outcome[list[str]](error="the process that read the image died, and so did the one of the retry")
        return [outcome or died for outcome in outcomes]

    def _read_once(self, images: Sequence[np.ndarray]) -> list[Outcome[list[str]] | None]:
        """Outcomes in order; None where the subprocesses died first."""
        futures: list[Future[list[str]]] = []
        try:
            for image in images:
                futures.append(self._started().submit(_read, image, self.side, self.seconds))
        except BrokenProcessPool:  # one died while it was idle
            pass
        try:
            outcomes = [_outcome(future) for future in futures]
        except BaseException:  # such as ctrl-C
            for future in futures:
                future.cancel()
            raise
        return outcomes + [None] * (len(images) - len(futures))

    def self_test(self) -> None:
        """Read a word in every subprocess; raises `GuardlitError` if one cannot."""
        for outcome in self.read([_written(_WORD)] * self.workers):
            if _WORD not in "".join(outcome.value or []):
                problem = outcome.error or f"{_WORD} was read as {outcome.value}"
                raise GuardlitError(
                    f"rapidocr does not work here ({problem}); try pip install --force-reinstall 'guardlit[ocr]'"
                )

    def close(self) -> None:
        """Stop the subprocesses; the next `read` starts new ones."""
        if self._executor is not None:
            self._end()
            self._executor = None

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self.workers, _context(), initializer=_serve_parent)
            # at the latest when this object is garbage collected, or the interpreter exits
            self._end = weakref.finalize(self, self._executor.shutdown, cancel_futures=True)
        return self._executor


def _context() -> BaseContext:
    """How subprocesses start: not by a fork of this process, with its CUDA context and the locks of its threads.

    A fresh process imports this package once and is forked: half the memory and time of one import per subprocess.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _outcome(future: Future[list[str]]) -> Outcome[list[str]] | None:
    try:
        return Outcome(future.result())
    except BrokenProcessPool:
        return None
    except Exception as error:  # anything that rapidocr, OpenCV and onnxruntime raise
        first_line = (str(error).strip().splitlines() or [""])[0]
        return Outcome(error=f"{type(error).__name__}: {first_line}")


def _serve_parent() -> None:
    """Ignore ctrl-C, which the parent handles, and exit when the parent exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _read(image: np.ndarray, side: int, seconds: float) -> list[str]:
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        result = _engine(side)(np.ascontiguousarray(image[..., ::-1]))  # it expects the channel order of OpenCV
        return list(result.txts or ())
    finally:
        faulthandler.cancel_dump_traceback_later()


@functools.cache
def _engine(side: int) -> Any:
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(1)
    paths = {f"{part}.model_path": str(path) for part, path in _model_paths().items()}
    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    # as Flow-GRPO reads (`use_angle_cls=False`): text that is upside down is not set upright first
    settings = {"Global.use_cls": False, "Global.log_level": "critical", "Det.limit_side_len": side}
    return RapidOCR(params={**paths, **threads, **settings})


def _written(word: str) -> np.ndarray:
    """A word in black on white, (128, 256, 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(image).text((128, 64), word, fill="black", font=ImageFont.load_default(48), anchor="mm")
    return np.asarray(image)
