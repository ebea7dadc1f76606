"""The course's colors and names: one color is one method in every plot, curve and notebook.

Okabe and Ito's palette, which color-blind readers tell apart.
"""

COLOURS = {
    "full": "#D55E00",  # full fine-tuning
    "lora": "#0072B2",  # LoRA, and anything with A and B in it
    "norm": "#009E73",  # the final norm only: the cheap control
    "base": "#555555",  # the model before training
    "control": "#999999",  # noise, chance, the wrong way round
    "prompt": "#E69F00",  # the base with solved examples in its prompt
    "other": "#CC79A7",  # a further arm of a comparison
    "qlora": "#56B4E9",  # LoRA over a base in four bits
}
NAMES = {
    "full": "full fine-tune",
    "lora": "LoRA",
    "norm": "final norm only",
    "base": "base",
    "prompt": "base, examples",
    "qlora": "QLoRA",
}
# LoRA's relatives by their names in `llm.relatives`, and how they are written
METHODS = {
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "lora+": "LoRA+",
    "lora-fa": "LoRA-FA",
    "dora": "DoRA",
    "pissa": "PiSSA",
    "ia3": "IA3",
    "prefix": "prefix",
    "prompt": "prompt",
    "bitfit": "BitFit",
    "norm": "final norm",
    "full": "full fine-tune",
}
TASKS = {"shakespeare": "plays"}  # tasks by their names in `llm.course.tasks`, where a reader reads another word
OUTSIDE = ("ia3", "prefix", "prompt", "bitfit")  # neither A and B nor a control: gray
FORMATS = {
    "nf4": "#332288",
    "fp4": "#999933",
    "int4": "#882255",
}  # Tol's muted set: ways to round, and no method's color
SIGNED = "RdBu"  # of a matrix: red below zero, white at zero, blue above


def color_of(method: str) -> str:
    """Of one of METHODS: blue for all that has A and B, as everywhere."""
    return "#777777" if method in OUTSIDE else COLOURS.get(method, COLOURS["lora"])


def task_name(task: str) -> str:
    """What a title or a label says for a task."""
    return TASKS.get(task, task)
