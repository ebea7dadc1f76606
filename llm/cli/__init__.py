"""`python -m llm ...`, the course without a notebook.

`app.py` the app and the options that commands share; `data.py`, `export.py`, `finetune.py`, `use_adapter.py`,
`maintenance.py` the commands; `console.py` errors in one sentence, JSON; `interrupts.py` Ctrl-C, SIGTERM and the exit codes
after them; `doctor.py` what is here, what is missing, how to get it.
"""
