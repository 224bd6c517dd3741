"""What a run says about its images before the first step."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers.runs import small_config
from sce_fast.config import EvaluationConfig
from sce_fast.export import open_backbone
from sce_fast.train import Trainer
from sce_fast.train.folder import read_config
from sce_fast.train.resuming import resumed_config


@pytest.mark.parametrize("background", ["black", "none"])
def test_a_run_counts_transparent_images_and_other_files(tmp_path, photo_folder, capsys, background):
    shutil.copytree(photo_folder, tmp_path / "data")
    pixels = np.full((40, 50, 4), (255, 0, 0, 0), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "data" / "flower" / "clear.png")
    (tmp_path / "data" / "temple" / "film.gif").write_bytes(b"GIF89a")
    (tmp_path / "data" / "notes").write_text("hello")
    config = small_config(tmp_path / "data", tmp_path / "run", evaluation=EvaluationConfig(resize=40, crop=32))
    trainer = Trainer(
        dataclasses.replace(config, views=dataclasses.replace(config.views, background=background, mean=(0.0,) * 3))
    )
    said = capsys.readouterr().err
    assert f"2 files in {tmp_path}/data are ignored (1 without an ending, 1 .gif)\n" in said
    shown = "shown over black" if background == "black" else "dropped, so that hidden pixels show"
    assert f"1 of 25 images have alpha (transparency), {shown} (--views.background)\n" in said
    clear = trainer.index.listing.names.index("flower/clear.png")
    for batch in trainer.loader:
        if clear in batch.samples:
            view = batch.views[0][batch.samples.tolist().index(clear)]
            assert (float(view.abs().max()) == 0) == (background == "black")
            break


def test_runs_of_earlier_versions_have_no_background(tmp_path, photo_folder):
    config = small_config(photo_folder, tmp_path / "run", epochs=1, evaluation=EvaluationConfig(resize=40, crop=32))
    trainer = Trainer(config)
    trainer.train()
    assert open_backbone(config.out).description.background == "black"
    values = json.loads((config.out / "config.json").read_text())
    del values["views"]["background"]
    (config.out / "config.json").write_text(json.dumps(values))
    assert read_config(config.out).views.background == resumed_config(config.out).views.background == "none"
    assert open_backbone(config.out).description.view().background == "none"
