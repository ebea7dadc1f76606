"""The course's shared code: one idea a file, and nothing runs on import."""
