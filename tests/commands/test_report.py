import subprocess
import sys
from pathlib import Path

import pytest

from guardlit import cli


def write_run(folder: Path) -> Path:
    folder.mkdir()
    rows = ["step,beauty,average,average_low,average_high,proxy", "0,2,1,1,1,0.5", "9,3,1.5,1.4,1.6,0.8"]
    (folder / "gold.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_report_writes_the_page_without_torch_and_says_where(tmp_path: Path):
    code = """
import sys
from guardlit.cli import main
code = main(sys.argv[1:])
print(*sorted({"torch", "lightning", "jsonargparse", "diffusers"} & set(sys.modules)))
sys.exit(code)
"""
    arguments = ["report", str(write_run(tmp_path / "run")), "--out", str(tmp_path / "out"), "--title", "Beauty"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(tmp_path / "out/index.html"), ""]
    assert "<h1>Beauty</h1>" in (tmp_path / "out/index.html").read_text()
    assert (tmp_path / "out/proxy_gold.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "out"], "run nowhere is no folder; give the one that holds its metrics.csv"),
        (["run"], "the following arguments are required: --out"),
        (["run", "--out", "run/gold.csv"], "--out run/gold.csv cannot be written: File exists"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *arguments]) == 2
    assert capsys.readouterr().err == f"guardlit report: error: {message}\n"
