"""The fuzzing run itself: a short one finds nothing, and a planted fault is found."""

import struct

import pytest

from bench import fuzz
from raymarch.data import colmap_files


def test_a_short_run_finds_no_crash():
    found = fuzz.run(1500, seed=7)
    assert sum(count.cases for count in found.values()) == 1500
    assert sum(count.crashes for count in found.values()) == 0
    assert sum(count.refused for count in found.values()) > 700
    assert sum(count.accepted for count in found.values()) > 100
    assert len(found) == len({target for target in found}) > 35


@pytest.mark.parametrize(
    ("only", "fault"),
    [
        ("colmap cameras.bin", lambda data, name, binary: struct.unpack_from("<Q", data, 200)),
        ("colmap rigs.txt", lambda data, name, binary: data.decode("ascii")),
    ],
)
def test_a_planted_fault_is_found(monkeypatch, capsys, only, fault):
    monkeypatch.setattr(colmap_files, only.split()[1].split(".")[0], fault)
    found = fuzz.run(300, seed=0, only=only)
    assert sum(count.crashes for count in found.values()) > 0
    assert "case " in capsys.readouterr().out
