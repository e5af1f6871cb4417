"""What stops a command, in one sentence for the operator."""


class BackupError(Exception):
    """A command cannot go on; the message says why and what to do."""
