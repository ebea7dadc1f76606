"""The lesson is the modules on this level; read them in this order.

`lora.py`        LoRA itself: freeze W, learn A and B
`surgery.py`     how LoRA's layers are put into a model
`model.py`       the GPT that LoRA adapts
`loss.py`        the next-token loss, without holding all logits
`training.py`    the loop that trains A and B
`generation.py`  how the model writes: greedy, or sampled from the top k
`tokenizer.py`   text in, text out
`spectra.py`     what fine-tuning changed
`quantize.py`    a 4-bit base under LoRA

The folders hold everything else that the course needs; the `__init__.py` of each says what it contains.
"""
