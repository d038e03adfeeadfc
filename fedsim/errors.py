"""What ends a run that is nobody's bug: a full disk, a worker that is gone, a client whose numbers run away."""

from typing import Literal

OnNan = Literal["stop", "skip"]
"""What becomes of a client whose numbers are no longer finite: the run stops, or skips the client's update."""


class Fault(RuntimeError):
    """Ends a run with one message that says what happened and how to go on; the rounds before it are kept.

    An echo is what a worker sees of a fault that another one has met, and will speak of.
    """

    is_echo = False
