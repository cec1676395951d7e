"""The base of errors whose message alone tells a person what to do."""


class UserError(Exception):
    """Bad input or a refused setting: names the thing, the value, the rule and the remedy.

    The command line prints it without a traceback and ends with exit code 2.
    """


class CheckpointError(UserError, ValueError):
    """There is nothing to resume from; the message says what was found instead."""


class RowUnusable(UserError):
    """A row of the data cannot be used, whatever is tried. The run can go on without it."""


class LearnerLost(RuntimeError):
    """Processes of the learner died or hung, through no fault of data or settings. Its last checkpoint is sound."""


class LearnerIntact(RuntimeError):
    """A call to the learner failed on all of its ranks alike: nothing of it was done, and they can go on."""


class NotWritten(LearnerIntact):
    """The disk did not take a checkpoint."""


class CheckpointUnsafe(LearnerIntact, CheckpointError):
    """A file of a checkpoint would run code when it is read."""


class WeightsDiffer(UserError):
    """The learner does not have the weights that its checkpoint was saved with."""


class FramesLost(LearnerIntact):
    """Frames of clips that were asked for are not in the cluster's memory any more, as when their node died.

    references: hex ids of the objects.
    """

    def __init__(self, references: tuple[str, ...]) -> None:
        super().__init__(references)
        self.references = references

    def __str__(self) -> str:
        return f"the frames of {len(self.references)} clips are lost: {', '.join(self.references)}"
