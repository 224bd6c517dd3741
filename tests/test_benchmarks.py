"""The peers compute the same thing, so that their times may be compared."""

import json

import pytest
import torch

from sce_fast.benchmarks import loader, loss
from sce_fast.rows import unit_rows


def test_the_losses_peers_agree():
    query, key, queue = (unit_rows(torch.randn(n, 32)) for n in (8, 8, 4096))
    results = {}
    for name, peer in {"ours": loss.ours, "attention": loss._Attention.apply, "official": loss.official}.items():
        leaf = query.clone().requires_grad_()
        value = peer(leaf, key, queue)
        value.backward()
        results[name] = value.item(), leaf.grad
    for name in ("attention", "official"):  # the latter gives the own key a teacher logit of 0: little at K = 4096
        torch.testing.assert_close(results[name][0], results["ours"][0], rtol=1e-3, atol=0)
        torch.testing.assert_close(results[name][1], results["ours"][1], rtol=0, atol=2e-3)


def test_bench_loss_measures_and_records(tmp_path, capsys):
    ratios = loss.main(n=4, k=256, d=16, rounds=1, threads=1, compiled=False, out=tmp_path / "loss.json")
    assert ratios["sce_fast"] == 1.0
    assert "MoCo-style eager" in capsys.readouterr().out
    assert json.loads((tmp_path / "loss.json").read_text())["sizes"]["k"] == 256


@pytest.mark.filterwarnings("ignore:the CPU kernels are not built")
def test_bench_loader_measures_and_records(tmp_path, capsys):
    ratios = loader.main(images=16, batch_size=4, batches=1, rounds=1, out=tmp_path / "loader.json")
    assert ratios["sce_fast"] == 1.0
    assert "Pillow DataLoader" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "loader.json").read_text())["rates"]) == 4
