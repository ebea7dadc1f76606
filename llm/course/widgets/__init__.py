"""What moves under the hand. Only notebooks import from here.

`explorer.py` an instrument that lives in the page, made of numbers that the kernel sends once; `bundle.js` all instruments
and the views of the widgets, built from browser/src; `stand_ins/` a picture of each instrument for a page without scripts;
`rank_explorer.py`, `spectrum_explorer.py`, `target_explorer.py`, `settings_explorer.py`, `rounding_explorer.py`,
`method_explorer.py`, `footprint_and_savings.py` the explorers; `prefer.py` a blind comparison by the reader; `voices.py`
adapters that answer in turn; `lab.py` the live lab, `lab_choices.py` what it lets one choose; `predict.py` questions that
the reader answers before the result; `progress.py` progress bars.
"""
