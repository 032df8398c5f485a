"""What the command line turns into a single line."""


class GuardlitError(Exception):
    """A mistake the user can mend: the message names the place, what was found and what would be right."""


class NumbersError(GuardlitError):
    """Numbers that went wrong: the run cannot go on from its weights, and a checkpoint of them would be no good.

    Attributes:
        advised: whether the message already names the checkpoint to go on from.
        back_to: that checkpoint, where the run is to go on from it by itself.
    """

    advised = False
    back_to: str | None = None
