"""The description of a machine, also where torch cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from sce_fast.benchmarks import machine

ROOT = Path(__file__).parents[2]


def test_a_record_names_hardware_versions_commit_and_command():
    about = machine.machine()
    assert about["torch"] == about["packages"]["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    assert {"date", "command", "commit", "cpu", "instructions", "gpu", "python", "driver", "nvcc"} <= set(about)
    assert (about["gpu"] is None) == ("no_gpu" in about)


def test_a_torch_that_cannot_be_imported_is_named(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    command = [sys.executable, "-m", "benchmarks.machine"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    about = json.loads(done.stdout)
    assert about["command"] == "python -m benchmarks.machine"
    assert about["gpu"] is about["torch"] is None
    assert about["no_gpu"] == "torch cannot be imported: libcudart.so.13: cannot open shared object file"


def test_tools_of_the_cuda_toolkit_are_looked_for(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert machine.find_tool("compute-sanitizer") == str(program)
    assert machine.find_tool("no-such-tool") is None
