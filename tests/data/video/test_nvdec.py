"""What NVDEC says that it takes; a made-up driver answers."""

import ctypes

import pytest
import torch

from sce_fast.data.video import nvdec
from sce_fast.data.video.nvdec import Limits, nvdec_limits
from sce_fast.tools import doctor


class Driver:
    """Answers as the driver of a GPU without AV1, on which H.265 makes the call fail."""

    def cuvidGetDecoderCaps(self, pointer):
        asked = pointer._obj
        assert (asked.chroma, asked.bits_above_8, ctypes.sizeof(asked)) == (1, 0, 88)
        if asked.codec == 8:
            return 1
        asked.supported, asked.max_width, asked.max_height, asked.max_blocks = asked.codec != 11, 4096, 2304, 65536
        asked.min_width, asked.min_height = 48, 16
        return 0


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    nvdec._limits_of.cache_clear()
    yield
    nvdec._limits_of.cache_clear()


def test_limits(gpu, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    limits = Limits((16, 48), (2304, 4096), 65536)
    assert nvdec_limits() == {"h264": limits, "vp8": limits, "vp9": limits}


def test_a_container_without_the_decoder(gpu, monkeypatch):
    monkeypatch.setattr(nvdec, "LIBRARY", "libnvcuvid_of_nobody.so.1")
    assert nvdec_limits() == {}


def test_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert nvdec_limits() == {}


def test_the_structure_is_that_of_the_header():
    """Offsets of cuviddec.h, which natural alignment gives."""
    offsets = {name: getattr(nvdec._Capabilities, name).offset for name, _ in nvdec._Capabilities._fields_}
    expected = {
        "supported": 24,
        "output_formats": 26,
        "max_width": 28,
        "max_blocks": 36,
        "min_width": 40,
        "min_height": 42,
    }
    assert {name: offsets[name] for name in expected} == expected


@pytest.mark.parametrize(("driver", "said"), [(True, "NVDEC decodes h264, vp8, vp9"), (False, "PyAV decodes all")])
def test_doctor_says_what_nvdec_decodes(gpu, monkeypatch, driver, said):
    monkeypatch.setattr(nvdec, "LIBRARY", "libnvcuvid_of_nobody.so.1")
    if driver:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    text = "\n".join(doctor._videos())
    assert f"  on a GPU: {said}" in text
    assert ("NVIDIA_DRIVER_CAPABILITIES" in text) != driver
