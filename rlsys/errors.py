"""Errors that several packages raise or handle."""


class UserError(Exception):
    """An error that the user can fix; the message names the thing, the value, the rule and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


class CheckpointError(UserError, ValueError):
    """There is no usable checkpoint; the message says what was found instead."""


class RowUnusable(UserError):
    """A row of the data cannot be used, and no retry would help. The run can continue without it."""


class TruthOutside(RowUnusable):
    """The times of a row's truth are not inside its decoded clip."""


class PassRateOutside(RowUnusable):
    """A row is too easy or too hard, by its pass rate so far (`data.pass_rate`)."""


class LearnerLost(RuntimeError):
    """Processes of the learner died or hung, not because of data or settings. Its last checkpoint is intact."""


class LearnerIntact(RuntimeError):
    """A call to the learner failed on all of its ranks alike: it had no effect, and the ranks can continue."""


class NotWritten(LearnerIntact):
    """A checkpoint could not be written to disk."""


class CheckpointUnsafe(LearnerIntact, CheckpointError):
    """A file of a checkpoint would run code when it is read."""


class CheckpointNotConverted(LearnerIntact, CheckpointError):
    """A checkpoint of other ranks could not be converted for these."""


class WeightsDiffer(UserError):
    """The learner does not have the weights that its checkpoint was saved with."""


class FramesLost(LearnerIntact):
    """Frames of requested clips are no longer in the object store, for example because their node died.

    references: hex ids of the objects.
    """

    def __init__(self, references: tuple[str, ...]) -> None:
        super().__init__(references)
        self.references = references

    def __str__(self) -> str:
        return f"the frames of {len(self.references)} clips are lost: {', '.join(self.references)}"
