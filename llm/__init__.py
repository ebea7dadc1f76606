"""The lesson lies on this floor; read it in this order.

`lora.py`        LoRA itself: freeze W, learn A and B
`surgery.py`     how its layers get into a model
`model.py`       the GPT that wears it
`loss.py`        what the head asks of it, and at which price
`training.py`    the loop that moves A and B
`generation.py`  what it writes: greedy, or sampled among the top k
`tokenizer.py`   text in, text out
`spectra.py`     what fine-tuning moved
`quantize.py`    a base of four bits under it

Everything else keeps the course running, a folder a room: its `__init__.py` says who lives there.
"""
