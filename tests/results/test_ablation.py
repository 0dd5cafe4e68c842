"""Ablations: one change each, real ones; the base is everybody's; differences seed by seed."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import stats
from synthetic import finished_run

from capsule_sweeps import build_model, compose_config, load_runs
from capsule_sweeps.results import ablation
from capsule_sweeps.results.ablation import ablation_notes, ablation_table, changes, first_ablations
from capsule_sweeps.results.figures import forest_plot
from capsule_sweeps.runs.signature import columns

NAMES = {
    "no_augmentation",
    "no_norm",
    "own_classifiers",
    "sequential",
    "softmax_over_children",
    "squash",
    "uniform",
    "vector_poses",
}
TWO = ["dataset=digits", "training=quick", "num_routing=2"]
SMALL = ["capsules.primary.num_capsules=2", "backbone.channels=8"]
NETWORK = sorted(NAMES - {"no_augmentation"})  # those that change what the network computes


# The group


def test_one_file_a_change_and_none(monkeypatch, tmp_path, caplog) -> None:
    assert set(changes()) == NAMES
    (tmp_path / "ablation").mkdir()
    for name in ("squash", "draft"):
        (tmp_path / "ablation" / f"{name}.yaml").touch()
    monkeypatch.setattr(ablation, "CONF_DIR", tmp_path)
    assert changes.__wrapped__() == {"squash": changes()["squash"]}
    assert len(caplog.messages) == 1 and "ablation/draft.yaml is not a readable option" in caplog.text


@pytest.mark.parametrize("dataset", ["CIFAR10", "CIFAR100", "digits"])
def test_every_ablation_is_a_run_of_its_own(dataset) -> None:
    names = ["none", *sorted(NAMES)]
    signatures = {columns(compose_config([f"dataset={dataset}", f"ablation={name}"]))["signature"] for name in names}
    assert len(signatures) == len(names)


@pytest.mark.parametrize("routing", ["attention", "dynamic", "self_routing"])
@pytest.mark.parametrize("ablation", ["uniform", "softmax_over_children"])
def test_a_change_of_routing_changes_every_other_routing(routing, ablation) -> None:
    """A command line's routing=… must not win silently: the ablation would be its own base."""
    wanted = {"uniform": "uniform", "softmax_over_children": "attention"}[ablation]
    config = compose_config(["dataset=digits", f"routing={routing}", f"ablation={ablation}"])
    with torch.device("meta"):
        build_model(config)
    assert (config.model.routing.name, columns(config)["routing"]) == (wanted, wanted)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["routing=dynamic", "ablation=no_norm"], "dynamic .* has no setting norm: remove norm=none"),
        (["routing=em", "ablation=squash"], "em .* has no setting norm: remove norm=squash"),
        (["routing=em", "ablation=uniform"], "uniform .* has no setting inverse_temperature"),
        (["routing=em", "ablation=own_classifiers"], "model.head=own has no effect with routing=em"),
        (["routing=self_routing", "ablation=sequential"], "routing.schedule=sequential has no effect"),
    ],
)
def test_changes_that_a_routing_cannot_take_are_one_sentence(overrides, words) -> None:
    with pytest.raises(ValueError, match=words) as error, torch.device("meta"):
        build_model(compose_config(["dataset=digits", *overrides]))
    assert "\n" not in str(error.value)


def network(*overrides: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(compose_config([*TWO, *SMALL, "num_routing=3", "training.compile=off", *overrides]))
    for layer in model.capsules.layers:  # so that coefficients are far from uniform
        layer.weight.data.mul_(3)
    return model.eval()


def test_every_ablation_changes_what_the_network_computes() -> None:
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        base = network()(images)
        for name in NETWORK:
            other = network(f"ablation={name}")(images)
            assert other.shape == base.shape and other.isfinite().all()
            assert (other - base).norm() > 1e-3 * base.norm(), name


@pytest.mark.parametrize("name", NETWORK)
def test_every_ablation_learns(name) -> None:
    """Every parameter gets a gradient, but for those that one iteration does not use."""
    model = network(f"ablation={name}").train()
    model(torch.randn(4, 1, 32, 32)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("dataset", ["CIFAR10", "digits"])
def test_poses_do_not_vanish_under_squash(dataset) -> None:
    """A stack as deep as the paper's could never learn: its gradients would be smaller than the weight decay's."""
    torch.manual_seed(0)
    model = build_model(compose_config([f"dataset={dataset}", "ablation=squash", "num_routing=2"]))
    features = torch.randn(2, *model.backbone.out_shape)
    poses = model.capsules(features)[-1].poses
    lengths = poses.norm(dim=-1)
    assert lengths.mean() > 0.05 and lengths.max() <= 1


def test_without_augmentation_images_stay_as_they_are() -> None:
    config = compose_config(["ablation=no_augmentation"])
    assert (config.dataset.crop_padding, config.dataset.flip) == (0, False)


def test_own_classifiers_by_loop() -> None:
    model = network("ablation=own_classifiers")
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        logits, seen = model(images, intermediates=True)
        for image, c in [(0, 0), (1, 3), (1, 9)]:
            pose = seen.layers[-1][-1].poses[image, c, 0, 0]
            wanted = pose @ model.head.weight[c, 0, 0] + model.head.bias[c, 0, 0, 0]
            torch.testing.assert_close(logits[image, c], wanted)


def test_unknown_values_are_one_sentence(launch) -> None:
    for override, words in [("routing.norm=batch", "layer, squash, none"), ("model.head=two", "shared, own")]:
        ended = launch(override, "num_routing=2")
        assert ended.code != 0 and words in ended.err and override in ended.err and "Traceback" not in ended.text
    assert not Path("runs").exists()


# Sweeps


@pytest.mark.slow
def test_base_and_one_change_at_a_time(launch, runs) -> None:
    """The command of the issue; the base is the run that all others have."""
    assert launch("seed=0", "num_routing=2").code == 0
    (base,) = runs.folders()
    ended = launch("-m", "ablation=glob(*)", "seed=0", "num_routing=2")
    assert ended.code == 0, ended.text
    assert len(runs.folders()) == len(NAMES) + 1 and "1 to skip" in ended.out and base in runs.folders()
    table = ablation_table(load_runs("runs"), "last")
    assert set(table.ablation) == {"none", *NAMES} and table.base.nunique() == 1 and set(table.n) == {1}


def test_the_experiment_is_the_base_and_every_change(launch) -> None:
    ended = launch("experiment=ablations", "hydra.launcher.dry_run=true", base=[])
    assert ended.code == 0 and "45 runs: 45 to run" in " ".join(ended.out.split()), ended.text


# The table


@pytest.fixture
def three_seeds(place):
    """A base and two ablations, three seeds each; a base of num_routing=3 without any; one run that failed."""
    accuracies = {
        "none": [0.90, 0.92, 0.91],
        "sequential": [0.89, 0.90, 0.90],
        "squash": [0.93, 0.94, 0.95],
    }
    for name, values in accuracies.items():
        for seed, value in enumerate(values):
            finished_run([*TWO, f"ablation={name}", f"seed={seed}"], value)
    finished_run([*TWO, "num_routing=3", "seed=0"], 0.99)
    finished_run([*TWO, "ablation=no_norm", "seed=0"], 0.1, state="failed")


def test_paired_differences_sorted_with_intervals(three_seeds) -> None:
    table = ablation_table(load_runs("runs"), "last")
    assert list(table.ablation) == ["sequential", "none", "squash"]
    first, base, last = table.itertuples()
    wanted = stats.ttest_rel([89, 90, 90], [90, 92, 91])
    low, high = wanted.confidence_interval(0.95)
    assert first.difference == pytest.approx(-4 / 3) and first.p_value == pytest.approx(wanted.pvalue)
    assert (first.difference - first.half_width, first.difference + first.half_width) == pytest.approx((low, high))
    assert first.paired and first.n == 3 and first.seeds_needed == 4 and first.mean == pytest.approx(89 + 2 / 3)
    assert last.difference == pytest.approx(3) and last.half_width == pytest.approx(4.302653 / 3**0.5)
    assert (base.difference, base.n, base.mean) == (0, 3, pytest.approx(91)) and pd.isna(base.half_width)
    assert set(table.base) == {"digits num_routing=2"} and set(table.rule) == {"last"}


def test_a_run_counts_however_it_was_asked_for(place) -> None:
    finished_run([*TWO, "seed=0"], 0.9)
    finished_run([*TWO, "routing.schedule=sequential", "seed=0"], 0.8)
    table = ablation_table(load_runs("runs"), "last").set_index("ablation")
    assert table.difference["sequential"] == pytest.approx(-10)


def test_every_base_has_a_table_of_its_own(place) -> None:
    for overrides, gain in ((["num_routing=2"], 0.01), (["num_routing=3"], 0.02), (["training.lr=0.05"], 0.03)):
        finished_run([*TWO, *overrides], 0.5)
        for name in ("squash", "no_norm", "softmax_over_children"):
            finished_run([*TWO, *overrides, f"ablation={name}"], 0.5 + gain)
    table = ablation_table(load_runs("runs"), "last")
    assert table[table.ablation != "none"].groupby("base").difference.agg(list).to_dict() == {
        "digits num_routing=2 lr=0.1": pytest.approx([1, 1, 1]),
        "digits num_routing=3 lr=0.1": pytest.approx([2, 2, 2]),
        "digits num_routing=2 lr=0.05": pytest.approx([3, 3, 3]),
    }


def test_changes_without_their_base_are_compared_with_nothing(place, capsule_sweeps) -> None:
    for name in ("squash", "no_norm", "sequential"):
        finished_run([*TWO, f"ablation={name}"], 0.5)
    runs = load_runs("runs")
    table = ablation_table(runs, "last")
    assert table.empty
    lines = first_ablations(runs, "else/where").splitlines()
    words = "'ablation=glob(*)' num_routing=2 seed=0,1,2 dataset=digits runs_dir=else/where"
    assert lines[1] == f"    python launch.py -m {words}"
    assert capsule_sweeps("results", "--ablation").out.splitlines()[0] == lines[0]
    assert "% No ablation" in capsule_sweeps("results", "--ablation", "--format", "tex").out


def test_notes_under_the_table(three_seeds) -> None:
    runs = load_runs("runs")
    text = ablation_notes(ablation_table(runs, "last"), runs, "last")
    for words in (
        "selection rule: last",
        "Only finished runs are included",
        "Left out: 1 of 11",
        "seed by seed",
        "no_norm",
    ):
        assert words in text
    assert "nothing that these could change" not in text and "validation" not in text
    assert "Left out: runs without validation images" in ablation_notes(
        ablation_table(runs, "best_val"), runs, "best_val"
    )


def test_with_one_iteration_some_changes_are_none(place, capsule_sweeps) -> None:
    for seed, accuracy in enumerate((0.5, 0.52, 0.51)):
        finished_run(["dataset=digits", f"seed={seed}"], 0.5)
        finished_run(["dataset=digits", "ablation=sequential", f"seed={seed}"], accuracy)
    assert "launch.py" not in capsule_sweeps("results", "--ablation").out, "no seeds settle what has no effect"
    runs = load_runs("runs")
    text = ablation_notes(ablation_table(runs, "last"), runs, "last")
    assert "With num_routing=1 these have no effect: sequential" in text
    for routing in ("self_routing", "uniform"):  # which is another routing than its own, also without iterations
        finished_run(["dataset=digits", f"routing={routing}"], 0.5)
    runs = load_runs("runs")
    table = ablation_table(runs, "last")
    assert "uniform" in set(table[table.base.str.contains("self_routing")].ablation)
    text = ablation_notes(table[table.base.str.contains("self_routing")], runs, "last")
    assert "no effect" not in text


def test_commands_formats_and_figure(three_seeds, capsule_sweeps) -> None:
    for form in ("table", "md", "tex", "csv", "json"):
        ended = capsule_sweeps("results", "--ablation", "--format", form)
        assert ended.code == 0 and ended.err == "" and "squash" in ended.out
        if form == "tex":
            comments, _, rest = ended.out.partition(r"\caption{")
            assert "%     python launch.py -m" in comments and "python" not in rest
        if form == "json":
            assert [row["ablation"] for row in json.loads(ended.out)] == ["sequential", "none", "squash"]
        if form == "csv":
            assert list(pd.read_csv(io.StringIO(ended.out)).n) == [3, 3, 3]
    ended = capsule_sweeps("results", "--ablation", "--figure", "out/forest.png", "--format", "json")
    assert ended.code == 0 and json.loads(ended.out) and "out/forest.pdf" in ended.err
    assert Path("out/forest.png").read_bytes().startswith(b"\x89PNG")
    assert Path("out/forest.pdf").read_bytes().startswith(b"%PDF")


def test_forest_plot_draws_the_differences(three_seeds) -> None:
    table = ablation_table(load_runs("runs"), "last")
    (axes,) = forest_plot(table).axes
    (bars,) = axes.containers
    assert list(bars.lines[0].get_xdata()) == pytest.approx([-4 / 3, 3])
    ends = [tuple(segment[:, 0]) for segment in bars.lines[2][0].get_segments()]
    changed = table[table.ablation != "none"]
    assert ends == [
        pytest.approx((row.difference - row.half_width, row.difference + row.half_width))
        for row in changed.itertuples()
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sequential (n = 3)", "squash (n = 3)"]
    assert "percentage points" in axes.get_xlabel() and "last" in axes.get_xlabel()


def test_no_ablation_no_forest(place, capsule_sweeps) -> None:
    finished_run([*TWO], 0.5)
    ended = capsule_sweeps("results", "--ablation", "--figure", "forest")
    assert ended.code != 0 and "python launch.py -m 'ablation=glob(*)'" in ended.err


def test_a_neutral_value_is_shown_as_what_it_is(three_seeds, capsule_sweeps) -> None:
    """It is not signed, but `None` would read like `none`."""
    out = capsule_sweeps("results", "--format", "csv").out
    norms = pd.read_csv(io.StringIO(out)).norm
    assert set(norms) >= {"layer", "squash"} and "None" not in out
