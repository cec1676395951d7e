"""The base of errors whose message alone tells a person what to do."""


class UserError(Exception):
    """Bad input or a refused setting: names the thing, the value, the rule and the remedy.

    The command line prints it without a traceback and ends with exit code 2.
    """
