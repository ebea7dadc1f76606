"""LoRA's relatives: other small sets of parameters to train over the same frozen base, built like LoRA.

    LoRA     y = x W' + b                W' = W + s A B              s = alpha / r
    rsLoRA   the same                                                s = alpha / sqrt(r)
    LoRA+    the same                    B's learning rate is 16 times A's
    LoRA-FA  the same                    A stays at its random start; only B trains
    DoRA     y = x W' + b                W' = m V / |V|              V = W + s A B, a magnitude m for each output
    PiSSA    y = x W' + b                W' = R + s A B              s A0 B0: W's r largest singular parts, R the rest
    IA3      y = l * (x W + b)           or (l * x) W + b            a factor l for each output, or each input
    prefix   attention sees [K, keys]    and [V, values]             K and V train, in every block
    prompt   the model reads [p, text]                               p trains, as embeddings
    BitFit   y = x W + b                                             b trains

`methods.py` has them all by name, and removes, merges or disables one; `layers.py` has the layers of LoRA-FA, DoRA,
PiSSA and IA3; `prefixes.py` has the virtual tokens. Knows nothing about adapters on disk.
"""

from llm.relatives.layers import DoraLinear, Ia3Linear, LoraFaLinear, PissaLinear
from llm.relatives.methods import METHODS, OPTIONS, Method, disabled, layers_of, merge, method_of, remove
