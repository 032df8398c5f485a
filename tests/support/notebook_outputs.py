"""What the notebooks show on a page: pictures and the numbers that their cells print.

`python tests/support/notebook_outputs.py` executes all of them, minutes each, and writes their outputs into the files.
"""

from __future__ import annotations

from pathlib import Path

import nbformat

FOLDER = Path(__file__).parents[2] / "notebooks"
LINES = 40
"""Longest text output that is kept."""


def keep_what_shows(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop warnings, logs of training, paths of a machine, timings and counts from the outputs."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            trains = any("Seed set to" in output.get("text", "") for output in cell.outputs)
            cell.execution_count = None
            cell.outputs = [kept for output in cell.outputs if (kept := _kept(output, trains)) is not None]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    return notebook


def _kept(output: nbformat.NotebookNode, trains: bool) -> nbformat.NotebookNode | None:
    data = output.get("data", {})
    if "image/png" in data:
        # one line, as nbformat writes pictures that no kernel has wrapped
        picture = {"image/png": data["image/png"].replace("\n", "")}
        return nbformat.v4.new_output("display_data", data=picture)
    text = output.get("text", "")
    machine = "/tmp/" in text or str(Path.home()) in text or "site-packages" in text
    if output.output_type != "stream" or output.name != "stdout" or trains or machine or text.count("\n") > LINES:
        return None
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a new kernel."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    return NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(keep_what_shows(execute(path)), path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB")
