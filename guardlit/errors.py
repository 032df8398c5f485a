"""The one exception that the command line turns into a single line."""


class GuardlitError(Exception):
    """A mistake the user can mend: the message names the place, what was found and what would be right."""
