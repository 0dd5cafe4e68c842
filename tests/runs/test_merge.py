"""Runs that travel: what a bundle holds, what is taken from one, and that nothing in it is trusted."""

import gzip
import io
import json
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from capsule_sweeps import load_runs
from capsule_sweeps.runs.bundle import MAX_READ
from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.labels import change_note, change_tags, read_labels
from capsule_sweeps.runs.merge import merge
from capsule_sweeps.runs.run import Run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """One finished run, made once: a runs folder to copy."""
    from conftest import TINY

    from capsule_sweeps import compose_config
    from capsule_sweeps.console import Display
    from capsule_sweeps.runs.signals import Stop
    from capsule_sweeps.runs.signature import columns
    from capsule_sweeps.training.train import train

    runs_dir = tmp_path_factory.mktemp("made") / "runs"
    config = compose_config([*TINY, f"data_dir={data_dir}", f"runs_dir={runs_dir}"])
    with Display() as display:
        train(config, Run(runs_dir / columns(config)["run"]), "", display, Stop())
    return runs_dir


@pytest.fixture
def theirs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "theirs"))


def only(runs_dir: Path) -> Path:
    (found,) = [path for path in runs_dir.iterdir() if path.name[0] != "."]
    return found


def outcomes(source: Path, runs_dir: Path = Path("runs")) -> list[tuple[str, str]]:
    return [(outcome, words) for _, outcome, words in merge(source, runs_dir)]


def change(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ── the way there ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_sweep_of_two_machines_merged_gives_the_table_of_one(launch, capsule_sweeps) -> None:
    assert launch("-m", "seed=0,1", "runs_dir=one").code == 0
    assert launch("-m", "seed=0", "runs_dir=a").code == 0
    assert launch("-m", "seed=1", "runs_dir=b").code == 0
    assert capsule_sweeps("bundle", "--runs-dir", "b", "--out", "b.tar.gz").code == 0
    ended = capsule_sweeps("merge", "b.tar.gz", "--runs-dir", "a")
    assert (ended.code, ended.text) == (0, "Merged into a: 1 taken.\n")
    tables = [capsule_sweeps("results", "--runs-dir", place).out for place in ("one", "a")]
    assert tables[0] == tables[1] and "│ 2 │" in tables[0]
    again = capsule_sweeps("merge", "b.tar.gz", "b", "--runs-dir", "a")
    assert (again.code, again.text) == (0, "Merged into a: 2 here already, with equal numbers.\n")
    assert "2 to skip" in launch("-m", "seed=0,1", "runs_dir=a").out


def test_a_bundle_is_the_same_bytes_and_has_checkpoints_only_if_asked(theirs, place, capsule_sweeps) -> None:
    def names(file: str, *more: str) -> set[str]:
        ended = capsule_sweeps("bundle", "--runs-dir", str(theirs), "--out", file, *more)
        assert ended.code == 0, ended.text
        with tarfile.open(file) as archive:
            return {Path(name).name for name in archive.getnames()}

    small = names("small.tar.gz")
    assert small == {"config.yaml", "run.json", "metrics.jsonl", "summary.json", "log.txt"} - (
        set() if (only(theirs) / "log.txt").exists() else {"log.txt"}
    )
    assert names("again.tar.gz") == small and Path("small.tar.gz").read_bytes() == Path("again.tar.gz").read_bytes()
    assert names("large.tar.gz", "--checkpoints") == {*small, "checkpoint.pt"}
    ended = capsule_sweeps("bundle", "--runs-dir", str(theirs), "--out", "small.tar.gz")
    assert ended.code == 1 and "small.tar.gz exists" in ended.text
    assert {path.name for path in place.iterdir()} == {"small.tar.gz", "again.tar.gz", "large.tar.gz"}


def test_what_is_taken_says_where_from_and_is_not_sent_to_wandb(theirs, place) -> None:
    change(only(theirs) / "run.json", wandb_id="another-run", wandb_entity="them", wandb_project="theirs")
    assert outcomes(theirs) == [("taken", "")]
    record = read_json(only(Path("runs")) / "run.json")
    assert record["merged"]["from"] == "theirs" and record["merged"]["wandb_id"] == "another-run"
    assert not [key for key in record if key.startswith("wandb_")]
    assert load_runs("runs").state.tolist() == ["finished"]
    assert list(Path("runs").glob(".*")) == []


def test_a_name_that_was_changed_between_two_attempts_is_no_reason_to_refuse(theirs, place) -> None:
    """Names of options are for display. An attempt that failed early has left another one in config.yaml."""
    (only(theirs) / "summary.json").unlink()
    change(only(theirs) / "run.json", state="failed", routing="before")
    assert outcomes(theirs) == [("taken", "unfinished: the command that asks for it resumes it")]
    assert read_json(only(Path("runs")) / "run.json")["routing"] == "inverted_attention"


def test_an_unfinished_run_is_resumed_after_a_merge(launch, trained, runs, place) -> None:
    import signal

    assert launch("runs_dir=theirs", signal_at=(signal.SIGTERM, 7)).code == 143
    assert trained("runs_dir=whole").code == 0
    assert [outcome for outcome, _ in outcomes(Path("theirs"))] == ["taken"]
    assert load_runs("runs").state.tolist() == ["interrupted"]
    assert "resume" in launch().out
    runs.assert_same(runs.only("runs"), runs.only("whole"))


# ── the same signature on both sides ─────────────────────────────────────────────────────────────────────────────────


def other_numbers(folder: Path) -> None:
    """Another accuracy in the last epoch, as another machine would have it, in all files that say it."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[-1]["test_accuracy"] = 0.875
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = max(rows, key=lambda row: row["test_accuracy"])
    for name in ("run.json", "summary.json"):
        best_test = {"accuracy_best_test": best["test_accuracy"], "epoch_best_test": best["epoch"]}
        change(folder / name, accuracy_last=0.875, **best_test)


def test_other_numbers_are_reported_and_kept_aside_and_the_local_run_stays(theirs, made, place) -> None:
    shutil.copytree(made, "runs")
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    other_numbers(only(theirs))
    record = read_json(only(theirs) / "run.json")
    attempt = record["attempts"][-1]
    attempt["versions"]["torch"], attempt["code"]["training.train"], attempt["host"] = "9.9", "00000000", "elsewhere"
    change(only(theirs) / "run.json", attempts=[attempt])
    for _ in range(2):  # kept aside once
        ((outcome, words),) = outcomes(theirs)
        assert outcome == "different" and "87.50%" in words and "torch" in words and "9.9 there" in words
        assert "code differs in training.train" in words and "elsewhere there" in words
        assert len(list(Path("runs/.conflicts").iterdir())) == 1
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_finished_wins_over_what_is_not(theirs, made, place) -> None:
    shutil.copytree(made, "runs")
    (only(Path("runs")) / "summary.json").unlink()
    change(only(Path("runs")) / "run.json", state="failed")
    assert outcomes(theirs) == [("taken", "")]
    assert load_runs("runs").state.tolist() == ["finished"] and len(list(Path("runs/.superseded").iterdir())) == 1
    (only(theirs) / "summary.json").unlink()
    assert outcomes(theirs) == [("left", "it is unfinished there and finished here")]


def test_what_is_damaged_in_a_record_is_no_traceback(theirs, made, place) -> None:
    shutil.copytree(made, "runs")
    other_numbers(only(theirs))
    for folder in (only(theirs), only(Path("runs"))):
        attempts = read_json(folder / "run.json")["attempts"]
        change(folder / "run.json", attempts=[{**attempts[-1], "code": None, "versions": None, "execution": None}])
    ((outcome, words),) = outcomes(theirs)
    assert outcome == "different" and "87.50%" in words
    assert (next(Path("runs/.conflicts").iterdir()) / "checkpoint.pt").exists()


def test_harmless_values_out_of_bounds_and_another_display_name_do_not_keep_a_run_out(theirs, place, caplog) -> None:
    folder = only(theirs).rename(only(theirs).with_name(f"another-name-{only(theirs).name[-8:]}"))
    change(folder / "run.json", error="x" * 10**6, peak_memory_mb=float("nan"), theirs=float("inf"))
    change(folder / "summary.json", seconds=10**400, note="x" * 10**6)
    assert outcomes(theirs) == [("taken", "")]
    kept = only(Path("runs"))
    caplog.clear()
    frame = load_runs("runs")
    assert frame.run.tolist() == [folder.name] and frame.accuracy_last.notna().all() and not caplog.text
    assert not {"error", "theirs", "note"} & {*read_json(kept / "run.json"), *read_json(kept / "summary.json")}


def test_two_copies_of_one_run_become_one_run(theirs, place) -> None:
    folder = only(theirs)
    copy = Path(shutil.copytree(folder, theirs / f"aa-{folder.name[-8:]}"))
    change(copy / "run.json", run="a spelling of another version")
    assert sorted(outcomes(theirs)) == [("same", ""), ("taken", "")]
    assert len(load_runs("runs")) == 1


def test_a_run_that_is_at_work_here_or_there_is_left_alone(theirs, made, place) -> None:
    shutil.copytree(made, "runs")
    (only(Path("runs")) / "summary.json").unlink()
    with Run(only(Path("runs"))).claim():
        assert outcomes(theirs) == [("left", "it is running here")]
    with Run(only(theirs)).claim():
        ((outcome, words),) = outcomes(theirs)
    assert outcome == "refused" and "running there" in words


def test_runs_of_other_images_are_refused(theirs, trained) -> None:
    assert trained("seed=1").code == 0
    change(only(theirs) / "run.json", data_sha256="0" * 64)
    ((outcome, words),) = outcomes(theirs)
    assert outcome == "refused" and "other images" in words


# ── nothing is trusted ───────────────────────────────────────────────────────────────────────────────────────────────


def edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


def linked(folder: Path) -> None:
    (folder / "log.txt").unlink(missing_ok=True)
    (folder / "log.txt").symlink_to("/etc/hostname")


FORGED = {
    "signed configuration": (edited("run.json", '"training.lr": 0.1', '"training.lr": 0.2'), "its signature"),
    "configuration": (edited("config.yaml", "lr: 0.1", "lr: 0.2"), "its signature is not that of its config.yaml"),
    "no configuration": (lambda folder: (folder / "config.yaml").unlink(), "its config.yaml is not usable"),
    "interpolation": (edited("config.yaml", "device: auto", "device: ${oc.env:HOME}"), "interpolation"),
    "tag": (edited("config.yaml", "device: auto", "device: !!python/name:os.system"), "anchors or tags"),
    "seed": (lambda folder: change(folder / "run.json", seed=7), "its run.json has seed=7"),
    "accuracy": (lambda folder: change(folder / "summary.json", accuracy_last=0.99), "has accuracy_last=0.99"),
    "accuracy in the record": (lambda folder: change(folder / "run.json", accuracy_last=0.99), "run.json has accuracy"),
    "fewer epochs": (lambda folder: (folder / "metrics.jsonl").write_text(""), "does not have its 2 epochs"),
    "empty summary": (lambda folder: (folder / "summary.json").write_text("{}"), "its summary.json is damaged"),
    "garbled summary": (lambda folder: (folder / "summary.json").write_text("x"), "its summary.json is damaged"),
    "imported": (lambda folder: change(folder / "run.json", imported={"sha256": "0"}), "imported"),
    "link": (linked, "it is a link"),
    "name": (lambda folder: folder.rename(folder.with_name("best-0123abcd")), "its signature is not that of its"),
    "data hash": (lambda folder: change(folder / "run.json", data_sha256=5), "run.json is damaged ('data_sha256'"),
    "score": (lambda folder: change(folder / "summary.json", accuracy_ema_last=97), "summary.json is damaged"),
    "garbled record": (lambda folder: (folder / "run.json").write_text("["), "its run.json is damaged"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_run_that_does_not_agree_with_itself_is_refused(theirs, place, case) -> None:
    forge, said = FORGED[case]
    forge(only(theirs))
    ((outcome, words),) = outcomes(theirs)
    assert outcome == "refused" and said in words, words
    assert [path.name for path in Path("runs").iterdir()] == []


def zipped(names: bytes, more: bytes = b"", kind: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as torch.save writes it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", kind) as out:
        out.writestr("checkpoint/data.pkl", names)
        out.writestr("checkpoint/data/0", more)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps(print), "it is a pickle"),
        (zipped(b"cposix\nsystem\n."), "it names 'posix system'"),
        (zipped(pickle.dumps(print, 4)), "which no checkpoint of a run does"),
        (zipped(b".", bytes(2**20), zipfile.ZIP_DEFLATED), "torch.save writes no such file"),
        (zipped(b".", bytes(2**26)), "the model needs"),
        (zipped(b"\xff\xff"), "is damaged"),
        (b"", "it is a pickle or something else"),
    ],
)
def test_a_checkpoint_that_no_run_wrote_does_not_travel(theirs, place, capsule_sweeps, content, said) -> None:
    """A bundle with one is refused; from a folder, where it is copied last, the run comes without it."""
    (only(theirs) / "checkpoint.pt").write_bytes(content)
    assert capsule_sweeps("bundle", "--runs-dir", str(theirs), "--checkpoints", "--out", "b.tar.gz").code == 0
    ((outcome, words),) = outcomes(Path("b.tar.gz"))
    assert outcome == "refused" and "its checkpoint.pt is damaged" in words and said in words, words
    ((outcome, words),) = outcomes(theirs)
    assert outcome == "taken" and "without its checkpoint" in words and said in words, words
    assert not (only(Path("runs")) / "checkpoint.pt").exists()


def test_what_was_kept_aside_is_compared(theirs, made, place, capsule_sweeps) -> None:
    shutil.copytree(made, "runs")
    other_numbers(only(theirs))
    outcomes(theirs)
    (aside,) = Path("runs/.conflicts").iterdir()
    ended = capsule_sweeps("diff", only(Path("runs")).name, str(aside))
    assert ended.code == 0 and "accuracy_last" in ended.out and "87.50 %" in ended.out, ended.text


def test_of_several_paths_none_is_merged_if_one_is_missing(theirs, place, capsule_sweeps):
    ended = capsule_sweeps("merge", str(theirs), "nowhere.tar.gz")
    assert ended.code == 1 and "nowhere.tar.gz does not exist" in ended.err and list(place.iterdir()) == []
    Path("bad.tar.gz").write_bytes(b"hello")
    ended = capsule_sweeps("merge", str(theirs), "bad.tar.gz")
    assert ended.code == 1 and ended.out == "Merged into runs: 1 taken.\n" and "bad.tar.gz is refused" in ended.err


NAME = "digits-capsnet-s0-0123abcd"


def archive(**files) -> bytes:
    """A bundle of members: name → bytes, or a TarInfo."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as out:
        for name, content in files.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            out.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return packed.getvalue()


def special(name: str, kind: bytes, target: str = "") -> dict[str, tarfile.TarInfo]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return {name: member}


def huge_header() -> bytes:
    """A header of 256 MB of zeros, which are 256 KB compressed."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 256 * MAX_READ
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as out:
        out.write(member.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(256):
            out.write(bytes(MAX_READ))
    return packed.getvalue()


HOSTILE = {
    "above": (archive(**{f"../{NAME}/run.json": b"{}"}), "is not a file of a run folder"),
    "through a run": (archive(**{f"{NAME}/../run.json": b"{}"}), "is not a file of a run folder"),
    "a pickle": (archive(**{f"{NAME}/job.pkl": b"."}), "is not a file of a run folder"),
    "a job": (archive(**{".jobs/x/job.json": b"{}"}), "is not a file of a run folder"),
    "link": (archive(**special(f"{NAME}/run.json", tarfile.SYMTYPE, "/etc/passwd")), "a link"),
    "device": (archive(**special(f"{NAME}/run.json", tarfile.CHRTYPE)), "a link, a device"),
    "folder": (archive(**special(f"{NAME}/run.json", tarfile.DIRTYPE)), "a link, a device or a folder"),
    "large": (archive(**{f"{NAME}/config.yaml": bytes(2**17 + 1)}), "131,073 bytes, more than 131,072"),
    "header": (huge_header, "too large"),  # made when it is needed
    "cut": (archive(**{f"{NAME}/run.json": b"{}"})[:-20], "refused"),
    "no archive": (b"hello", "refused"),
    "empty": (archive(), "empty"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_no_bundle_is_refused_in_one_sentence(place, tmp_path, capsule_sweeps, case) -> None:
    content, said = HOSTILE[case]
    (tmp_path / "bad.tar.gz").write_bytes(content if isinstance(content, bytes) else content())
    ended = capsule_sweeps("merge", str(tmp_path / "bad.tar.gz"))
    assert ended.code == 1 and said in ended.err and ended.err.count("\n") == 1 and "Traceback" not in ended.err
    assert [path for path in Path("runs").iterdir()] == []


def test_a_file_twice_and_a_folder_that_is_missing(made, place, tmp_path, capsule_sweeps) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as out:
        for _ in range(2):
            out.addfile(tarfile.TarInfo(f"{NAME}/log.txt"))
    (tmp_path / "bad.tar.gz").write_bytes(packed.getvalue())
    assert "twice" in capsule_sweeps("merge", str(tmp_path / "bad.tar.gz")).err
    assert "does not exist" in capsule_sweeps("merge", "nowhere.tar.gz").err
    assert "is one run" in capsule_sweeps("merge", str(only(made))).err
    assert "is not a folder" in capsule_sweeps("bundle", "--runs-dir", str(made), "--out", "nowhere/b.tar.gz").err
    assert "is the folder to merge into" in capsule_sweeps("merge", "runs").err


def test_sweeps_travel_without_what_would_steer_a_process(theirs, place, capsule_sweeps) -> None:
    (theirs / ".sweeps").mkdir()
    signature = only(theirs).name[-8:]
    from capsule_sweeps.runs.sweep import record_seeds, signatures_name

    name = signatures_name([signature])
    forged = {"sweep": name, "signatures": [signature], "command": ["launch.py"], "pid": 1, "host": "here"}
    (theirs / f".sweeps/{name}.json").write_text(json.dumps(forged))
    (theirs / ".sweeps/sweep-00000000.json").write_text(json.dumps({**forged, "sweep": "sweep-00000000"}))
    record_seeds(theirs, {"half_width": 0.5, "min_seeds": 5, "max_seeds": 20, "resolve": None}, ["0123abcd"])
    assert capsule_sweeps("bundle", "--runs-dir", str(theirs), "--out", "b.tar.gz", name).code == 0
    assert capsule_sweeps("merge", "b.tar.gz").code == 0
    assert [path.name for path in Path("runs/.sweeps").iterdir()] == [f"{name}.json"]
    assert read_json(Path(f"runs/.sweeps/{name}.json")).keys() == {"sweep", "signatures", "command"}
    assert outcomes(theirs) == [("same", "")]
    assert len(list(Path("runs/.sweeps").glob("seeds-*.json"))) == 1
    assert capsule_sweeps("status", name).code == 0


# ── tags and notes ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_tags_and_a_note_are_shown_and_select_and_travel(theirs, made, place, capsule_sweeps, caplog) -> None:
    shutil.copytree(made, "runs")
    name = only(Path("runs")).name
    assert capsule_sweeps("tag", name, "+good", "+to-check").out == f"{name}: good to-check\n"
    assert capsule_sweeps("tag", "state=finished", "-to-check", "-hot", "+best").out == f"{name}: best good\n"
    note = "loss <b>rises</b> & falls [red]"
    assert capsule_sweeps("note", name, note).out == f"{name}: {note}\n"
    out = capsule_sweeps("status", "--format", "csv").out
    assert "best good" in out and note in out
    assert note in " ".join(capsule_sweeps("show", name).out.split())
    assert json.loads(capsule_sweeps("show", name, "--format", "json").out)["tags"] == ["best", "good"]
    assert len(json.loads(capsule_sweeps("status", "tag=bad,good", "--format", "json").out)) == 1
    ended = capsule_sweeps("status", "tag=bad", "--format", "json")
    assert json.loads(ended.out) == [] and "tag=bad fits none of the 1 run; tag is best, good" in caplog.text
    assert capsule_sweeps("report").code == 0
    page = Path("report.html").read_text()
    assert "best good" in page and "loss &lt;b&gt;rises&lt;/b&gt; &amp; falls" in page
    assert capsule_sweeps("bundle", "--out", "b.tar.gz").code == 0
    assert outcomes(Path("b.tar.gz"), theirs) == [("same", "")]
    assert load_runs(theirs).tags.tolist() == ["best good"]
    assert capsule_sweeps("note", name, "").out == f"{name}: no note\n"


def test_tags_of_several_processes_all_arrive(made, place) -> None:
    """Each reads and writes the whole file; here in threads."""
    shutil.copytree(made, "runs")
    folder = only(Path("runs"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda tag: change_tags(folder, [tag], []), (f"tag{number}" for number in range(40))))
    assert len(read_labels(folder).tags) == 40
    with pytest.raises(ValueError, match="not Unicode"):
        change_note(folder, "bytes \udcff of another encoding")


@pytest.mark.parametrize("words", [["+"], ["+a b"], ["+../x"], ["+" + 51 * "a"], []])
def test_what_is_no_tag_is_one_sentence(made, place, capsule_sweeps, words) -> None:
    shutil.copytree(made, "runs")
    ended = capsule_sweeps("tag", only(Path("runs")).name, *words)
    assert ended.code == 1 and re.search("is invalid|needs runs and tags", ended.err) and "Traceback" not in ended.err


def test_damaged_labels_cost_one_line(made, place, capsule_sweeps, caplog) -> None:
    shutil.copytree(made, "runs")
    (only(Path("runs")) / "labels.json").write_text('{"tags": ["<script>", 3], "note": 4}')
    assert load_runs("runs").tags.tolist() == [""]
