"""What a viewer that follows a training costs it: steps per second with the viewer awake and with it asleep.

    python -m bench.viewing [--device cpu] [--steps 100] [--pairs 8] [--save-every 50] [--no-browser] [--dry]

A run on the synthetic scene with a feature field (preset tiny on a CPU, f3rm on a GPU) trains without pause;
beside it a viewer in a process of its own follows the run's checkpoints, and somebody looks: a headless
Chromium where there is one, which gets every picture from `raymarch view`, else a stand-in that draws and
encodes the same pictures, coarse to fine, whenever a newer checkpoint appears. Windows of `--steps` steps
alternate: viewer awake, viewer stopped (SIGSTOP), and so on, so that whatever else the machine does falls on
both. `slowdown` is 1 - the median rate awake / the median rate asleep; `quartiles` are of the slowdown of
single pairs. Checkpoints are written in both. The browser itself, which draws its page in software here and
at a user's elsewhere, has the lowest priority and is awake in both. `load` is what else wanted to run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from bench import record
from raymarch.apps.demo import demo_config, demo_scene
from raymarch.apps.stage import OPENGL, Stage, Wish, eye_of
from raymarch.apps.view import POLL, SIDES
from raymarch.config import Config, preset
from raymarch.data.synthetic import make_scene
from raymarch.train.runs import start
from raymarch.train.trainer import Trainer
from raymarch.trained import TrainedScene

CHROMIUM = Path(__file__).resolve().parents[1] / "python_tests" / "chromium.py"
PORT = 8794
SETTLE = 5.0  # seconds between the first picture and the first window


def config_for(device: str, steps: int, save_every: int, width: int) -> Config:
    """What is trained: the demo's on a CPU, F3RM's on a GPU."""
    config = demo_config(steps, width)
    if device == "cuda":
        config = preset("f3rm")
    trainer = replace(config.train.trainer, steps=steps, save_every=save_every, log_every=10)
    return replace(config, train=replace(config.train, trainer=trainer))


def stand_in(run: Path, device: str) -> None:
    """Look at a run as `raymarch view` does for one page whose eye rests: runs until it is ended."""
    os.nice(10)
    scene = TrainedScene(run, device)
    stage = Stage(scene, SIDES[scene.device.type])
    pose = scene.camera("train", 0).camera_to_worlds[0].double().cpu().numpy()
    eye, newer = eye_of(pose[:, 3], pose[:, :3] @ OPENGL, 0.9, 1.5), True
    print("ready", flush=True)
    while True:
        for pixels in stage.finer(eye, moving=False) if newer else ():
            shown = stage.draw(eye, Wish(), pixels)
            Image.fromarray(shown.picture).save(io.BytesIO(), "jpeg", quality=92)
        time.sleep(POLL)
        newer = stage.refresh()


def chromium() -> Any:
    """The tests' own driver, or None where there is no Chromium, websocket package or viser."""
    if not CHROMIUM.is_file() or importlib.util.find_spec("viser") is None:
        return None
    spec = importlib.util.spec_from_file_location("chromium", CHROMIUM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module if module.find() and importlib.util.find_spec("websockets") else None


def offspring(process: int) -> Iterator[int]:
    """A process and all that it started, where /proc tells."""
    yield process
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from offspring(int(child))


def cpu_seconds(process: int) -> float:
    """Processor time that a process has used, 0 where /proc does not tell."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextlib.contextmanager
def looking(run: Path, device: str, browser: Any) -> Iterator[tuple[subprocess.Popen, str]]:
    """A viewer of the run in a process of its own, with somebody who looks: the process, and who looks."""
    command = [
        sys.executable,
        "-m",
        "raymarch.apps",
        "view",
        str(run),
        "--port",
        str(PORT),
        "--device",
        device,
    ]
    if browser is None:
        command = [sys.executable, "-m", "bench.viewing", "--stand-in", str(run), "--device", device]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        contextlib.ExitStack() as closing,
    ):
        viewer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        closing.callback(viewer.wait)
        closing.callback(viewer.kill)
        assert viewer.stdout is not None
        expected = r"ready" if browser is None else r"http://127\.0\.0\.1:\d+(?= \()"
        address = next(filter(None, (re.match(expected, line) for line in viewer.stdout)), None)
        if address is None:
            raise SystemExit("bench.viewing: the viewer ended before it was ready")
        if browser is not None:
            page = browser.Browser(Path(profile), 900, 600)
            closing.callback(page.close)
            for process in offspring(page.process.pid):
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, process, 19)
            page.call("Page.navigate", url=address[0])
            browser.wait_for(lambda: page.script("!!document.querySelector('canvas')"), 120, "the page")
        time.sleep(SETTLE)
        yield viewer, "stand-in" if browser is None else "chromium"


def windows(trainer: Trainer, viewer: subprocess.Popen, steps: int, pairs: int) -> dict[str, Any]:
    """Steps per second of alternating windows, awake first in every other pair."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    used = seconds = 0.0
    for pair in range(pairs):
        for awake in (True, False) if pair % 2 == 0 else (False, True):
            viewer.send_signal(signal.SIGCONT if awake else signal.SIGSTOP)
            before, began = cpu_seconds(viewer.pid), time.perf_counter()
            for _ in trainer.iterate(trainer.step + steps):  # saves on the way, but not where it ends
                pass
            if trainer.step % trainer.config.save_every == 0:
                trainer.save()
            took = time.perf_counter() - began
            rates[awake].append(steps / took)
            if awake:
                used, seconds = used + cpu_seconds(viewer.pid) - before, seconds + took
            if viewer.poll() is not None:
                raise SystemExit("bench.viewing: the viewer has ended")
    viewer.send_signal(signal.SIGCONT)
    lost = sorted(1 - a / b for a, b in zip(rates[True], rates[False], strict=True))
    return {
        "steps_per_second_watched": statistics.median(rates[True]),
        "steps_per_second_alone": statistics.median(rates[False]),
        "slowdown": 1 - statistics.median(rates[True]) / statistics.median(rates[False]),
        "quartiles": [round(q, 4) for q in statistics.quantiles(lost, n=4)[::2]],
        "viewer_cores": used / seconds,  # that it keeps busy while awake
    }


def measure(device: str, steps: int, pairs: int, save_every: int, browser: Any, run: Path) -> dict[str, Any]:
    """Train, watch and time; the run lies in an empty folder."""
    truth = make_scene()
    warm = max(2 * save_every, steps)
    total = warm + 2 * pairs * steps
    config = config_for(device, total, save_every, truth.feature_vectors.shape[1])
    trainer = start(demo_scene(truth), config, run, device)
    for _ in trainer.iterate(warm):
        pass
    trainer.save()
    with looking(run, device, browser) as (viewer, who):
        found = windows(trainer, viewer, steps, pairs)
    load = os.getloadavg()[0]
    return found | {"looks": who, "pairs": pairs, "steps": steps, "save_every": save_every, "load": load}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, help="of a window (default: 100 on a CPU, 2000 on a GPU)")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--save-every", type=int, help="steps (default: 50 on a CPU, 1000 on a GPU)")
    parser.add_argument("--no-browser", action="store_true", help="look through the stand-in")
    parser.add_argument("--stand-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dry", action="store_true", help="print, but leave the record alone")
    args = parser.parse_args()
    from raymarch.train.runs import DeviceError, pick_device

    try:
        pick_device(args.device)
    except DeviceError as error:
        raise SystemExit(f"bench.viewing: {error}") from None
    if args.stand_in:
        stand_in(args.stand_in, args.device)
        return
    gpu = args.device == "cuda"
    steps, save_every = args.steps or (2000 if gpu else 100), args.save_every or (1000 if gpu else 50)
    folder = Path(tempfile.mkdtemp(prefix="raymarch_viewing_"))
    try:
        found = measure(
            args.device,
            steps,
            args.pairs,
            save_every,
            None if args.no_browser else chromium(),
            folder / "run",
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()})
    if not args.dry:
        command = f"python -m bench.viewing --device {args.device} --steps {steps} --pairs {args.pairs}"
        command += f" --save-every {save_every}" + " --no-browser" * args.no_browser
        record.merge("checks", {"viewing": found}, command)


if __name__ == "__main__":
    main()
