"""The base of errors whose message alone tells a person what to do."""


class UserError(Exception):
    """Bad input or a refused setting: names the thing, the value, the rule and the remedy.

    The command line prints it without a traceback and ends with exit code 2.
    """


class RowUnusable(UserError):
    """A row of the data cannot be used, whatever is tried. The run can go on without it."""


class LearnerLost(RuntimeError):
    """Processes of the learner died or hung, through no fault of data or settings. Its last checkpoint is sound."""
