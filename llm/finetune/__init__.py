"""One fine-tune from the command line: `python -m llm finetune`.

`settings.py` the settings and their defaults; `target_words.py` what "attention" and "mlp" mean; `run.py` the run, its
checkpoints and its report; `resume.py` going on with one that was stopped; `torchrun.py` several processes as one;
`verdict.py` what its curve means.
"""
