"""Backbones by name, and what they take."""

import subprocess
import sys

import pytest
import torch

from sce_fast.backbones import BACKBONES, CLIP_BACKBONES, build_backbone, takes_clips


@pytest.mark.parametrize("name", BACKBONES)
def test_every_name_is_built_at_any_width_and_takes_what_it_says(name):
    network = build_backbone(name, width=8, small_input=True)
    wide = build_backbone(name, width=16)
    assert wide.dim == 2 * network.dim
    frames = (4,) if takes_clips(name) else ()
    assert network(torch.randn(2, 3, *frames, 16, 16)).shape == (2, network.dim)
    assert takes_clips(name) is (name in CLIP_BACKBONES)


def test_what_a_network_takes_is_unknown_for_own_modules_and_unknown_names():
    assert takes_clips("timm:vit_tiny_patch16_224") is False
    assert takes_clips("own") is takes_clips("r3d19") is None
    with pytest.raises(ValueError, match=r"unknown backbone 'r3d19': .*r3d50, .*timm:NAME; did you mean 'r3d18'\?"):
        build_backbone("r3d19")


def test_names_are_known_without_torch():
    code = "import sys, sce_fast.backbones, sce_fast.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
