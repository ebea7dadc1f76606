"""Checks of what the learner writes, a file a notebook. Only notebooks import from here.

`notebook_01.py`, `notebook_02.py`, `notebook_03.py`, `notebook_04.py`, `notebook_05.py`, `notebook_06.py`,
`notebook_08.py`, `notebook_09.py`; and `speak.py`, how a check compares and what it says.
"""
