"""Versions of installed packages, as runs and `sce-fast doctor` record them."""

import importlib.metadata


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that determine a run's bits, None for a missing package."""
    dali = installed_version("nvidia-dali-cuda130") or installed_version("nvidia-dali-cuda120")
    return {"sce_fast": installed_version("sce_fast"), "torch": installed_version("torch"), "DALI": dali}
