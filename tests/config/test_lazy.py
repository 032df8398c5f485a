"""Defaults that are shown on the command line and built for a script."""

from __future__ import annotations

from jsonargparse import lazy_instance

import guardlit as gl
from guardlit.config.lazy import unlazy


def test_a_lazy_default_becomes_an_instance_of_its_class():
    built = unlazy(lazy_instance(gl.FlowSDE, noise_level=0.5))
    assert type(built) is gl.FlowSDE
    assert vars(built) == vars(gl.FlowSDE(noise_level=0.5))


def test_an_instance_stays_itself():
    sde = gl.FlowSDE(0.3)
    assert unlazy(sde) is sde


def test_modules_of_a_script_share_no_default(sd3_folder):
    one, other = (gl.GRPOModule(gl.SD3Policy(str(sd3_folder), 32), gl.JPEGCompressibility()) for _ in range(2))
    assert type(one.sde) is gl.FlowSDE
    assert type(one.objective) is gl.GRPOGuard
    assert one.objective is not other.objective
    assert one.sde is not other.sde
