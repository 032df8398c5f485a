"""One HTML page of figures and tables from run folders. Imports `figures`, `frontier`, `tools`; no torch, no Lightning.

Public: `build`, its `ConfigKeys` and `ReportError`, and `execute` for the command line of another program.
"""

from guardlit_callbacks.report.data import ReportError
from guardlit_callbacks.report.labels import ConfigKeys
from guardlit_callbacks.report.writer import build, execute

__all__ = ["ConfigKeys", "ReportError", "build", "execute"]
