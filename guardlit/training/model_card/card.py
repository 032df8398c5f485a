"""Writes a model card, `README.md`, next to exported weights, in the format of the Hugging Face hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardlit.policies.exports.facts import ExportFacts
from guardlit.training.model_card.privacy import public_command
from guardlit.training.model_card.run_facts import RunFacts
from guardlit.training.model_card.tables import gold_table, pairs, scorers_table

CARD, GRID = "README.md", "samples.png"


@dataclass(frozen=True)
class Origin:
    """Where exported weights come from.

    Attributes:
        updates: number of updates.
        round: the last one that trained, from 1; None if it is unknown.
        checkpoint: file name; empty for the end of a run.
        sha256: of the checkpoint.
    """

    updates: int
    round: int | None
    checkpoint: str = ""
    sha256: str = ""


def write_card(folder: Path, facts: ExportFacts, run: RunFacts, origin: Origin, weights: str) -> None:
    """Write `README.md`, and `samples.png` if the run drew samples.

    What is not known is left out, and the card says so. Paths are reduced to names.

    Args:
        folder: with the exported weights.
        facts: of the policy.
        run: of the run's folder.
        origin: of the weights.
        weights: `raw` or `ema`.
    """
    if run.grid is not None:
        shutil.copyfile(run.grid, folder / GRID)
    else:
        (folder / GRID).unlink(missing_ok=True)  # of an earlier export
    body = "\n\n".join(part for part in _parts(facts, run, origin, weights) if part)
    (folder / CARD).write_text(f"---\n{_metadata(facts)}\n---\n\n{body}\n", encoding="utf-8")


def _metadata(facts: ExportFacts) -> str:
    """The front matter, as YAML."""
    from huggingface_hub import ModelCardData

    kind = ["lora"] if facts.adapter else []
    license: dict[str, Any] = dict(facts.license)
    data = ModelCardData(
        base_model=facts.hub_id,
        base_model_relation=("adapter" if facts.adapter else "finetune") if facts.hub_id else None,
        library_name=facts.library or None,
        pipeline_tag="text-to-image",
        tags=["guardlit", "grpo", "reinforcement-learning", *kind],
        **license,
    )
    return data.to_yaml()


def _parts(facts: ExportFacts, run: RunFacts, origin: Origin, weights: str) -> Iterator[str]:
    settings = run.settings()
    method = f" with {settings['objective']}" if "objective" in settings else ""
    what = "A LoRA for" if facts.adapter else "Complete weights, trained from"
    yield f"# {Path(facts.base).name}, trained by guardlit"
    yield (
        f"{what} {_base(facts)}: a text-to-image model, post-trained by reinforcement learning{method}. "
        f"{_average(weights)}"
    )
    yield f"## Use\n\n{facts.usage}"
    if facts.hub_id is None and "base = " in facts.usage and "resolve(" not in facts.usage:
        yield "`base` is the folder of the base model: write its place there."
    recipe = {**settings, **facts.settings}
    yield f"## Recipe\n\n{pairs(('setting', 'value'), recipe)}" if recipe else ""
    yield from _scores(run)
    yield f"## Samples\n\n![Samples of the last validation, by the weights that it used](./{GRID})" if run.grid else ""
    yield from _provenance(run, origin)
    yield from _license(facts)
    if run.missing:
        yield f"Not found when this card was written, and left out: {', '.join(run.missing)}."


def _base(facts: ExportFacts) -> str:
    return f"[{facts.hub_id}](https://huggingface.co/{facts.hub_id})" if facts.hub_id else f"`{facts.base}`"


def _average(weights: str) -> str:
    if weights == "ema":
        return "These are the weights averaged over the training (EMA)."
    return "These are the weights of the last update, not averaged."


def _scores(run: RunFacts) -> Iterator[str]:
    name = (run.facts.get("reward") or {}).get("name")
    if scorers := scorers_table(run):
        watched = " Gold scores were only watched." * ("| gold |" in scorers)
        yield f"## Reward\n\nTrained on `{name}`.{watched}\n\n{scorers}"
    if gold := gold_table(run):
        yield (
            "## Gold scores\n\nMeans over the validation prompts, drawn with the weights that the run validates: the "
            "average, if it keeps one. The column `average` is the mean of score / base, 1 for the base model, "
            f"with the 95 % interval of a bootstrap over prompts.\n\n{gold}"
        )


def _provenance(run: RunFacts, origin: Origin) -> Iterator[str]:
    checkpoint = {"checkpoint": origin.checkpoint, "checkpoint's SHA-256": origin.sha256}
    versions = {str(k): str(v) for k, v in (run.facts.get("versions") or {}).items() if v}
    python = {"Python": str(run.facts["python"])} if "python" in run.facts else {}
    number = {} if origin.round is None else {"round": str(origin.round)}
    values = {
        **{name: value for name, value in checkpoint.items() if value},
        **number,
        **({"resumed from": str(run.facts["resumed_from"])} if run.facts.get("resumed_from") else {}),
        "updates": str(origin.updates),
        **{name: str(run.facts[name]) for name in ("processes", "precision") if name in run.facts},
        **versions,
        **python,
    }
    yield f"## Provenance\n\n{pairs(('what', 'value'), values)}"
    if command := run.facts.get("command"):
        shown = public_command(command)
        yield f"Trained by this command, its absolute paths reduced to names:\n\n```bash\n{shown}\n```"


def _license(facts: ExportFacts) -> Iterator[str]:
    base = _base(facts)
    if name := facts.license.get("license_name") or facts.license.get("license"):
        link = facts.license.get("license_link")
        shown = f"[{name}]({link})" if link else f"`{name}`"
        yield f"## License\n\nThe base model's, {shown}: what it says of derived weights holds for these."
    else:
        yield (
            f"## License\n\nThe license of {base} is not known here, so this card names none: add it before you "
            "share the weights."
        )
