"""What is said about credentials names the file and the line, never the content."""

import pytest

from capsule_sweeps.tracking import wandb_client
from capsule_sweeps.tracking.base import one_line

KEY = "5ecre7" * 7


def test_damaged_netrc(place, tmp_path, monkeypatch) -> None:
    """Without the word password the key itself is what the parser stumbles over and quotes."""
    path = tmp_path / "netrc"
    path.write_text(f"machine elsewhere.example login a password b\nmachine api.wandb.ai\n  login user\n  {KEY}\n")
    monkeypatch.setenv("NETRC", str(path))
    said = wandb_client.obstacle()
    assert said is not None and KEY not in said and f"{path} is damaged near line " in said


@pytest.mark.parametrize("url", ["http://user:{}@127.0.0.1:9", "http://{}@127.0.0.1:9"])
def test_key_in_the_address_of_the_server(place, monkeypatch, url) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setattr(wandb_client, "server_url", lambda: url.format(KEY))
    said = wandb_client.obstacle()
    assert said is not None and KEY not in said and said.startswith("127.0.0.1:9 does not answer")


def test_key_in_an_error_of_a_library(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said = one_line(RuntimeError(f"Post http://user:{KEY[::-1]}@host/graphql: dial tcp\nwith key {KEY}"))
    assert said == "Post http://host/graphql: dial tcp with key …"
