"""Checks of what the learner writes, one module for each subject. Only notebooks import them.

`formula.py`, `low_rank.py`, `wrapper.py`, `fine_tuning.py`, `rank_and_alpha.py`, `checkpoints.py`, `time_and_memory.py`,
`normal_float.py`, `dora_and_pissa.py`, `unfair_comparison.py`, `your_data.py`; and `speak.py`, which compares an answer
with the usual mistakes and reports what it finds.
"""
