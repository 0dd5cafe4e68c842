"""Trackers of users: in a package that they trust, and whatever they do the run is the same."""

import json

import pytest

from capsule_sweeps import compose_config
from capsule_sweeps.launchers.launch import find_launcher
from capsule_sweeps.tracking.base import Tracker, distrust, own_fields


class Fails(Tracker):
    def __init__(self, config, run, sweep, rows):
        raise KeyError("server")


class Exits(Tracker):
    def log(self, row):
        raise SystemExit(3)


class Meddles(Tracker):
    """Changes everything it gets."""

    def __init__(self, config, run, sweep, rows):
        config.training.lr, config.seed = 100.0, 7

    def log(self, row):
        row["test_accuracy"] = 1.0
        row.pop("epoch")

    def summary(self, values):
        values["accuracy_last"] = 1.0


class Claims(Tracker):
    @classmethod
    def identity(cls, config, run):
        return {"state": "finished"}

    def located(self):
        return {"signed_config": {}}


class Finds(Tracker):
    @classmethod
    def identity(cls, config, run):
        return {"finds_id": run.folder.name}

    def located(self):
        return {"finds_url": "http://localhost/1"}


class Needs(Tracker):
    packages = ("no-such-package",)


class Prepares(Tracker):
    @classmethod
    def prepare(cls, configs):
        raise KeyError("server")


class Other:
    pass


@pytest.fixture
def words(monkeypatch):
    """The overrides that choose a tracker of this file."""
    package = __name__.partition(".")[0]
    monkeypatch.setenv("CAPSULE_SWEEPS_TRUST_PACKAGES", package)
    return lambda cls: [f"tracking._target_={__name__}.{cls.__name__}", "tracking.name=own"]


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Fails, "tracking=own: KeyError: 'server'; the run continues"),
        (Exits, "tracking=own: SystemExit: 3; the run continues"),
        (Meddles, ""),
        (Claims, "tracking=own: state in run.json is the run's own: name this field differently; the run continues"),
        (Finds, ""),
    ],
)
def test_a_tracker_changes_nothing_of_the_run(trained, launch, runs, words, cls, said) -> None:
    trained("training.epochs=1")
    ended = launch("training.epochs=1", "runs_dir=own", *words(cls))
    assert ended.code == 0 and said in ended.text and (said or "the run continues" not in ended.text), ended.text
    one, other = runs.only(), runs.only("own")
    runs.assert_same(one, other)
    untracked, tracked = (json.loads((folder / "summary.json").read_text()) for folder in (one, other))
    assert {**untracked, "seconds": 0} == {**tracked, "seconds": 0}
    record = runs.record(other)
    assert record["state"] == "finished" and record["signed_config"]
    assert ("finds_id" in record and record["finds_url"].startswith("http")) == (cls is Finds)


@pytest.mark.parametrize(
    ("cls", "changes", "said"),
    [
        (
            Needs,
            [],
            "tracking=own needs the package no-such-package: pip install no-such-package, or set tracking=none",
        ),
        (Prepares, [], "Prepares.prepare failed (KeyError: 'server'"),
        (Other, [], "Other is not a subclass of capsule_sweeps.tracking.base.Tracker"),
        (Finds, ["tracking._target_=mine.Tracker"], "set CAPSULE_SWEEPS_TRUST_PACKAGES=mine in the environment"),
        (Finds, ["tracking._target_=capsule_sweeps.runs.run.Run"], "trackers are classes of capsule_sweeps.tracking"),
        (Finds, ["tracking._target_=null"], "tracking._target_ has no value: set it in the YAML file of tracking=own"),
        (Finds, ["tracking.name=none"], "tracking.name=none means no tracking, but tracking._target_="),
    ],
)
def test_a_tracker_that_cannot_be_used_is_one_sentence_before_the_run(launch, runs, words, cls, changes, said) -> None:
    ended = launch(*words(cls), *changes)
    assert ended.code == 1 and said in ended.err and "Traceback" not in ended.text, ended.text
    assert not runs.folders()


def test_doctor_names_a_tracker_and_an_option_has_settings_of_its_own(capsule_sweeps, tiny, words) -> None:
    ended = capsule_sweeps("doctor", *tiny, *words(Finds), "+tracking.file_name=a.csv")
    assert ended.code == 0 and "tracking=own" in ended.out, ended.text
    ended = capsule_sweeps("doctor", *tiny, *words(Needs))
    assert ended.code == 1 and "needs the package" in ended.out, ended.text


def test_misspelled_settings_are_unknown_to_our_trackers() -> None:
    with pytest.raises(ValueError, match=r"tracking.projct=a is unknown: did you mean tracking.project\?"):
        compose_config(["+tracking.projct=a"])


@pytest.mark.parametrize("fields", [{"attempt": 1}, {1: "x"}, {"score": float("nan")}, {"a b": 1}, {"rows": []}])
def test_fields_that_would_spoil_the_record_are_refused(fields) -> None:
    with pytest.raises(ValueError, match=r"run\.json|name this field"):
        own_fields(fields)


def test_settings_of_run_folders_never_choose_where_a_tracker_of_the_user_sends(words, caplog) -> None:
    config = compose_config([*words(Finds), "+tracking.uri=http://evil"])
    distrust([config])
    assert config.tracking.name == "none" and "define Finds.distrust" in caplog.text


@pytest.mark.parametrize("kind", ["launch", "hydra", "pool", "../x", "nope"])
def test_only_a_dataclass_is_a_launcher(kind) -> None:
    with pytest.raises(ValueError, match=r"hydra\.launcher\.kind=.* is unknown"):
        find_launcher(kind)
