"""Two ranks on one device, with NCCL where it allows that and with gloo; and the tests marked `gpu`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

from benchmarks.gpu.processes import fork, last_line
from benchmarks.gpu.runs import ROOT, command, done, tiny_run, use_the_tests_helpers
from benchmarks.gpu.stage import Bench, NotMeasuredError, Stage

BACKENDS = ("nccl", "gloo")


def pair(bench: Bench) -> None:
    """A tiny run of two ranks on one device, against the run of one."""
    use_the_tests_helpers()
    from tiny_folders import make_sd3

    model = make_sd3(bench.folder / "model")
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 10.0}}  # Adam amplifies rounding where a gradient is 0
    changes = {"data__micro_batch": 2, "data__rollout_batch": 2, "trainer__max_epochs": 1, "model__optimizer": sgd}
    changes |= {"data__val": None, "trainer__callbacks": []}
    one = tiny_run(bench, "one", model, **changes)
    done(bench, "one", lambda: command(["fit", "--config", one]))
    for backend in BACKENDS:
        name = f"two processes, {backend}: distance from one process"
        if backend == "nccl" and bench.kind != "cuda":
            bench.missing(name, "NCCL needs CUDA")
            continue
        bench.trying(name, lambda backend=backend, name=name: _pair(bench, model, one, backend, name, changes))


def _pair(bench: Bench, model: Path, one: Path, backend: str, name: str, changes: dict[str, object]) -> None:
    """Run two "nodes" of one device each: with one node Lightning would require two devices."""
    from runs import newest

    strategy = {
        "class_path": "lightning.pytorch.strategies.DDPStrategy",
        "init_args": {"process_group_backend": backend, "find_unused_parameters": False},
    }
    path = tiny_run(bench, backend, model, **changes, trainer__num_nodes=2, trainer__strategy=strategy)
    port = _free_port()

    def rank(number: int) -> int:
        os.environ |= {
            "RANK": str(number),
            "GROUP_RANK": str(number),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "gpu",
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        return command(["fit", "--config", path])

    logs = [bench.folder / f"{backend}_{number}.log" for number in range(2)]
    children = [fork(lambda number=number: rank(number), log) for number, log in enumerate(logs)]
    codes = [child.wait(min(bench.size(60, 300), bench.left - 2)) for child in children]
    if codes != [0, 0]:
        said = next(last_line(log) for log, code in zip(logs, codes, strict=True) if code != 0)
        raise NotMeasuredError(f"the processes ended with {codes}: {said}")
    states = [torch.load(newest(p.parent), weights_only=True, map_location="cpu")["state_dict"] for p in (one, path)]
    moved = max(float(v.abs().max()) for k, v in states[0].items() if "lora_B" in k)
    apart = max(float((states[1][k] - v).abs().max()) for k, v in states[0].items())
    bench.row(name, apart / moved, "relative", "largest difference over the largest movement")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def gpu_tests() -> list[Path]:
    """The test files with a test marked `gpu`."""
    return sorted(p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text(encoding="utf-8"))


def suite(bench: Bench) -> None:
    """`pytest -m gpu`."""
    files = gpu_tests()
    if bench.rehearse:
        raise NotMeasuredError(f"a rehearsal leaves the tests of {len(files)} files to the test suite")
    report = bench.folder / "junit.xml"
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *map(str, files),
    ]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=bench.left - 1, check=False)
    (bench.folder / "pytest.log").write_text(run.stdout + run.stderr)
    if not report.exists():
        raise NotMeasuredError(f"pytest ended with {run.returncode}: {(run.stderr or run.stdout)[-200:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    names = ", ".join(str(c.get("name")) for c in bad)
    bench.row("pytest -m gpu: passed", len(cases) - len(bad) - len(skipped), "tests", f"skipped {len(skipped)}")
    bench.row("pytest -m gpu: failed", len(bad), "tests", names)


STAGES = (
    Stage(
        "pair",
        "two processes on one device",
        pair,
        100,
        tuple(f"two processes, {b}: distance from one process" for b in BACKENDS),
        alone=False,
    ),
    Stage("suite", "pytest -m gpu", suite, 200, ("pytest -m gpu: passed", "pytest -m gpu: failed"), alone=False),
)
