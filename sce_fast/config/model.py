"""Settings of backbone, projector, predictor and momentum encoder."""

from dataclasses import dataclass
from typing import Literal

from sce_fast.util.settings import conform, require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Backbone, projector, predictor and momentum encoder."""

    backbone: str = "resnet50"
    """Network: for images resnet18, resnet34, resnet50, resnet101, resnet152, wide_resnet50_2, wide_resnet101_2, or
    timm:NAME for a network of timm; for clips r3d18, r3d50, r2plus1d18, s3d, x3d_m, vit_small_video, vit_base_video.
    Python's train() also takes a module of your own, which is called own."""
    width: int = 64
    """Channels of the first stage of a ResNet, R3D or R(2+1)D, or of an attention head of a ViT for clips; S3D and X3D
    scale all channels by width / 64. A multiple of 8; 64 is the published network."""
    small_input: bool = False
    """Give the network a stem for images of about 32 pixels: 3×3 without stride or pooling, or patches of 4
    pixels in a ViT for clips."""
    projector_hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the projector's hidden layers; () for a single layer."""
    dim: int = 256
    """Dimension D of queries and keys."""
    projector_norm: Literal["all", "hidden", "none"] = "all"
    """Layers of the projector that are followed by batch normalisation."""
    projector_affine: bool = False
    """Give the batch normalisation of the projector's last layer a scale γ and a shift β, as the hidden ones have."""
    projector_bias: bool = True
    """Give the projector's layers without batch normalisation a bias."""
    predictor_hidden: int = 4096
    """Width of the predictor's hidden layers; 0 for no predictor."""
    predictor_layers: int = 1
    """Number of the predictor's hidden layers."""
    predictor_norm: Literal["all", "hidden", "none"] = "hidden"
    """Layers of the predictor that are followed by batch normalisation."""
    predictor_affine: bool = False
    """Give the batch normalisation of the predictor's last layer a scale γ and a shift β."""
    predictor_bias: bool = False
    """Give the predictor's layers without batch normalisation a bias."""
    head_activation: Literal["relu", "gelu"] = "relu"
    """Activation between the layers of projector and predictor."""
    symmetric: bool = True
    """Compare every key view with every other view. Without it, the first view gives the keys and nothing else."""
    key_views: int = 2
    """Number of views, from the first on, that the momentum encoder sees if the model is symmetric."""
    momentum: float = 0.99
    """Momentum m of the momentum encoder's update, at the first step."""
    momentum_schedule: Literal["constant", "cosine"] = "cosine"
    """Schedule of m: cosine raises it to 1 at the last step."""
    batch_norm: Literal["local", "sync", "shuffle"] = "local"
    """Rows that share batch statistics: local, a rank's rows; sync, all ranks' rows (the papers' ImageNet and Kinetics
    runs); shuffle, groups of shuffled rows for the momentum encoder's convolutions (the papers' CIFAR10 run)."""
    batch_norm_groups: int = 8
    """Number of groups that shuffle makes of the global batch; 8 in the published CIFAR10 run."""
    mutual_pass: bool = False
    """Pass all views of equal size through a network at once, with joint batch statistics. Without it, each view has a
    pass of its own, as in the published image and video runs."""
    evaluation_momentum: float = 0.0
    """Momentum of a running average of the student's backbone over the steps, such as 0.999, which evaluations, embed
    and export then use; 0 for the student itself."""

    def __post_init__(self) -> None:
        conform(self, "model")
        require(self.dim >= 1, "model.dim", self.dim, "at least 1")
        hidden = self.projector_hidden
        require(all(size >= 1 for size in hidden), "model.projector_hidden", hidden, "widths of at least 1")
        # oneDNN's 1×1 convolutions for AVX2 hang in the backward pass over fewer channels in channels-last layout.
        require(self.width >= 8 and self.width % 8 == 0, "model.width", self.width, "a positive multiple of 8")
        require(self.predictor_hidden >= 0, "model.predictor_hidden", self.predictor_hidden, "at least 0")
        require(self.predictor_layers >= 1, "model.predictor_layers", self.predictor_layers, "at least 1")
        require(0 <= self.momentum <= 1, "model.momentum", self.momentum, "a number in [0, 1]")
        fewest = 2 if self.symmetric else 1
        require(self.key_views >= fewest, "model.key_views", self.key_views, f"at least {fewest}")
        require(self.batch_norm_groups >= 1, "model.batch_norm_groups", self.batch_norm_groups, "at least 1")
        average = self.evaluation_momentum
        require(0 <= average < 1, "model.evaluation_momentum", average, "a number in [0, 1), 0 for no average")
