"""A job is requeued under its own id."""

from __future__ import annotations

from guardlit.processes.slurm import job_id


def test_a_job_array_s_task_has_its_own_id():
    assert job_id({"SLURM_JOB_ID": "4711"}) == "4711"
    assert job_id({"SLURM_JOB_ID": "4712", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}) == "12_3"
