"""A policy that records which prompts its rank encodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guardlit.policies import SD3Policy
from guardlit.policies.folders.embeddings import rank


class Counted(SD3Policy):
    """One line a prompt, one file a rank; `own` gives each rank a separate cache folder."""

    def __init__(self, *args: Any, log: str, own: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._log, self._own = Path(log), own

    def load(self, shard: Any = None) -> None:
        if self._own:
            self.cache = f"{self.cache}/{rank()}"
        super().load(shard)

    def _encode_prompts(self, pipeline: Any, prompts: list[str]) -> Any:
        with (self._log / f"encoded_{rank()}").open("a") as file:
            file.writelines(json.dumps(prompt) + "\n" for prompt in prompts)
        return super()._encode_prompts(pipeline, prompts)
