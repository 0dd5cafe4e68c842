"""Which runs a command means: names, prefixes of signatures, paths, sweeps, filters."""

import json
import re
from pathlib import Path

import pytest
from synthetic import make_run

from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.select import find_run, select

LR = ("0.1", "0.05")


@pytest.fixture
def some(tiny_config) -> dict[tuple[str, int], Run]:
    """(lr, seed) → run; seed 1 failed."""
    return {
        (lr, seed): make_run(tiny_config(f"training.lr={lr}", f"seed={seed}"), "failed" if seed else "finished")
        for lr in LR
        for seed in (0, 1)
    }


def names(words: list[str], runs_dir: str = "runs") -> set[str]:
    return set(select(Path(runs_dir), words).run)


def test_no_filter_means_all(some) -> None:
    assert names([]) == names(["all"]) == {run.folder.name for run in some.values()}


def test_run_is_found_by_name_signature_beginning_and_path(some, place) -> None:
    run = some["0.1", 0]
    signature = run.folder.name[-8:]
    others = [other.folder.name[-8:] for other in some.values() if other is not run]
    shortest = next(signature[:n] for n in range(1, 9) if not any(o.startswith(signature[:n]) for o in others))
    words = [run.folder.name, signature, shortest, f"runs/{run.folder.name}", f"./runs/{run.folder.name}/"]
    for word in [*words, str(place / "runs" / run.folder.name)]:
        assert names([word]) == {run.folder.name}, word
        assert find_run(Path("runs"), word).folder.name == run.folder.name


def test_ambiguous_beginning_says_which(some) -> None:
    """The empty one begins them all; so does a digit that two signatures share."""
    for number, word in enumerate(("a", "ab"), 1):
        folder = Path("runs") / f"x-{word:0<8}"
        folder.mkdir()
        del number
    with pytest.raises(ValueError, match=r"^a matches .*a0000000.*ab000000.*longer prefix"):
        select(Path("runs"), ["a"])
    assert names(["ab"]) == {"x-ab000000"}


@pytest.mark.parametrize("word", ["zzzz", "runs/nothing-00000000", "sweep=nothing", "*"])
def test_word_that_means_nothing_is_named(some, word) -> None:
    with pytest.raises(ValueError) as error:
        select(Path("runs"), [word])
    assert word.removeprefix("sweep=") in str(error.value)


def test_unknown_column_names_those_there_are(some) -> None:
    with pytest.raises(ValueError, match=r"color.*state.*dataset.*num_routing"):
        select(Path("runs"), ["color=red"])


def test_filters_are_joined_by_and(some) -> None:
    assert len(names(["dataset=digits"])) == 4
    assert names(["training.lr=0.05", "seed=1"]) == {some["0.05", 1].folder.name}
    assert len(names(["state=failed"])) == 2 and len(names(["num_routing=1"])) == 4


def test_null_is_a_value(tiny_config) -> None:
    make_run(tiny_config("dataset.train_size=null"))
    make_run(tiny_config())
    assert len(names(["dataset.train_size=null"])) == 1


def test_sweep_by_name_and_as_filter(some) -> None:
    signatures = [some["0.1", 0].folder.name[-8:], some["0.1", 1].folder.name[-8:]]
    Path("runs/.sweeps").mkdir()
    write_json(Path("runs/.sweeps/sweep-12345678.json"), {"sweep": "sweep-12345678", "signatures": signatures})
    assert names(["sweep-12345678"]) == names(["sweep=sweep-12345678"]) == {some["0.1", s].folder.name for s in (0, 1)}
    assert names(["sweep-12345678", "state=failed"]) == {some["0.1", 1].folder.name}
    with pytest.raises(ValueError, match=r"sweep-1 .*sweep-12345678"):
        select(Path("runs"), ["sweep-1"])


@pytest.mark.parametrize("content", ["{", "[]", '{"signatures": [5]}', '{"signatures": null}'])
def test_garbled_sweep_is_no_traceback_and_named(some, capsule_sweeps, content) -> None:
    Path("runs/.sweeps").mkdir()
    Path("runs/.sweeps/sweep-12345678.json").write_text(content)
    ended = capsule_sweeps("status", "sweep-12345678")
    assert "sweep-12345678.json" in ended.text or ended.code == 0


def test_path_to_a_run_elsewhere_means_that_run(some, tiny_config, capsule_sweeps, tmp_path) -> None:
    """Never the one of the same name under --runs-dir."""
    there = make_run(tiny_config("training.lr=0.1", f"runs_dir={tmp_path}/there"), "failed")
    here = some["0.1", 0]
    assert there.folder.name == here.folder.name
    ended = capsule_sweeps("show", str(there.folder), "--format", "json")
    assert ended.code == 0 and json.loads(ended.out)["state"] == "failed"
    for path in here.folder.iterdir():
        path.unlink()
    here.folder.rmdir()
    ended = capsule_sweeps("show", str(there.folder), "--format", "json")
    assert ended.code == 0 and json.loads(ended.out)["state"] == "failed"


@pytest.mark.parametrize("word", ["x" * 5000, "a\nb", "=x", ""])
def test_strange_words_are_no_traceback(some, capsule_sweeps, word) -> None:
    ended = capsule_sweeps("status", word)
    assert ended.code in (0, 1) and (ended.code == 0 or ended.err.startswith("Error: "))


FITTING = [
    (["seed=0,1"], {0, 1}),
    (["seed=0,1", "num_routing=1,3"], {0, 1}),
    (["training.loss=cross_entropy"], {0, 1}),  # neutral values are not signed
    (["training.loss=margin"], {2}),
    (["model.head=shared", "seed=2"], {2}),
    (["backbone.channels=4", "seed=1"], {1}),  # as launch.py spells it
    (["training.milestones=[3,5]"], {2}),
    (["training.milestones=[3, 5]"], {2}),
    (["training.milestones=[3,5],[1]"], {0, 1, 2}),
    (["seed=range(1,3)"], {1, 2}),
    (["seed=choice(0,2)"], {0, 2}),
    (["routing=glob(inv*)", "seed=0"], {0}),
    (["training=quick", "training.epochs=2", "training.batch_size=8", "seed=0"], {0}),
    (["dataset.train_size=4e1", "training.weight_decay=5e-4", "training.momentum=0.90", "seed=0"], {0}),
    (["dataset.flip=false", "dataset.val_size=0", "training.amp=none", "model.capsules.pose=matrix", "seed=0"], {0}),
]


def test_filters_take_several_values_defaults_lists_and_words_of_launch(tiny_config) -> None:
    for seed in (0, 1, 2):
        more = ["training.loss=margin", "training.milestones=[3,5]"] if seed == 2 else []
        make_run(tiny_config(f"seed={seed}", *more))
    for words, seeds in FITTING:
        assert set(select(Path("runs"), words).seed) == seeds, words
    with pytest.raises(ValueError, match="training=quick fits none of the 3 runs"):  # these have 2 epochs
        select(Path("runs"), ["training=quick"])


NO_RUN = [
    (["dataset=CIFAR10"], "dataset=CIFAR10 fits none of the 4 runs; dataset is digits"),
    (["seed=7"], "seed=7 fits none of the 4 runs; seed is 0, 1"),
    (["routing=nope", "seed=0"], "routing=nope fits none of the 4 runs; routing is inverted_attention"),
    (["seed=0", "num_routing=2,3"], "num_routing=2,3 fits none of the 2 runs that fit seed=0; num_routing is 1"),
    (["training.lr=1e-3"], "training.lr=1e-3 fits none of the 4 runs; training.lr is 0.05, 0.1"),
    (["training.milestones=[3,6]"], "fits none of the 4 runs; training.milestones is [1]"),
    (["training.loss=margin"], "training.loss is cross_entropy"),
    (["training.epoch=2"], "no run has a key training.epoch; did you mean training.epochs?"),
    (["training=fast"], "training=fast fits none of the 4 runs: none has the values that conf/training sets for it"),
]


def test_filter_that_no_run_fits_names_the_values_that_there_are(some, capsule_sweeps) -> None:
    for words, sentence in NO_RUN:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            select(Path("runs"), words)
    for command in ("status", "results", "cancel", "retry"):
        ended = capsule_sweeps(command, "routing=nope", "seed=0")
        assert ended.code == 1 and ended.err.startswith("Error: routing=nope fits none of the 4 runs")
    with pytest.raises(ValueError, match="fits none"):
        select(Path("runs"), ["state=finished", "seed=1"])


def test_a_value_among_several_that_no_run_has_is_reported(some, caplog) -> None:
    """Otherwise runs are missing from a comparison, and nothing says so."""
    assert len(names(["training.lr=0.1,0.2", "seed=0,1"])) == 2
    assert caplog.messages == ["training.lr=0.2 fits none of the 4 runs; training.lr is 0.05, 0.1"]
    caplog.clear()
    assert len(names(["routing=inverted_attention,dynamc", "state=failed,finished", "seed=range(2)"])) == 4
    assert caplog.messages == ["routing=dynamc fits none of the 4 runs; routing is inverted_attention"]
    caplog.clear()
    assert len(names(["routing=em,glob(inv*)", "seed=range(1000)", "dataset=glob(*,exclude=nothing)"])) == 4
    assert caplog.messages == ["routing=em fits none of the 4 runs; routing is inverted_attention"]
    with pytest.raises(ValueError, match="fits none"):
        names(["routing=glob(*,exclude=inv*)"])


def test_a_short_key_is_that_in_which_runs_differ(tiny_config) -> None:
    make_run(tiny_config())
    make_run(tiny_config("routing.norm=squash"))
    assert len(names(["norm=squash"])) == 1, "as the column of a table is headed"
    with pytest.raises(ValueError, match=r"several keys end in padding: use the whole key, model\.capsules\.layers"):
        names(["padding=1"])
    with pytest.raises(ValueError, match="results --ablation"):
        names(["ablation=squash"])


def test_state_that_no_run_has_is_reported_and_is_no_error(some, capsule_sweeps, caplog) -> None:
    ended = capsule_sweeps("status", "state=running", "--format", "json")
    assert ended.code == 0 and json.loads(ended.out) == []
    assert "state=running fits none of the 4 runs; state is failed, finished" in caplog.text
