"""A checkpoint is whole or is not used; what is on disk stays there until something better is."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from runs import config, differing, guardlit

from guardlit.checkpoints.integrity import (
    MANIFEST,
    digests,
    find_corruption,
    intact_before,
    move_into_place,
    newest_intact,
    require_intact,
    write_manifest,
)
from guardlit.checkpoints.io import SafeCheckpointIO, locked_write, remove_leftovers
from guardlit.errors import GuardlitError

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def run(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A run of three rounds with the checkpoints it keeps by default: its YAML and they, oldest first."""
    folder = tmp_path_factory.mktemp("run")
    path = config(folder, sd3_folder)
    assert guardlit("fit", "--config", path) == 0
    return path, sorted((folder / "runs/version_0/checkpoints").iterdir())


@pytest.fixture
def runs(run: tuple[Path, list[Path]], tmp_path: Path) -> Path:
    """A copy of the run's folder that may be spoilt."""
    return shutil.copytree(run[0].parent / "runs", tmp_path / "runs")


def spoil(path: Path, change: Callable[[bytearray], object]) -> Path:
    """Change a file's bytes, and nothing else of it."""
    content, time = bytearray(path.read_bytes()), path.stat().st_mtime
    change(content)
    path.write_bytes(content)
    os.utime(path, (time, time))
    return path


def flip(path: Path, name: str = "archive/data/5") -> Path:
    """Flip one bit of a record: of a number, unless another record is named."""
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo(name)
    place = path.read_bytes().index(name.encode(), record.header_offset) + 200

    def change(content: bytearray) -> None:
        content[place] ^= 4

    return spoil(path, change)


def halve(content: bytearray) -> None:
    """Cut a file in two."""
    del content[len(content) // 2 :]


def flip_near_the_end(content: bytearray) -> None:
    """Of a manifest, in a name."""
    content[-5] ^= 4


def in_a_process(function: Callable[..., object], *args: object) -> object:
    """What a function of tests says in a forked process: its answer, or the error's text."""
    mine, others = FORK.Pipe()

    def work() -> None:
        try:
            others.send(function(*args))
        except GuardlitError as error:
            others.send(str(error))
        os._exit(0)

    process = FORK.Process(target=work)
    process.start()
    others.close()
    try:
        return mine.recv()
    except EOFError:  # killed
        return None
    finally:
        process.join(60)


# damage ---------------------------------------------------------------------------------------------------------------


def same(a: object, b: object) -> bool:
    """Whether two checkpoints hold the same, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def test_a_flipped_bit_is_found_or_changes_nothing(run, tmp_path: Path):
    content = run[1][-1].read_bytes()
    whole = torch.load(run[1][-1], weights_only=True)
    draw, path = random.Random(0), tmp_path / "flipped.ckpt"
    with zipfile.ZipFile(run[1][-1]) as archive:
        directory = archive.start_dir
    places = [draw.randrange(len(content)) for _ in range(200)]
    places += [draw.randrange(directory, len(content)) for _ in range(100)]
    attributes = content.index(b"archive/data/5", directory) - 8  # bit 4: a folder, of which torch reads nothing
    found = 0
    for place, bit in [(place, draw.randrange(8)) for place in places] + [(attributes, 4)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        if find_corruption(path) is None:
            assert same(torch.load(path, weights_only=True), whole), (place, bit)
        else:
            found += 1
    assert found > 150


def test_torch_alone_takes_a_flipped_bit_for_a_weight(run, tmp_path: Path):
    """The day this fails, `damage` need not read the file any more."""
    path = flip(shutil.copy(run[1][-1], tmp_path / "flipped.ckpt"))
    assert not same(torch.load(path, weights_only=True), torch.load(run[1][-1], weights_only=True))
    assert find_corruption(path) == "the checksum of its record archive/data/5 is wrong"


def test_a_truncated_checkpoint_is_one_line(run, tmp_path: Path):
    content, draw, path = run[1][-1].read_bytes(), random.Random(1), tmp_path / "cut.ckpt"
    for length in [0, 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(60))]:
        path.write_bytes(content[:length])
        with pytest.raises(
            GuardlitError, match=r"^checkpoint .*cut\.ckpt cannot be read, truncated or damaged\?"
        ) as error:
            SafeCheckpointIO().load_checkpoint(path)
        assert "\n" not in str(error.value)


def test_checksums_are_written_though_somebody_switched_them_off(tmp_path: Path):
    torch.serialization.set_crc32_options(False)
    try:
        SafeCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(100)}}, tmp_path / "a.ckpt")
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert find_corruption(tmp_path / "a.ckpt") is None


# the newest -----------------------------------------------------------------------------------------------------------


def at(path: Path, step: int, position: int = 0, version: int = 0) -> Path:
    """Write a checkpoint of some update, and of some place in the round after it."""
    path = path / f"version_{version}/checkpoints/{step}_{position}.ckpt"
    data = {"round": step, "transitions": position}
    SafeCheckpointIO().save_checkpoint(
        {"state_dict": {"a": torch.ones(100)}, "global_step": step, "PromptDataModule": data}, path
    )
    return path


def test_the_newest_is_the_furthest_of_the_latest_run_whatever_the_clock_says(tmp_path: Path):
    written = [
        at(tmp_path, 5),
        at(tmp_path, 50),
        at(tmp_path, 4, version=2),
        at(tmp_path, 4, 3, 2),
        at(tmp_path, 9, version=10),
    ]
    for age, path in enumerate(written):
        os.utime(path, (2e9 - age, 2e9 - age))
    for path in reversed(written):
        assert newest_intact(tmp_path) == path
        path.unlink()
    with pytest.raises(GuardlitError, match=r"^--ckpt_path last: no checkpoint under .*/version_\*/checkpoints$"):
        newest_intact(tmp_path)


def test_a_damaged_one_gives_way_to_the_one_before_loudly(tmp_path: Path):
    oldest, older, newest = at(tmp_path, 3), at(tmp_path, 4), at(tmp_path, 4, 2, version=1)
    flip(newest, "archive/data/0")
    with pytest.warns(UserWarning, match=f"{newest} is damaged and not used .the checksum.*; {older} is used instead"):
        assert newest_intact(tmp_path) == older
    spoil(older, halve)
    with pytest.warns(UserWarning, match="is damaged and not used") as warned:
        assert newest_intact(tmp_path) == oldest
    assert len(warned) == 2
    oldest.write_bytes(b"")
    with pytest.raises(GuardlitError, match=f"none of the checkpoints under {tmp_path} is whole: ") as error:
        newest_intact(tmp_path)
    assert all(str(path) in str(error.value) for path in (oldest, older, newest))


def test_a_damaged_one_that_is_named_is_refused_and_the_one_before_it_named(tmp_path: Path):
    oldest, older, newest = at(tmp_path, 3), at(tmp_path, 4), at(tmp_path, 5, version=1)
    flip(older, "archive/data/0")
    with pytest.raises(GuardlitError, match=f"{older} cannot be read.*; the one before it is whole: {oldest}$"):
        require_intact(older)
    flip(newest, "archive/data/0")
    assert intact_before(newest) == oldest
    oldest.unlink()
    with pytest.raises(GuardlitError, match=f"{older} cannot be read.*is wrong\\)$"):
        require_intact(older)


def test_a_run_goes_on_from_the_one_before_a_damaged_one(run, runs: Path, capsys):
    path, checkpoints = run
    newest = flip(runs / "version_0/checkpoints" / checkpoints[-1].name)
    again = ("fit", "--config", path, "--trainer.default_root_dir", runs, "--ckpt_path")
    assert guardlit(*again, newest) == 2
    before = newest.with_name(checkpoints[-2].name)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("guardlit fit: error: ")
    assert line.endswith(f"the one before it is whole: {before}")
    with pytest.warns(UserWarning, match=f"{newest} is damaged and not used"):
        assert guardlit(*again, "last") == 0
    assert json.loads((runs / "version_1/run.json").read_text())["resumed_from"] == str(before)
    assert differing(checkpoints[-1], runs / "version_1/checkpoints" / newest.name) == []


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_first_process_decides_and_damage_that_one_sees_is_damage_for_all(tmp_path: Path):
    first, second = at(tmp_path, 3), at(tmp_path, 4)
    damaged = shards(tmp_path / "a.ckpt")
    write_manifest(damaged)
    spoil(damaged / "__0_0.distcp", flip_near_the_end)
    assert [bool(find_corruption(damaged, slice(rank, None, 2))) for rank in range(2)] == [False, True]

    def process(rank: int, store: str, paths: list[Path]) -> object:
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
        return SafeCheckpointIO(collective=True).load_checkpoint(paths[rank])["global_step"]

    def both(store: str, paths: list[Path]) -> list[object]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda rank: in_a_process(process, rank, str(tmp_path / store), paths), range(2)))

    assert both("one", [first, second]) == [3, 3]
    one, two = both("two", [damaged, second])
    assert (
        one
        == two
        == f"checkpoint {damaged} cannot be read, truncated or damaged? (the checksum of __0_0.distcp is wrong)"
    )


# writing --------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_two_and_drops_the_oldest_once_the_newest_is_on_disk(run, runs: Path, monkeypatch):
    path, checkpoints = run
    assert [p.name for p in checkpoints] == ["round_00001.ckpt", "round_00002.ckpt"]
    left = []

    def remove(self: SafeCheckpointIO, path: str) -> None:
        Path(path).unlink()
        left.append([(p.name, find_corruption(p)) for p in sorted(Path(path).parent.iterdir())])

    monkeypatch.setattr(SafeCheckpointIO, "remove_checkpoint", remove)
    assert guardlit("fit", "--config", path, "--trainer.default_root_dir", runs) == 0
    assert left == [[("round_00001.ckpt", None), ("round_00002.ckpt", None)]]


def test_a_full_disk_leaves_the_checkpoint_before_and_no_rest(tmp_path: Path):
    before = at(tmp_path, 3)
    content = before.read_bytes()

    def write(path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        SafeCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(10_000)}}, path)

    for path in (before.with_name("4_0.ckpt"), before):
        said = in_a_process(write, path)
        assert said == f"checkpoint {path} could not be written (File too large); the last one kept is {before}"
        assert [p.name for p in before.parent.iterdir()] == [before.name]
        assert before.read_bytes() == content


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path):
    """The rest lies beside an earlier run's checkpoints; another host's is older than a day, or may still grow."""

    def die(path: Path) -> None:
        with locked_write(path) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    old, new = at(tmp_path, 3).parent, tmp_path / "version_1/checkpoints"
    assert in_a_process(die, old / "4_0.ckpt") is None
    elsewhere = [old / f".{name}.ckpt.elsewhere.7.tmp" for name in ("old", "young")]
    for path in elsewhere:
        path.write_bytes(b"half")
    os.utime(elsewhere[0], (1e9, 1e9))
    assert len(list(old.glob(".4_0.ckpt.*.tmp"))) == 1
    with locked_write(old / "5_0.ckpt") as file:
        file.write(b"half")
        file.flush()
        at(tmp_path, 4, version=1)
        names = sorted(p.name for p in old.iterdir())
        assert [name for name in names if name.endswith(".tmp") and not name.startswith(".5_0")] == [elsewhere[1].name]
        assert len(names) == 3
    remove_leftovers(new)
    assert sorted(p.name for p in old.iterdir()) == [elsewhere[1].name, "3_0.ckpt", "5_0.ckpt"]


# folders of shards ----------------------------------------------------------------------------------------------------


def shards(folder: Path) -> Path:
    """A folder as Lightning's ModelParallelStrategy writes it, by one process."""
    state = {"state_dict": {"a": torch.arange(100.0), "b": torch.ones(3)}}
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True)
    dcp.save(state, storage_writer=writer, no_dist=True)
    torch.save({"global_step": 7, "PromptDataModule": {"round": 1, "transitions": 0}}, folder / "meta.pt")
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_is_whole_once_its_manifest_says_so(tmp_path: Path):
    folder = tmp_path / "version_0/checkpoints/a.ckpt"
    temporary = shards(folder.with_name(".a.ckpt.tmp"))
    assert find_corruption(temporary) == f"incomplete: it has no {MANIFEST}, which is written last"
    own = digests(temporary, ["__0_0.distcp"])
    write_manifest(temporary, own)
    move_into_place(temporary, folder)
    assert find_corruption(folder) is None
    assert os.system(f"cd {folder} && sha256sum --quiet -c {MANIFEST}") == 0
    assert newest_intact(tmp_path) == folder
    for name in ("__0_0.distcp", ".metadata", "meta.pt", MANIFEST):
        for change in (lambda path: spoil(path, flip_near_the_end), Path.unlink):
            broken = shutil.copytree(folder, tmp_path / "broken")
            change(broken / name)
            reason = find_corruption(broken)
            assert reason, name
            assert reason.startswith(("incomplete: ", f"the checksum of {name} is wrong"))
            shutil.rmtree(broken)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_replaces_what_has_its_name(tmp_path: Path):
    for name in ("first", "second"):
        write_manifest(shards(tmp_path / name))
        (tmp_path / name / "who").write_text(name)
        move_into_place(tmp_path / name, tmp_path / "a.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert (tmp_path / "a.ckpt/who").read_text() == "second"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_an_index_that_asks_for_code_is_refused_and_runs_nothing(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = shards(tmp_path / "evil.ckpt")
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    write_manifest(folder)
    assert find_corruption(folder) == "its .metadata asks for posix.mkdir, and code in a checkpoint is not run"
    assert not (tmp_path / "executed").exists()


# prompts --------------------------------------------------------------------------------------------------------------


def test_other_prompts_are_another_run_and_other_validation_prompts_another_curve(run, tmp_path: Path, capsys):
    path, checkpoints = run
    (tmp_path / "other.txt").write_text((path.parent / "prompts.txt").read_text().replace("red", "blue"))
    again = ("fit", "--config", path, "--trainer.default_root_dir", tmp_path / "runs", "--ckpt_path", checkpoints[0])
    assert guardlit(*again, "--data.train", tmp_path / "other.txt") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "guardlit fit: error: the checkpoint was saved with data.train = 5 prompts of SHA-256 " in line
    assert "; this run has 5 prompts of SHA-256 " in line
    assert guardlit(*again, "--data.train", tmp_path / "missing.txt") == 2
    assert f"no prompt file missing.txt in {tmp_path}" in capsys.readouterr().err.splitlines()[-1]
    with pytest.warns(UserWarning, match=r"data\.val = 2 prompts .*before and after it cannot be compared"):
        assert guardlit(*again, "--data.val_limit", 3, "--trainer.max_steps", 8) == 0
