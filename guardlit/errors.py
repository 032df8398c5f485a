"""The one exception that the command line turns into a single line."""


class GuardlitError(Exception):
    """A mistake the user can mend: the message names the place, what was found and what would be right.

    Attributes:
        together: whether all processes of the run raise it at the same point: they may then save together.
    """

    together: bool = False
