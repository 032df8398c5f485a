"""Commands on two processes by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def torchrun(script: Path, *commands: tuple[object, ...]) -> int:
    """Several `guardlit ARGS` one after another on the same two processes; their exit code."""
    calls = " or ".join(f"main({[str(a) for a in command]!r})" for command in commands)
    script.write_text(f"import sys\nfrom guardlit.cli import main\nsys.exit({calls})\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(launcher, env=environment, timeout=240, check=False).returncode
