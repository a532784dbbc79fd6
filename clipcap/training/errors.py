"""Errors of training."""


class TrainingError(ValueError):
    """A dataset or options that cannot be trained with; the message says why and what to do."""


class ForeignState(TrainingError):
    """The folder holds the state of a run with other examples or options, or a damaged one."""


class TrainingCanceled(Exception):
    """The callback asked to stop; the folder holds all that is needed to resume."""
