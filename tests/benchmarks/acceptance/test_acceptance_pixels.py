"""What the acceptance run says of the kernel that finishes views."""

import dataclasses

import numpy as np

from sce_fast.benchmarks.acceptance.default_choices import pixel_lines
from sce_fast.benchmarks.acceptance.pixels import moved_bytes, plan_of
from sce_fast.data.image.augment import Augmentation


def outcome(item, **data):
    return {"item": item, "state": "passed", "reason": "", "seconds": 1.0, "data": data}


def test_each_pass_counts_its_bytes():
    plan = plan_of(Augmentation(), 4)  # crop and flip alone: one read, one write
    assert moved_bytes(plan, 100) == 100 + 200
    contrast, sigma = plan.operations.copy(), np.float32([1, 0, 0, 0])
    contrast[:2, 3] = 1
    plan = dataclasses.replace(plan, operations=contrast, blur_sigma=sigma)
    # half of the images are read for their mean, a quarter is written and read for the blur
    assert moved_bytes(plan, 100) == 50 + 100 + 25 + 25 + 200
    assert moved_bytes(plan, 100, value_bytes=4) == 50 + 100 + 25 + 25 + 400


def test_the_report_tells_which_default_it_would_choose():
    measured = {"host": 4e-5, "bytes": 2e8, "copy": 2e12}
    outcomes = [
        outcome("pixels of hue", values=100, unequal=0, largest=0.0),
        outcome("pixels of blur", values=50, unequal=2, largest=1.0),
        outcome("time of alpha, N 256, 224 pixels", seconds=2e-4, dali=1e-3, **measured),
        outcome("time of strong, N 32, 8 × 224 pixels", seconds=2e-4, dali=1e-4, **measured),
        outcome("time of gamma, N 256, 96 pixels", seconds=2e-4, dali=None, no_dali="it is missing", **measured),
        {"item": "time of gamma", "state": "not run", "reason": "DALI cannot be imported", "seconds": 0, "data": None},
    ]
    text = pixel_lines({"parts": {"pixels": {"outcomes": outcomes}}})
    assert "alpha, N 256, 224 pixels: 200 µs, 50% of the copy rate, host 40.0 µs" in text
    assert "DALI's operators take 5.0 times as long; views.photometric=auto takes it" in text
    assert "DALI's operators take 0.5 times as long; views.photometric=auto should take dali" in text
    assert "host 40.0 µs; not compared with DALI's operators: it is missing" in text
    assert "Its pixels against csrc/cpu: 2 of 150 values differ" in text
    assert pixel_lines({"parts": {}}) == ""
