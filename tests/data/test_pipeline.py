"""Pipelines are shut down where they end, never by the garbage collector."""

import shutil
import subprocess
import sys

import pytest

from helpers.pipelines import all_shut_down
from sce_fast.data.evaluation import evaluation_batches
from sce_fast.data.faults import BadFilesError
from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader

# DALI's thread collects garbage in the first batch, while the second batch fails before it reaches DALI.
COLLECTS_IN_DALI = """
import gc, threading
from contextlib import closing
from types import SimpleNamespace
from nvidia.dali import fn, pipeline_def
import numpy as np
from sce_fast.data.loader import TrainingLoader
from sce_fast.data.pipeline import build_pipeline
from sce_fast.util.ahead import Work, run_ahead

gc.disable()
is_garbage, collected = threading.Event(), threading.Event()

def collect(arrays):
    is_garbage.wait(1)  # a pipeline that is shut down waits for this function
    gc.collect()
    collected.set()
    return [np.array(array) for array in arrays]

class Views:
    seed, device, bad = 0, "cpu", {}

    def feeds(self, batches):
        works = (Work([lambda: np.zeros(1)], 1) if n == 0 else Work([lambda: 1 / 0], 1) for n in range(2))
        with closing(run_ahead(works, threads=1)) as ready:
            for samples, arrays in zip(batches, ready):
                yield samples, (arrays,)

    def pipeline(self, feeds, batch_size):
        @pipeline_def
        def graph():
            (array,) = fn.external_source(lambda: next(feeds), num_outputs=1)
            return fn.python_function(array, function=collect, batch_processing=True)

        return build_pipeline(graph, batch_size=batch_size, threads=1, device="cpu")

class Index:
    kind, listing = "images", SimpleNamespace(require_few_lost=lambda: None)
    __len__ = lambda self: 4
    bad_files = lambda self: {}
    by_path = lambda self, bad: {}

def fail():
    try:
        next(TrainingLoader(Index(), Views(), batch_size=1))
    except ZeroDivisionError:
        print("failed")

fail()
is_garbage.set()
print("collected", collected.wait(10))
"""


def test_a_garbage_collection_in_a_thread_of_dali_ends_no_process():
    """The error of a batch, its traceback and the frames of a pipeline are a cycle."""
    result = subprocess.run([sys.executable, "-c", COLLECTS_IN_DALI], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "failed\ncollected True\n"), result.stderr


@pytest.fixture
def one_bad(tmp_path, photo_folder):
    """Return an index whose first image has been cut off since."""
    shutil.copytree(photo_folder / "temple", tmp_path / "data")
    index = index_images(tmp_path / "data")
    first = tmp_path / "data" / index.listing.names[0]
    first.write_bytes(first.read_bytes()[:2000])
    return index


@pytest.mark.filterwarnings("ignore:(?s)1 of 12 files cannot be used")
def test_pipelines_of_images_are_shut_down(one_bad):
    views = RandomViews(one_bad, (Augmentation(size=16),), seed=0)
    loader = TrainingLoader(one_bad, views, batch_size=12)
    with all_shut_down():
        next(loader)  # fails, finds the bad file and builds another pipeline
        loader.close()
    with all_shut_down(), pytest.raises(BadFilesError):
        list(evaluation_batches(one_bad, EvaluationView(resize=16, crop=16)))
    with all_shut_down():
        list(evaluation_batches(one_bad, EvaluationView(resize=16, crop=16), skipped={}))
