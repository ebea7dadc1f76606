"""What only the course needs, and what makes it again.

`tasks.py` what the base is adapted to, and the arms that learn it; `chats.py` conversations whose answers can be
checked; `audit.py` what trains in a model; `step_costs.py` a step in seconds and bytes; `toy_matrices.py` matrices to
look at; `four_bits.py` weights that were rounded; `movements.py` what training did in a layer; `comparison.py` methods
by their recorded rows; `experiments.py` the recorded fine-tunes, `subspaces.py` where their updates point;
`pretraining.py` and `pretraining_mixture.py` how the base was made, and from what; `contents.py` the order of the
notebooks, `notebook_files.py` what follows it; `colab.py` the course packed, and each notebook's first cell there.
`figures/` numbers as pictures; `widgets/` explorers, predictions and the live lab; `page/` the page that trains in a
browser tab, and the site; `exercises/` a file of checks for each subject.
"""
