"""One fine-tune from the command line: `python -m llm finetune`.

`settings.py` what can be set, and the defaults; `targets.py` what "attention" and "mlp" mean; `run.py` the run itself,
with its checkpoints; `resume.py` going on with one that was stopped; `torchrun.py` several processes as one;
`verdict.py` what its curve means.
"""
