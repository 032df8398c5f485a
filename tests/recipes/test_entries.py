"""Configuration files merge with their comments as the command line merges their values."""

from __future__ import annotations

from pathlib import Path

import yaml

from guardlit.recipes.entries import Lines, merged, rendered

FIRST = """\
# What this file is for.
# A second line.
model: # of both
  # above the policy
  policy:
    class_path: SD3Policy
    init_args:
      lora: {rank: 4, alpha: 8} # small
      model: first # replaced
  objective:
    class_path: FlowGRPO
    init_args: {clip_range: 1.0e-4}
    # below the objective

data:
  train: x # prompts
trainer:
  callbacks:
    - one # first
    - class_path: two
      init_args: {a: 1} # second
    # below the callbacks
  max_epochs: 3
"""
SECOND = """\
# Builds on the first.
model:
  policy:
    init_args:
      lora: {alpha: 16} # twice
      model: second # replaces
  objective:
    class_path: GRPOGuard
    init_args:
      clip_range: 4.0e-6
trainer:
  max_epochs: 5 # longer
"""
MERGED = """\
model: # of both
  # above the policy
  policy:
    class_path: SD3Policy
    init_args:
      lora:
        # small
        rank: 4
        # twice
        alpha: 16
      model: second # replaces
  objective:
    class_path: GRPOGuard
    init_args:
      clip_range: 4.0e-6
data:
  train: x # prompts
trainer:
  callbacks:
    - one # first
    - class_path: two
      init_args: {a: 1} # second
    # below the callbacks
  max_epochs: 5 # longer
"""


def read(folder: Path, text: str) -> Lines:
    file = folder / "run.yaml"
    file.write_text(text)
    return Lines(file)


def test_a_file_is_written_as_it_was_read(tmp_path: Path):
    lines = read(tmp_path, FIRST)
    assert lines.header == ("# What this file is for.", "# A second line.")
    body = [line for line in FIRST.splitlines()[2:] if line]
    assert list(rendered(lines.entries)) == body


def test_two_files_come_to_one_with_the_comments_of_what_counts(tmp_path: Path):
    entries = merged(read(tmp_path, FIRST).entries, read(tmp_path, SECOND).entries)
    text = "\n".join(rendered(entries)) + "\n"
    assert text == MERGED
    assert yaml.safe_load(text)["model"]["objective"]["init_args"] == {"clip_range": 4.0e-6}
