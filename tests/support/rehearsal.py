"""Runs guardlit's commands on the simulated GPU, in a forked process, so that its patches stay there."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forked import CONTEXT
from synchronizations import RECORD, Record


@dataclass
class Rehearsal:
    """The result of some commands.

    Attributes:
        codes: their exit codes.
        log: their output.
        record: their synchronizations.
    """

    codes: list[int]
    log: str
    record: Record


def rehearse(folder: Path, *commands: Sequence[object], seconds: float = 250) -> Rehearsal:
    """Run `guardlit ARGS` for each command, one after another, and stop at the first failure."""
    log, record = folder / "rehearsal.log", folder / "synchronizations.json"
    words = [[str(word) for word in command] for command in commands]
    process = CONTEXT.Process(target=_run, args=(words, str(log), str(record)), daemon=True)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    text = log.read_text()
    assert record.exists(), text[-4000:]
    codes = [int(line.split()[-1]) for line in text.splitlines() if line.startswith("exit code ")]
    return Rehearsal(codes, text, Record.read(record))


def _run(commands: list[list[str]], log: str, record: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from counting import count_encoding
    from pretend_cuda import install
    from pretend_tensor import DeviceTensor
    from runs import guardlit

    from guardlit.policies.weights import merging

    torch.set_num_threads(1)
    install()
    merging.STORAGE = (*merging.STORAGE, DeviceTensor)  # type: ignore[assignment]
    count_encoding()
    try:
        for command in commands:
            code = guardlit(*command)
            print(f"exit code {code}", flush=True)
            if code:
                break
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        RECORD.write(Path(record))
