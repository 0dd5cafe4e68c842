"""A torch.export program that runs without this package computes what the run does."""

import json
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from capsule_sweeps import build_model
from capsule_sweeps.data.augment import normalize
from capsule_sweeps.data.load import load_data
from capsule_sweeps.evaluation import export
from capsule_sweeps.evaluation.weights import load_trained, load_weights
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, signed_config

LOAD = """
import json, sys
sys.modules["capsule_sweeps"] = None  # importing it fails
import torch
facts = {"capsule_sweeps.json": ""}
program = torch.export.load("model.pt2", extra_files=facts).module()
images = torch.load("images.pt")
logits = [program(images[:size]) for size in (1, 2, 7)]
torch.save(logits, "logits.pt")
try:
    import capsule_sweeps
except ImportError:
    print(facts["capsule_sweeps.json"])
"""


@pytest.fixture
def make(tiny_config):
    """A run folder with random weights, as training would have left it."""

    def folder(*overrides: str) -> Run:
        config = tiny_config(*overrides)
        torch.manual_seed(1)
        model = build_model(config)
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.data.mul_(2)  # coefficients far from even
        run = Run(Path(config.runs_dir) / columns(config)["run"])
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
        torch.save(
            {"model": model.state_dict(), "epoch": config.training.epochs, "batch": 0}, run.folder / "checkpoint.pt"
        )
        record = {
            **columns(config),
            "signed_config": signed_config(config),
            "accuracy_last": 0.5,
            "classes": list("0123456789"),
        }
        write_json(run.folder / "run.json", record)
        write_json(run.folder / "summary.json", columns(config))
        return run

    return folder


def test_it_runs_where_this_package_is_not(make, capsule_sweeps, python) -> None:
    run = make("num_routing=3")
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    ended = capsule_sweeps("export", run.folder.name, "--out", "model.pt2")
    assert ended.code == 0 and "differ" in ended.out
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before
    images = torch.randint(256, (7, 1, 32, 32), dtype=torch.uint8)
    torch.save(images, "images.pt")
    found = python("-c", LOAD)
    assert found.code == 0, found.err
    facts = json.loads(found.out)
    assert facts["run"] == run.folder.name and facts["num_routing"] == 3 and facts["classes"] == list("0123456789")
    assert "uint8" in facts["input"] and "1, 32, 32" in facts["input"] and facts["normalization"]["mean"] == [0.3051]
    model, config = load_trained(run.folder)
    with torch.no_grad():
        wanted = model(normalize(images, config.dataset.mean, config.dataset.std))
    assert wanted.std(0).mean() > 0.01  # images differ
    for size, logits in zip((1, 2, 7), torch.load("logits.pt"), strict=True):
        torch.testing.assert_close(logits, wanted[:size], rtol=1e-4, atol=1e-5)
    assert str(Path(export.__file__).parent).encode() not in Path("model.pt2").read_bytes()


def test_the_printed_lines_run(make, capsule_sweeps) -> None:
    out = capsule_sweeps("export", make().folder.name, "--out", "model.pt2").out
    lines = [line.strip() for line in out.splitlines() if line.startswith("    ")]
    assert len(lines) == 3
    names: dict = {"torch": torch}
    exec("\n".join(lines), names)
    assert names["logits"].shape == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["routing.schedule=sequential", "num_routing=2"],
        ["routing=attention", "num_routing=2"],
        ["routing=dynamic", "num_routing=2", "training.loss=margin"],
        ["routing=em", "num_routing=2"],
        ["routing=self_routing"],
        ["capsules.interleaved=true", "num_routing=2"],
        ["model.head=own", "capsules.pose=vector", "capsules.primary.pose_size=6"],
        ["training.amp=bf16", "training.channels_last=true", "training.compile=on"],
    ],
    ids=lambda words: words[0],
)
def test_every_model_is_exported_and_checked(make, overrides) -> None:
    said = export.export(make(*overrides), Path("model.pt2"))
    assert "at most" in said and Path("model.pt2").stat().st_size > 0


def test_models_without_capsules_are_exported(make) -> None:
    config_words = ["model=cnn", "model.width=4"]
    assert "at most" in export.export(make(*config_words), Path("model.pt2"))


def test_what_is_there_stays_and_nothing_half_is_written(make, capsule_sweeps, monkeypatch) -> None:
    run = make()
    Path("model.pt2").write_text("mine")
    for out, words in (
        ("model.pt2", "exists"),
        ("model.pt", ".pt2"),
        ("nowhere/model.pt2", "folder nowhere does not exist"),
    ):
        ended = capsule_sweeps("export", run.folder.name, "--out", out)
        assert ended.code == 1 and words in ended.err and ended.err.count("\n") == 1
    assert Path("model.pt2").read_text() == "mine"
    monkeypatch.setattr(export, "difference", lambda *_: 0.1)
    ended = capsule_sweeps("export", run.folder.name, "--out", "other.pt2")
    assert ended.code == 1 and "differ by up to 0.1" in ended.err
    monkeypatch.setattr(export, "difference", lambda *_: float("nan"))
    assert capsule_sweeps("export", run.folder.name, "--out", "other.pt2").code == 1
    assert sorted(path.name for path in Path().iterdir()) == ["model.pt2", "runs"]


# Which weights


@pytest.fixture
def ruled(launch, runs):
    """A finished run under a selection rule, whose best epoch is the first: the later ones have a useless rate."""

    def train(rule: str, *overrides: str) -> Run:
        more = ["training.epochs=3", "training.ema=0.9", "training.lr=0.02", f"selection_rule={rule}", *overrides]
        ended = launch(*more, "dataset.val_size=20")
        assert ended.code == 0, ended.text
        return Run(runs.only())

    return train


def accuracy_of(folder: Path, data_dir: Path, weights: str | None = None) -> float:
    model, config = load_trained(folder, weights)
    test = load_data(config.dataset, data_dir, "cpu").test
    with torch.no_grad():
        logits = model(normalize(test.images, config.dataset.mean, config.dataset.std))
    return float((logits.argmax(1) == test.labels).double().mean())


@pytest.mark.parametrize("rule", ["last", "ema_last", "best_val", "best_test"])
def test_weights_are_those_of_the_rule(ruled, data_dir, capsule_sweeps, rule) -> None:
    run = ruled(rule)
    record = run.record()
    assert accuracy_of(run.folder, data_dir) == pytest.approx(record[f"accuracy_{rule}"])
    assert accuracy_of(run.folder, data_dir, "last") == pytest.approx(record["accuracy_last"])
    assert accuracy_of(run.folder, data_dir, "ema") == pytest.approx(record["accuracy_ema_last"])
    told = load_weights(run.folder)[2]
    assert told["selection_rule"] == rule and told["accuracy"] == record[f"accuracy_{rule}"]
    assert told["epoch"] == record.get(f"epoch_{rule}", 3)
    assert (run.folder / "best.pt").exists() == rule.startswith("best")
    ended = capsule_sweeps("evaluate", run.folder.name, "--weights", told["weights"], "--format", "json")
    (found,) = [json.loads(ended.out)] if ended.out.startswith("{") else json.loads(ended.out)
    assert found["accuracy"] == pytest.approx(100 * told["accuracy"]), ended.text
    assert found["weights"] == {"ema": "average"}.get(told["weights"], told["weights"])


def test_best_weights_survive_an_interruption(launch, runs) -> None:
    more = ["training.epochs=4", "selection_rule=best_test", "training.checkpoint_epochs=3"]
    assert launch(*more, signal_at=(signal.SIGTERM, 12)).code == 143
    assert launch(*more).code == 0
    assert launch(*more, "runs_dir=untouched").code == 0
    one, other = (torch.load(f / "best.pt", weights_only=True) for f in (runs.only(), runs.only("untouched")))
    assert one["epoch"] == other["epoch"] == runs.record(runs.only())["epoch_best_test"]
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])


def test_weights_that_were_not_kept_are_not_replaced_by_others(make, capsule_sweeps) -> None:
    run = make()
    for weights, words in (("best", "selection_rule=best_val"), ("ema", "training.ema")):
        ended = capsule_sweeps("export", run.folder.name, "--out", "model.pt2", "--weights", weights)
        assert ended.code == 1 and words in ended.text and not Path("model.pt2").exists()
