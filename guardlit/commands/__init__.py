"""The commands of the command line, one file each. Imports everything below it; only cli.py imports it."""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("train a pipeline", "first_look"),
    "validate": ("evaluate a checkpoint with the rewards of its run", "first_look"),
    "sample": ("draw images with a checkpoint", "sample"),
    "export": ("write a checkpoint as a LoRA or a pipeline folder, with a model card", "first_look"),
    "push": ("upload an export to the Hugging Face Hub", "push"),
    "evaluate": ("compare checkpoints with the base model: gold scores in one table", "evaluate"),
    "convert": ("turn a published checkpoint into what a scorer loads", "convert"),
    "ablate": ("compare objectives, on one rollout or by training with each", "ablate"),
    "recipes": ("list the configurations that come with guardlit, or copy one to edit", "recipes"),
    "plan": ("print what a run will cost, before any weights load", "plan"),
    "report": ("write figures and one page from run folders", "report"),
    "serve-reward": ("score images for other processes, over HTTP", "serve_reward"),
    "schedule": ("print a sampler's coefficients and every objective's gradient scale", "schedule"),
}
"""Name -> what it does, and the module of `guardlit.commands` whose `main` does it, given the list of arguments."""
