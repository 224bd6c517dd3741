"""Transformers for clips against a plain implementation from VideoMAE's parameter names."""

import math

import pytest
import torch

from helpers.plain import Weights, away_from_the_start
from sce_fast.backbones.video_transformer import vit_base_video, vit_small_video
from sce_fast.backbones.weights import read_weights


def plain_forward(w, x, heads, patch):
    """Return the features: tubelets cut one by one, attention head by head, positions number by number."""

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
    tokens = []
    for t in range(0, x.shape[2], 2):
        for row in range(0, x.shape[3], patch):
            for column in range(0, x.shape[4], patch):
                tubelet = x[:, :, t : t + 2, row : row + patch, column : column + patch]
                tokens.append(tubelet.flatten(1) @ kernel.flatten(1).T + bias)
    dim = len(bias)
    for number, token in enumerate(tokens):
        for channel in range(dim):
            angle = number / 10000 ** (2 * (channel // 2) / dim)
            token[:, channel] += math.cos(angle) if channel % 2 else math.sin(angle)
    x = torch.stack(tokens, 1)
    for block in (f"blocks.{i}" for i in range(12)):
        y = norm(x, f"{block}.norm1")
        joint = y @ w[f"{block}.attn.qkv.weight"].T
        query, key, value = joint.split(dim, 2)
        query, value = query + w[f"{block}.attn.q_bias"], value + w[f"{block}.attn.v_bias"]
        parts = []
        for q, k, v in zip(query.chunk(heads, 2), key.chunk(heads, 2), value.chunk(heads, 2), strict=True):
            parts.append((q @ k.mT * (dim // heads) ** -0.5).softmax(2) @ v)
        x = x + dense(torch.cat(parts, 2), f"{block}.attn.proj")
        y = dense(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        x = x + dense(y, f"{block}.mlp.fc2")
    return norm(x.mean(1), "fc_norm")


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(("builder", "heads"), [(vit_small_video, 6), (vit_base_video, 12)])
def test_the_network_equals_a_plain_implementation(builder, heads, small):
    network = away_from_the_start(builder(width=8, small_input=small))
    for p in network.parameters():  # with the initial weights, attention is nearly uniform
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=2 * p.shape[1] ** -0.5)
    patch = 4 if small else 16
    weights, clips = Weights(network), torch.randn(2, 3, 6, 2 * patch, 3 * patch, dtype=torch.float64)
    with torch.no_grad():
        found, expected = network(clips), plain_forward(weights, clips, heads, patch)
    assert weights.unread == set()
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("builder", "dim", "millions"), [(vit_small_video, 384, 22), (vit_base_video, 768, 86)])
def test_the_size_is_the_published_one(builder, dim, millions):
    with torch.device("meta"):
        network = builder()
        assert network(torch.empty(2, 3, 16, 224, 224)).shape == (2, network.dim) == (2, dim)
    attention, mlp, norms = 4 * dim**2 + 3 * dim, 8 * dim**2 + 5 * dim, 4 * dim
    expected = 3 * 2 * 16 * 16 * dim + dim + 12 * (attention + mlp + norms) + 2 * dim
    assert sum(p.numel() for p in network.parameters()) == expected
    assert round(expected / 1e6) == millions
    assert network.state_dict()["patch_embed.proj.weight"].shape == (dim, 3, 2, 16, 16)


def test_the_order_of_frames_matters_although_all_tokens_are_averaged():
    torch.manual_seed(0)
    network = vit_small_video(width=8, small_input=True).eval()
    clips = torch.randn(2, 3, 8, 8, 8)
    backwards = clips.unflatten(2, (4, 2)).flip(2).flatten(2, 3)  # the same tubelets
    with torch.no_grad():
        assert (network(clips) - network(backwards)).abs().max() > 1e-4


@pytest.mark.parametrize("shape", [(1, 3, 5, 16, 16), (1, 3, 4, 16, 24)])
def test_clips_of_broken_tubelets_are_refused(shape):
    message = rf"clips \(1, 3, {shape[2]}, 16, {shape[4]}\): expected multiples of 2 frames, and of 16 × 16 pixels"
    with pytest.raises(ValueError, match=message):
        vit_small_video(width=8)(torch.zeros(shape))
    with pytest.raises(ValueError, match="width=7"):
        vit_small_video(width=7)


@pytest.mark.parametrize("file", ["classifier", "pretraining"])
def test_files_of_videomae_are_read(tmp_path, file):
    torch.manual_seed(0)
    network, other = (vit_small_video(width=8, small_input=True) for _ in range(2))
    own = {name: t + 1 for name, t in network.state_dict().items()}
    if file == "classifier":
        saved = {"module": {**own, "head.weight": torch.ones(4, 48), "head.bias": torch.ones(4)}}
    else:
        encoder = {f"encoder.{name.replace('fc_norm', 'norm')}": t for name, t in own.items()}
        others = ("decoder.norm.weight", "decoder.blocks.0.norm1.weight", "mask_token", "encoder_to_decoder.weight")
        saved = {"model": {**encoder, **dict.fromkeys(others, torch.ones(4))}}
    torch.save(saved, tmp_path / "videomae.pth")
    found = read_weights(tmp_path / "videomae.pth", other)
    for name, tensor in own.items():
        assert torch.equal(found[name], tensor), name
