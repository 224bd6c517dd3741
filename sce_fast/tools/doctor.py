"""The doctor command: installed versions, devices, and which backends of the loss run here."""

import platform

import torch

import sce_fast
from sce_fast.loss import cpu, cuda
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.problem import DTYPES, Problem
from sce_fast.native import CPU, CUDA
from sce_fast.util.dtypes import dtype_name
from sce_fast.util.versions import installed_version

PACKAGES = {
    "torch": "everything",
    "nvidia-dali-cuda130": "reading images (or nvidia-dali-cuda120)",
    "av": "videos (extra video)",
    "tyro": "the command line",
    "safetensors": "checkpoints and feature files",
    "scikit-learn": "the demo and most evaluations",
    "matplotlib": "pictures",
    "triton": "kernels on a GPU",
}


def diagnose() -> str:
    """Report installed versions, devices, and which backends of the loss run here, or why they do not."""
    lines = [
        f"sce_fast {sce_fast.__version__} on Python {platform.python_version()}, {platform.platform()}",
        "",
    ]
    lines += [f"  {name:<22}{installed_version(name) or 'missing':<16}for {use}" for name, use in PACKAGES.items()]
    lines += ["", "Devices"]
    lines.append(f"  CPU: {torch.get_num_threads()} threads, torch uses {torch.backends.cpu.get_cpu_capability()}")
    if torch.cuda.is_available():
        lines += [f"  GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    else:
        lines.append("  GPU: torch sees none")
    lines += ["", "CPU kernels (augmentation and loss)"]
    if CPU.missing:
        lines.append(f"  {CPU.missing}; {CPU.remedy}")
    else:
        lines.append(f"  built; exponentials use {cpu.vector_instructions()}")
        lines += [f"  products of {dtype_name(dtype)} tiles: {cpu.products(dtype)}" for dtype in cpu.PRODUCTS]
    lines += ["", "Videos", *_videos()]
    lines += ["", "GPU kernels (loss and enqueue)"]
    lines.append("  Triton: compiled at the first call; needs compute capability 8.0 or later")
    lines.append(f"  CUDA C++: {_cuda_build()}")
    lines.append("  CUDA C++ on Hopper: a separate kernel (TMA, wgmma), tested in an emulator, not yet run on a GPU")
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        lines += ["", f"Backends of the loss on {device}: the dtypes they serve"]
        lines += [f"  {name:<12}{_service(name, device)}" for name in BACKENDS]
    automatic, by_name = ([n for n, b in BACKENDS.items() if b.automatic is chosen] for chosen in (True, False))
    lines += ["", f"backend='auto' takes the first that serves the inputs: {', '.join(automatic)}"]
    lines.append(f"by name only, until they have run on a GPU: {', '.join(by_name)}")
    return "\n".join(lines)


def _videos() -> list[str]:
    """Say which decoder takes which codec."""
    try:
        import av  # noqa: F401

        from sce_fast.data.video.nvdec import CODECS, nvdec_limits
        from sce_fast.data.video.routes import CPU_CODECS
    except ImportError as error:
        return [f"  none can be read: {error.name} is missing; the extras video and train have it"]
    rest = ", ".join([*sorted({*CODECS} - {*CPU_CODECS}), "mpeg4"])
    lines = [
        f"  on a CPU: DALI decodes {', '.join(CPU_CODECS)}; PyAV {rest}, other codecs, and colours that DALI gets wrong"
    ]
    if torch.cuda.is_available():
        if on_gpu := ", ".join(nvdec_limits()):
            lines.append(f"  on a GPU: NVDEC decodes {on_gpu} with 8 bits in 4:2:0 (not yet run); PyAV the rest")
        else:
            lines.append("  on a GPU: PyAV decodes all: the driver offers no NVDEC. In a container, add video to")
            lines.append("            NVIDIA_DRIVER_CAPABILITIES")
    return lines


def _cuda_build() -> str:
    if CUDA.missing:
        return f"{CUDA.missing}; {CUDA.remedy}"
    return f"built for {cuda.architectures()} (compute_ is PTX, for later GPUs)"


def _service(name: str, device: str) -> str:
    """Return the dtypes that a backend serves on a device, or why it serves none."""
    reasons = {dtype: BACKENDS[name].refuses(_problem(dtype, device)) for dtype in DTYPES}
    served = [dtype_name(dtype) for dtype, reason in reasons.items() if reason is None]
    return ", ".join(served) if served else str(reasons[torch.float32])


def _problem(dtype: torch.dtype, device: str) -> Problem:
    row = torch.zeros(1, 1, 2, dtype=dtype, device=device)
    return Problem(
        query=row, key=row, queue=row[0], batch_keys=None, row_offset=0, same_views=False, temperature=0.1,
        target_temperature=0.05, coefficient=0.5, scalars=None, zero_logit=False, needs_gradient=True,
        needs_target=True,
    )  # fmt: skip
