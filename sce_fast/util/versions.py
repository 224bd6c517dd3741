"""What is installed, as runs and `sce-fast doctor` write it down."""

import importlib.metadata


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Of the packages that decide about a run's bits; None for one that is missing."""
    dali = installed_version("nvidia-dali-cuda130") or installed_version("nvidia-dali-cuda120")
    return {"sce_fast": installed_version("sce_fast"), "torch": installed_version("torch"), "DALI": dali}
