"""`guardlit push` against the Hub's HTTP API on this machine: what goes up, what stays, and what can go wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import Hub, serving
from safetensors.torch import save_file

CARD = "---\ntags:\n- guardlit\n---\n\n# A LoRA\n\n" + "One more line.\n" * 30


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export with a card, weights, pictures and a subfolder, and what a desktop leaves behind."""
    folder = tmp_path / "export/ema"
    (folder / "transformer").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    save_file({"a.lora_A.weight": torch.rand(64, 64)}, folder / "pytorch_lora_weights.safetensors")
    save_file({"b": torch.rand(3)}, folder / "transformer/small.safetensors")
    (folder / "samples.png").write_bytes(os.urandom(5000))
    (folder / "empty.txt").touch()
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def push(hub: Hub | None, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """`guardlit push ARGS` with a login for the fake hub; Xet, its other way to upload, needs another server."""
    home = str(args[0]) + "_home"
    address = {"HF_ENDPOINT": hub.url} if hub else {}
    login = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_fake", "HF_HOME": home, "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **address, **login, **env}
    command = [sys.executable, "-m", "guardlit", "push", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def visible(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(".")}


def test_without_yes_nothing_is_sent(hub: Hub, export: Path):
    done = push(hub, export, "--repo", "ann/lora", "--private")
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    assert f"repository  {hub.url}/ann/lora  (private if it is new)" in done.stdout
    for name, content in visible(export).items():
        size = f"{len(content) / 1000:.1f} kB" if len(content) >= 1000 else f"{len(content)} B"
        assert f"{size}  {name}\n" in done.stdout
    assert ".DS_Store" not in done.stdout
    assert "| # A LoRA\n" in done.stdout
    assert "more lines of README.md" in done.stdout
    assert done.stdout.rstrip().endswith(f"guardlit push {export} --repo ann/lora --private --yes")


def test_what_arrives_is_what_was_exported(hub: Hub, export: Path):
    done = push(hub, export, "--repo", "ann/lora", "--yes")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["ann/lora"]
    assert (repository.private, repository.commits) == (False, ["Upload an export of guardlit"])
    expected = visible(export)
    assert repository.files.keys() == expected.keys()
    for name, content in expected.items():
        request = urllib.request.Request(f"{hub.url}/ann/lora/resolve/main/{name}")
        request.add_header("Authorization", f"Bearer {hub.token}")
        with urllib.request.urlopen(request) as answer:
            assert answer.read() == content
    large = {"pytorch_lora_weights.safetensors", "transformer/small.safetensors", "samples.png"}
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == len(large)
    assert f"uploaded: {hub.url}/ann/lora (" in done.stdout


def test_a_second_push_adds_a_commit_and_sends_no_weights_again(hub: Hub, export: Path):
    assert push(hub, export, "--repo", "lora", "--private", "--yes").returncode == 0
    assert hub.repositories["ann/lora"].private
    (export / "README.md").write_text(CARD + "changed\n")
    before = len(hub.requests)
    done = push(hub, export, "--repo", "ann/lora", "--yes")
    assert done.returncode == 0, done.stderr
    assert not any(request.startswith("PUT") for request in hub.requests[before:])
    assert hub.repositories["ann/lora"].files == visible(export)
    assert len(hub.repositories["ann/lora"].commits) == 2


# what a repository should not hold ------------------------------------------------------------------------------------


def _optimizer(folder: Path) -> None:
    save_file({"state.exp_avg": torch.zeros(2)}, folder / "more.safetensors")


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no card": (lambda f: (f / "README.md").unlink(), "holds no model card (README.md); guardlit export writes one"),
    "no metadata": (
        lambda f: (f / "README.md").write_text("# hi"),
        "it does not begin with metadata between two lines",
    ),
    "no YAML": (lambda f: (f / "README.md").write_text("---\n[\n---\n"), "its first lines are not valid YAML"),
    "pickle": (lambda f: (f / "transformer/x.bin").touch(), "transformer/x.bin is a pickle, which can run code"),
    "checkpoint": (lambda f: (f / "round_00001.ckpt").touch(), "round_00001.ckpt is a pickle"),
    "optimizer's file": (lambda f: (f / "optimizer.safetensors").touch(), "looks like a training's state, not weights"),
    "optimizer's tensors": (_optimizer, "holds an optimizer's state ('state.exp_avg'); push weights only"),
    "no safetensors": (lambda f: (f / "x.safetensors").write_bytes(b"x"), "cannot be read as a safetensors file"),
    "link": (lambda f: (f / "link.txt").symlink_to("/etc/hosts"), "link.txt is a link; copy what it leads to"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_folder_that_should_not_go_up(case: str, hub: Hub, export: Path):
    spoil, says = SPOILED[case]
    spoil(export)
    refused(push(hub, export, "--repo", "ann/lora", "--yes"), says)
    assert hub.requests == []


def refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("guardlit push: error: ")
    assert says in lines[-1]
    assert "Traceback" not in done.stderr


def test_places_without_an_export(export: Path, tmp_path: Path):
    refused(push(None, export.parent, "--repo", "a/b"), f"holds the exports ema: push one, as {export}")
    refused(push(None, tmp_path / "nope", "--repo", "a/b"), "nope is no folder; give one that guardlit export wrote")
    (tmp_path / "other").mkdir()
    refused(push(None, tmp_path / "other", "--repo", "a/b"), "holds no weights: no .safetensors file")


@pytest.mark.parametrize("name", ["a/b/c", "a b", "-a", "a/..", "a/b.git", "ä/b", "https://x.y/a", "a/" + "b" * 100])
def test_names_that_no_repository_has(name: str, export: Path, capsys: pytest.CaptureFixture[str]):
    from runs import guardlit

    assert guardlit("push", export, f"--repo={name}") == 2
    assert f"guardlit push: error: --repo {name[:20]}" in capsys.readouterr().err


# what can go wrong on the way -----------------------------------------------------------------------------------------


def test_without_a_login(hub: Hub, export: Path):
    done = push(hub, export, "--repo", "ann/lora", "--yes", HF_TOKEN="")
    refused(done, "there is no login to upload with: run `hf auth login`, or set HF_TOKEN")
    assert hub.requests == []


def test_offline(hub: Hub, export: Path):
    refused(
        push(hub, export, "--repo", "a/b", "--yes", HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set: unset it to upload"
    )
    assert push(hub, export, "--repo", "a/b", HF_HUB_OFFLINE="1").returncode == 0


def test_a_login_that_the_hub_does_not_know(hub: Hub, export: Path):
    done = push(hub, export, "--repo", "ann/lora", "--yes", HF_TOKEN="hf_other")
    refused(done, "does not accept this login: log in again with `hf auth login`, or set HF_TOKEN (HTTP 401: Invalid")


def test_a_namespace_of_somebody_else(hub: Hub, export: Path):
    done = push(hub, export, "--repo", "bob/lora", "--yes")
    refused(done, "this login may not write there: use a token with write access, or a namespace of yours (HTTP 403")


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [
        ("/commit/main", 409, "another change came between, or a repository of another kind has the name: try again"),
        ("/commit/main", 413, "it is too large (HTTP 413: no)"),
        ("/repos/create", 500, "try again later (HTTP 500: no)"),
        ("/repos/create", 418, "it refuses the request (HTTP 418: no)"),
        ("/commit/main", 0, "cannot be reached, or the connection broke ("),
    ],
)
def test_a_hub_that_refuses(hub: Hub, export: Path, end: str, status: int, says: str):
    hub.failures[end] = (status, "no")
    refused(push(hub, export, "--repo", "ann/lora", "--yes"), says)
    assert all(repository.files == {} for repository in hub.repositories.values())


def test_no_network(export: Path):
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = push(None, export, "--repo", "a/b", "--yes", HF_ENDPOINT=address)
    refused(done, f"{address} cannot be reached, or the connection broke (")


def test_interrupted(export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import huggingface_hub
    from runs import guardlit

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", interrupt)
    assert guardlit("push", export, "--repo", "ann/lora", "--yes") == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-3:] == [
        "nothing was committed to ann/lora; the same command starts again",
        "",
        "guardlit push: interrupted",
    ]
