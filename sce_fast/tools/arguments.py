"""Types of the commands' arguments, with the names that their help shows."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from sce_fast.export import Foreign, ForeignNetwork
from sce_fast.tools.chosen_sets import PublishedSplit

Run = Annotated[Path, arg(metavar="RUN")]
OptionalRun = Annotated[Path | None, arg(metavar="[RUN]")]
Images = Annotated[Path, arg(metavar="DIR")]
OptionalImages = Annotated[Path | None, arg(metavar="DIR|FILE")]
OptionalFile = Annotated[Path | None, arg(metavar="FILE")]
OptionalFolder = Annotated[Path | None, arg(metavar="FOLDER")]
OptionalClasses = Annotated[Path | None, arg(metavar="FILE|imagenet100")]
PublishedVideos = OmitArgPrefixes[PublishedSplit]
ForeignWeights = OmitArgPrefixes[Foreign]
# For commands that have options of their own for sizes.
ForeignNetworkWeights = OmitArgPrefixes[ForeignNetwork]
