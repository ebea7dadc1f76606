"""What moves under the hand. Only notebooks import from here.

`explorer.py` controls over a figure; `rank_explorer.py`, `spectrum_explorer.py`, `target_explorer.py`, `rounding_explorer.py`,
`method_explorer.py` the explorers; `voices.py` adapters that answer in turn; `lab.py` the live lab; `footprint_and_savings.py` and
`footprint_and_savings.js` curves that the browser draws by itself; `predict.py` and `predict.js` questions that the reader answers
before the result; `progress.py` progress bars.
"""
