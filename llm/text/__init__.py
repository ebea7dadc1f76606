"""Text as batches of tokens. Knows nothing about models.

`download.py` packages and model files through pip, their sha256 checked; `corpora.py` speeches, Shakespeare and Python,
cleaned and split; `records.py` sentences and their JSON records, made by seeded code; `txt.py` a text
file: found, decoded, and what tokens lose of it; `jsonl.py` what a row of prompt and completion has to look like; `examples.py` how the two are
joined, masked and padded; `chat.py` a conversation as a chat template writes it, its answers graded; `batches.py` windows and seeds; `dataset.py` any of these by name, as `finetune` reads it.
"""
