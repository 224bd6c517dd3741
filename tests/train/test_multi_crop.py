"""Multi-crop: one decode of an image, one pass or one for each view, one call of the loss for all terms."""

from collections import Counter
from types import SimpleNamespace

import pytest
from nvidia.dali import fn

from helpers.runs import small_config
from sce_fast.config import EvaluationConfig, replace
from sce_fast.data.image import graph
from sce_fast.loss.api import sce_loss
from sce_fast.train import Trainer
from sce_fast.train import step as module

PUBLISHED = {
    "names": ("alpha", "beta", *["gamma"] * 4), "sizes": (32, 32, 28, 24, 20, 16),
    "scales": ((0.2, 1), (0.2, 1), (0.172, 0.86), (0.143, 0.715), (0.114, 0.571), (0.086, 0.429)),
}  # fmt: skip
LIKE_DINO = {
    "names": ("alpha", "beta", *["gamma"] * 8), "sizes": (32, 32, *[16] * 8),
    "scales": (*[(0.14, 1)] * 2, *[(0.05, 0.14)] * 8),
}  # fmt: skip


@pytest.mark.parametrize(
    ("views", "joint", "terms", "student_passes", "teacher_passes"),
    [
        (PUBLISHED, False, 10, 6, 2),
        pytest.param(PUBLISHED, True, 10, 5, 1, marks=pytest.mark.slow),
        pytest.param(LIKE_DINO, True, 18, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_step_decodes_once_and_calls_the_loss_once(
    photo_folder, tmp_path, monkeypatch, views, joint, terms, student_passes, teacher_passes
):
    calls, shapes = Counter(), []

    def decoder(*arguments, **settings):
        calls["decoders in the graph"] += 1
        return fn.decoders.image(*arguments, **settings)

    def loss(query, key, *arguments, **settings):
        shapes.append((tuple(query.shape), tuple(key.shape)))
        return sce_loss(query, key, *arguments, **settings)

    operators = SimpleNamespace(**{**vars(fn), "decoders": SimpleNamespace(image=decoder)})
    monkeypatch.setattr(graph, "fn", operators)
    monkeypatch.setattr(module, "sce_loss", loss)
    config = small_config(photo_folder, tmp_path / "run", evaluation=EvaluationConfig())
    config = replace(config, views={**views, "background": "none"}, model={"mutual_pass": joint})
    trainer = Trainer(config)
    trainer.model.backbone.register_forward_hook(lambda *_: calls.update(["student"]))
    trainer.model.momentum_backbone.register_forward_hook(lambda *_: calls.update(["teacher"]))
    measures = trainer.training_step(trainer._batches([]), number=0, learning_rate=0.1, momentum=0.9)
    assert measures["loss"].isfinite()
    assert calls == {"decoders in the graph": 1, "student": student_passes, "teacher": teacher_passes}
    ((query, key),) = shapes
    assert (query, key) == ((len(views["names"]), 8, 8), (2, 8, 8))
    assert key[0] * (query[0] - 1) == terms
    trainer.loader.close()
    trainer.log.close(finished=False)
