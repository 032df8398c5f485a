"""Every launch line of the documentation runs: on two ranks of this machine, and for one short round."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from forked import forked

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs/tiny_digits.yaml")
SHORT = "--trainer.max_epochs 1 --trainer.accelerator cpu --data.images_per_prompt 4 --data.val_limit 2"

SRUN = """#!/bin/bash
# stands in for SLURM's: starts the tasks of one node on this machine
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" & done
wait -n && wait -n
"""
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "guard",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "SLURM_NODELIST": "127.0.0.1",
}


def launch_lines() -> dict[str, str]:
    """Shell text by a short name: what starts more than one rank in the README and in docs/clusters.md."""
    readme, clusters = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/clusters.md"))
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", readme + clusters, re.DOTALL | re.MULTILINE)
    texts = [block.replace("\\\n", " ") for block in blocks] + re.findall(r"`(guardlit [^`]+)`", readme + clusters)
    found = [text.strip() for text in texts if "--trainer.devices" in text]
    lines = [line for text in found for line in ([text] if text.startswith("#!") else text.splitlines())]
    return {_name(line): line for line in lines}


def _name(line: str) -> str:
    launcher = "srun" if line.startswith("#!") else line.split()[0]
    strategy = re.findall(r"--trainer\.strategy (\w+)", line)[0]
    return " ".join([launcher, *["nodes"] * ("num_nodes" in line), strategy])


LINES = launch_lines()


def on_two_ranks(text: str, folder: Path) -> str:
    """The same on two ranks, for a short round below `folder`: two nodes of one rank by torchrun, else one of two."""
    changes = {
        r"--trainer\.devices \d+": "--trainer.devices 2",
        r"--nproc-per-node=\d+": "--nproc-per-node=2",
        r"(--trainer\.strategy \w+)": rf"\1 {SHORT} --trainer.default_root_dir {folder}/runs",
        r"--config (\.\.\.|run\.yaml|configs/\S+)": f"--config {TINY}",
        r"ROOT=\S+": f"ROOT={folder}/runs",
    }
    if "--nnodes=2" in text:
        changes |= {
            r"--trainer\.devices \d+": "--trainer.devices 1",
            r"--nproc-per-node=\d+": "--nproc-per-node=1",
            "node0:29500": f"127.0.0.1:{_free_port()}",
        }
    else:
        changes[r"--trainer\.num_nodes 2"] = ""
    for pattern, replacement in changes.items():
        text = re.sub(pattern, replacement, text)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check(folder: Path) -> None:
    """A run of two ranks has finished in one folder."""
    (batches,) = folder.rglob("batches.txt")
    assert "on each of 2 ranks" in batches.read_text()
    assert list(batches.parent.glob("export/raw/*.safetensors"))
    assert list(batches.parent.glob("checkpoints/*.ckpt"))


def test_the_lines_are_found():
    assert set(LINES) >= {"guardlit ddp", "guardlit fsdp", "torchrun ddp", "torchrun nodes ddp", "srun nodes ddp"}


def test_a_line_runs(tmp_path: Path):
    """The first of docs/clusters.md, on ranks that are forked here."""
    words = shlex.split(on_two_ranks(LINES["guardlit ddp"], tmp_path))
    run = forked(tmp_path, *words[1:])
    assert run.wait() == [0, 0], [log.read_text()[-2000:] for log in run.logs]
    check(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_every_line_runs_as_it_is_typed(name: str, tmp_path: Path):
    for program, text in {"guardlit": f'#!/bin/bash\nexec {sys.executable} -m guardlit "$@"\n', "srun": SRUN}.items():
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= SLURM if name.startswith("srun") else {}
    command = ["bash", "-c", on_two_ranks(LINES[name], tmp_path)]
    agents = 2 if "--nnodes=2" in LINES[name] else 1
    logs = [tmp_path / f"{agent}.log" for agent in range(agents)]
    running = [
        subprocess.Popen(command, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT) for log in logs
    ]
    assert [agent.wait(280) for agent in running] == [0] * agents, [log.read_text()[-3000:] for log in logs]
    check(tmp_path)
