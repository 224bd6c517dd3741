"""3D backbones: against a plain implementation from pytorchvideo's parameter names, sizes, initialisation."""

import pytest
import torch
from torch.nn import functional as F

from helpers.plain import Weights, away_from_the_start, batch_norm, conv, mean
from sce_fast.backbones.resnet3d import r3d18, r3d50

BUILDERS = {"r3d18": r3d18, "r3d50": r3d50}
DEPTHS = {"r3d18": (2, 2, 2, 2), "r3d50": (3, 4, 6, 3)}


def plain_forward(weights, x, name):
    """Return the features in eval mode, written from the published description of the networks, layer by layer."""
    x = batch_norm(weights, conv(weights, x, "blocks.0.conv", stride=(1, 2, 2)), "blocks.0.norm").relu()
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for stage, depth in enumerate(DEPTHS[name]):
        time = 3 if stage > 1 else 1
        kernels = [(time, 3, 3), (1, 3, 3)] if name == "r3d18" else [(time, 1, 1), (1, 3, 3), (1, 1, 1)]
        for i in range(depth):
            block, strides = f"blocks.{stage + 1}.res_blocks.{i}", [1] * len(kernels)
            strides[0 if name == "r3d18" else 1] = 2 if stage > 0 and i == 0 else 1
            shortcut, y = x, x
            if i == 0 and (stage > 0 or name == "r3d50"):
                shortcut = conv(weights, x, f"{block}.branch1_conv", stride=(1, max(strides), max(strides)))
                shortcut = batch_norm(weights, shortcut, f"{block}.branch1_norm")
            for n, (letter, kernel, stride) in enumerate(zip("abc", kernels, strides, strict=False)):
                assert weights[f"{block}.branch2.conv_{letter}.weight"].shape[2:] == kernel
                y = conv(weights, y, f"{block}.branch2.conv_{letter}", stride=(1, stride, stride))
                y = batch_norm(weights, y, f"{block}.branch2.norm_{letter}")
                if n < len(kernels) - 1:
                    y = y.relu()
            x = (shortcut + y).relu()
    return mean(x)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_networks_equal_a_plain_implementation(name):
    network = away_from_the_start(BUILDERS[name](width=8))
    weights, clips = Weights(network), torch.randn(2, 3, 5, 45, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = plain_forward(weights, clips, name)
        found = network(clips)
    assert weights.unread == set()
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "parameters", "dim"), [("r3d18", 20_023_872, 512), ("r3d50", 31_634_496, 2048)])
def test_backbones_have_the_published_size(name, parameters, dim):
    with torch.device("meta"):
        network = BUILDERS[name]()
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        assert network(torch.empty(2, 3, 8, 224, 224)).shape == (2, dim)
    assert network.dim == dim
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert shapes["blocks.0.conv.weight"] == (64, 3, 1, 7, 7)
    time = {"r3d18": (3, 3, 3), "r3d50": (3, 1, 1)}[name]
    assert shapes["blocks.3.res_blocks.1.branch2.conv_a.weight"][2:] == time
    assert shapes["blocks.2.res_blocks.1.branch2.conv_a.weight"][2] == 1


@pytest.mark.parametrize("name", BUILDERS)
def test_every_block_starts_as_the_identity(name):
    network = BUILDERS[name](width=8)
    last = "norm_b" if name == "r3d18" else "norm_c"
    gammas = {key: p for key, p in network.named_parameters() if ".norm" in key or "_norm" in key}
    zero = {key for key, p in gammas.items() if key.endswith("weight") and not p.any()}
    assert zero == {key for key in gammas if key.endswith(f"branch2.{last}.weight")}
    assert len(zero) == sum(DEPTHS[name])


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_start_as_in_the_published_runs(name):
    """pytorchvideo: convolutions N(0, 2 / fan-out) without biases; normalisations γ = 1 but for the last of a block."""
    torch.manual_seed(0)
    for key, p in BUILDERS[name](width=32).named_parameters():
        if p.dim() == 5:
            fan_out = p.shape[0] * p[0, 0].numel()
            assert p.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), key
            assert p.mean().abs() < 0.05 * p.std(), key
        else:
            assert key.endswith((".weight", ".bias"))
            zero = key.endswith("bias") or "branch2.norm_c" in key or (name == "r3d18" and "branch2.norm_b" in key)
            assert (p == (0 if zero else 1)).all(), key


def test_frames_keep_their_number_and_small_frames_their_size():
    network, found = r3d18(width=8, small_input=True), []
    for stage in network.blocks:
        stage.register_forward_hook(lambda _module, _inputs, output: found.append(tuple(output.shape[2:])))
    network(torch.randn(1, 3, 4, 32, 32))
    assert found == [(4, 32, 32), (4, 32, 32), (4, 16, 16), (4, 8, 8), (4, 4, 4)]


def test_the_order_of_frames_matters():
    """Stages 3 and 4 look along time: a clip played backwards has other features."""
    torch.manual_seed(0)
    network = r3d18(width=8).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.ones_(module.weight)
    clips = torch.randn(2, 3, 6, 32, 32)
    with torch.no_grad():
        assert (network(clips) - network(clips.flip(2))).abs().max() > 1e-3


def test_a_bad_width_is_named():
    with pytest.raises(ValueError, match="width=0"):
        r3d18(width=0)
