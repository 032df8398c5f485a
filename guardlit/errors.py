"""What the command line turns into a single line."""


class GuardlitError(Exception):
    """A mistake the user can mend: the message names the place, what was found and what would be right.

    Attributes:
        together: whether all processes of the run raise it at the same point: they may then save together.
    """

    together: bool = False


class NumbersError(GuardlitError):
    """Numbers that went wrong: the run cannot go on from its weights, and a checkpoint of them would be no good.

    Attributes:
        back_to: the checkpoint from which the run is to go on by itself, where there is one.
    """

    back_to: str | None = None
