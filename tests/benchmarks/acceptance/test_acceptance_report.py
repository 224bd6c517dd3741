"""The targets and the one-page report of an acceptance run."""

from sce_fast.benchmarks.acceptance.report import page, targets


def result(peer, seconds, graph=None, host=None):
    title = f"sce_fast {peer}" if peer in ("cuda", "triton") else peer
    return {"peer": peer, "title": title, "seconds": seconds, "graph": graph, "host": host}


def shape(n, *results):
    return {
        "shape": {"n": n, "k": 65536, "d": 256, "dtype": "bfloat16"}, "operations": 8 * n * 65536 * 256,
        "queue_bytes": 65536 * 512, "gemm": {"edge": 8192, "flops": 790e12}, "copy": 3e12, "left_out": ["flex"],
        "results": list(results),
    }  # fmt: skip


def outcome(item, state="passed", reason="", data=None):
    return {"item": item, "state": state, "reason": reason, "seconds": 1.0, "data": data}


def record_of(gpu="NVIDIA H100 80GB HBM3", fast=True, **parts):
    factor = 1.0 if fast else 2.0
    loss = [
        outcome("first try", "failed", "crashed: signal 11 (SIGSEGV)"),
        outcome("N 1024", data=shape(
            1024, result("cuda", factor * 240e-6, factor * 215e-6, 50e-6), result("triton", 400e-6, 380e-6, 60e-6),
            result("official", 3e-3), result("attention", 290e-6, 280e-6), result("attention-cudnn", 270e-6),
        )),
        outcome("N 256", data=shape(
            256, result("cuda", factor * 90e-6, factor * 70e-6, 50e-6), result("official", 9e-4),
        )),
    ]  # fmt: skip
    step = {
        "seconds": 0.11, "images_per_second": 2327.0, "share_of_ours": factor * 0.007, "backend": "cuda",
        "stages": {"loss": 4e-4, "momentum": 2e-4, "queue": 2e-5},
        "settings": {"model": {"backbone": "resnet50"}, "batch_size": 256, "size": 224, "precision": "bfloat16"},
    }  # fmt: skip
    machine = {
        "gpu": gpu, "capability": "9.0", "multiprocessors": 132, "memory_gib": 79.2, "cuda": "13.0", "cudnn": 91000,
        "packages": {"torch": "2.11.0"}, "driver": "580.1", "commit": "abc", "python": "3.12.3", "processors": 16,
    }  # fmt: skip
    outcomes = {"loss": loss, "step": [outcome("synthetic images", data=step)], **parts}
    made = {
        name: {"title": name.title(), "state": "passed", "reason": "", "seconds": 2.0, "outcomes": those}
        for name, those in outcomes.items()
    }
    return {
        "started": "2026-11-24T00:00:00+00:00", "seconds": 500.0, "finished": True, "machine": machine, "parts": made,
    }  # fmt: skip


def clip_step(seconds):
    settings = {"batch_size": 32, "frames": 8, "size": 224, "precision": "bfloat16"}
    return {"seconds": seconds, "images_per_second": 32 / seconds, "peak_bytes": 30 * 2**30, "settings": settings}


def test_targets_are_judged_by_the_fastest_of_ours_and_of_the_peers():
    found = targets(record_of())
    assert [target.reached for target in found] == [True] * 6
    assert found[0].measured == "639 TFLOP/s (sce_fast cuda)"
    assert found[1].measured == "12.5 × (sce_fast cuda)"
    assert found[2].measured == "1.12 × (sce_fast cuda against attention-cudnn)"
    assert found[3].measured == "70 µs (sce_fast cuda)"
    assert found[4].measured == "20 µs (sce_fast cuda)"
    assert found[5].measured == "0.7 %"
    slow = targets(record_of(fast=False))
    assert [target.reached for target in slow] == [False] * 6
    assert slow[0].measured == "362 TFLOP/s (sce_fast triton)"
    assert [target.reached for target in targets(record_of(gpu="NVIDIA L4"))] == [None] * 6


def test_the_page_tells_what_matters():
    parity = [
        outcome("triton: N 1, K 1, D 64, bfloat16", data={"worst": 0.31}),
        outcome("triton: N 77, K 4099, D 64, bfloat16", data={"worst": 0.62}),
        outcome("triton: N 77, K 4099, D 64, tf32", "failed", "clustered: loss", {"worst": 1.7}),
        outcome("sm80: N 1, K 1, D 64, bfloat16", "failed", "crashed: signal 6 (SIGABRT)"),
        outcome("sm80: N 1, K 1, D 64, tf32", "not run", "the backend refuses these inputs: its candidates are 16-bit"),
        outcome("sm90: N 1, K 1, D 64, bfloat16", "not run", "csrc/cuda/sm90_forward_pass.cu does not exist"),
    ]
    text = page(record_of(
        parity=parity,
        tests=[outcome("tests/loss/test_cuda_gpu.py::a"), outcome("tests/loss/test_cuda_gpu.py::b", "failed", "wrong")],
        sanitizer=[outcome("memcheck, CUDA sm_80", data={"calls": 18, "findings": 0})],
        loader=[
            outcome("pixels from PNG files", data={"mean": 0.2, "largest": 3.0, "share_above_8": 0.0, "images": 64}),
            outcome("images/s", data={"images_per_second": {"cpu": 900.0, "gpu": 5100.0}}),
        ],
        video=[
            outcome("frames of HEVC, BT.709", data={"mean": 0.6, "largest": 9, "numbers": [0, 4]}),
            outcome(
                "frames of VP8, BT.601", "failed", "DALI returns the frames [0, 3] instead of [0, 4]",
                {"mean": 7.1, "largest": 90, "numbers": [0, 3]},
            ),
            outcome("frames of AV1, BT.601", "not run", "NVDEC of this GPU decodes no av1"),
            outcome("frames of VP9 with hidden pictures", data={"exact": False, "numbers": [0, 5]}),
            outcome("clips/s of the loader", data={"clips_per_second": {"cpu": 90, "gpu, NVDEC": 410}, "threads": 16}),
            outcome("R3D-50, synthetic clips", data=clip_step(0.2)),
            outcome("R3D-50, synthetic clips, channels first", data=clip_step(0.3)),
            outcome("R3D-18, synthetic clips", data=clip_step(0.2)),
            outcome("R3D-18, synthetic clips, channels first", data=clip_step(0.1)),
        ],
    ))  # fmt: skip
    assert "# Acceptance run on NVIDIA H100 80GB HBM3" in text
    assert "| effective rate, N 1024, K 65536, D 256, bfloat16, replayed from a graph | ≥ 600 TFLOP/s" in text
    assert "| triton | 0.62 | **1.7** |" in text
    assert "| sm80 | **failed** | – |" in text
    assert "| sm90 | – | – |" in text
    assert "| tests/loss/test_cuda_gpu.py | 1 | 1 | 0 |" in text
    assert "| 1024, 65536, 256 bfloat16 | cuda | 240.0 | 215.0 | 639 | 81% | 5% | 50.0 |" in text
    assert "| 50.0 | 12.50 × | 1.12 × attention-cudnn |" in text
    assert "compute-sanitizer, memcheck, CUDA sm_80: no findings in 18 calls" in text
    assert "images/s: cpu 900, gpu 5100" in text
    assert "| HEVC, BT.709 | 0.60 | 9 | exact |" in text
    assert "| VP8, BT.601 | 7.10 | 90 | wrong |" in text
    assert "| VP9 with hidden pictures | – | – | wrong, as expected on a GPU |" in text
    assert "Loader of clips, 8 frames of 224 pixels, 16 threads, clips/s: cpu 90, gpu, NVDEC 410" in text
    assert "R3D-50, synthetic clips, batch 32, 8 × 224 pixels, bfloat16: 200 ms, 320 clips/s, 30.0 GiB" in text
    assert (
        "R3D-50, synthetic clips: channels last is 1.50 times as fast as channels first; as the trainer has it" in text
    )
    assert "channels last is 0.50 times as fast as channels first; the trainer should have channels first" in text
    assert "- parity: `sm80: N 1, K 1, D 64, bfloat16`: crashed: signal 6 (SIGABRT)" in text
    assert "- parity: csrc/cuda/sm90_forward_pass.cu does not exist: sm90: N 1, K 1, D 64, bfloat16" in text
    assert "to save time, or after a crash: flex" in text
    assert len(text.splitlines()) < 110


def mix(queue, graph, default=False, **other):
    result = {"mix": f"rows float32, queue {queue}", "backend": "triton", "seconds": 2 * graph, "graph": graph}
    data = {"queue": queue, "product": queue, "default": default, "may_be_default": True, "sizes": SIZES, **other}
    return outcome(result["mix"], data={**data, "results": [{**result, "worst": 0.25}]})


SIZES = {"n": 1024, "k": 65536, "d": 256}


def test_the_page_tells_which_dtype_the_queue_should_have():
    mixes = [mix("bfloat16", 240e-6, default=True), mix("float32", 9e-3), mix("float16", 260e-6)]
    mixes.append(mix("float32", 1e-6, may_be_default=False))  # needs a setting that recipes do not make
    text = page(record_of(dtypes=mixes))
    assert "| dtypes at N 1024, K 65536, D 256 | products |" in text
    assert "| rows float32, queue bfloat16 | bfloat16 | triton | 480.0 | 240.0 | 0.25 |" in text
    assert (
        "- The queue of float32 rows, µs: float32 9000.0, float16 260.0, bfloat16 240.0. This run would choose "
        "bfloat16; as the recipes have it" in text
    )
    mixes[2] = mix("float16", 246e-6)  # more accurate, and nearly as fast
    assert "would choose float16; the recipes have bfloat16" in page(record_of(dtypes=mixes))
    assert "would choose" not in page(record_of(dtypes=mixes[:2]))
