"""The command line's parser: jsonargparse with errors of one line. Imports errors and assets."""

from guardlit.config.parser import GuardlitParser

__all__ = ["GuardlitParser"]
