"""docs/trainer.md, written from the tables: `python -m guardlit.training.limits.page > docs/trainer.md`."""

from __future__ import annotations

from collections.abc import Mapping

from guardlit.training.limits.arguments import ARGUMENTS
from guardlit.training.limits.callbacks import CALLBACKS, LOGGERS
from guardlit.training.limits.entry import Entry
from guardlit.training.limits.optimizers import OPTIMIZERS, SCHEDULERS

HEAD = """# The Trainer

What each argument of Lightning's Trainer means for a run of rounds, and which callbacks, loggers, optimizers and
learning-rate schedules work. What is refused ends in one line before a round is drawn. A Lightning epoch is one round,
a step is one update, and a batch is one micro-batch.

This page is written from the code: `python -m guardlit.training.limits.page > docs/trainer.md`.

## How a run ends

A run ends after a round (`max_epochs`) or within one: by `max_steps`, by `max_time`, by a callback that sets
`trainer.should_stop`, by a signal, or by a reward that fails. Within a round it stops after a micro-batch, leaves the
round open, and writes `checkpoints/interrupted.ckpt` with the position in the round and the gradients of the update in
progress. The resumed run equals the undisturbed one bit for bit ([reliability](reliability.md)). The validation and the
figures of that round come at its end, in the resumed run. `max_time` counts from the first start of a run, so the
resumed run needs a larger one.

```bash
guardlit fit --config tiny_digits --trainer.max_time 00:00:10:00
guardlit fit --config tiny_digits --ckpt_path last
```

With `enable_checkpointing: false` nothing is saved. A KeyboardInterrupt that a callback raises within an update leaves
the last checkpoint. Nothing can be saved within a micro-batch: call `save_checkpoint` in `on_train_batch_end` or later.
"""


def table(title: str, column: str, entries: Mapping[str, Entry]) -> str:
    """A section with one row an entry."""
    rows = "\n".join(f"| `{name}` | {entry.describe()} |" for name, entry in entries.items())
    return f"## {title}\n\n| {column} | in a run of rounds |\n|---|---|\n{rows}\n"


def page() -> str:
    """The page."""
    parts = [
        HEAD,
        table("Arguments", "argument", ARGUMENTS),
        table("Callbacks of lightning.pytorch.callbacks", "class", CALLBACKS),
        table("Loggers of lightning.pytorch.loggers", "class", LOGGERS),
        table("Optimizers of torch.optim", "class", OPTIMIZERS),
        table("Schedules of torch.optim.lr_scheduler", "class; it steps after every update", SCHEDULERS),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
