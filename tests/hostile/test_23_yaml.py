"""YAML that takes no room and no end of memory is not loaded from a run folder."""

from __future__ import annotations

import time

import pytest

from capsule_sweeps.runs.stored import MAX_BYTES, read_config

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "anchors"),
        ("a: !!python/object/apply:os.getcwd []\n", "tags"),
        ("a: " + "[" * 5000, "nested too deeply|nesting depth"),  # in the words of each version
        ("- 1\n- 2\n", "is not an object"),
        ("a: 1\n" * (MAX_BYTES // 4), "larger than"),
        ("a: [", "damaged"),
        ("\x00", "damaged"),
    ],
    ids=["bomb", "tag", "deep", "list", "large", "open", "binary"],
)
def test_refused_at_once(tmp_path, text, why) -> None:
    (tmp_path / "config.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(ValueError, match=why) as raised:
        read_config(tmp_path / "config.yaml")
    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value) and time.process_time() - started < 30
