"""What moves under the hand. Only notebooks import from here.

`explorer.py` controls over a figure; `matrices.py`, `singular_values.py`, `targets.py`, `quantization.py`, `relatives.py`
the explorers; `voices.py` adapters that answer in turn; `lab.py` the live lab; `curves.py` and `curves.js` curves that the
browser draws by itself.
"""
