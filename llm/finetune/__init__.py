"""One fine-tune from the command line: `python -m llm finetune`.

`settings.py` has the settings and their defaults; `target_words.py` says what "attention" and "mlp" mean; `run.py` is
the run, its checkpoints and its report; `resume.py` resumes a stopped run; `torchrun.py` runs several processes as one;
`verdict.py` interprets the loss curve.
"""
