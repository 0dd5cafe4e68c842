"""What Hydra composes: keys of the schema, launchers that an experiment chooses, the points of a sweep."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec

import pytest
from omegaconf import OmegaConf
from PIL import Image

from capsule_sweeps.config.check import check
from capsule_sweeps.config.compose import compose_config, launcher_settings
from capsule_sweeps.config.points import sweep_points
from capsule_sweeps.config.schema import Config
from capsule_sweeps.runs.signature import columns

DRY = "hydra.launcher.dry_run=true"


def test_composed_configuration_is_typed() -> None:
    assert OmegaConf.get_type(compose_config(["dataset=digits"])) is Config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("dataset.test_shift=2", 2),
        ("training.ema=0.9", 0.9),
        ("capsules.interleaved=true", True),
        ("routing.norm=squash", "squash"),
        ("model.head=own", "own"),
        ("dataset.labels_per_image=1", 1),
    ],
)
def test_every_key_is_set_without_a_plus(override, value) -> None:
    assert OmegaConf.select(compose_config([override]), override.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("given", "stored"),
    [("true", "on"), ("false", "off"), ("on", "on"), ("off", "off"), ("auto", "auto"), ("'true'", "on")],
)
def test_compile_in_both_spellings(given, stored) -> None:
    config = compose_config([f"training.compile={given}"])
    assert config.training.compile == stored
    again = OmegaConf.to_container(config)
    again["training"]["compile"] = {"on": True, "off": False}.get(stored, stored)  # as YAML reads it without quotes
    assert check(OmegaConf.create(again)) == config


def test_deleted_tracking_is_none() -> None:
    assert compose_config(["~tracking"]).tracking.name == "none"


def test_launchers_have_typed_settings() -> None:
    local, slurm = launcher_settings([]), launcher_settings(["hydra/launcher=slurm_h100", "hydra.launcher.gpus=2"])
    assert (local["parallel"], local["dry_run"], local["retry"]) == (1, False, "all")
    assert (slurm["gpus"], slurm["partition"], slurm["max_attempts"], slurm["runs_per_job"]) == (2, "gpu", 50, 4)
    given = launcher_settings(["hydra/launcher=slurm", "hydra.launcher.sbatch={hold: true, mail-type: FAIL}"])
    assert given["sbatch"] == {"hold": True, "mail-type": "FAIL"}
    setup = launcher_settings(["hydra/launcher=slurm_cpu", "hydra.launcher.setup=['module load a']"])["setup"]
    assert setup == ["module load a"]
    with pytest.raises(ValueError, match=r"did you mean hydra.launcher.partition\?"):
        launcher_settings(["hydra/launcher=slurm", "hydra.launcher.partitoin=gpu"])


@pytest.fixture
def experiment(place):
    """Writes conf/experiment/mine.yaml into a folder of its own; gives the override that lets Hydra search there."""

    def write(*lines: str) -> str:
        folder = place.parent / "own" / "experiment"
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text("\n".join(["# @package _global_", *lines]))
        return f"hydra.searchpath=[file://{folder.parent}]"

    return write


def test_experiment_chooses_launcher_sweeper_help_and_logging(experiment, launch) -> None:
    choices = {"launcher": "slurm_cpu", "sweeper": "basic", "help": "default", "job_logging": "none"}
    where = experiment("defaults:", *[f"  - override /hydra/{group}: {name}" for group, name in choices.items()])
    shown = launch("--cfg=hydra", where, base=["experiment=mine"]).out
    for group, name in choices.items():
        assert f"hydra/{group}: {name}" in shown
    assert "hydra/launcher: local" in launch("--cfg=hydra", where, "hydra/launcher=local", base=["experiment=mine"]).out


def test_experiment_that_chooses_slurm_is_given_to_slurm(experiment, launch, monkeypatch) -> None:
    from capsule_sweeps.launchers import hydra

    given = []
    monkeypatch.setattr(hydra, "launch", lambda configs, overrides, policy, launcher: given.append(launcher) or [0.5])
    where = experiment("defaults:", "  - override /hydra/launcher: slurm_cpu", "hydra: {launcher: {mem_gb: 3}}")
    ended = launch("-m", "experiment=mine", where, DRY)
    assert ended.code == 0 and (given[0].cpus, given[0].mem_gb) == (4, 3), ended.text
    alone = launch("experiment=mine", where, DRY)
    assert alone.code == 1 and "add -m" in alone.err


def test_experiment_with_broken_syntax_is_one_sentence(experiment, launch) -> None:
    ended = launch("experiment=mine", experiment("training: ["))
    assert ended.code == 1 and "mine.yaml" in ended.err and ended.err.count("\n") == 1, ended.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "training: {epoch: 3}",
            "in conf/experiment/mine.yaml, training.epoch is unknown: did you mean training.epochs?",
        ),
        ("hydra: {sweeper: {parms: {seed: 1}}}", "hydra.sweeper.parms is unknown: did you mean hydra.sweeper.params?"),
        ("hydra: {sweeper: {points: {seed: 1}}}", "has keys where a list belongs, such as hydra.sweeper.points"),
        ("hydra: {sweeper: {params: {seed: [0, 1]}}}", "to sweep over values, write seed=0,1"),
        ("defaults: [mine]", "or files name each other in their defaults"),
        ("defaults: [others]", ": experiment/mine.yaml names experiment/others in its defaults, which is unknown"),
        ("hydra: {sweeper: {points: [{ablation: mine}]}}", "training.lr=fast is invalid: it must be a number"),
    ],
)
def test_mistake_in_an_experiment_is_named(line, said, experiment, launch, place) -> None:
    where = experiment(line)
    (place.parent / "own" / "ablation").mkdir()
    (place.parent / "own" / "ablation" / "mine.yaml").write_text("# @package _global_\ntraining: {lr: fast}")
    ended = launch("-m", "experiment=mine", where, DRY)
    assert ended.code == 1 and said in ended.err and ended.err.count("\n") == 1, ended.err


@pytest.mark.parametrize("line", ["training: {epochs: 3}", "defaults: [{override /hydra/launcher: slurm}]"])
def test_experiment_without_its_first_line_is_told_so(line, experiment, launch, place) -> None:
    where = experiment()
    (place.parent / "own" / "experiment" / "mine.yaml").write_text(line)
    ended = launch("-m", "experiment=mine", where, DRY)
    assert ended.code == 1 and "conf/experiment/mine.yaml must begin with the line `# @package _global_`" in ended.err


def test_hydras_own_launcher_is_refused_with_ours(launch) -> None:
    ended = launch("-m", "seed=0", "hydra/launcher=basic")
    assert ended.code == 1 and "hydra/launcher=basic is not available for sweeps" in ended.err, ended.text


# The points of a sweep


def test_points_are_the_product_and_the_last_of_one_key_counts() -> None:
    assert sweep_points(["a=1,2", "b=3", "c=range(2)"]) == [
        ["a=1", "b=3", "c=0"],
        ["a=1", "b=3", "c=1"],
        ["a=2", "b=3", "c=0"],
        ["a=2", "b=3", "c=1"],
    ]
    assert sweep_points(["a=1,2", "a=3"]) == [["a=3"]]
    assert sweep_points(["a=1"], params={"a": "4,5", "b": "6,7"}) == [["b=6", "a=1"], ["b=7", "a=1"]]


def test_values_for_a_group_do_not_replace_its_choice(launch) -> None:
    """A sweep over {key: value} composes each point as a single run does."""
    values = ["{lr:0.1,batch_size:20}", "{lr:0.2,batch_size:50}"]
    shown = launch("-m", "training=" + ",".join(values), DRY).out
    for one in values:
        (name,) = [word for word in launch(f"training={one}", DRY).out.split() if word.startswith("digits-")]
        assert name in shown
    points = sweep_points(["training={lr:0.1}"], params={"training": "quick", "seed": "1,2"})
    assert points == [["training=quick", f"seed={seed}", "training={lr:0.1}"] for seed in (1, 2)]


def test_points_of_a_file_are_products_of_their_own_times_params() -> None:
    points = [{"model": "resnet18"}, {"routing": "dynamic,em", "num_routing": 3}, {"num_routing": "1,2"}]
    assert sweep_points([], {"seed": "range(2)"}, points) == [
        [f"seed={seed}", *point]
        for seed, point in [
            (0, ["model=resnet18"]),
            (1, ["model=resnet18"]),
            (0, ["routing=dynamic", "num_routing=3"]),
            (0, ["routing=em", "num_routing=3"]),
            (1, ["routing=dynamic", "num_routing=3"]),
            (1, ["routing=em", "num_routing=3"]),
            (0, ["num_routing=1"]),
            (0, ["num_routing=2"]),
            (1, ["num_routing=1"]),
            (1, ["num_routing=2"]),
        ]
    ]


def test_command_line_wins_over_points_and_points_over_params() -> None:
    assert sweep_points(["a=1"], {"a": 2, "b": 3, "c": 4}, [{"a": 5, "b": 6}]) == [["c=4", "b=6", "a=1"]]
    points = sweep_points([], {"x": None, "y": True}, [{"z": [1, "a"]}, {"training": {"lr": 0.1, "ema": None}}])
    assert points == [["x=null", "y=True", "z=[1,a]"], ["x=null", "y=True", "training={lr:0.1,ema:null}"]]


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ("seed=1", "must be a list of mappings"),
        ([["seed=1"]], "must be a mapping"),
        ([{"seed": "range(6)"}, {"seed": "range(3)", "a": "1,2"}, {}], r"6 \+ 3 × 2 \+ 1 = 13 points"),
    ],
)
def test_bad_points_are_refused(points, words) -> None:
    with pytest.raises(ValueError, match=words):
        sweep_points([], points=points, max_runs=12)


def planned(ended) -> list[str]:
    """The names of the runs in a plan."""
    return re.findall(r"[\w-]+-[0-9a-f]{8}(?= )", ended.out)


def names(points, base) -> list[str]:
    """Of the runs that these points would be alone."""
    return [columns(compose_config([*base, *point]))["run"] for point in points]


def test_points_reach_the_plan_and_each_is_the_run_that_it_would_be_alone(experiment, launch, tiny) -> None:
    where = experiment(
        "hydra:",
        "  sweeper:",
        "    params: {seed: '0'}",
        "    points:",
        "      - {model: cnn, model.width: '8,16'}",
        "      - {routing: em, num_routing: 3}",
        "      - {ablation: '[squash,vector_poses]'}",
    )
    alone = [["model=cnn", "model.width=8"], ["model=cnn", "model.width=16"], ["routing=em", "num_routing=3"]]
    alone += [["ablation=[squash,vector_poses]"]]
    assert planned(launch("-m", where, DRY, "experiment=mine")) == names(alone, tiny)
    typed = "hydra.sweeper.points=[{model:cnn,model.width:'8,16'},{num_routing:2}]"
    assert planned(launch("-m", typed, DRY)) == names([*alone[:2], ["num_routing=2"]], tiny)
    assert "add -m" in launch(typed, DRY).err


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=multi_digits,affine_digits", "dataset.base=digits"],
        ["dataset=diverse_multi_mnist,multi_digits", "dataset.base=digits", "backbone.channels=8"],
        ["model=cnn", "model.width=8,16"],
        ["routing=em,em", "routing.rate=0.3"],
    ],
)
def test_keys_of_the_options_that_are_swept_over(words, launch) -> None:
    """Hydra composes once without what is swept over, and those keys are missing there."""
    found = planned(launch("-m", *words, DRY, base=["tracking=none"]))
    assert found == list(dict.fromkeys(names(sweep_points(words), ["tracking=none"])))


def test_key_that_one_of_the_options_lacks_is_named_with_its_point(launch) -> None:
    ended = launch("-m", "model=cnn,resnet18", "model.width=64", DRY)
    assert ended.code == 1 and "model.width=64 is unknown" in ended.err and "at the point model=resnet18" in ended.err
    ended = launch("-m", "model.haed=own", DRY)
    assert ended.code == 1 and "did you mean model.head?" in ended.err


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_cancelled_ablation_is_refused(flags, launch) -> None:
    ended = launch(*flags, "ablation=no_augmentation", "dataset.crop_padding=2", DRY)
    assert ended.code == 1 and ended.err.startswith("Error: dataset.crop_padding=2 cancels ablation=no_augmentation")


def test_what_cancels_an_ablation() -> None:
    for override in ("dataset={crop_padding:2}", "+dataset={crop_padding:2}", "++dataset.flip=true"):
        with pytest.raises(ValueError) as error:
            compose_config(["ablation=no_augmentation", override])
        assert str(error.value).startswith(f"{override} cancels ablation=no_augmentation, which sets dataset.")
    with pytest.raises(ValueError, match=r"routing\.norm=none cancels ablation=squash"):
        compose_config(["ablation=[squash,no_norm]"])
    compose_config(["ablation=no_augmentation", "dataset.crop_padding=0", "dataset.flip=false", "training.lr=0.05"])


def test_max_runs_is_a_setting(launch) -> None:
    ended = launch("-m", "seed=range(4)", "num_routing=1,2", "hydra.sweeper.max_runs=7", DRY)
    assert ended.code == 1 and "4 × 2 = 8 points" in ended.err, ended.text


def test_environment_of_a_sweep_is_hydras(launch, monkeypatch) -> None:
    monkeypatch.delenv("MY_FOLDER", raising=False)
    ended = launch("-m", "seed=0", "+hydra.job.env_set.MY_FOLDER=there", "runs_dir=${oc.env:MY_FOLDER}", DRY)
    assert ended.code == 0, ended.text


# Paths and what needs quotes


def test_tilde_is_the_home_folder(place) -> None:
    home = place.parent / "home"
    config = compose_config(["dataset=digits", "runs_dir='~/runs'", "data_dir='~/data'"])
    assert (config.runs_dir, config.data_dir) == (f"{home}/runs", f"{home}/data")
    for name in ("ant", "bee"):
        (home / "photos" / "train" / name).mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(home / "photos" / "train" / "ant" / "0.png")
    dataset = compose_config(["dataset=folder", "dataset.root='~/photos'"]).dataset
    assert (dataset.root, dataset.name, dataset.image_size) == (f"{home}/photos", "photos", 40)
    with pytest.raises(ValueError, match="home folder of ~nobody-here is unknown"):
        compose_config(["runs_dir='~nobody-here/x'"])


@pytest.mark.parametrize("path", ["José (neu)", "a,b", "a=b", "O'Brien", "a#b", "~/x", 'say "no"', "{a"])
def test_sentence_shows_how_a_path_is_quoted(path, place) -> None:
    with pytest.raises(ValueError) as error:
        compose_config([f"runs_dir={path}"])
    typed = str(error.value)[str(error.value).rindex(": ") + 2 :]
    (word,) = shlex.split(typed)
    assert compose_config([word]).runs_dir == path.replace("~", str(place.parent / "home"))
    assert "Exception" not in str(error.value) and "token" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "word"),
    [(["-m"], "seed=${hydra:job.num}"), ([], "seed=${hydra.job.num}"), (["-m"], "runs_dir=r-${hydra:job.id}")],
)
def test_numbers_of_hydras_jobs_are_not_available(flags, word, launch) -> None:
    ended = launch(*flags, word, DRY)
    assert ended.code == 1 and ended.err.startswith(f"Error: {word} is not available"), ended.text
    assert ("seed=range(n)" in ended.err) == word.startswith("seed")


def test_number_of_hydras_job_in_an_experiment(experiment, launch) -> None:
    ended = launch("-m", "num_routing=1,2", experiment("seed: ${hydra:job.num}"), DRY, "experiment=mine")
    assert ended.code == 1 and "seed=range(n)" in ended.err, ended.text


def test_interpolations_in_a_sweep_are_those_of_each_point(launch, tiny) -> None:
    found = planned(launch("-m", "num_routing=1,2", "seed=${num_routing}", DRY))
    assert found == names([["num_routing=1", "seed=1"], ["num_routing=2", "seed=2"]], tiny)


# Sweepers that learn from results


def test_failed_trial_says_why(launch, runs) -> None:
    ended = launch("-m", "hydra/sweeper=basic", "training.lr=1e30")
    assert ended.code == 1 and "Traceback" not in ended.text
    assert re.search(rf"Error: {runs.only().name} is failed: .*the loss is", ended.err), ended.text


def test_search_names_its_package_or_maximizes(launch) -> None:
    shown = launch("--cfg=hydra", "--package=hydra.sweeper", base=["hydra/sweeper=search"])
    if find_spec("hydra_plugins.hydra_optuna_sweeper"):
        assert "direction: maximize" in shown.out and "seed: 0" in shown.out
    else:
        assert shown.code == 1 and "pip install hydra-optuna-sweeper" in shown.err, shown.text
