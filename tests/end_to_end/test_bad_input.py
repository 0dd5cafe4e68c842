"""What a user gets wrong: found before a run folder exists, said in one sentence, exit code other than 0."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Ended

from capsule_sweeps import compose_config

ROOT = Path(__file__).resolve().parents[2]

# overrides → words that the sentence must have: the key and what would be right
BAD: dict[str, tuple[list[str], list[str]]] = {
    "unknown option": (["dataset=KMNIST"], ["dataset", "KMNIST", "CIFAR10", "CIFAR100", "digits"]),
    "unknown option of routing": (["routing=nothing"], ["routing", "nothing", "inverted_attention", "dynamic", "em"]),
    "unknown group": (["optimizer=adam"], ["optimizer"]),
    "unknown key of an ingredient": (["backbone.depth=3"], ["depth"]),
    "unknown added key": (["+training.nesterov=true"], ["nesterov"]),
    "unknown added key of a backbone": (["+backbone.depth=3"], ["backbone", "depth"]),
    "unknown added key of a model": (["+model.depth=3"], ["capsnet", "depth"]),
    "mistyped key": (["training.epoch=3"], ["training.epoch=3", "did you mean training.epochs?"]),
    "mistyped option": (["dataset=digit"], ["dataset=digit ", "did you mean dataset=digits?"]),
    "mistyped setting of the launcher": (["hydra.launcher.dryrun=true"], ["did you mean hydra.launcher.dry_run?"]),
    "no override": (["num_routing"], ["num_routing"]),
    "broken syntax": (["training.milestones=[1,2"], ["[1,2"]),
    "list without -m": (["num_routing=1,2,3"], ["num_routing", "multirun"]),
    "num_routing zero": (["num_routing=0"], ["num_routing", "0", "at least 1"]),
    "num_routing word": (["num_routing=two"], ["num_routing", "two", "nteger"]),
    "num_routing fraction": (["num_routing=1.5"], ["num_routing", "1.5", "nteger"]),
    "num_routing of the model": (["model.num_routing=0"], ["num_routing", "at least 1"]),
    "seed negative": (["seed=-1"], ["seed", "-1"]),
    "lr zero": (["training.lr=0"], ["training.lr", "greater than 0"]),
    "lr not a number": (["training.lr=nan"], ["training.lr", "nan"]),
    "epochs zero": (["training.epochs=0"], ["training.epochs", "at least 1"]),
    "momentum one": (["training.momentum=1"], ["training.momentum", "less than 1"]),
    "milestones unordered": (["training.milestones=[3,1]"], ["training.milestones", "rising"]),
    "milestones of a cosine": (["training.lr_schedule=cosine"], ["training.milestones=[0.667, 0.917]", "cosine", "[]"]),
    "digits of the data set itself": (
        ["dataset.base=digits"],
        ["dataset.base=digits has no effect with dataset=digits"],
    ),
    "digits of another source": (
        ["dataset=multi_digits", "dataset.source=sklearn"],
        ["dataset.base=MNIST is not read with dataset.source=sklearn: set dataset.source=torchvision"],
    ),
    "views of images without viewpoints": (["dataset.views=azimuth"], ["dataset.views=azimuth has no effect"]),
    "windows without convolution": (
        ["capsules.layers=[{type: fc, num_capsules: 2, pose_size: 4}]", "capsules.interleaved=true"],
        ["capsules.interleaved=true has no effect without a convolutional layer"],
    ),
    "decay without milestones": (
        ["training.lr_decay=0.5", "training.milestones=[]"],
        ["training.lr_decay=0.5 has no effect without milestones"],
    ),
    "nesterov without momentum": (["training=fast", "training.momentum=0"], ["training.nesterov", "training.momentum"]),
    "smoothing above one": (["training.label_smoothing=1.5"], ["training.label_smoothing=1.5", "less than 1"]),
    "smoothing of a margin": (
        ["training=fast", "training.loss=margin"],
        ["training.label_smoothing=0.1", "training.loss=margin", "cross_entropy"],
    ),
    "ema two": (["training.ema=2"], ["training.ema=2", "less than 1", "null"]),
    "ema_last without it": (["selection_rule=ema_last"], ["selection_rule", "training.ema"]),
    "batch larger than the data": (
        ["training=fast", "training.batch_size=256"],
        ["training.batch_size=256", "40 training images", "digits"],
    ),
    "train_size and val_size together": (["dataset.train_size=1390", "dataset.val_size=100"], ["dataset.train_size"]),
    "best_val without images for it": (["selection_rule=best_val"], ["selection_rule", "dataset.val_size"]),
    "selection_rule": (["selection_rule=best"], ["selection_rule", "last", "best_val", "best_test"]),
    "device unknown": (["device=tpu"], ["device", "tpu", "auto", "cpu", "cuda"]),
    "device absent": (["device=cuda:99"], ["device=cuda:99", "cpu"]),
    "amp": (["training.amp=fp16"], ["training.amp", "fp16", "none", "bf16"]),
    "compile": (["training.compile=maybe"], ["training.compile", "maybe"]),
    "tracking mode": (["tracking=wandb", "tracking.mode=later"], ["tracking.mode", "later", "offline", "online"]),
    "debug": (["debug=maybe"], ["debug", "maybe"]),
    "kernel larger than its grid": (
        ["capsules.layers=[{type: conv, num_capsules: 2, pose_size: 4, kernel_size: 17, stride: 1}]"],
        ["capsules.layers", "kernel_size", "17", "16"],
    ),
    "layers no list": (["capsules.layers=3"], ["capsules.layers"]),
    "pose size of the primary no square": (["capsules.primary.pose_size=8"], ["capsules.primary.pose_size", "square"]),
    "channels word": (["backbone.channels=many"], ["backbone", "channels", "many"]),
    "std of three channels": (["dataset.std=[1,1,1]"], ["dataset.std", "dataset.channels=1"]),
    "channels of the dataset": (
        ["dataset.channels=3", "dataset.mean=[0,0,0]", "dataset.std=[1,1,1]"],
        ["dataset.channels=3"],
    ),
    "folder that is not there": (["dataset.source=folder"], ["digits", "train"]),
    "interpolation to nothing": (["seed=${nothing}"], ["nothing"]),
    "class of another package": (
        ["routing._target_=os.system", "routing.name=x"],
        ["_target_=os.system", "capsule_sweeps"],
    ),
    "class under the name of another": (["routing._target_=mine.Own"], ["routing.name=inverted_attention", "mine.Own"]),
    "class that is no routing": (
        ["routing._target_=capsule_sweeps.networks.baselines.ResNet18", "routing.name=x"],
        ["ResNet18"],
    ),
    "class that is not there": (
        ["backbone._target_=capsule_sweeps.networks.backbones.VGG", "backbone.name=x"],
        ["capsule_sweeps.networks.backbones.VGG"],
    ),
    "unknown launcher": (["hydra/launcher=nothing"], ["hydra/launcher", "nothing", "local"]),
}


def assert_one_sentence(ended, words: list[str], place: Path) -> None:
    assert ended.code not in (0, None), ended.text
    assert "Traceback" not in ended.text and "HYDRA_FULL_ERROR" not in ended.err.replace(HINT, ""), ended.text
    for word in words:
        assert word in ended.err, f"{word!r} is not in: {ended.err}"
    assert not (place / "runs").exists()


HINT = "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."  # Hydra's own wording may stand


@pytest.mark.parametrize(("overrides", "words"), BAD.values(), ids=BAD)
def test_found_before_a_run_folder_exists(launch, tiny, place, overrides, words) -> None:
    """While composing, or else when launch.py builds the model and looks for the images."""
    try:
        compose_config([*tiny, *overrides])
    except ValueError as error:
        assert "\n" not in str(error)
        ended = Ended(1, "", str(error))
    else:
        ended = launch(*overrides)
    assert_one_sentence(ended, words, place)


IN_SWEEPS = [  # composed in another way than a single run: what Hydra catches, what the schema does, what a model does
    "unknown option",
    "unknown group",
    "mistyped key",
    "unknown added key",
    "unknown key of an ingredient",
    "broken syntax",
    "num_routing word",
    "num_routing fraction",
    "device absent",
    "kernel larger than its grid",
    "pose size of the primary no square",
    "layers no list",
    "interpolation to nothing",
    "class of another package",
    "folder that is not there",
    "unknown launcher",
]


@pytest.mark.sample(12)
@pytest.mark.parametrize("flags", [["debug=false"], ["-m", "debug=false"]], ids=["run", "sweep"])
@pytest.mark.parametrize("case", IN_SWEEPS)
def test_launch_says_the_same_in_a_run_and_in_a_sweep(launch, place, case, flags) -> None:
    overrides, words = BAD[case]
    ended = launch(*flags, *overrides)
    assert_one_sentence(ended, words, place)
    assert ended.err.startswith("Error: ") and len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("swept", "words"),
    [
        ("num_routing=1,0", ["num_routing=0", "at least 1"]),
        ("num_routing=1,two", ["num_routing", "two"]),
        ("training.lr=0.1,-1", ["training.lr", "-1"]),
        ("training.batch_size=8,41", ["training.batch_size=41", "40"]),
        ("training.loss=cross_entropy,spread training.label_smoothing=0.1", ["training.loss=spread"]),
        ("dataset=digits,KMNIST", ["dataset", "KMNIST"]),
        ("capsules.primary.pose_size=4,5", ["capsules.primary.pose_size", "5", "square"]),
        ("device=cpu,tpu", ["device", "tpu"]),
        ("dataset.train_size=40,99999", ["dataset.train_size", "99999"]),
        ("routing.schedule=concurrent,parallel", ["schedule", "parallel"]),
        ("dataset.source=sklearn,folder", ["digits"]),
    ],
)
def test_wrong_point_after_a_right_one(launch, place, swept, words) -> None:
    assert_one_sentence(launch("-m", *swept.split()), words, place)


# Real processes


@pytest.mark.parametrize("case", ["unknown option", "device absent"])
def test_as_a_user_sees_it(python, tiny, place, case) -> None:
    overrides, words = BAD[case]
    assert_one_sentence(python(ROOT / "launch.py", *tiny, *overrides), words, place)


def test_images_that_cannot_be_downloaded(launch, place, monkeypatch) -> None:
    monkeypatch.setattr(
        "socket.create_connection", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network"))
    )
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    ended = launch("dataset=CIFAR10", "data_dir=nowhere", base=["backbone=simple", "tracking=none"])
    assert_one_sentence(ended, ["CIFAR10", "nowhere", "dataset=digits", "dataset.source=folder"], place)


# runs_dir


@pytest.mark.parametrize("many", [False, True])
def test_runs_dir_below_a_file(launch, place, many) -> None:
    (place / "file").write_text("")
    for runs_dir in ("file", "file/runs", "/proc/nothing/runs"):
        ended = launch(*(["-m"] if many else []), f"runs_dir={runs_dir}")
        assert_one_sentence(ended, [f"runs_dir={runs_dir}", "cannot be written"], place)


def bind_by_permissions() -> None:
    """What is done by root from here on obeys permissions (prctl: drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="permissions bind root only through Linux's prctl")
@pytest.mark.parametrize(("mode", "runs_dir"), [(0o555, "closed"), (0o555, "closed/deep/runs"), (0, "closed/runs")])
def test_runs_dir_without_permission(tiny, place, mode, runs_dir) -> None:
    closed = place / "closed"
    closed.mkdir(mode=mode)
    command = [sys.executable, ROOT / "launch.py", *tiny, f"runs_dir={runs_dir}"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bind_by_permissions)
    closed.chmod(0o755)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"runs_dir={runs_dir}" in done.stderr and "cannot be" in done.stderr
    assert list(closed.iterdir()) == []


def test_folder_of_a_run_that_is_a_file(launch, runs) -> None:
    assert launch("seed=0").code == 0
    folder = runs.only()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("")
    ended = launch("seed=0")
    assert ended.code == 1 and "Traceback" not in ended.text and str(folder) in ended.text
