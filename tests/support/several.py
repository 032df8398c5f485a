"""Several runs in one process, for torchrun: `several.py FOLDER/run.yaml ...`; each writes its output there."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from runs import guardlit

if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        with path.with_name(f"process_{os.environ['RANK']}.txt").open("w") as file, contextlib.redirect_stderr(file):
            code = guardlit("fit", "--config", path, "--trainer.devices", 2, "--trainer.strategy", "ddp")
            print(f"exit code {code}", file=file)
