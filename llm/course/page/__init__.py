"""The static page that fine-tunes the course's model in a browser tab, and the site around it.

index.html, page.css and src/ are the page, in plain modules that a browser reads as they are: src/gpt.js is the model with
the backward pass of a LoRA layer, kernels.ts its arithmetic (kernels.wasm once compiled). `weights.py` writes the base in
bytes, `site.py` the whole site.
"""

from llm.course.page.site import write_page, write_site
from llm.course.page.weights import rounded, write_weights
