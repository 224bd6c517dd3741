"""Types of the commands' arguments, with the names that their help shows."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

Run = Annotated[Path, arg(metavar="RUN")]
OptionalRun = Annotated[Path | None, arg(metavar="[RUN]")]
Images = Annotated[Path, arg(metavar="DIR")]
OptionalImages = Annotated[Path | None, arg(metavar="DIR|FILE")]
OptionalNetwork = Annotated[str | None, arg(metavar="NETWORK")]
OptionalFile = Annotated[Path | None, arg(metavar="FILE")]
OptionalFolder = Annotated[Path | None, arg(metavar="FOLDER")]
