"""sce-fast resume, and --resume of sce-fast train: a run goes on with its own settings."""

import json
import shutil
from pathlib import Path

import pytest

from helpers import ranks
from helpers.runs import assert_same_run, small_config
from sce_fast.cli import main, recipes
from sce_fast.config import EvaluationConfig, OptimizerConfig
from sce_fast.tools.train import pretrain
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.folder import read_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, photo_folder) -> Path:
    """A run of two epochs whose settings are far from every recipe's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("runs") / "run"
        pretrain(
            small_config(
                photo_folder, out, epochs=2, log_every=2, evaluation=EvaluationConfig(),
                optimizer=OptimizerConfig(name="sgd", base_learning_rate=0.1, warmup_epochs=0.5),
            )
        )  # fmt: skip
    return out


@pytest.fixture
def stopped(finished, tmp_path) -> Path:
    """The same run, as if killed after step 4."""
    run = Path(shutil.copytree(finished, tmp_path / "moved"))
    (run / "summary.json").unlink()
    shutil.rmtree(checkpoints(run / "checkpoints")[-1])
    return run


def told(capsys, *arguments, status=2):
    with pytest.raises(SystemExit) as exit_info:
        main(list(map(str, arguments)))
    assert exit_info.value.code == status
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


@pytest.mark.parametrize(
    "words", [["resume"], pytest.param(["train", "folder", "--resume", "--out"], marks=pytest.mark.slow)]
)
def test_a_run_goes_on_with_its_own_settings(stopped, finished, capsys, words):
    main([*words, str(stopped)])
    assert "6 steps at" in capsys.readouterr().out
    assert_same_run(stopped, finished)
    assert read_config(stopped).out == stopped


def test_only_typed_options_are_compared(stopped, capsys):
    command = ["train", "folder", "--resume", f"--out={stopped}"]
    text = told(capsys, *command, "--loss.temperature", "0.2", "--log-every", "3")
    assert text.count(" then, ") == 1
    assert "loss.temperature: 0.1 then, 0.2 now" in text
    text = told(capsys, *command, "--help", status=0)
    assert "--optimizer.warmup-epochs" in text
    assert "(default: 0.5)" in text.replace("│", "").replace("  ", " ")
    main([*command, "--log-every", "1", "--checkpoint-every", "5"])
    assert [json.loads(line)["step"] for line in (stopped / "log.jsonl").open()] == [2, 4, 5, 6]
    assert read_config(stopped).log_every == 1


@pytest.mark.filterwarnings("default:epochs=3")
def test_resume_takes_what_may_change(stopped, capsys, photo_folder):
    text = told(capsys, "resume", stopped, "--epochs", "3")
    assert "epochs=3: the run in" in text
    assert "pass --stretch-schedule" in text
    shutil.copytree(photo_folder, stopped.parent / "photos")
    main(["resume", str(stopped), "--epochs", "3", "--stretch-schedule", "--data", str(stopped.parent / "photos"),
          "--log-every", "9", "--checkpoint-every", "7", "--keep-checkpoints", "1", "--device", "cpu",
          "--loader-threads", "1"])  # fmt: skip
    captured = capsys.readouterr()
    assert "Warning: epochs=3, and 2 before: from step 4 on, the schedules" in captured.err
    assert "9 steps at" in captured.out
    config = read_config(stopped)
    assert (config.epochs, config.data, config.log_every) == (3, stopped.parent / "photos", 9)
    assert len(checkpoints(stopped / "checkpoints")) == 1
    assert "epochs=3, and 2 before" in (stopped / "changes.jsonl").read_text()
    assert "is not a run folder" in told(capsys, "resume", stopped.parent)


@pytest.mark.slow
def test_two_ranks_go_on_together(stopped, tmp_path):
    codes = ranks.command(["resume", stopped, "--epochs", "3", "--stretch-schedule"], tmp_path / "told", ranks=2)
    text = (tmp_path / "told.0").read_text()
    assert codes == [0, 0], text
    assert "9 steps at" in text
    assert "ranks 1 then, 2 now" in " ".join(text.split())
    config = json.loads((stopped / "config.json").read_text())
    assert (config["epochs"], config["resume"], config["stretch_schedule"]) == (3, False, False)


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["train", "folder", "--data", ""], "after --data"),
        (["train", "folder", "--data="], ": --data="),
        (["resume", ""], "after resume"),
        (["scan", ""], "after scan"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(capsys, tmp_path, monkeypatch, words, place):
    monkeypatch.chdir(tmp_path)
    text = told(capsys, *words)
    assert f"an argument is empty{' ' * place.startswith('after')}{place}; is a shell variable unset?" in text
    assert not any(tmp_path.iterdir())


def test_a_short_run_gets_a_shorter_warm_up(capsys, tmp_path):
    for words, message in (
        (["--epochs", "3"], "nowhere: no such folder"),
        (["--epochs=3"], "nowhere: no such folder"),
        (["--epochs", "3", "--optimizer.warmup-epochs", "4"], "optimizer.warmup_epochs=4.0: expected at most epochs=3"),
        (["--epochs", "0"], "epochs=0: expected at least 1"),
    ):
        assert message in told(capsys, "train", "folder", "--data", tmp_path / "nowhere", *words)


def test_settings_that_are_not_typed_follow_the_typed_ones(photo_folder):
    def config(*words):
        return recipes()["folder"].parse("sce-fast train folder", ["--data", str(photo_folder), *words])[0]

    assert config().model.symmetric is False  # 24 images
    assert config("--optimizer.name", "adamw").optimizer.base_learning_rate == 5e-4
    assert config("--epochs=30").optimizer.warmup_epochs == 3
    typed = config("--no-pictures", "--loss.queue_size", "96", "--views.sizes", "32", "24", "--model.key-views", "1")
    assert (typed.pictures, typed.loss.queue_size, typed.views.sizes, typed.model.key_views) == (False, 96, (32, 24), 1)
