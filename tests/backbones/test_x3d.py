"""X3D-M against a plain implementation from pytorchvideo's parameter names."""

import torch

from helpers.plain import Weights, away_from_the_start, batch_norm, conv, mean
from sce_fast.backbones.weights import read_weights
from sce_fast.backbones.x3d import x3d_m

DEPTHS = (3, 5, 11, 7)


def plain_forward(w, x):
    """Return the features in eval mode, layer by layer. In the stem, conv_t is the convolution in space."""

    def dense(x, name):
        weight, bias = w[f"{name}.weight"].flatten(1), w[f"{name}.bias"]
        return x @ weight.T + bias

    x = conv(w, x, "blocks.0.conv.conv_t", stride=(1, 2, 2))
    x = conv(w, x, "blocks.0.conv.conv_xy", groups=x.shape[1])
    x = batch_norm(w, x, "blocks.0.norm").relu()
    for stage, depth in enumerate(DEPTHS, 1):
        for i in range(depth):
            block, stride = f"blocks.{stage}.res_blocks.{i}", (1, 1, 1) if i else (1, 2, 2)
            y = batch_norm(w, conv(w, x, f"{block}.branch2.conv_a"), f"{block}.branch2.norm_a").relu()
            y = conv(w, y, f"{block}.branch2.conv_b", stride=stride, groups=y.shape[1])
            y = batch_norm(w, y, f"{block}.branch2.norm_b.0")
            if i % 2 == 0:
                gate = dense(dense(mean(y), f"{block}.branch2.norm_b.1.block.0").relu(),
                             f"{block}.branch2.norm_b.1.block.2")  # fmt: skip
                y = y / (1 + (-gate).exp())[:, :, None, None, None]
            y = y / (1 + (-y).exp())  # swish
            y = batch_norm(w, conv(w, y, f"{block}.branch2.conv_c"), f"{block}.branch2.norm_c")
            if i == 0:
                x = conv(w, x, f"{block}.branch1_conv", stride=stride)
            if i == 0 and stage > 1:  # stage 1 keeps the stem's channels
                x = batch_norm(w, x, f"{block}.branch1_norm")
            x = (x + y).relu()
    x = batch_norm(w, conv(w, x, "blocks.5.pool.pre_conv"), "blocks.5.pool.pre_norm").relu()
    return (mean(x) @ w["blocks.5.pool.post_conv.weight"].flatten(1).T).relu()


def test_the_network_equals_a_plain_implementation():
    network = x3d_m(width=24)  # channels 8, 16, 40, 72: the stages differ
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    away_from_the_start(network)
    weights, clips = Weights(network), torch.randn(2, 3, 5, 21, 28, dtype=torch.float64)
    with torch.no_grad():
        found, expected = network(clips), plain_forward(weights, clips)
    assert weights.unread == set()
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_size_is_the_published_one():
    """pytorchvideo's table has 3.79 million parameters with its classifier of 400 classes."""
    with torch.device("meta"):
        network = x3d_m()
        assert network(torch.empty(2, 3, 16, 224, 224)).shape == (2, network.dim) == (2, 2048)
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == 2_974_674
    assert round((parameters + 2048 * 400 + 400) / 1e6, 2) == 3.79
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert shapes["blocks.0.conv.conv_t.weight"] == (24, 3, 1, 3, 3)
    assert shapes["blocks.1.res_blocks.0.branch2.conv_b.weight"] == (54, 1, 3, 3, 3)
    assert shapes["blocks.3.res_blocks.10.branch2.norm_b.1.block.0.weight"] == (16, 216, 1, 1, 1)
    assert shapes["blocks.4.res_blocks.6.branch2.norm_b.1.block.2.weight"] == (432, 32, 1, 1, 1)
    assert shapes["blocks.5.pool.post_conv.weight"] == (2048, 432, 1, 1, 1)
    assert "blocks.4.res_blocks.5.branch2.norm_b.1.block.0.weight" not in shapes  # every other block has a gate
    assert "blocks.1.res_blocks.0.branch1_norm.weight" not in shapes


def test_blocks_start_as_the_identity_and_frames_keep_their_number():
    network, found = x3d_m(width=8, small_input=True), []
    zero = [name for name, p in network.named_parameters() if name.endswith("norm_c.weight") and not p.any()]
    assert len(zero) == sum(DEPTHS)
    for stage in network.blocks[:-1]:
        stage.register_forward_hook(lambda _module, _inputs, output: found.append(tuple(output.shape[2:])))
    network(torch.randn(1, 3, 4, 32, 32))
    assert found == [(4, side, side) for side in (32, 16, 8, 4, 2)]


def test_a_checkpoint_of_pytorchvideo_is_read_without_its_classifier(tmp_path):
    torch.manual_seed(0)
    network, other = x3d_m(width=8), x3d_m(width=8)
    state = {**network.state_dict(), "blocks.5.proj.weight": torch.ones(4, 256), "blocks.5.proj.bias": torch.ones(4)}
    torch.save({"model_state": state}, tmp_path / "X3D_M.pyth")
    other.load_state_dict(read_weights(tmp_path / "X3D_M.pyth", other))
    assert torch.equal(other.blocks[5].pool.post_conv.weight, network.blocks[5].pool.post_conv.weight)
