"""What a person can put right: each message is one sentence that says what is wrong and what to do.

The command line and the lab show such a sentence. Every other exception is a defect, and keeps its traceback.
"""


class CourseError(Exception):
    """Any of the errors below."""


class SettingError(CourseError, ValueError):
    """An argument or an option makes no sense, or does not fit the others."""


class TextError(CourseError):
    """A corpus or a learner's own text cannot be had or used."""


class BaseError(CourseError):
    """A base model cannot be had, loaded or saved."""


class AdapterError(CourseError):
    """An adapter cannot be saved or loaded."""


class TrainingError(CourseError):
    """Training cannot go on; the model holds the weights of the last good step."""


class RunError(CourseError):
    """A fine-tune cannot begin or go on."""


class PeerError(CourseError):
    """Another process of a run under torchrun has ended."""


class WriteError(CourseError, OSError):
    """The disk did not take a file; the one that was there is as it was."""
