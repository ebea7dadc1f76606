"""Text as batches of tokens. Knows nothing about models.

`download.py` packages and model files through pip, their sha256 checked; `corpora.py` speeches, Shakespeare and Python,
cleaned and split; `records.py` sentences and their JSON records, made by seeded code; `txt.py` a text file: found,
decoded, and what tokens lose of it; `rows.py` the rows of a learner's table, whatever file holds them; `formats.py` what
a row is, by its fields; `chat.py` a conversation as a chat template writes it, its answers graded; `tables.py` rows in
tokens: graded, cut, held out; `examples.py` how prompt and completion are joined, masked and padded; `batches.py`
windows and seeds; `dataset.py` any of these by name, as `finetune` reads it.
"""
