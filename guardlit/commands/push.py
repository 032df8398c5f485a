"""`guardlit push`: an export with its model card goes to the Hugging Face Hub, once --yes is given."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from guardlit.config.console import Parser
from guardlit.errors import GuardlitError

CARD = "README.md"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
OPTIMIZER = re.compile(r"optimizer|exp_avg|(?<![a-z])rng_state")
"""In the name of a file or of a tensor: a training's state, which is not loaded with the weights."""
CARD_LINES, LONGEST_NAME = 20, 96
UNREACHABLE = {"TransportError", "OfflineModeIsEnabled", "ConnectionError", "TimeoutError"}
"""Names of errors, and of their bases, that mean no answer."""
REFUSALS = {
    401: "it does not accept this login: log in again with `hf auth login`, or set HF_TOKEN",
    402: "its owner must pay for this",
    403: "this login may not write there: use a token with write access, or a namespace of yours",
    404: "there is no such namespace, or this login does not see it: check OWNER/NAME",
    409: "another change came between, or a repository of another kind has the name: try again, or take another name",
    413: "it is too large",
    429: "too many requests: try again later",
}
"""What to do, by the status of the hub's answer."""


def main(args: list[str]) -> None:
    """Run `guardlit push`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: a folder that should not be uploaded, or a hub that does not take it.
    """
    parser = Parser(
        "guardlit push",
        usage_hint="(guardlit push FOLDER --repo OWNER/NAME)",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of an export, such as export/ema")
    parser.add_argument("--repo", required=True, metavar="NAME", help="OWNER/NAME; a NAME alone is one of yours")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--yes", action="store_true", help="upload; without it, what would go up is printed")
    options = parser.parse(args[1:])
    folder = options.folder.expanduser()
    _check_name(options.repo)
    files = files_to_push(folder)
    _describe(folder, files, options.repo, options.private)
    if options.yes:
        print(f"\nuploaded: {_upload(folder, files, options.repo, options.private)}")
    else:
        words = ["guardlit", "push", str(options.folder), "--repo", options.repo]
        print(f"\nNothing was uploaded. To upload:\n{shlex.join([*words, *['--private'] * options.private, '--yes'])}")


def files_to_push(folder: Path) -> list[Path]:
    """The files of an export, hidden ones left out, in the order of their names.

    Raises:
        GuardlitError: no weights, no model card, or something that does not belong into a repository.
    """
    if not folder.is_dir():
        raise GuardlitError(f"{folder} is no folder; give one that guardlit export wrote, such as export/ema")
    paths = sorted(p for p in folder.rglob("*") if not any(x.startswith(".") for x in p.relative_to(folder).parts))
    if linked := [path for path in paths if path.is_symlink()]:
        raise GuardlitError(f"{linked[0]} is a link; copy what it leads to, or remove it")
    files = [path for path in paths if path.is_file()]
    _refuse_training_state(files)
    exports = [name for name in ("ema", "raw") if (folder / name / CARD).is_file()]
    if exports and not (folder / CARD).is_file():
        raise GuardlitError(f"{folder} holds the exports {' and '.join(exports)}: push one, as {folder / exports[0]}")
    if not any(file.suffix == ".safetensors" for file in files):
        raise GuardlitError(f"{folder} holds no weights: no .safetensors file; guardlit export writes them")
    if folder / CARD not in files:
        raise GuardlitError(f"{folder} holds no model card ({CARD}); guardlit export writes one next to the weights")
    _check_card(folder / CARD)
    return files


def _refuse_training_state(files: Sequence[Path]) -> None:
    from safetensors import SafetensorError, safe_open

    for file in files:
        if file.suffix in PICKLES:
            raise GuardlitError(f"{file} is a pickle, which can run code where it is loaded; push safetensors only")
        if OPTIMIZER.search(file.name):
            raise GuardlitError(f"{file} looks like a training's state, not weights; remove it from the folder")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="np") as content:
                    keys = list(content.keys())
            except (OSError, SafetensorError) as error:
                raise GuardlitError(f"{file} cannot be read as a safetensors file ({error})") from error
            if found := next(filter(OPTIMIZER.search, keys), None):
                raise GuardlitError(f"{file} holds an optimizer's state ('{found}'); push weights only")


def _check_card(path: Path) -> None:
    import yaml
    from huggingface_hub import ModelCard

    try:
        data = ModelCard.load(path).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise GuardlitError(f"{path} is no model card: its first lines are not valid YAML ({reason})") from error
    if not data:
        raise GuardlitError(f"{path} is no model card: it does not begin with metadata between two lines ---")


def _check_name(repo: str) -> None:
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", repo, re.ASCII) or re.search(r"\.\.|--|[.-]$|[.-]/|\.git$", repo):
        raise GuardlitError(f"--repo {repo} is no name of a repository: OWNER/NAME, of letters, digits, - _ and .")
    if len(repo) > LONGEST_NAME:
        raise GuardlitError(f"--repo {repo[:20]}... has {len(repo)} characters; the hub allows {LONGEST_NAME}")


def _describe(folder: Path, files: Sequence[Path], repo: str, private: bool) -> None:
    sizes = [file.stat().st_size for file in files]
    width = max(len(_size(size)) for size in [*sizes, sum(sizes)])
    print(f"repository  {_endpoint()}/{repo}  ({'private' if private else 'public'} if it is new)")
    for file, size in zip(files, sizes, strict=True):
        print(f"  {_size(size):>{width}}  {file.relative_to(folder).as_posix()}")
    print(f"  {_size(sum(sizes)):>{width}}  in {len(files)} files\n")
    lines = (folder / CARD).read_text(encoding="utf-8").splitlines()
    print("\n".join(f"| {line}".rstrip() for line in lines[:CARD_LINES]))
    if len(lines) > CARD_LINES:
        print(f"| ... {len(lines) - CARD_LINES} more lines of {CARD}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _upload(folder: Path, files: Sequence[Path], repo: str, private: bool) -> str:
    """Make the repository if need be, and upload all files in one commit; returns its address."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise GuardlitError("HF_HUB_OFFLINE is set: unset it to upload")
    if get_token() is None:
        raise GuardlitError("there is no login to upload with: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="guardlit")
    operations = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
    with _one_line(repo):
        name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        # one commit, not upload_folder's several: a repository has all of an export or none of it
        commit = api.create_commit(name, operations, commit_message="Upload an export of guardlit")
    return f"{_endpoint()}/{name} ({os.path.basename(commit.commit_url)[:12]})"


@contextmanager
def _one_line(repo: str) -> Iterator[None]:
    """Turn what can go wrong on the way to the hub into errors of the user."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nnothing was committed to {repo}; the same command starts again", file=sys.stderr)
        raise
    except Exception as error:
        kinds = {base.__name__ for base in type(error).__mro__}  # of httpx or httpx2, as the hub's library has it
        reason = " ".join(str(error).split()) or type(error).__name__
        if "HfHubHTTPError" in kinds:
            raise GuardlitError(f"{_endpoint()} does not take {repo}: {_refusal(error)}") from error
        if UNREACHABLE & kinds:
            raise GuardlitError(
                f"{_endpoint()} cannot be reached, or the connection broke ({reason}); run the command again"
            ) from error
        if {"ValueError", "RuntimeError"} & kinds:
            raise GuardlitError(f"{repo} cannot be uploaded: {reason}") from error
        raise


def _refusal(error: Exception) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    said = getattr(error, "server_message", None) or ""
    known = REFUSALS.get(status, "try again later" if status >= 500 else "it refuses the request")
    return f"{known} (HTTP {status}{': ' + ' '.join(said.split()) if said else ''})"
