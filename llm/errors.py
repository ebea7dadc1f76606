"""Errors that a person can fix: each message is one sentence that says what is wrong and what to do.

The command line and the lab show only that sentence. Every other exception is a bug and keeps its traceback.
"""


class CourseError(Exception):
    """The base class of the errors below."""


class SettingError(CourseError, ValueError):
    """An argument or option is invalid, or conflicts with the others."""


class TextError(CourseError):
    """A corpus or a learner's own text cannot be fetched or used."""


class BaseError(CourseError):
    """A base model cannot be fetched, loaded or saved."""


class AdapterError(CourseError):
    """An adapter cannot be saved or loaded."""


class TrainingError(CourseError):
    """Training cannot continue; the model holds the weights of the last good step."""


class RunError(CourseError):
    """A fine-tuning run cannot start or continue."""


class PeerError(CourseError):
    """Another process of a torchrun run has ended."""


class WriteError(CourseError, OSError):
    """A file could not be written; an earlier version of it is unchanged."""
