"""The one error class of this package."""


class InputError(ValueError):
    """What the user handed over cannot be used; the message says what came, what was wanted and what to do.

    The command line prints the message alone and ends with status 2.
    """
