"""A file of the published code becomes a run: the same logits, marked, in no table unless asked, nothing invented."""

import csv
import io
import json
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from synthetic import finished_run

from capsule_sweeps import compose_config, load_runs
from capsule_sweeps.evaluation.import_published import import_checkpoint, recognize
from capsule_sweeps.evaluation.weights import load_trained
from capsule_sweeps.results.tables import accuracy_table
from capsule_sweeps.runs.signature import signed_config

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGES = ["dataset=CIFAR10", "dataset.image_size=16", "dataset.num_classes=4"]  # what the golden network is made for
CONV = "{type: conv, num_capsules: 5, pose_size: 16, kernel_size: 3, stride: 2}"
FC = "{type: fc, num_capsules: 7, pose_size: 16}"
STACK = ["capsules=CIFAR10", "capsules.primary.num_capsules=6", f"capsules.layers=[{CONV}, {FC}]"]
SMALL = [*IMAGES, *STACK, "capsules.interleaved=true"]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "model_simple.npz"))


def content(golden, prefix: str = "module.", **changes):
    net = {f"{prefix}{key[6:]}": torch.from_numpy(value) for key, value in golden.items() if key.startswith("state/")}
    return {"net": net, "acc": 94.85, "epoch": 311, **changes}


@pytest.fixture
def file(golden, place) -> Path:
    torch.save(content(golden), "ckpt.pth")
    return Path("ckpt.pth")


@pytest.fixture
def imported(file) -> Path:
    """The folder of a run with two iterations."""
    return import_checkpoint(file, 2, SMALL, Path("runs"))[0].folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("schedule", ["concurrent", "sequential"])
@pytest.mark.parametrize(("interleaved", "name"), [(True, "model_interleaved.npz"), (False, "model_simple.npz")])
def test_logits_are_those_of_the_published_code(golden, file, interleaved, name, schedule) -> None:
    """With the windows of the first program, and those of the second."""
    words = [*SMALL[:-1], f"capsules.interleaved={str(interleaved).lower()}", f"routing.schedule={schedule}"]
    run, new = import_checkpoint(file, 2, words, Path("runs"))
    assert new
    model, _ = load_trained(run.folder)
    wanted = np.load(GOLDEN / name)
    for num_routing in (1, 2, 3):
        model.capsules.num_routing = num_routing
        with torch.no_grad():
            logits = model(torch.from_numpy(golden["image"])).numpy()
        distance = np.linalg.norm(logits - wanted[f"logits/{schedule}/{num_routing}"])
        assert distance <= 1e-5 * np.linalg.norm(logits)


@pytest.mark.parametrize(("prefix", "zipped"), [("module.", False), ("", True)])
def test_keys_with_and_without_module_in_files_of_old_and_new_torch(golden, place, prefix, zipped) -> None:
    torch.save(content(golden, prefix), "file", _use_new_zipfile_serialization=zipped)
    run, _ = import_checkpoint(Path("file"), 1, SMALL, Path("runs"))
    state = load_trained(run.folder)[0].state_dict()
    assert torch.equal(state["head.weight"], torch.from_numpy(golden["state/final_fc.weight"]))


@pytest.mark.parametrize("dataset", ["CIFAR10", "CIFAR100"])
def test_published_configurations_are_recognized(dataset) -> None:
    """Data set, backbone and stack, strides too: the model is the one that this package trains."""
    shapes = json.loads((GOLDEN / "resnet_keys.json").read_text())[dataset]
    weights = {key: torch.zeros(shape, device="meta") for key, shape in shapes.items()}
    found = signed_config(recognize(Path("x"), weights, 3, ["capsules.interleaved=false"]))
    assert found == signed_config(compose_config([f"dataset={dataset}", "num_routing=3"]))


def test_a_stack_that_is_not_in_conf_is_asked_for(file) -> None:
    with pytest.raises(ValueError, match=r"match none of the stacks in conf/capsules; describe .* set capsules=NAME"):
        import_checkpoint(file, 2, [*IMAGES, "capsules.interleaved=true"], Path("runs"))
    assert not Path("runs").exists()


def test_only_what_is_known_is_recorded(imported, runs) -> None:
    record, summary = runs.record(imported), json.loads((imported / "summary.json").read_text())
    assert sorted(path.name for path in imported.iterdir()) == [
        "checkpoint.pt",
        "config.yaml",
        "run.json",
        "summary.json",
    ]
    assert imported.name.startswith("CIFAR10-capsnet-simple-inverted_attention-r2-imported-")
    for told in (record, summary):
        assert told["accuracy_best_test"] == pytest.approx(0.9485) and told["epoch_best_test"] == 312
        assert told["imported"]["file"] == "ckpt.pth" and told["run"] == imported.name
        assert told.get("accuracy_last") is None and told.get("accuracy_best_val") is None
        assert [told.get(key) for key in ("seed", "epochs", "seconds")] == [None, None, None]
    assert record["attempts"] == [] and record["parameters"] == sum(
        value.size for key, value in np.load(GOLDEN / "model_simple.npz").items() if key.startswith("state/")
    )
    keys = set(record["signed_config"])
    assert not any(key.startswith(("training.", "seed")) for key in keys)
    assert not keys & {"dataset.flip", "dataset.train_size", "model.capsules.dropout"}
    config = (imported / "config.yaml").read_text()
    assert "seed" not in config and "lr" not in config and "epochs" not in config


def test_no_own_run_has_its_signature(imported) -> None:
    """Nor can a later one: what is signed names the file."""
    row = load_runs("runs", imported=True).iloc[0]
    assert len(row.signed_config["imported.sha256"]) == 64 and row.signature == imported.name[-8:]
    assert not row.stale and row.group == row.signature


@pytest.mark.slow
def test_tables_leave_it_out_unless_asked(imported, capsule_sweeps) -> None:
    own = finished_run([*SMALL, "num_routing=2", "backbone=simple"], 0.5, 0.6)
    assert list(load_runs("runs").run) == [own.name]
    for words in (["results", "--rule", "best_test"], ["report"], ["results", "--ablation"]):
        ended = capsule_sweeps(*words)
        assert ended.code == 0 and "imported" not in ended.out, words
    assert "imported" not in Path("report.html").read_text() and own.name in Path("report.html").read_text()
    table = pd.read_csv(io.StringIO(capsule_sweeps("results", "--rule", "best_test", "--format", "csv").out))
    assert table["mean"].tolist() == [60.0]
    table = pd.read_csv(
        io.StringIO(capsule_sweeps("results", "imported=true", "--rule", "best_test", "--format", "csv").out)
    )
    assert table["mean"].tolist() == pytest.approx([94.85])
    both = capsule_sweeps("results", "imported=any", "--rule", "best_test")
    assert "imported" in both.out and "94.85" in both.out and "60.00" in both.out
    frame = accuracy_table(load_runs("runs", imported=True), "best_test")
    assert frame.set_index("imported")["mean"].to_dict() == {False: 60.0, True: pytest.approx(94.85)}
    assert frame.n.tolist() == [1, 1]
    last = capsule_sweeps("results", "imported=true")
    assert "94.85" not in last.out and "best_test" in last.out  # no accuracy under the rule last, and why
    assert capsule_sweeps("report", "imported=true", "--rule", "best_test").code == 0
    assert "94.85" in Path("report.html").read_text()


def test_published_tables_leave_it_out(place, runs) -> None:
    """An imported run of the very configuration of a published cell is none of our runs."""
    from capsule_sweeps.results.published import published_table, read_cells

    shapes = json.loads((GOLDEN / "resnet_keys.json").read_text())["CIFAR10"]
    net = {key: torch.zeros(shape) for key, shape in shapes.items()}
    torch.save({"net": net, "acc": 95.0, "epoch": 3}, "ckpt.pth")
    folder = import_checkpoint(Path("ckpt.pth"), 2, ["capsules.interleaved=true"], Path("runs"))[0].folder
    assert folder.name.startswith("CIFAR10-capsnet-resnet-inverted_attention-r2-imported-")
    assert len(load_runs("runs", imported=True)) == 1
    table = published_table(load_runs("runs", imported=True), read_cells("readme_table"))
    assert "reproduced" not in set(table.verdict[table.n.notna()])


def test_commands_find_and_mark_it(imported, capsule_sweeps) -> None:
    rows = list(csv.DictReader(io.StringIO(capsule_sweeps("status", "--format", "csv").out)))
    assert [(row["run"], row["state"]) for row in rows] == [(imported.name, "imported")]
    assert imported.name in capsule_sweeps("status", "state=finished").out
    for command in ("show", "why"):
        ended = capsule_sweeps(command, imported.name[-8:])
        assert ended.code == 0 and imported.name in ended.out and "sha256" in ended.out
    told = json.loads(capsule_sweeps("show", imported.name, "--format", "json").out)
    assert told["state"] == "finished" and told["metrics"] == [] and told["imported"]["file"] == "ckpt.pth"


def test_same_file_twice(imported, file, capsule_sweeps) -> None:
    before = everything(imported)
    shutil.copy(file, "copy.pth")
    ended = capsule_sweeps("import-checkpoint", "copy.pth", "--num-routing", "2", *SMALL)
    assert ended.code == 0 and "there already" in ended.out and imported.name in ended.out
    ended = capsule_sweeps("import-checkpoint", "copy.pth", "--num-routing", "3", *SMALL)
    assert ended.code == 1 and ended.err.count("\n") == 1
    assert "model.num_routing: stored 2, requested 3" in ended.err and imported.name in ended.err
    assert everything(imported) == before and len(list(Path("runs").iterdir())) == 1


def test_data_set_is_recognized_or_asked_for(golden, capsule_sweeps, place) -> None:
    """Overrides may stand behind the option, where the issue has them, and before it."""
    shapes = json.loads((GOLDEN / "resnet_keys.json").read_text())["CIFAR10"]
    net = {key: torch.zeros(shape) for key, shape in shapes.items()}
    torch.save({"net": net, "acc": 95.0, "epoch": 3}, "ckpt.pth")
    words = ("dataset=SVHN", "dataset.flip=true", "capsules.interleaved=false")
    ended = capsule_sweeps("import-checkpoint", "ckpt.pth", "--num-routing", "1", *words)
    assert ended.code == 0 and "SVHN-capsnet-resnet" in ended.out
    ended = capsule_sweeps("import-checkpoint", "ckpt.pth", "dataset=CIFAR100", "--num-routing", "1")
    assert ended.code == 1 and "10 classes" in ended.err and "CIFAR100" in ended.err and ended.err.count("\n") == 1


class Evil:
    """Unpickling this makes a file."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def spoil(path: Path, how: str, golden) -> None:
    good = content(golden)
    if how == "absent":
        return
    if how == "text":
        path.write_text("not a checkpoint")
    elif how == "truncated":
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif how == "pickle with code":
        path.write_bytes(pickle.dumps({"net": Evil(), "acc": 1.0, "epoch": 1}))
    elif how == "torch with code":
        torch.save({**good, "extra": Evil()}, path)
    elif how == "no net":
        torch.save({key: value for key, value in good.items() if key != "net"}, path)
    else:
        head, first = "module.final_fc.weight", "module.pre_caps.pre_caps.0.weight"
        changes = {
            "empty net": {"net": {}},
            "sparse": {"net": {**good["net"], head: good["net"][head].to_sparse()}},
            "float8": {"net": {**good["net"], head: good["net"][head].to(torch.float8_e4m3fn)}},
            "meta": {"net": {**good["net"], head: good["net"][head].to("meta")}},
            "nan": {"net": {**good["net"], head: good["net"][head] * torch.nan}},
            "a number in a huge shape": {"net": {**good["net"], first: torch.zeros(1).expand(10**9, 3, 3, 3)}},
            "with and without module.": {"net": {**good["net"], "final_fc.weight": torch.zeros(1, 16)}},
            "acc above 100": {"acc": 101.0},
            "acc not a number": {"acc": float("nan")},
            "epoch fraction": {"epoch": 1.5},
        }[how]
        torch.save({**good, **changes}, path)


@pytest.mark.parametrize(
    ("how", "word"),
    {
        "absent": "is not a file",
        "text": "cannot be read safely",
        "truncated": "cannot be read safely",
        "pickle with code": "cannot be read safely",
        "torch with code": "cannot be read safely",
        "no net": "'net'",
        "empty net": "'net'",
        "sparse": "sparse",
        "float8": "float8",
        "meta": "without numbers",
        "nan": "not finite",
        "a number in a huge shape": "without numbers",
        "with and without module.": "with 'module.' and without",
        "acc above 100": "'acc'",
        "acc not a number": "'acc'",
        "epoch fraction": "'epoch'",
    }.items(),
)
def test_wrong_files(golden, capsule_sweeps, place, how, word) -> None:
    spoil(Path("ckpt.pth"), how, golden)
    before = sorted(place.rglob("*"))
    ended = capsule_sweeps("import-checkpoint", "ckpt.pth", "--num-routing", "2", *SMALL)
    assert ended.code == 1 and ended.err.startswith("Error: ckpt.pth") and ended.err.count("\n") == 1
    assert word in ended.err and not Path("ran").exists()
    assert sorted(place.rglob("*")) == before


def enlarge(net: dict[str, torch.Tensor]) -> None:
    """Small tensors that would belong to a layer of 5e11 bytes."""
    net["module.pc_layer.weight"] = torch.zeros(16 * 30_000, 1, 1, 1)
    net["module.capsule_layers.0.w"] = torch.zeros(3, 3, 1, 1, 1, 30_000, dtype=torch.float16)
    net["module.capsule_layers.1.w"] = torch.zeros(9 * 30_000, 1, 1, 1, dtype=torch.float16)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda net: net.pop("module.capsule_layers.0.w"), "match no stack"),
        (lambda net: net.pop("module.final_fc.bias"), "final_fc.bias is missing"),
        (lambda net: net.update({"module.extra": torch.zeros(1)}), "extra .* unknown"),
        (lambda net: net.update({"module.capsule_layers.1.w": torch.zeros(44, 4, 4, 7)}), "44.* is needed"),
        (lambda net: net.update({"module.capsule_layers.1.w": torch.zeros(45, 4, 5, 7)}), r"\(45, 4, 4, 7\) is needed"),
        (lambda net: enlarge(net), "pc_layer.weight .* is needed"),
        (lambda net: net.update({"module.capsule_layers.2.w": torch.zeros(7)}), "has 7 classes"),
        (lambda net: net.update({"module.capsule_layers.2.w": torch.zeros(7, 4, 0, 4)}), r"\(7, 4, 4, 4\) is needed"),
        (lambda net: net.update({"module.nonlinear_act.weight": torch.zeros(97)}), r"\(16,\) is needed"),
        (lambda net: net.update({"module.capsule_layers.2.w": torch.zeros(3, 3, 7, 4, 4, 4)}), "is needed"),
        (lambda net: net.update({"module.pc_layer.weight": torch.zeros(96)}), "is needed"),
        (lambda net: net.update({"module.pre_caps.pre_caps.0.weight": torch.zeros(12, 1, 3, 3)}), "and 1 channel,"),
        (lambda net: net.clear() or net.update({"fc.weight": torch.zeros(3, 3)}), "match no stack"),
    ],
)
def test_shapes_that_match_no_stack(golden, place, change, word) -> None:
    wrong = content(golden)
    change(wrong["net"])
    torch.save(wrong, "ckpt.pth")
    with pytest.raises(ValueError, match=f"^ckpt.pth.*{word}"):
        import_checkpoint(Path("ckpt.pth"), 2, SMALL, Path("runs"))
    assert os.listdir() == ["ckpt.pth"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["training.lr=0.1"], "training.lr"),
        (["num_routing=3"], "--num-routing"),
        (["seed=1"], "seed"),
        (["routing=em"], "routing=em"),
        (["dataset.mean=null", "dataset.std=null"], "dataset.mean"),
        (["capsules=nothing"], "nothing"),
        (["routing.schedule=random"], "random"),
    ],
)
def test_wrong_overrides(file, capsule_sweeps, words, found) -> None:
    ended = capsule_sweeps("import-checkpoint", str(file), "--num-routing", "2", *SMALL, *words)
    assert ended.code == 1 and found in ended.err and ended.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_wrong_number_of_iterations(file, capsule_sweeps, number) -> None:
    ended = capsule_sweeps("import-checkpoint", str(file), f"--num-routing={number}", *SMALL)
    assert ended.code != 0 and "num" in ended.err and "Traceback" not in ended.err and not Path("runs").exists()


def test_a_described_stack_of_other_shapes_is_refused(file) -> None:
    with pytest.raises(ValueError, match=r"does not fit: capsule_layers\.0"):
        import_checkpoint(file, 2, [*SMALL, f"capsules.layers=[{FC}]", "capsules.interleaved=false"], Path("x"))


def test_an_import_that_breaks_off_leaves_nothing(file, monkeypatch) -> None:
    from capsule_sweeps.evaluation import import_published as imported

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(imported, "write_json", full)
        import_checkpoint(file, 2, SMALL, Path("runs"))
    assert list(Path("runs").iterdir()) == []


def test_what_a_killed_import_left_is_no_run_and_is_collected(imported, capsule_sweeps) -> None:
    left = imported.with_name(f".{imported.name}.999999.1.tmp")
    shutil.copytree(imported, left)
    long_ago = time.time() - 7200
    os.utime(left, (long_ago, long_ago))
    assert list(load_runs("runs", imported=True).run) == [imported.name]
    assert left.name in capsule_sweeps("gc").out.replace("\n", "") or left.exists()
    assert capsule_sweeps("gc", "--yes").code == 0
    assert not left.exists() and imported.exists()


PHOTOS = ["dataset=folder", "dataset.root=photos", "dataset.mean=[0.5,0.5,0.5]", "dataset.std=[0.2,0.2,0.2]", *STACK]


def photos() -> np.ndarray:
    """Six images of noise in each of four classes, as training and as test images."""
    pixels = np.random.RandomState(0).randint(0, 256, (2, 4, 6, 16, 16, 3)).astype(np.uint8)
    for split, name in enumerate(("train", "test")):
        for label in range(4):
            folder = Path("photos") / name / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(6):
                Image.fromarray(pixels[split, label, number]).save(folder / f"{number}.png")
    return pixels


# Which windows


@pytest.fixture
def shares(golden, place) -> dict[bool, float]:
    """Share of the photos that the golden network names right with each kind of windows, far from each other."""
    pixels = photos()
    torch.save(content(golden), "any.pth")
    named = {}
    for interleaved in (False, True):
        words = [*PHOTOS, f"capsules.interleaved={str(interleaved).lower()}"]
        folder = import_checkpoint(Path("any.pth"), 2, words, Path(f"any-{interleaved}"))[0].folder
        with torch.no_grad():
            images = torch.from_numpy(pixels[1].reshape(24, 16, 16, 3)).permute(0, 3, 1, 2)
            named[interleaved] = load_trained(folder)[0]((images / 255 - 0.5) / 0.2).argmax(1).tolist()
    shutil.rmtree("photos/test")
    for number, label in enumerate(named[True]):  # labels as the interleaved network has them, but for three images
        folder = Path(f"photos/test/class{label if number > 2 else (label + 1) % 4}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[1].reshape(24, 16, 16, 3)[number]).save(folder / f"{number}.png")
    for label in range(4):
        Path(f"photos/test/class{label}").mkdir(exist_ok=True)
    labels = [label if number > 2 else (label + 1) % 4 for number, label in enumerate(named[True])]
    return {which: sum(a == b for a, b in zip(own, labels, strict=True)) / 24 for which, own in named.items()}


@pytest.mark.parametrize("interleaved", [True, False])
def test_windows_are_found_out_by_the_accuracy(golden, shares, capsule_sweeps, monkeypatch, interleaved) -> None:
    from capsule_sweeps.evaluation import windows

    monkeypatch.setattr(windows, "FLIPPED", 0)  # of 24 images each counts
    assert abs(shares[True] - shares[False]) > 0.2
    torch.save(content(golden, acc=100 * shares[interleaved]), "ckpt.pth")
    ended = capsule_sweeps("import-checkpoint", "ckpt.pth", "--num-routing", "2", *PHOTOS)
    assert ended.code == 0, ended.err
    assert f"capsules.interleaved={str(interleaved).lower()}: {shares[interleaved]:.2%} on 24 test images" in ended.out
    (run,) = load_runs("runs", imported=True).itertuples()
    assert run.signed_config.get("model.capsules.interleaved", False) == interleaved
    record = json.loads((Path("runs") / run.run / "run.json").read_text())
    assert record["imported"]["windows"]["interleaved"] == interleaved
    (found,) = json.loads(capsule_sweeps("evaluate", run.run, "--format", "json").out)
    assert found["accuracy"] == pytest.approx(100 * shares[interleaved])
    again = capsule_sweeps("import-checkpoint", "ckpt.pth", "--num-routing", "2", *PHOTOS)
    assert again.code == 0 and "there already" in again.out


def test_windows_that_do_not_fit_are_refused_with_both_accuracies(golden, shares, capsule_sweeps, monkeypatch) -> None:
    from capsule_sweeps.evaluation import windows

    monkeypatch.setattr(windows, "FLIPPED", 0)
    torch.save(content(golden, acc=99.99), "ckpt.pth")
    ended = capsule_sweeps("import-checkpoint", "ckpt.pth", "--num-routing", "2", *PHOTOS)
    assert ended.code == 1 and "Neither agrees" in ended.err and ended.err.count("\n") == 1
    assert f"{shares[True]:.2%} with capsules.interleaved=true" in ended.err
    assert f"{shares[False]:.2%} with capsules.interleaved=false" in ended.err and not Path("runs").exists()
    words = [*PHOTOS, "capsules.interleaved=false"]
    assert capsule_sweeps("import-checkpoint", "ckpt.pth", "--num-routing", "2", *words).code == 0


def test_without_images_the_windows_are_asked_for(file, capsule_sweeps) -> None:
    ended = capsule_sweeps("import-checkpoint", str(file), "--num-routing", "2", *SMALL[:-1])
    assert ended.code == 1 and ended.err.count("\n") == 1 and not Path("runs").exists()
    assert "not under data: run `python -m capsule_sweeps prepare-data dataset=CIFAR10`" in ended.err
    assert "set capsules.interleaved=true" in ended.err


@pytest.mark.parametrize(
    ("change", "accuracy"),
    [
        ({"acc": None}, None),
        ({"acc": torch.tensor(94.5)}, 0.945),
        ({"acc": np.float32(94.5), "epoch": np.int64(3)}, 0.945),
        ({"acc": 0.945}, None),
        ({"epoch": None}, 0.9485),
        ("bare", None),
    ],
)
def test_files_of_forks_are_read_and_what_they_do_not_tell_is_unknown(
    golden, place, capsule_sweeps, change, accuracy
) -> None:
    whole = content(golden)
    if change == "bare":
        torch.save(whole["net"], "ckpt.pth")
    else:
        torch.save({key: value for key, value in {**whole, **change}.items() if value is not None}, "ckpt.pth")
    ended = capsule_sweeps("import-checkpoint", "ckpt.pth", "--num-routing", "2", *SMALL)
    assert ended.code == 0, ended.err
    (found,) = load_runs("runs", imported=True).accuracy_best_test
    assert found == pytest.approx(accuracy) if accuracy else np.isnan(found)
    if accuracy is None:
        shutil.rmtree("runs")
        ended = capsule_sweeps("import-checkpoint", "ckpt.pth", "--num-routing", "2", *SMALL[:-1])
        assert ended.code == 1 and "has no accuracy" in ended.err and "interleaved=true" in ended.err


def test_it_is_evaluated_and_exported_as_any_run(golden, file, capsule_sweeps) -> None:
    """On images of one's own; where the accuracy is not that of the file, what may be wrong is said."""
    pixels = photos()
    words = [*PHOTOS, "capsules.interleaved=true"]
    ended = capsule_sweeps("import-checkpoint", str(file), "--num-routing", "2", *words)
    assert ended.code == 0 and "photos-capsnet-simple" in ended.out, ended.err
    (name,) = (path.name for path in Path("runs").iterdir())
    before = everything(Path("runs") / name)
    ended = capsule_sweeps("evaluate", name, "--format", "json")
    (found,) = json.loads(ended.out)
    model, _ = load_trained(Path("runs") / name)
    images = torch.from_numpy(pixels[1].reshape(24, 16, 16, 3)).permute(0, 3, 1, 2)
    with torch.no_grad():
        named = model((images / 255 - 0.5) / 0.2).argmax(1)
    assert found["accuracy"] == pytest.approx(100 * (named == torch.arange(24) // 6).double().mean().item())
    text = " ".join(capsule_sweeps("evaluate", name).out.split())
    assert "94.85 % (best_test)" in text and "file reports another accuracy" in text and "interleaved=false" in text
    assert "not what the file told" not in capsule_sweeps("evaluate", name, "--num-routing", "3").out
    assert capsule_sweeps("export", name, "--out", "model.pt2").code == 0
    assert everything(Path("runs") / name) == before
