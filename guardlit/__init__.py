"""GRPO-Guard for text-to-image flow models, on PyTorch Lightning.

The names of `__all__` are the public API. Each is imported at its first use: `import guardlit` alone imports no torch.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; importing `typing` takes longer than the rest of this file
if TYPE_CHECKING:
    from guardlit.advantage import GroupAdvantage as GroupAdvantage
    from guardlit.advantage import group_relative as group_relative
    from guardlit.commands.trainer import Trainer as Trainer
    from guardlit.data.datamodule import PromptDataModule as PromptDataModule
    from guardlit.errors import GuardlitError as GuardlitError
    from guardlit.gate import UncertaintyGate as UncertaintyGate
    from guardlit.kl import KL as KL
    from guardlit.objective import PCPO as PCPO
    from guardlit.objective import FlashGRPO as FlashGRPO
    from guardlit.objective import FlowDPPO as FlowDPPO
    from guardlit.objective import FlowGRPO as FlowGRPO
    from guardlit.objective import GRPOGuard as GRPOGuard
    from guardlit.objective import GuardReweight as GuardReweight
    from guardlit.objective import MeanRevised as MeanRevised
    from guardlit.objective import Objective as Objective
    from guardlit.objective import RatioNorm as RatioNorm
    from guardlit.objective import TempFlowGRPO as TempFlowGRPO
    from guardlit.objective import VelocityNorm as VelocityNorm
    from guardlit.policies import DiffusersPolicy as DiffusersPolicy
    from guardlit.policies import FlowPolicy as FlowPolicy
    from guardlit.policies import Flux2KleinPolicy as Flux2KleinPolicy
    from guardlit.policies import FluxPolicy as FluxPolicy
    from guardlit.policies import LoRA as LoRA
    from guardlit.policies import QwenImagePolicy as QwenImagePolicy
    from guardlit.policies import SD3Policy as SD3Policy
    from guardlit.rewards import DINO as DINO
    from guardlit.rewards import OCR as OCR
    from guardlit.rewards import Aesthetic as Aesthetic
    from guardlit.rewards import CLIPScore as CLIPScore
    from guardlit.rewards import Composite as Composite
    from guardlit.rewards import DigitDiversity as DigitDiversity
    from guardlit.rewards import DigitGold as DigitGold
    from guardlit.rewards import DigitProbability as DigitProbability
    from guardlit.rewards import DigitRealism as DigitRealism
    from guardlit.rewards import GenEval as GenEval
    from guardlit.rewards import HPSv2 as HPSv2
    from guardlit.rewards import ImageReward as ImageReward
    from guardlit.rewards import JPEGCompressibility as JPEGCompressibility
    from guardlit.rewards import PickleReward as PickleReward
    from guardlit.rewards import PickScore as PickScore
    from guardlit.rewards import RemoteReward as RemoteReward
    from guardlit.rewards import Scorer as Scorer
    from guardlit.rewards import Term as Term
    from guardlit.rewards import TorchmetricsClip as TorchmetricsClip
    from guardlit.rewards import UnifiedReward as UnifiedReward
    from guardlit.rounds.settings import Rollout as Rollout
    from guardlit.rounds.settings import Sampling as Sampling
    from guardlit.rounds.windows import RandomSubset as RandomSubset
    from guardlit.rounds.windows import RandomWindow as RandomWindow
    from guardlit.rounds.windows import SlidingWindow as SlidingWindow
    from guardlit.rounds.windows import Window as Window
    from guardlit.sde import CPS as CPS
    from guardlit.sde import ODE as ODE
    from guardlit.sde import DanceSDE as DanceSDE
    from guardlit.sde import FlowSDE as FlowSDE
    from guardlit.training.data_loss.settings import DataLoss as DataLoss
    from guardlit.training.module import GRPOModule as GRPOModule
    from guardlit.training.sharded_strategy import ShardedStrategy as ShardedStrategy

    __version__: str

_HOMES = {
    "guardlit.advantage": "GroupAdvantage group_relative",
    "guardlit.commands.trainer": "Trainer",
    "guardlit.data.datamodule": "PromptDataModule",
    "guardlit.errors": "GuardlitError",
    "guardlit.objective": "FlashGRPO FlowDPPO FlowGRPO GRPOGuard GuardReweight MeanRevised Objective PCPO RatioNorm "
    "TempFlowGRPO VelocityNorm",
    "guardlit.policies": "DiffusersPolicy Flux2KleinPolicy FlowPolicy FluxPolicy LoRA QwenImagePolicy SD3Policy",
    "guardlit.gate": "UncertaintyGate",
    "guardlit.rewards": "Aesthetic CLIPScore Composite DINO DigitDiversity DigitGold DigitProbability DigitRealism "
    "GenEval HPSv2 ImageReward JPEGCompressibility OCR PickScore PickleReward RemoteReward Scorer Term "
    "TorchmetricsClip UnifiedReward",
    "guardlit.kl": "KL",
    "guardlit.rounds.settings": "Rollout Sampling",
    "guardlit.rounds.windows": "RandomSubset RandomWindow SlidingWindow Window",
    "guardlit.sde": "CPS ODE DanceSDE FlowSDE",
    "guardlit.training.data_loss.settings": "DataLoss",
    "guardlit.training.module": "GRPOModule",
    "guardlit.training.sharded_strategy": "ShardedStrategy",
}
"""The public names by the module that has them."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)


if not TYPE_CHECKING:  # with a module's __getattr__, type checkers accept every name

    def __getattr__(name: str) -> object:
        """Import a public name at its first use (PEP 562); read the installed version when asked."""
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("guardlit")
            except PackageNotFoundError:  # on a path, and not installed
                return "unknown"
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """All public names, imported or not."""
    return sorted({*globals(), *__all__})
