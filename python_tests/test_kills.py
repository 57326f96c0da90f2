"""A run that is killed and goes on: a slice of `python -m bench.kills`, and faults that it must see."""

import os

import pytest

from bench import kills
from raymarch.train import checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_three_kills_lose_nothing(tmp_path):
    found = kills.kill_often(tmp_path, kills=3, steps=24, seed=1)
    assert found["equal_bit_for_bit"] and found["kills"] == 3


def test_a_checkpoint_written_in_place_would_be_noticed(tmp_path, monkeypatch):
    def in_place(path, tensors, meta):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of it")

    monkeypatch.setattr(checkpoint, "write", in_place)
    with pytest.raises(kills.KillError, match="damaged"):
        kills.interrupted(tmp_path / "run", kills.small_scene(), steps=12, kills=3, seed=2)
