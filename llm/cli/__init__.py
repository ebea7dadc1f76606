"""`python -m llm ...`: the course without a notebook.

`app.py` has the app and the options that commands share; `data.py`, `export.py`, `finetune.py`, `use_adapter.py` and
`maintenance.py` have the commands; `console.py` prints one-sentence errors and JSON; `interrupts.py` handles Ctrl-C and
SIGTERM; `doctor.py` checks what is installed, what is missing, and how to get it.
"""
