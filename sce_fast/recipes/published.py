"""What is known about the recipes' published runs, for the table of `sce-fast recipes`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """The published run of a recipe."""

    data: str
    figure: str = ""  # top-1 accuracy of the linear classifier in %; empty if there is none
    unverified: str = ""  # what has not been compared with a configuration or a publication of the authors


FIGURE, BOTH = "figure", "settings and figure"
OWN_SETTINGS = "settings: no published run"
PUBLISHED = {
    "folder": Published("your images"),
    "videos": Published("your videos"),
    "demo": Published("scikit-learn's digits"),
    "demo-video": Published("moving digits"),
    "cifar10": Published("CIFAR-10", "90.34", FIGURE),
    "cifar100": Published("CIFAR-100", "65.45", BOTH),
    "stl10": Published("STL-10", "89.94", BOTH),
    "tiny-imagenet": Published("Tiny-ImageNet", "51.90", BOTH),
    "imagenet100": Published("ImageNet-100", "83.37", BOTH),
    "imagenet100-infonce": Published("ImageNet-100", "81.11", BOTH),
    "imagenet100-ressl": Published("ImageNet-100", "81.53", BOTH),
    "imagenet-asymmetric": Published("ImageNet", "70.5", BOTH),
    "imagenet-100-epochs": Published("ImageNet", "72.1"),
    "imagenet-200-epochs": Published("ImageNet", "72.7"),
    "imagenet-300-epochs": Published("ImageNet", "73.3"),
    "imagenet-1000-epochs": Published("ImageNet", "74.1"),
    "imagenet-multi-crop": Published("ImageNet", "75.4"),
    "imagenet-dino-crops": Published("ImageNet", unverified=OWN_SETTINGS),
    "imagenet-moco-v3": Published("ImageNet", "68.9"),
    "imagenet-vit-small": Published("ImageNet", unverified=OWN_SETTINGS),
    "imagenet-vit-base": Published("ImageNet", unverified=OWN_SETTINGS),
    "kinetics200-r3d18-baseline": Published("Kinetics-200", "63.9", FIGURE),
    "kinetics200-r3d18": Published("Kinetics-200"),
    "kinetics200-r3d18-small": Published("Kinetics-200"),
    "kinetics400-r3d18": Published("Kinetics-400"),
    "kinetics400-r3d18-small": Published("Kinetics-400"),
    "kinetics400-r3d50": Published("Kinetics-400", "67.6"),
    "kinetics400-r3d50-16": Published("Kinetics-400", "69.6"),
}
