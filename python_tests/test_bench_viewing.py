"""Timing a training beside a viewer: windows alternate, and what slows one kind is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from bench.viewing import cpu_seconds, offspring, windows


class Trainer:
    """Steps that take six times as long while the process beside it is awake."""

    config = SimpleNamespace(save_every=4)

    def __init__(self):
        self.step, self.saved, self.awake = 0, [], True

    def iterate(self, end):
        while self.step < end:
            time.sleep(0.06 if self.awake else 0.01)
            self.step += 1
            yield

    def save(self):
        self.saved.append(self.step)


def test_a_viewer_that_slows_training_is_found_out(monkeypatch):
    trainer, sent = Trainer(), []
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def send(number):
        sent.append(number)
        trainer.awake = number == signal.SIGCONT

    monkeypatch.setattr(process, "send_signal", send)
    try:
        found = windows(trainer, process, 4, 3)
    finally:
        os.kill(process.pid, signal.SIGKILL)  # `kill` would send it through what stands in for it
        process.wait()
    awake, asleep = signal.SIGCONT, signal.SIGSTOP
    assert sent[:7] == [awake, asleep, asleep, awake, awake, asleep, awake]  # and awake in the end
    assert found["slowdown"] > 0.2 and len(found["quartiles"]) == 2
    assert found["steps_per_second_watched"] < found["steps_per_second_alone"]
    assert trainer.saved == [4, 8, 12, 16, 20, 24]


def test_processes_are_found_with_what_they_started():
    process = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo started; wait"], stdout=subprocess.PIPE, text=True
    )
    found = []
    try:
        assert process.stdout.readline() == "started\n"
        found = list(offspring(process.pid))
        assert found[0] == process.pid and 0 <= cpu_seconds(process.pid) < 5
        if Path(f"/proc/{process.pid}/task/{process.pid}/children").exists():
            assert len(found) == 2
    finally:
        for one in found or [process.pid]:
            os.kill(one, signal.SIGKILL)
        process.wait()
    assert cpu_seconds(1 << 30) == 0
