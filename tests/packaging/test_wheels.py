"""What is published: both distributions, built from this clone, complete, and installed in an empty environment.

uv builds and installs; it needs a package index, unless its cache has everything. What the wheels need is installed in
the versions that run this test.
"""

from __future__ import annotations

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from guardlit import __version__

ROOT = Path(__file__).parents[2]
RECIPE = "tiny_digits"
NAMES = {"guardlit": ROOT, "guardlit_callbacks": ROOT / "callbacks"}
LINK = re.compile(r"\]\(([^)#][^)]*)\)")
SMALL = 12_000_000
"""Bytes of an sdist; the bundled models are most of it."""
IMPORT_ALL = """
import importlib, pkgutil, sys
for package in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    print(package, importlib.import_module(package).__version__, importlib.import_module(package).__file__)
"""

ABSENT = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))"
OF_EXTRAS = {
    *("bitsandbytes", "cv2", "fastapi", "onnxruntime", "rapidfuzz", "rapidocr"),
    *("sklearn", "starlette", "torchao", "uvicorn"),
}
"""What guardlit imports and an installation without extras lacks."""


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that must succeed, without this environment's packages."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "GUARDLIT_CACHE"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def uv(*arguments: object, cwd: Path) -> str:
    return run(sys.executable, "-m", "uv", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of each distribution and the wheel built from it; `GUARDLIT_DIST` names one to test."""
    if ready := os.environ.get("GUARDLIT_DIST"):
        return Path(ready)
    out = tmp_path_factory.mktemp("dist")
    for folder in NAMES.values():
        uv("build", "-q", "-o", out, folder, cwd=out)
    return out


def wheel(folder: Path, name: str) -> Path:
    return folder / f"{name}-{__version__}-py3-none-any.whl"


def sdist(folder: Path, name: str) -> Path:
    return folder / f"{name}-{__version__}.tar.gz"


@pytest.mark.parametrize("name", NAMES)
def test_the_sdist_is_complete_and_builds_are_reproducible(name: str, built: Path, tmp_path: Path):
    uv("build", "-q", "--wheel", "-o", tmp_path, NAMES[name], cwd=tmp_path)
    assert wheel(tmp_path, name).read_bytes() == wheel(built, name).read_bytes()
    assert sdist(built, name).stat().st_size < SMALL


@pytest.mark.parametrize("name", NAMES)
def test_wheels_hold_the_package_and_nothing_else(name: str, built: Path):
    with zipfile.ZipFile(wheel(built, name)) as archive:
        files = set(archive.namelist())
    info = f"{name}-{__version__}.dist-info"
    committed = run("git", "ls-files", name, cwd=NAMES[name]).split()
    if name == "guardlit":
        committed += [f"guardlit/{file}" for file in run("git", "ls-files", "configs", cwd=ROOT).split()]
    assert {file for file in files if not file.startswith(info)} >= set(committed)
    assert {file.partition("/")[0] for file in files} == {name, info}
    assert {f"{name}/py.typed", f"{info}/licenses/LICENSE"} <= files
    unwanted = r"(^|/)(tests?|benchmarks|notebooks)/|(^|/)test_|\.(pyc|md|ipynb)$"
    assert not [file for file in files if re.search(unwanted, file)]


@pytest.mark.parametrize("name", NAMES)
def test_pypi_shows_a_page_whose_links_work(name: str, built: Path):
    with zipfile.ZipFile(wheel(built, name)) as archive:
        metadata = email.message_from_bytes(archive.read(f"{name}-{__version__}.dist-info/METADATA"))
    assert metadata["Version"] == __version__
    page = metadata.get_payload()
    assert isinstance(page, str)
    assert len(page) > 5000
    assert (NAMES[name] / "README.md").read_text(encoding="utf-8").partition("\n")[0] in page
    links = LINK.findall(page)
    assert links
    for link in links:
        assert link.startswith("https://"), link
        own = re.fullmatch(r"https://[a-z.]*github\w*\.com/guardlit/guardlit/(?:blob/)?v([^/]+)/(.+)", link)
        if own is not None:
            assert own[1] == __version__
            assert (ROOT / own[2].partition("#")[0]).exists(), link
    with tarfile.open(sdist(built, name)) as archive:
        assert f"{name}-{__version__}/README.md" in archive.getnames()


def imported(package: str) -> set[str]:
    """Top-level names that a package's files import, in functions too."""
    names: set[str] = set()
    for path in (NAMES[package] / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).partition(".")[0])
            elif isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
    return names


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Gives the `bin` of a new environment with some wheels and what they need, in the versions of this environment."""
    environment = tmp_path / "environment"

    def installed(*wheels: Path) -> Path:
        versions = {d.name: Version(d.version).public for d in distributions() if not d.name.startswith("guardlit")}
        constraints = tmp_path / "versions.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        uv("venv", "-q", "--python", sys.executable, environment, cwd=tmp_path)
        python = environment / "bin" / "python"
        uv("pip", "install", "-q", "--python", python, "--constraint", constraints, *wheels, cwd=tmp_path)
        return python.parent

    yield installed
    shutil.rmtree(environment)  # gigabytes, which pytest would keep


@pytest.mark.timeout(900)  # gigabytes where uv's cache is empty
def test_the_wheels_are_enough(built: Path, install: Callable[..., Path], tmp_path: Path):
    commands = install(*(wheel(built, name) for name in NAMES))
    empty = tmp_path / "empty"
    empty.mkdir()
    guardlit = commands / "guardlit"
    for line in run(commands / "python", "-c", IMPORT_ALL, *NAMES, cwd=empty).splitlines():
        name, version, file = line.split()
        assert name in NAMES
        assert version == __version__
        assert Path(file).is_relative_to(tmp_path)
    assert set(run(commands / "python", "-c", ABSENT, *imported("guardlit"), cwd=empty).split()) == OF_EXTRAS
    assert run(guardlit, "--version", cwd=empty) == f"guardlit {__version__}\n"
    assert all(name in run(guardlit, "recipes", cwd=empty) for name in (RECIPE, "sd35_pickscore", "gpu/24gb"))
    run(guardlit, "fit", "--config", RECIPE, "--trainer.max_epochs", 1, cwd=empty)
    log = Path("runs/tiny_digits/version_0")
    run(guardlit, "report", log, "--out", "report", cwd=empty)
    assert "tiny_digits" in (empty / "report" / "index.html").read_text(encoding="utf-8")
    run(guardlit, "export", "--config", log / "config.yaml", "--ckpt_path", "last", "--out", "lora", cwd=empty)
    assert list((empty / "lora").rglob("pytorch_lora_weights.safetensors"))


@pytest.mark.timeout(900)
def test_the_callbacks_need_no_guardlit(built: Path, install: Callable[..., Path], tmp_path: Path):
    commands = install(wheel(built, "guardlit_callbacks"))
    line = run(commands / "python", "-c", IMPORT_ALL, "guardlit_callbacks", cwd=tmp_path)
    assert line.split()[:2] == ["guardlit_callbacks", __version__]
    absent = run(commands / "python", "-c", ABSENT, *imported("guardlit_callbacks"), cwd=tmp_path)
    assert set(absent.split()) <= {"pytorch_lightning"}  # either of Lightning's two packages
    listed = uv("pip", "list", "--python", commands / "python", "--format", "freeze", cwd=tmp_path).splitlines()
    names = {Requirement(line).name for line in listed}
    assert "guardlit-callbacks" in names
    assert not names & {"guardlit", "diffusers", "transformers"}
