"""Networks from local, checked files for the metrics of torchmetrics."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.rewards.clip.scorer import load_clip
from guardlit.rewards.files import expanded, file_errors, find_file, read_tensors


class TorchmetricsClip:
    """Makes `torchmetrics.multimodal.CLIPScore` work with transformers 5, and with a local folder.

    Pass it as `model_name_or_path`. With a name that metric fails: the towers return an output object where it expects
    a tensor. It does not take a folder either.

    Args:
        model: Hugging Face id or local folder of the CLIP model.
    """

    def __init__(self, model: str = "openai/clip-vit-large-patch14") -> None:
        self.model = expanded(model)

    def __call__(self) -> tuple[nn.Module, Any]:
        """The model and the processor for torchmetrics, with PIL's resize, the reference."""
        from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

        with file_errors(self.model, "CLIP folder"):
            images = CLIPImageProcessorPil.from_pretrained(self.model)
            texts = CLIPTokenizer.from_pretrained(self.model)
            return _TensorsOut(load_clip(self.model)), CLIPProcessor(images, texts)


class _TensorsOut(nn.Module):
    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip, self.config = clip, clip.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.clip.get_image_features(pixel_values=pixels).pooler_output
        return embedding

    def get_text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        embedding: Tensor = self.clip.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
        return embedding


InceptionFeature = Literal["64", "192", "768", "2048", "logits_unbiased"]


def inception(weights: str, feature: InceptionFeature = "2048") -> nn.Module:
    """The Inception v3 of FID, KID and IS, to pass as their `feature`: nothing is downloaded, no code is run.

    Without it KID and IS download the network, and FID runs any code that its file of weights holds.

    Args:
        weights: torch-fidelity's `pt_inception-2015-12-05-6726825d.pth`, or a folder with it.
        feature: the output: 2048 for the published FID and KID, logits_unbiased for IS.

    Raises:
        GuardlitError: torch-fidelity is not installed; the file is missing or holds something else.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    path = find_file(weights, "pt_inception-2015-12-05-6726825d.pth", "file of Inception v3")
    read_tensors(path)  # torch-fidelity opens the same file in a way that may run code
    try:
        with torch.random.fork_rng(devices=[]):
            net: nn.Module = NoTrainInceptionV3("inception-v3-compat", [feature], str(path))
    except ModuleNotFoundError as error:
        raise GuardlitError("FID, KID and IS need torch-fidelity: pip install 'guardlit[metrics]'") from error
    except RuntimeError as error:
        raise GuardlitError(f"{path}: these are not the weights of torch-fidelity's Inception v3") from error
    features = 1008 if feature == "logits_unbiased" else int(feature)
    net.num_features = torch.tensor(features)  # without it FID runs the network on a random image
    return net
