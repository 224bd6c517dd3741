"""R(2+1)D-18 against a plain implementation from torchvision's parameter names."""

import pytest
import torch

from helpers.plain import Weights, away_from_the_start, batch_norm, conv, mean
from sce_fast.backbones.r2plus1d import r2plus1d18


def plain_forward(w, x):
    """Return the features in eval mode, layer by layer: 18 layers, each of a convolution in space and one in time."""

    def pair(x, name, stride):
        x = conv(w, x, f"{name}.0.0", stride=(1, stride, stride))
        x = batch_norm(w, x, f"{name}.0.1").relu()
        return batch_norm(w, conv(w, x, f"{name}.0.3", stride=(stride, 1, 1)), f"{name}.1")

    x = batch_norm(w, conv(w, x, "stem.0", stride=(1, 2, 2)), "stem.1").relu()
    x = batch_norm(w, conv(w, x, "stem.3"), "stem.4").relu()
    for stage in range(1, 5):
        for i in range(2):
            block, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = pair(pair(x, f"{block}.conv1", stride).relu(), f"{block}.conv2", 1)
            if stride == 2:
                x = batch_norm(w, conv(w, x, f"{block}.downsample.0", stride=2), f"{block}.downsample.1")
            x = (x + y).relu()
    return mean(x)


def test_the_network_equals_a_plain_implementation():
    network = away_from_the_start(r2plus1d18(width=8))
    weights, clips = Weights(network), torch.randn(2, 3, 5, 21, 28, dtype=torch.float64)
    with torch.no_grad():
        found, expected = network(clips), plain_forward(weights, clips)
    assert weights.unread == set()
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_size_is_the_published_one():
    """torchvision states 31,505,325 parameters with its classifier of 400 classes."""
    with torch.device("meta"):
        network = r2plus1d18()
        assert network(torch.empty(2, 3, 16, 112, 112)).shape == (2, network.dim) == (2, 512)
    assert sum(p.numel() for p in network.parameters()) == 31_505_325 - (512 * 400 + 400)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert shapes["stem.0.weight"] == (45, 3, 1, 7, 7)
    assert shapes["layer1.0.conv1.0.0.weight"] == (144, 64, 1, 3, 3)
    assert shapes["layer2.0.conv1.0.0.weight"] == (230, 64, 1, 3, 3)  # 230 channels between both in the whole block
    assert shapes["layer2.0.conv2.0.3.weight"] == (128, 230, 3, 1, 1)
    assert shapes["layer4.1.conv2.0.3.weight"] == (512, 1152, 3, 1, 1)


def test_time_and_space_are_halved_three_times_and_small_frames_once_less():
    for small, sides in ((False, (16, 16, 8, 4, 2)), (True, (32, 32, 16, 8, 4))):
        network, found = r2plus1d18(width=8, small_input=small), []
        for stage in network.children():
            stage.register_forward_hook(lambda _module, _inputs, output, found=found: found.append(output.shape[2:]))
        network(torch.randn(1, 3, 8, 32, 32))
        assert found == [(t, side, side) for t, side in zip((8, 8, 4, 2, 1), sides, strict=True)]


def test_a_bad_width_is_named():
    with pytest.raises(ValueError, match="width=0"):
        r2plus1d18(width=0)
