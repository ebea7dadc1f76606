"""LoRA's relatives: other few numbers to train over the same frozen base, each on LoRA's skeleton.

    LoRA     y = x W' + b                W' = W + s A B              s = alpha / r
    rsLoRA   the same                                                s = alpha / sqrt(r)
    LoRA+    the same                    B's learning rate is 16 times A's
    LoRA-FA  the same                    A stays as it was drawn, B alone trains
    DoRA     y = x W' + b                W' = m V / |V|              V = W + s A B, a length m for each output
    PiSSA    y = x W' + b                W' = R + s A B              s A0 B0: W's r largest singular parts, R the rest
    IA3      y = l * (x W + b)           or (l * x) W + b            a factor l for each output, or each input
    prefix   attention sees [K, keys]    and [V, values]             K and V train, in every block
    prompt   the model reads [p, text]                               p trains, as embeddings
    BitFit   y = x W + b                                             b trains

`methods.py` all of them by name, and how to take one off, merge it, or silence it; `layers.py` the layers of DoRA, PiSSA and
IA3; `prefixes.py` what stands before the text. Knows nothing of adapters on disk.
"""

from llm.relatives.layers import DoraLinear, Ia3Linear, LoraFaLinear, PissaLinear
from llm.relatives.methods import METHODS, OPTIONS, Method, disabled, layers_of, merge, method_of, remove
