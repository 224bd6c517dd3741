"""Features of persons from a dilated R3D, and a step of the detector."""

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm, binary_cross_entropy, conv3d, relu

from sce_fast.backbones import build_backbone
from sce_fast.evaluate.detection.network import Detector, PersonClips, PersonFeatures
from sce_fast.evaluate.detection.roi_align import plain_roi_align
from sce_fast.evaluate.supervised.classifier import kept_features
from sce_fast.evaluate.supervised.settings import SupervisedSettings

CPU = torch.device("cpu")
BOXES = torch.tensor([[4.0, 8.0, 40.0, 60.0], [0.0, 0.0, 64.0, 64.0], [20.0, 10.0, 63.0, 30.0]])
ROWS = torch.tensor([0, 1, 1])


def network(name="r3d18", **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_backbone(name, width=4, **more).double().eval()
        for parameter in made.parameters():  # the last normalisations of blocks begin with 0
            if parameter.dim() == 1:
                parameter.data.uniform_(0.5, 1.5)
    return made


def plain_last_stage(stage, x):
    """Return the output of a stage with stride 1 and dilation 2, of basic blocks or bottlenecks."""

    def normed(norm, y):
        return batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    def convolved(conv, y):
        time, side = conv.weight.shape[2] // 2, 2 * (conv.weight.shape[3] // 2)
        return conv3d(y, conv.weight, padding=(time, side, side), dilation=(1, max(side, 1), max(side, 1)))

    for block in stage.res_blocks:
        own, branch = x, block.branch2
        if block.branch1_conv is not None:
            own = normed(block.branch1_norm, conv3d(x, block.branch1_conv.weight))
        for part in ("a", "b", "c"):
            if hasattr(branch, f"conv_{part}"):
                x = normed(getattr(branch, f"norm_{part}"), convolved(getattr(branch, f"conv_{part}"), x))
                x = relu(x) if hasattr(branch, f"act_{part}") else x
        x = relu(own + x)
    return x


@pytest.mark.parametrize("name", ["r3d18", "r3d50"])
def test_features_equal_a_plain_implementation(name):
    clips = torch.randn(2, 3, 2, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    backbone = network(name)
    with torch.no_grad():
        x = clips
        for block in backbone.blocks[:-1]:
            x = block(x)
        maps = plain_last_stage(backbone.blocks[-1], x).mean(2)
        expected = plain_roi_align(maps, BOXES.double(), ROWS, stride=16, bins=7).flatten(2).amax(2)
        weights = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
        features = PersonFeatures(backbone)
        found = features(clips, BOXES.double(), ROWS)
    assert features.stride == 16
    assert found.shape == (3, features.dim)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert all(torch.equal(weights[key], tensor) for key, tensor in backbone.state_dict().items())


def test_small_inputs_have_a_smaller_stride_and_other_backbones_are_refused():
    assert PersonFeatures(network(small_input=True)).stride == 4
    with pytest.raises(ValueError, match="backbone ResNet: action detection expects r3d18 or r3d50"):
        PersonFeatures(build_backbone("resnet18", width=4))


def test_a_step_is_one_of_the_mean_cross_entropy_with_dropout():
    settings = SupervisedSettings(
        epochs=1, batch_size=2, learning_rates=(0.5,), scaling="none", precision="float64", dropout=0.5, momentum=0.0
    )
    features = PersonFeatures(network())
    detector = Detector(features, features.dim, 3, settings, CPU)
    numbers = np.array([0, 4096, 4097])
    inputs = PersonClips(torch.randn(2, 3, 2, 64, 64), BOXES, ROWS, numbers)
    actions = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    with torch.no_grad():
        plain = features(inputs.clips.double(), BOXES.double(), ROWS)
    kept = kept_features(settings.seed, 0, 0, numbers, features.dim, 0.5)
    head = detector.learners[0].head
    before = head.weight.detach().clone().requires_grad_()
    probabilities = (plain * torch.from_numpy(2.0 * kept) @ before.T + head.bias.detach()).sigmoid()
    loss = binary_cross_entropy(probabilities, actions.double())
    loss.backward()
    assert before.grad is not None
    found = detector.step([(inputs, actions)], number=0, steps_per_epoch=1000)
    assert found.tolist() == [pytest.approx(loss.item(), abs=1e-12)]
    torch.testing.assert_close(head.weight.detach(), before.detach() - 0.5 * before.grad, rtol=0, atol=1e-12)
    expected = (plain @ head.weight.T + head.bias).sigmoid()
    torch.testing.assert_close(detector.scores(inputs)[0], expected.detach(), rtol=0, atol=1e-12)
