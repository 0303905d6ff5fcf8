"""The one error that is the user's to mend."""


class InputError(Exception):
    """A file, line or option that cannot be used.

    The message is one sentence: what it is about, what was expected, what to do. `cli.main` prints
    it and exits with 2.
    """
