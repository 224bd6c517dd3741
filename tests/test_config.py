"""Configs: what every setting refuses, changes by name, and JSON."""

import dataclasses
import json
import math
import typing
from pathlib import Path
from types import NoneType

import numpy as np
import pytest

from helpers.runs import small_config
from sce_fast.config import ADDED, ClipsConfig, EvaluationConfig, TrainConfig, from_json, replace, to_json
from sce_fast.config.views import STRENGTHS
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.clips import ClipSampling
from sce_fast.recipes import RECIPES
from sce_fast.train import train
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.folder import open_run, read_config


@pytest.mark.parametrize("folders", [(None, None), (Path("train"), Path("test"))])
def test_every_field_survives_json(tmp_path, folders):
    config = small_config(tmp_path / "images", tmp_path / "run")
    config = dataclasses.replace(config, evaluation=EvaluationConfig(train=folders[0], test=folders[1]))
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": 3}, "LossConfig: unknown or missing entries 3"),
        ({"epoch": 3}, r"TrainConfig: unknown or missing entries \['epoch'\]"),
        ({"evaluation": {"every": 3}}, r"EvaluationConfig: unknown or missing entries \['crop', 'neighbours', "),
    ],
)
def test_wrong_entries_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        from_json({**to_json(small_config(tmp_path, tmp_path)), **change})


def test_a_run_of_an_earlier_version_is_read_and_resumed(photo_folder, tmp_path):
    """Its config names the queue's size "loss.queue", has one flip, and knows no wandb, clips or strengths of views."""
    config = small_config(photo_folder, tmp_path / "run", epochs=1)
    train(config)
    earlier = to_json(config)
    earlier["loss"]["queue"] = earlier["loss"].pop("queue_size")
    for name in ("init", "wandb", "clips"):
        del earlier[name]
    for name in STRENGTHS:
        del earlier["views"][name]
    earlier["views"]["flip"] = 0.5
    for name in ("clips", "crops"):
        del earlier["evaluation"][name]
    for section in ("model", "loss", "optimizer"):
        for name in ADDED[section]:
            del earlier[section][name]
    assert from_json(earlier) == config
    (config.out / "config.json").write_text(json.dumps(earlier))
    assert read_config(config.out) == config
    assert open_run(dataclasses.replace(config, resume=True)) == checkpoints(config.out / "checkpoints")[-1]
    with pytest.raises(ValueError, match=r"(?s)another config.*loss.queue_size: 40 then, 41 now$"):
        open_run(dataclasses.replace(config, resume=True, loss=dataclasses.replace(config.loss, queue_size=41)))
    earlier["loss"]["queue_size"] = 40
    with pytest.raises(ValueError, match=r"LossConfig: unknown or missing entries \['queue'\]"):
        from_json(earlier)


NOT_FINITE, TOO_FEW = (math.nan, math.inf, -math.inf), (0, -1)
# Values that each setting refuses, beside NaN, ±inf and values of other types. A new setting needs a line here.
NONSENSE: dict[str, tuple[object, ...]] = {
    "data": ("",),
    "out": ("",),
    "init": ("",),
    "epochs": TOO_FEW,
    "batch_size": TOO_FEW,
    "accumulation": TOO_FEW,
    "precision": ("float8",),
    "compile": (),
    "cuda_graph": (),
    "seed": (-1, 2**32),
    "device": ("tpu",),
    "loader_threads": TOO_FEW,
    "resume": (),
    "accept_changed_data": (),
    "stretch_schedule": (),
    "checkpoint_every": TOO_FEW,
    "keep_checkpoints": TOO_FEW,
    "log_every": TOO_FEW,
    "wandb": ("",),
    "pictures": (),
    "clips.frames": (-1, 8),  # the config's network takes images
    "clips.seconds": TOO_FEW,
    "clips.stride": TOO_FEW,
    "clips.sampler": ("uniform",),
    "clips.cvrl_power": TOO_FEW,
    "clips.speeds": (0, (1, -1), ()),
    "clips.duration_jitter": (-0.1, 1),
    "clips.temporal_difference": (-0.1, 1.1),
    "clips.frame_rate": TOO_FEW,
    "views.names": (("weak",), ("weak", "stong"), ()),
    "views.sizes": (0, (32, -1), (), (1, 2, 3)),
    "views.scales": (((0.5, 0.2),), ((0, 1),), ((0.2, 1.1),), ((math.nan, 1),), ((0.2,),), ()),
    "views.ratio": (((2, 1),), ((0, 1),), ((1, math.inf),), ((1, 1),) * 3),
    "views.jitter": (-0.1, 1.1, (0, 0, 0)),
    "views.brightness": (-0.1, (0, 0, 0)),
    "views.contrast": (-0.1, (0, 0, 0)),
    "views.saturation": (-0.1, (0, 0, 0)),
    "views.hue": (-0.1, 0.6, (0, 0, 0)),
    "views.grayscale": (-0.1, 1.1, (0, 0, 0)),
    "views.blur": (-0.1, 1.1, (0, 0, 0)),
    "views.blur_sigma": (((2, 1),), ((0, 1),), ((math.nan, 1),), ((1, 1),) * 3),
    "views.solarize": (-0.1, 1.1, (0, 0, 0)),
    "views.flip": (-0.1, 1.1, (0, 0, 0), ()),
    "views.mean": ((-1, 0, 0), (123.7, 116.3, 103.5), (0, 0, math.nan), (0, 0)),
    "views.std": ((0, 1, 1), (58.4, 57.1, 57.4), (1, 1, math.inf), (-1, 1, 1)),
    "views.background": ("", "no colour", "#12345", "1,2", "256,0,0", "-1,0,0"),
    "views.photometric": ("cuda",),
    "views.dtype": ("float64",),
    "model.backbone": ("r3d18",),  # the config is one for images
    "model.width": (0, 4, -8),
    "model.small_input": (),
    "model.projector_hidden": ((0,), (16, -1)),
    "model.dim": TOO_FEW,
    "model.projector_norm": ("some",),
    "model.projector_affine": (),
    "model.projector_bias": (),
    "model.predictor_hidden": (-1,),
    "model.predictor_layers": TOO_FEW,
    "model.predictor_norm": ("some",),
    "model.predictor_affine": (),
    "model.predictor_bias": (),
    "model.head_activation": ("tanh",),
    "model.symmetric": (),
    "model.key_views": (1, 0),
    "model.momentum": (-0.1, 1.5),
    "model.momentum_schedule": ("linear",),
    "model.batch_norm": ("global",),
    "model.batch_norm_groups": TOO_FEW,
    "model.mutual_pass": (),
    "model.evaluation_momentum": (-0.1, 1),
    "loss.temperature": TOO_FEW,
    "loss.target_temperature": TOO_FEW,
    "loss.target_temperature_start": TOO_FEW,
    "loss.target_temperature_warmup_epochs": (-1, 4),
    "loss.target_temperature_warmup": ("square",),
    "loss.coefficient": (-0.1, 2.0),
    "loss.coefficient_start": (-0.1, 2.0),
    "loss.coefficient_warmup_epochs": (-1, 4),
    "loss.coefficient_warmup": ("square",),
    "loss.coefficient_end": (-0.1, 2.0),
    "loss.coefficient_schedule": ("square",),
    "loss.positive_target": ("included",),
    "loss.queue_size": TOO_FEW,
    "loss.batch_keys": (),
    "loss.queue_dtype": ("float64",),
    "loss.backend": ("refrence",),
    "optimizer.name": ("adan",),
    "optimizer.base_learning_rate": (-1,),
    "optimizer.learning_rate_scaling": ("cube",),
    "optimizer.start_learning_rate": (-1, 0.4),  # the base rate is 0.3
    "optimizer.end_learning_rate": (-1, 0.4),
    "optimizer.momentum": (-0.1, 1, 5),
    "optimizer.nesterov": (True,),  # the optimizer is lars
    "optimizer.beta2": (-0.1, 1),
    "optimizer.weight_decay": (-1,),
    "optimizer.weight_decay_excludes": (("",), ("bias", "")),
    "optimizer.layer_decay": (0, -0.1, 1.1),
    "optimizer.warmup_epochs": (-1, 4),
    "optimizer.clip_norm": (-1,),
    "subset.classes": ("",),
    "subset.files": ("",),
    "subset.share": (0, -0.1, 1.5),
    "subset.per_class": TOO_FEW,
    "subset.seed": (-1, 2**32),
    "evaluation.train": ("",),
    "evaluation.test": ("",),
    "evaluation.every": TOO_FEW,
    "evaluation.resize": TOO_FEW,
    "evaluation.crop": (0, -1, 41),
    "evaluation.clips": TOO_FEW,
    "evaluation.crops": (0, 2),
    "evaluation.neighbours": TOO_FEW,
}


def settings(config: object, prefix: str = "") -> dict[str, type]:
    """Return the type of each setting by its name, such as "loss.temperature"."""
    found = {}
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        found |= settings(value, f"{prefix}{name}.") if dataclasses.is_dataclass(value) else {f"{prefix}{name}": kind}
    return found


def config_of_clips(config: TrainConfig, **changes: object) -> TrainConfig:
    return replace(config, **{"clips": {"frames": 4}, "model": {"backbone": "r3d18"}, **changes})


def changed(config: TrainConfig, name: str, value: object) -> TrainConfig:
    section, _, last = name.rpartition(".")
    return replace(config, **({section: {last: value}} if section else {last: value}))


def wrong_types(kind: type) -> tuple[object, ...]:
    """Return values that no setting of this type takes."""
    kinds = {
        kind,
        *typing.get_args(kind),
        *(part for union in typing.get_args(kind) for part in typing.get_args(union)),
    }
    wrong = [object(), {}, *([] if NoneType in kinds else [None]), *([] if Path in kinds or str in kinds else ["3"])]
    return (*wrong, *([] if bool in kinds else [True]), *NOT_FINITE)


def test_every_setting_refuses_nonsense_and_names_itself(tmp_path):
    images = small_config(tmp_path / "images", tmp_path / "run")
    clips = config_of_clips(images)
    assert settings(images).keys() == NONSENSE.keys()
    for name, kind in settings(images).items():
        of_clips = name in ("evaluation.clips", "evaluation.crops") or name.startswith("clips.")
        for value in (*NONSENSE[name], *wrong_types(kind)):
            with pytest.raises((ValueError, TypeError)) as caught:
                changed(clips if of_clips and name != "clips.frames" else images, name, value)
            named = (f"{name}=", f"unknown {name} ", f"unknown augmentation in {name} ", "unknown backend ")
            assert any(text in str(caught.value) for text in named), (name, value, str(caught.value))


@pytest.mark.parametrize(
    ("backbone", "frames", "message"),
    [
        ("resnet18", 8, r"clips.frames=8: expected 0, since model.backbone='resnet18' takes images; r3d18, r3d50, r2"),
        ("timm:vit_tiny", 8, r"clips.frames=8: expected 0, since model.backbone='timm:vit_tiny' takes images"),
        ("r3d50", 0, r"model.backbone='r3d50': expected resnet18, .*timm:NAME with clips.frames=0, which means images"),
    ],
)
def test_a_network_for_other_data_is_refused_with_both_names(tmp_path, backbone, frames, message):
    config = small_config(tmp_path, tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        replace(config, clips={"frames": frames}, model={"backbone": backbone})


def test_no_queue_needs_keys_of_the_batch(tmp_path):
    config = small_config(tmp_path, tmp_path / "run")
    assert replace(config, loss={"queue_size": 0, "batch_keys": True}).loss.queue_size == 0
    with pytest.raises(ValueError, match=r"loss.queue_size=0: expected at least 1, or 0 with loss.batch_keys=True"):
        replace(config, loss={"queue_size": 0})
    with pytest.raises(ValueError, match=r"loss.queue_size=15: expected at least the 16 keys of one step"):
        replace(config, loss={"queue_size": 15, "batch_keys": True})
    with pytest.raises(ValueError, match=r"loss.queue_size=0: expected above 0 with one of the images at a time"):
        replace(config, loss={"queue_size": 0, "batch_keys": True}, accumulation=8)


def test_own_networks_and_unknown_names_take_either(tmp_path):
    config = small_config(tmp_path, tmp_path / "run")
    for backbone in ("own", "restnet18"):  # unknown names are refused with a suggestion when the network is built
        for frames, kind in ((0, "images"), (8, "videos")):
            assert replace(config, clips={"frames": frames}, model={"backbone": backbone}).kind == kind


@pytest.mark.parametrize(
    "change",
    [{"clips": {"stride": 4}}, {"clips": {"temporal_difference": 0.2}}, {"evaluation": {"clips": 10}},
     {"evaluation": {"crops": 3}}, {"clips": {"frame_rate": 25.0}}],
)  # fmt: skip
def test_settings_of_clips_are_refused_for_images(tmp_path, change):
    config = small_config(tmp_path, tmp_path / "run")
    ((section, values),) = change.items()
    ((name, value),) = values.items()
    with pytest.raises(ValueError, match=rf"^{section}.{name}={value}: expected .*clips.frames=0"):
        replace(config, **change)
    assert getattr(getattr(config_of_clips(config, **{"clips": {"frames": 4}, **_with_frames(change)}), section), name)


def _with_frames(change: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    return {name: {**values, "frames": 4} if name == "clips" else values for name, values in change.items()}


def test_the_length_of_a_clip_comes_from_seconds_or_stride(tmp_path):
    config = small_config(tmp_path, tmp_path / "run")
    assert config.clips.sampling() is None
    config = config_of_clips(config, clips={"frames": 16})
    assert config.clips.sampling() == ClipSampling(frames=16, seconds=2.56)
    strided = replace(config, clips={"stride": 4, "speeds": 2, "sampler": "cvrl", "temporal_difference": 0.2})
    assert strided.clips.sampling() == ClipSampling(
        frames=16, seconds=None, stride=4, speeds=(2,), sampler="cvrl", temporal_difference=0.2
    )
    with pytest.raises(ValueError, match=r"clips.seconds=1.28: expected None with clips.stride=4, which replaces it"):
        replace(strided, clips={"seconds": 1.28})
    names = {field.name for field in dataclasses.fields(ClipsConfig)} - {"frame_rate"}
    assert names == {field.name for field in dataclasses.fields(ClipSampling)}


def test_features_of_videos_come_from_uniform_clips(tmp_path):
    config = small_config(tmp_path, tmp_path / "run")
    assert type(config.evaluation_view()) is EvaluationView
    assert config.input_shape(32) == (3, 32, 32)
    config = config_of_clips(config, views={"mean": (0.45,) * 3}, evaluation={"clips": 10, "crops": 3})
    assert config.input_shape(32) == (3, 4, 32, 32)
    assert config.evaluation_view() == ClipEvaluationView(
        resize=40, crop=32, mean=(0.45,) * 3, sampling=ClipSampling(frames=4), clips=10, crops=3
    )


def test_strengths_replace_those_of_the_names(tmp_path):
    config = small_config(tmp_path, tmp_path / "run")
    by_name = config.views.augmentations()
    assert (by_name[0].blur, by_name[1].blur, by_name[0].jitter, by_name[0].solarize) == (1.0, 0.1, 0.8, 0.0)
    given = {
        "ratio": ((1.0, 1.5),), "jitter": (0.5, 0.6), "brightness": 0.8, "contrast": 0.7, "saturation": (0.4, 0.3),
        "hue": 0.2, "grayscale": 0.1, "blur": (0, 0.9), "blur_sigma": ((0.2, 1.0), (0.3, 3.0)), "solarize": (0.3, 0),
    }  # fmt: skip
    assert given.keys() == set(STRENGTHS)
    first, second = replace(config, views=given).views.augmentations()
    assert [getattr(first, name) for name in STRENGTHS] == [(1, 1.5), 0.5, 0.8, 0.7, 0.4, 0.2, 0.1, 0, (0.2, 1), 0.3]
    assert [getattr(second, name) for name in STRENGTHS] == [(1, 1.5), 0.6, 0.8, 0.7, 0.3, 0.2, 0.1, 0.9, (0.3, 3), 0]
    for name, value in given.items():  # the others stay those of the view's name
        changed = replace(config, views={name: value}).views.augmentations()[1]
        assert dataclasses.replace(changed, **{name: getattr(by_name[1], name)}) == by_name[1]


def test_flips_may_differ_between_views(tmp_path):
    config = small_config(tmp_path, tmp_path / "run")
    for given, expected in ((0, [0, 0]), (0.3, [0.3, 0.3]), ((0.5, 0), [0.5, 0])):
        changed = replace(config, views={"flip": given}).views.augmentations()
        assert [view.flip for view in changed] == expected
        assert [dataclasses.replace(view, flip=0.5) for view in changed] == list(config.views.augmentations())


def test_values_become_the_type_of_their_setting(tmp_path):
    config = replace(
        small_config("images", str(tmp_path / "run")),
        evaluation={"train": "a", "test": "b", "crop": np.int64(32)},
        views={"sizes": 32, "scales": [[0.2, 1]]},
        model={"projector_hidden": [16]},
        loss={"temperature": np.float32(0.25)},
    )
    assert (config.data, config.out, config.evaluation.train) == (Path("images"), tmp_path / "run", Path("a"))
    assert (config.views.sizes, config.views.scales, config.model.projector_hidden) == ((32,), ((0.2, 1),), (16,))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, r"unknown setting 'epoch'; did you mean epochs=…\?"),
        ({"temperature": 0.2}, r"unknown setting 'temperature'; did you mean loss={'temperature': …}\?"),
        ({"loss": {"temprature": 0.2}}, r"unknown setting 'loss.temprature'; did you mean loss={'temperature': …}\?"),
        ({"loss": {"batch_size": 8}}, r"unknown setting 'loss.batch_size'; did you mean batch_size=…\?"),
        ({"optimizer": {"momentom": 0}}, r"did you mean optimizer={'momentum': …}\?"),
        ({"loss": {"xyz": 3}}, "unknown setting 'loss.xyz': expected one of temperature, target_temperature, "),
        ({"loss": 3}, "loss=3: expected a LossConfig"),
        ({"loss": {"temperature": "0.2"}}, "loss.temperature='0.2': expected a number"),
    ],
)
def test_unknown_settings_get_the_nearest(tmp_path, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        replace(small_config(tmp_path, tmp_path), **changes)


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_every_recipe_takes_settings_and_strings(recipe):
    config = recipe("photos", epochs=3, loss={"temperature": 0.2}, views={"sizes": [32]})
    assert (config.data, config.epochs, config.loss.temperature, config.views.sizes) == (Path("photos"), 3, 0.2, (32,))
    assert config.loss.target_temperature == recipe("photos").loss.target_temperature
    assert config.optimizer.warmup_epochs <= 1.5
    assert recipe("photos", "runs/x", optimizer={"warmup_epochs": 1}).optimizer.warmup_epochs == 1
    with pytest.raises(TypeError, match="data='': expected a path that is not empty"):
        recipe("")
    with pytest.raises(ValueError, match="unknown setting 'epoch'; did you mean epochs"):
        recipe("photos", epoch=3)
    with pytest.raises(ValueError, match=r"optimizer.warmup_epochs=4: expected at most epochs=3"):
        recipe("photos", epochs=3, optimizer={"warmup_epochs": 4})
