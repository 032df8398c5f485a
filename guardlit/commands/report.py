"""`guardlit report`: figures and one page from run folders, as `python -m guardlit_callbacks.report` makes them."""

from __future__ import annotations

from guardlit_callbacks.report import ConfigKeys, ReportError, execute

from guardlit.errors import GuardlitError

SUMMARY = {
    "model": "model.policy.init_args.model",
    "reward": "model.reward.class_path",
    "objective": "model.objective.class_path",
    "clip range": "model.objective.init_args.clip_range",
    "KL weight": "model.kl.weight",
    "optimizer": "model.optimizer.class_path",
    "learning rate": "model.optimizer.init_args.lr",
    "LoRA rank": "model.policy.init_args.lora.rank",
    "sampling steps": "model.rollout.num_inference_steps",
    "guidance scale": "model.rollout.guidance_scale",
    "prompts per round": "data.prompts_per_round",
    "images per prompt": "data.images_per_prompt",
    "updates per round": "data.updates_per_round",
    "rounds": "trainer.max_epochs",
    "seed": "seed_everything",
}
"""The settings that matter most, and their keys."""

KEYS = ConfigKeys("model.objective.class_path", seeds=("seed_everything", "data.seed"), summary=SUMMARY)
"""Where a run's configuration names its method, its seeds and the settings that matter most."""


def main(args: list[str]) -> None:
    """Run `guardlit report`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: a run, an option or an output folder that cannot be used.
    """
    try:
        execute(args[1:], "guardlit report", KEYS)
    except ReportError as error:
        raise GuardlitError(str(error)) from error
