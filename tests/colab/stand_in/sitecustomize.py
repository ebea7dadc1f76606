"""Colab's torch is older than `F.linear_cross_entropy`: with it taken away the course's own loss is what runs."""

import torch.nn.functional as F

vars(F).pop("linear_cross_entropy", None)
