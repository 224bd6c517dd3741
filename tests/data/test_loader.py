"""Training batches are the same for any number of ranks or threads, and after an interruption."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sce_fast.data import loader as loader_module
from sce_fast.data.evaluation import evaluation_batches
from sce_fast.data.image import views as views_module
from sce_fast.data.image.augment import AUGMENTATIONS, Augmentation, EvaluationView
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader

VIEWS = (
    Augmentation(size=48, **AUGMENTATIONS["strong"]),
    Augmentation(size=32, **AUGMENTATIONS["beta"]),
)


@pytest.fixture
def photos(photo_folder):
    return index_images(photo_folder)


def loader(index, batch_size=8, *, seed=5, threads=2, device="cpu", **settings):
    views = RandomViews(index, VIEWS, seed=seed, threads=threads, device=device)
    return TrainingLoader(index, views, batch_size=batch_size, **settings)


def take(source, count):
    return [next(source) for _ in range(count)]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert (batch.epoch, batch.step) == (other.epoch, other.step)
        assert np.array_equal(batch.samples, other.samples)
        assert all(torch.equal(view, same) for view, same in zip(batch.views, other.views, strict=True))


def test_batches_of_two_epochs(photos):
    batches = take(loader(photos), 6)
    assert [(b.epoch, b.step) for b in batches] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [view.shape for view in batches[0].views] == [(8, 3, 48, 48), (8, 3, 32, 32)]
    assert batches[0].views[0].dtype == torch.float32
    for epoch in (batches[:3], batches[3:]):
        assert sorted(np.concatenate([b.samples for b in epoch])) == list(range(24))
    assert not np.array_equal(batches[0].samples, batches[3].samples)
    assert not torch.equal(batches[0].views[0], batches[3].views[0])


def test_two_ranks_give_the_pixels_of_one(photos):
    whole = take(loader(photos, batch_size=8), 4)
    halves = [take(loader(photos, batch_size=4, rank=rank, ranks=2), 4) for rank in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert np.array_equal(batch.samples, np.concatenate([first.samples, second.samples]))
        for v, view in enumerate(batch.views):
            assert torch.equal(view, torch.cat([first.views[v], second.views[v]]))


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_no_pixel(photos, threads):
    assert_same(take(loader(photos, threads=threads), 3), take(loader(photos, threads=2), 3))


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_resume_gives_the_very_next_batch(photos, steps):
    undisturbed = take(loader(photos), 8)
    interrupted = loader(photos)
    take(interrupted, steps)
    state = interrupted.state_dict()
    resumed = loader(photos)
    resumed.load_state_dict(state)
    assert_same(take(resumed, 8 - steps), undisturbed[steps:])
    interrupted.load_state_dict({"epoch": 0, "step": 0})  # and back, in a loader that has already run
    assert_same(take(interrupted, 2), undisturbed[:2])


def test_batches_stay_intact_after_later_ones(photos):
    source = loader(photos)
    first = next(source)
    copies = [view.clone() for view in first.views]
    take(source, 5)
    assert all(torch.equal(view, copy) for view, copy in zip(first.views, copies, strict=True))


def test_last_incomplete_batch_is_dropped(photos):
    source = loader(photos, batch_size=7)
    assert source.steps_per_epoch == 3
    assert [b.epoch for b in take(source, 4)] == [0, 0, 0, 1]


def test_evaluation_keeps_the_last_batch_and_the_order(photos):
    view = EvaluationView(resize=40, crop=32)
    batches = list(evaluation_batches(photos, view, batch_size=7))
    assert [len(batch) for batch in batches] == [7, 7, 7, 3]
    together = torch.cat(batches)
    assert torch.equal(together, torch.cat(list(evaluation_batches(photos, view, batch_size=24, threads=1))))


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path):
    path.write_bytes(b"")


def shrink(path):
    """Replace the file by an image that is too small for any planned crop."""
    Image.new("RGB", (20, 10)).save(path)


def damage_all(root, names, damage=truncate):
    for name in names:
        damage(root / name)


@pytest.fixture
def copied(tmp_path, photo_folder):
    shutil.copytree(photo_folder, tmp_path / "data")
    return index_images(tmp_path / "data")


DAMAGES = [
    (truncate, "truncated or damaged"),
    (empty, "empty"),
    (os.unlink, "missing"),
    (lambda path: path.write_text("<html>404</html>"), "not an image"),
    (lambda path: (path.unlink(), path.mkdir()), "not a file"),
    (shrink, "changed size"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=[reason.replace(" ", "_") for _, reason in DAMAGES])
def test_a_file_that_breaks_is_replaced_and_nothing_else_changes(copied, photos, damage, reason):
    path = copied.listing.root / "temple" / "010.jpg"
    damage(path)
    source = loader(copied)
    with pytest.warns(UserWarning, match=rf"(?s)1 of 24 files .*1 {reason}.*temple/010.jpg: {reason}\n.*replace them"):
        batches = take(source, 6)
    assert source.bad_files == {str(path): reason}
    bad = copied.listing.names.index("temple/010.jpg")
    for batch, whole in zip(batches, take(loader(photos), 6), strict=True):
        assert (batch.epoch, batch.step) == (whole.epoch, whole.step)
        same = whole.samples != bad
        assert np.array_equal(batch.samples[same], whole.samples[same])
        assert bad not in batch.samples
        for view, other in zip(batch.views, whole.views, strict=True):
            assert torch.equal(view[torch.from_numpy(same)], other[torch.from_numpy(same)])

    # The replacement is the same for two ranks and after a resume.
    with pytest.warns(UserWarning, match="cannot be used"):
        halves = [take(loader(copied, batch_size=4, rank=rank, ranks=2), 6) for rank in range(2)]
    for batch, first, second in zip(batches, *halves, strict=True):
        assert np.array_equal(batch.samples, np.concatenate([first.samples, second.samples]))
        assert torch.equal(batch.views[0], torch.cat([first.views[0], second.views[0]]))
    resumed = loader(copied)
    resumed.load_state_dict({"epoch": 0, "step": 2})
    with pytest.warns(UserWarning, match="cannot be used"):
        assert_same(take(resumed, 4), batches[2:])


@pytest.mark.parametrize("damage", [empty, lambda path: path.write_text("no image")], ids=["empty", "text"])
def test_a_file_known_to_be_bad_from_its_header_changes_no_more_than_one_found_later(copied, damage):
    """A resumed run reads all headers again; it must give the same bits as a run that found the file while training."""
    path = copied.listing.root / "temple" / "010.jpg"
    damage(path)
    found_later = loader(copied)
    with pytest.warns(UserWarning, match="cannot be used"):
        batches = take(found_later, 6)
    reindexed = index_images(copied.listing.root)
    assert reindexed.fingerprint == copied.fingerprint
    with pytest.warns(UserWarning, match="cannot be used"):
        known = loader(reindexed)
    assert known.bad_files == found_later.bad_files
    assert_same(take(known, 6), batches)
    with pytest.warns(UserWarning, match="cannot be used"):
        resumed = loader(reindexed)
    resumed.load_state_dict({"epoch": 0, "step": 2})
    assert_same(take(resumed, 4), batches[2:])


def test_only_the_first_rank_warns_of_what_all_know(copied, recwarn):
    empty(copied.listing.root / "temple" / "010.jpg")
    index = index_images(copied.listing.root)
    ranks = [loader(index, batch_size=4, rank=rank, ranks=2) for rank in range(2)]
    assert len(recwarn) == 1
    assert ranks[0].bad_files == ranks[1].bad_files == {str(index.listing.root / "temple" / "010.jpg"): "empty"}


@pytest.fixture
def bear_all(monkeypatch):
    monkeypatch.setattr("sce_fast.data.faults.MAX_BAD_SHARE", 0.9)


@pytest.mark.parametrize("damage", [pytest.param(truncate, marks=pytest.mark.slow), empty])
def test_a_whole_batch_of_bad_files_with_bad_replacements_is_replaced(copied, photos, bear_all, damage):
    first = next(loader(photos)).samples
    others = [i for i in range(24) if i not in first]
    bad = {*first.tolist(), *others[:6]}
    damage_all(copied.listing.root, [copied.listing.names[i] for i in bad], damage)
    source = loader(copied)
    with pytest.warns(UserWarning, match="cannot be used"):
        batches = take(source, 6)
    assert not bad & set(np.concatenate([batch.samples for batch in batches]).tolist())
    assert len(source.bad_files) == len(bad)
    again = loader(copied, threads=1)
    with pytest.warns(UserWarning, match="cannot be used"):
        assert_same(take(again, 6), batches)
    with pytest.warns(UserWarning, match="cannot be used"):
        halves = [take(loader(copied, batch_size=4, rank=rank, ranks=2), 6) for rank in range(2)]
    for batch, one, two in zip(batches, *halves, strict=True):
        assert np.array_equal(batch.samples, np.concatenate([one.samples, two.samples]))


def test_a_file_that_breaks_between_batches_spoils_none(copied, photos):
    """DALI may already hold batches with the file when it breaks."""
    whole = take(loader(photos), 9)
    source = loader(copied)
    batches = take(source, 1)
    damage_all(copied.listing.root, [copied.listing.names[whole[4].samples[0]]])
    with pytest.warns(UserWarning, match="cannot be used"):
        batches += take(source, 8)
    bad = whole[4].samples[0]
    for batch, other in zip(batches, whole, strict=True):
        assert (batch.epoch, batch.step) == (other.epoch, other.step)
        same = (other.samples != bad) | (batch.samples == bad)
        assert np.array_equal(batch.samples[same], other.samples[same])
        for view, original in zip(batch.views, other.views, strict=True):
            assert torch.equal(view[torch.from_numpy(same)], original[torch.from_numpy(same)])
    assert bad not in np.concatenate([batch.samples for batch in batches[4:]])


@pytest.mark.slow
def test_a_file_that_shrinks_while_it_is_read_ends_no_process(tmp_path):
    """If the file were mapped, missing pages would end the process with SIGBUS; hence a process of its own."""
    code = f"""
import os, time
from nvidia.dali import fn, pipeline_def, types
from sce_fast.data.image.graph import file_content, path_arrays

path, content = {str(tmp_path / "file")!r}, bytes(20_000_000)

@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def graph():
    return file_content(fn.external_source(source=lambda: path_arrays([path.encode()]), dtype=types.UINT8))

def write():
    with open(path, "wb") as file:
        file.write(content)

write()
ends, whole, pipeline = time.monotonic() + 1.0, 0, None
if os.fork() == 0:
    while time.monotonic() < ends:
        os.truncate(path, 0)
        time.sleep(0.002)
        write()
    os._exit(0)
while time.monotonic() < ends:
    if pipeline is None:
        pipeline = graph()
        pipeline.build()
    try:
        pipeline.run()
        whole += 1
    except RuntimeError:
        pipeline = None
os.wait()
print("survived", whole > 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "survived True\n"), result.stderr


def test_a_larger_image_under_the_same_name_is_used(copied, photos):
    """The planned crops lie inside the larger image; that they cover a smaller share of it must not stop a run."""
    path = copied.listing.root / "temple" / "010.jpg"
    with Image.open(path) as image:
        larger = image.resize((image.width * 2, image.height * 2))
    larger.save(path)
    source = loader(copied)
    for batch, other in zip(take(source, 3), take(loader(photos), 3), strict=True):
        assert np.array_equal(batch.samples, other.samples)
    assert not source.bad_files


def test_a_batch_that_fails_without_a_bad_file_is_tried_once_more(copied, photos, monkeypatch):
    """A file server that is away for a moment must not stop a run; a permanent error must."""
    original, failures = loader_module.next_outputs, []

    def away(pipeline, device):
        if len(failures) < times:
            failures.append(pipeline)
            raise RuntimeError("the server is away")
        return original(pipeline, device)

    monkeypatch.setattr(loader_module, "next_outputs", away)
    times = 1
    with pytest.warns(UserWarning, match="none of its files is known to be bad; trying it again: the server is away"):
        batches = take(loader(copied), 3)
    times = 3
    with pytest.raises(RuntimeError, match="the server is away"), pytest.warns(UserWarning, match="trying it again"):
        take(loader(copied), 3)
    monkeypatch.undo()
    assert_same(batches, take(loader(photos), 3))


def test_a_gpu_that_fails_makes_no_file_bad(copied, monkeypatch):
    """If all files decode on the CPU but none on the GPU, the GPU is at fault. (The GPU is simulated.)"""

    def broken(pipeline, device):
        next(pipeline)
        raise RuntimeError("CUDA error: an illegal memory access")

    def sizes(files, samples, alpha, *, device, **settings):
        known = copied.sizes[samples]
        return known if device == "cpu" else np.zeros_like(known)

    monkeypatch.setattr(views_module, "training_pipeline", lambda feeds, *rest, **settings: feeds)
    monkeypatch.setattr(loader_module, "next_outputs", broken)
    monkeypatch.setattr(loader_module, "shut_down", lambda pipeline: None)
    monkeypatch.setattr(views_module, "decoded_sizes", sizes)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    source = loader(copied, device="gpu")
    with pytest.raises(RuntimeError, match="illegal memory access"), pytest.warns(UserWarning, match="trying it again"):
        next(source)
    assert source.bad_files == {}


def test_many_bad_files_stop_the_run(copied):
    damage_all(copied.listing.root, copied.listing.names[:4])
    with (
        pytest.raises(RuntimeError, match=r"(?s)more than 10% bad files: [34] of 24 .*\([34] truncated.*flower/0"),
        pytest.warns(UserWarning, match="cannot be used"),
    ):
        take(loader(copied), 6)


def test_many_bad_headers_stop_before_the_run(copied):
    names = copied.listing.names
    damage_all(copied.listing.root, names[:2], empty)
    damage_all(copied.listing.root, names[2:4], lambda path: path.write_text("hello"))
    with pytest.raises(RuntimeError, match=r"4 of 24 files cannot be used \(2 empty, 2 not an image\)"):
        loader(index_images(copied.listing.root))


def test_the_share_counts_both_kinds(copied):
    names = copied.listing.names
    damage_all(copied.listing.root, names[:2], empty)
    damage_all(copied.listing.root, names[2:3])
    with pytest.warns(UserWarning, match="2 of 24 files"):
        source = loader(index_images(copied.listing.root))
    with pytest.raises(RuntimeError, match=r"3 of 24 files cannot be used \(2 empty, 1 truncated or damaged\)"):
        take(source, 6)


def test_a_bad_file_stops_an_evaluation_by_name(copied):
    truncate(copied.listing.root / "temple" / "010.jpg")
    view = EvaluationView(resize=40, crop=32)
    with pytest.raises(RuntimeError, match=r"(?s)temple/010.jpg: truncated.*never skip images.*sce-fast scan "):
        list(evaluation_batches(copied, view))
    empty(copied.listing.root / "flower" / "001.jpg")
    with pytest.raises(ValueError, match=r"(?s)1 of 24 files cannot be used.*flower/001.jpg: empty"):
        list(evaluation_batches(index_images(copied.listing.root), view))


def test_names_that_are_not_utf8_are_decoded(tmp_path, photo_folder):
    target = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(target)
    for i, path in enumerate(sorted((photo_folder / "temple").iterdir())[:4]):
        with open(target + b"/\xe9%d.jpg" % i, "wb") as file:
            file.write(path.read_bytes())
    assert next(loader(index_images(tmp_path), batch_size=4)).views[0].shape == (4, 3, 48, 48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 25}, r"batch_size=25 on 1 rank\(s\) is larger than the data set of 24 images"),
        ({"batch_size": 13, "ranks": 2}, r"batch_size=26 on 2 rank\(s\)"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "ranks": 2}, "rank=2: expected 0 to 1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings_are_named(photos, settings, message):
    with pytest.raises(ValueError, match=message):
        loader(photos, **settings)
    with pytest.raises(ValueError, match="batch_size=0"):
        next(evaluation_batches(photos, EvaluationView(), batch_size=0))
    with pytest.raises(ValueError, match="loader position"):
        loader(photos).load_state_dict({"epoch": 0, "step": 3})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_gpu_views_are_those_of_a_cpu(tmp_path, kind):
    """Within the differences of another decoder and another order of summation."""
    from sce_fast.benchmarks.acceptance.loader import MEAN_ALLOWED, pixels

    assert pixels(tmp_path, kind, 16, "gpu")["mean"] <= MEAN_ALLOWED[kind]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_gpu_loader_resumes_at_the_very_next_sample(photos):
    expected = take(loader(photos, device="gpu"), 4)[2:]
    resumed = loader(photos, device="gpu")
    resumed.load_state_dict({"epoch": 0, "step": 2})
    for batch, its in zip(take(resumed, 2), expected, strict=True):
        assert (batch.epoch, batch.step) == (its.epoch, its.step)
        for view, other in zip(batch.views, its.views, strict=True):
            assert view.device.type == "cuda"
            torch.testing.assert_close(view, other)
