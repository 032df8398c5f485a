"""Reads the file that an offline W&B run leaves; W&B has no public reader of it."""

import json
import struct
from importlib import import_module

QUIET = {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_DISABLE_GIT": "true"}
"""Of the environment: W&B prints nothing."""

STEP = "trainer/global_step"
"""Lightning's key of the step, in every row."""


def records(path):
    """The records of a run's W&B file, in order."""
    internal = import_module("wandb.proto.wandb_internal_pb2")
    return [internal.Record.FromString(data) for data in _leveldb_records(path.read_bytes()[7:])]


def history(path):
    """(step, value) of every logged value, by key, in order; a histogram, a picture or a table is a mapping."""
    found = {}
    for record in records(path):
        row = {}
        for item in record.history.item:
            key, *within = item.nested_key or [item.key]
            value = json.loads(item.value_json)
            row[key] = {**row.get(key, {}), within[0]: value} if within else value
        for key, value in row.items():
            found.setdefault(key, []).append((row.get(STEP), value))
    return found


def settings(path):
    """The run's configuration, where a key of several levels is a tuple."""
    updates = [u for record in records(path) for u in (*record.config.update, *record.run.config.update)]
    return {tuple(u.nested_key) or u.key: json.loads(u.value_json) for u in updates}


def _leveldb_records(data, block=32768, header=7):
    """Records of LevelDB's log format, as in a W&B file after its seven-byte header."""
    record, at = b"", 0
    while at + header <= len(data):
        room = block - (at + 7) % block
        if room < header:
            at += room
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + header])
        record += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield record
            record = b""
