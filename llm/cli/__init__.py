"""`python -m llm ...`, the course without a notebook.

`app.py` the app and the options that commands share; `finetune.py`, `use_adapter.py`, `course.py` the commands;
`console.py` errors in one sentence, Ctrl-C, JSON; `doctor.py` what is here, what is missing, how to get it.
"""
