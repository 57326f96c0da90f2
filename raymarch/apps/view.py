"""`raymarch view`: look around a run in a browser. A thin client of viser with one thread that renders.

Everything is served from this machine, to this machine: the page loads nothing from elsewhere. Pictures are
coarse while the eye moves and get finer when it rests. A run that is still being trained is followed by its
checkpoints, from this process, so training waits for nobody.
"""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from raymarch.apps.offline import Pages, ours
from raymarch.apps.stage import OPENGL, Eye, Shown, Stage, Wish, eye_of, frustum_of
from raymarch.config import ConfigError
from raymarch.data.paths import focus, quaternions, upward
from raymarch.features.words import read_embeddings
from raymarch.train.checkpoint import CheckpointError, saved
from raymarch.train.claim import CONFIG
from raymarch.trained import TrainedScene

HOST = "127.0.0.1"
SIDES = {"cuda": 1280, "cpu": 256}  # pixels of the finest picture's longer side
REST = 0.25  # seconds without a move after which pictures get finer
PAUSE = 0.4  # seconds without a key after which text is looked for
POLL = 2.0  # seconds between looks for a newer checkpoint
FRUSTUMS = 200  # cameras drawn at most


@dataclass
class Visitor:
    """One browser: what it looks at, and how fine the picture is that it has."""

    client: Any
    eye: Eye | None = None
    moved: float = 0.0  # when the eye last moved
    todo: list[float] = field(default_factory=list)  # pixel counts still to be drawn
    due: float = 0.0  # not to be drawn before
    through: int | None = None  # the training view whose camera the eye is in
    place: np.ndarray | None = None  # [3] where that is


def open_viser() -> Any:
    """The viser package. ConfigError says how to get it."""
    try:
        import viser
    except ImportError as error:
        raise ConfigError(
            f'the viewer needs viser, which cannot be imported ({error}): pip install "raymarch[viewer]"'
        ) from None
    return viser


def serve(viser: Any, port: int, label: str) -> Any:
    """A server on this machine alone, which talks to its own page alone.

    The page of viser before 1.0 asks a tracker for a script, and its server hands out any file whose path
    begins with dots: `offline.Pages` stands between. Its server also talks to whatever page the browser has
    open, as no version asks where a connection comes from: `offline.ours` does. ConfigError where it cannot.
    """
    infra, sockets = viser._viser.infra, cast(Any, import_module("websockets.asyncio.server"))
    plain, listen = infra.WebsockServer, sockets.serve
    guarded = []

    def with_pages(**options: Any) -> Any:
        return plain(**options | {"http_server_root": Pages(options["http_server_root"])})

    def with_guard(*args: Any, process_request: Any = None, **options: Any) -> Any:
        def answer(connection: Any, request: Any) -> Any:
            if not ours(request.headers.get_all("Host"), request.headers.get_all("Origin")):
                return connection.respond(403, "This viewer answers to its own page on this machine.\n")
            return process_request and process_request(connection, request)

        guarded.append(True)
        return listen(*args, process_request=answer, **options)

    infra.WebsockServer, sockets.serve = with_pages, with_guard
    try:
        server = viser.ViserServer(host=HOST, port=port, label=label, verbose=False)
    finally:
        infra.WebsockServer, sockets.serve = plain, listen
    if not guarded:
        server.stop()
        raise ConfigError(
            f"viser {viser.__version__} listens in a way that raymarch cannot guard against other pages: "
            "install the version that constraints.txt names"
        )
    return server


def wait_for_run(run: Path, follow: bool, say=print) -> None:
    """Wait for the first checkpoint of a run that has just begun, whose settings are there already."""
    told = False
    while follow and (run / CONFIG).is_file() and not saved(run):
        if not told:
            say(f"waiting for the first checkpoint of {run}")
            told = True
        time.sleep(POLL)


class Viewer:
    """Serves one run until `stop`. The page is at `address`."""

    def __init__(
        self,
        run: Path,
        port: int = 8080,
        side: int | None = None,
        follow: bool = True,
        embeddings: Path | None = None,
        weights: str | None = None,
        device: str = "auto",
    ):
        viser = open_viser()
        wait_for_run(run, follow)
        scene = TrainedScene(run, device)
        if embeddings is not None:
            scene.words.vectors |= read_embeddings(embeddings)
        scene.words.weights = weights
        self.stage = Stage(scene, side or SIDES[scene.device.type])
        self.follow = follow
        self.wish = Wish()
        self.drawn = 0  # pictures sent
        self.visitors: dict[int, Visitor] = {}
        self.wake = threading.Condition()
        self.stopped = False
        self.jobs: list[Any] = []  # what the rendering thread is to do first
        self.server = serve(viser, port, f"raymarch {run.name}")
        self.address = f"http://{HOST}:{self.server.get_port()}"
        self._build()
        self.server.on_client_connect(self._arrived)
        self.server.on_client_disconnect(self._left)
        self.thread = threading.Thread(target=self._loop, name="render", daemon=True)
        self.thread.start()

    # ---- the page ----

    def _build(self) -> None:
        """Controls and camera frustums."""
        gui, scene = self.server.gui, self.stage.scene
        gui.configure_theme(dark_mode=True, show_share_button=False)
        self.server.scene.set_up_direction(tuple(self._up()))
        self.status = gui.add_markdown("")
        self.head = gui.add_dropdown("Show", tuple(self.stage.heads), initial_value="rgb")
        self.head.on_update(lambda _: self._changed())
        if "similarity" in self.stage.heads:
            self.positives = gui.add_text("Looking for", "", hint="Texts between commas describe one thing")
            self.negatives = gui.add_text("Not", "", hint="What it is not, between commas")
            self.positives.on_update(lambda _: self._typed())
            self.negatives.on_update(lambda _: self._typed())
            if known := scene.words.known:
                shown = ", ".join(known[:40]) + (" ..." if len(known) > 40 else "")
                gui.add_markdown(f"Words without an encoder: {shown}")
        count = len(scene.train)
        self.at = gui.add_slider("Training view", 0, max(count - 1, 1), 1, 0, disabled=count < 2)
        self.at.on_update(lambda event: self._jump(event.client, int(self.at.value)))
        self.cameras = gui.add_checkbox("Cameras", False)
        self.cameras.on_update(lambda _: self._do(self._frustums))
        self.finest = gui.add_slider("Finest side", 64, 2048, 32, self._rounded(self.stage.side))
        self.finest.on_update(lambda _: self._changed())
        self.handles: dict[int, Any] = {}  # frustums by training view
        poses = scene.train_cameras().camera_to_worlds.double().cpu()
        self.reach = 0.04 * float((poses[:, :, 3] - focus(poses)).norm(dim=1).median())  # of a frustum
        self._tell(None)

    @staticmethod
    def _rounded(side: int) -> int:
        return min(2048, max(64, round(side / 32) * 32))

    def _up(self) -> np.ndarray:
        return upward(self.stage.scene.train_cameras().camera_to_worlds.double().cpu()).numpy()

    def _frustums(self) -> None:
        """Training cameras where refinement has put them, clickable; not those that somebody is in."""
        for handle in self.handles.values():
            handle.remove()
        self.handles = {}
        if not self.cameras.value:
            return
        scene = self.stage.scene
        cameras = scene.train_cameras()
        poses = cameras.camera_to_worlds.double().cpu()
        count = len(scene.train)
        for i in sorted(
            {k * count // FRUSTUMS for k in range(FRUSTUMS)} if count > FRUSTUMS else range(count)
        ):
            fov, aspect = frustum_of(cameras, i)
            rotation = poses[i, :, :3].numpy() @ OPENGL
            handle = self.server.scene.add_camera_frustum(
                f"/cameras/{i:04d}", fov=fov, aspect=aspect, scale=self.reach, color=(240, 160, 60),
                wxyz=quaternion(rotation), position=tuple(poses[i, :, 3].tolist()),
            )  # fmt: skip
            handle.on_click(lambda event, i=i: self._jump(event.client, i))
            self.handles[i] = handle
        self._hide()

    def _hide(self) -> None:
        """Leave out the frustums that somebody looks through: their lines would frame the picture."""
        inside = {visitor.through for visitor in list(self.visitors.values())}
        for i, handle in self.handles.items():
            if handle.visible == (i in inside):
                handle.visible = i not in inside

    def _jump(self, client: Any, i: int) -> None:
        """Have a browser's eye put into training view i."""
        if client is not None:
            self._do(lambda: self._put(client, i))

    def _put(self, client: Any, i: int) -> None:
        """Put a browser's eye into training view i."""
        visitor = self.visitors.get(client.client_id)
        if visitor is None:  # it has left
            return
        cameras = self.stage.scene.train_cameras()
        pose = cameras.camera_to_worlds[i].double().cpu().numpy()
        centre = focus(cameras.camera_to_worlds.double().cpu()).numpy()
        ahead = -pose[:, 2]
        distance = max(float((centre - pose[:, 3]) @ ahead), 0.1)
        visitor.through, visitor.place = i, pose[:, 3]
        self._hide()
        with client.atomic():
            client.camera.fov = frustum_of(cameras, i)[0]
            client.camera.up_direction = pose[:, 1]
            client.camera.position = pose[:, 3]
            client.camera.look_at = pose[:, 3] + distance * ahead
        self._look(visitor, client.camera)

    def _tell(self, shown: Shown | None) -> None:
        text = f"**{self.stage.scene.path.name}** step {self.stage.scene.step}"
        if shown is not None:
            height, width = shown.picture.shape[:2]
            text += f", {width} x {height} in {1000 * shown.seconds:.0f} ms"
            text += f"\n\n{shown.note}" if shown.note else ""
        self.status.content = text

    # ---- browsers ----

    def _arrived(self, client: Any) -> None:
        visitor = Visitor(client)
        with self.wake:
            self.visitors[client.client_id] = visitor
        self._jump(client, 0)
        self._do(lambda: client.camera.on_update(lambda camera: self._look(visitor, camera)))

    def _left(self, client: Any) -> None:
        with self.wake:
            self.visitors.pop(client.client_id, None)

    def _look(self, visitor: Visitor, camera: Any) -> None:
        """An eye moved."""
        aspect = camera.aspect if math.isfinite(camera.aspect) and camera.aspect > 0 else 1.0
        eye = eye_of(camera.position, rotation_of(camera.wxyz), camera.fov, aspect)
        if visitor.place is not None and self._away(eye, visitor.place):
            visitor.through, visitor.place = None, None
            self._do(self._hide)
        with self.wake:
            visitor.eye, visitor.moved = eye, time.monotonic()
            visitor.todo, visitor.due = list(self.stage.finer(eye, moving=True)), 0.0
            self.wake.notify()

    def _away(self, eye: Eye, place: np.ndarray) -> bool:
        """Whether an eye has left the training view at a place."""
        return float(np.linalg.norm(eye.camera_to_world[:, 3] - place)) > 0.25 * self.reach

    def _changed(self, delay: float = 0.0) -> None:
        """Something other than an eye changed: everybody gets new pictures, coarse to fine."""
        with self.wake:
            self.stage.side = int(self.finest.value)
            texts = ("", "")
            if "similarity" in self.stage.heads:
                texts = self.positives.value, self.negatives.value
            self.wish = Wish(self.head.value, *texts)
            for visitor in self.visitors.values():
                if visitor.eye is not None:
                    visitor.todo = list(self.stage.finer(visitor.eye, moving=False))
                    visitor.due = time.monotonic() + delay
            self.wake.notify()

    def _typed(self) -> None:
        if self.head.value != "similarity":
            self.head.value = "similarity"
        self._changed(PAUSE)

    def _do(self, job: Any) -> None:
        """Have the rendering thread do something: it alone touches the model."""
        with self.wake:
            self.jobs.append(job)
            self.wake.notify()

    # ---- the thread that renders ----

    def _loop(self) -> None:
        polled = time.monotonic()
        while not self.stopped:
            with self.wake:
                work = self._next()
                if work is None and not self.jobs:
                    self.wake.wait(0.05)
                    work = self._next()
                jobs, self.jobs = self.jobs, []
            for job in jobs:
                self._guarded(job)
            if work is not None:
                self._serve(*work)
            if self.follow and time.monotonic() - polled > POLL:
                self._newer()
                polled = time.monotonic()

    def _next(self) -> tuple[Visitor, Eye, Wish, float] | None:
        """What to draw next; an eye that has come to rest gets its finer pictures."""
        now = time.monotonic()
        for visitor in self.visitors.values():
            if visitor.eye is None or now < visitor.due:
                continue
            if not visitor.todo and visitor.moved and now - visitor.moved > REST:
                visitor.moved = 0.0
                visitor.todo = list(self.stage.finer(visitor.eye, moving=False))[1:]
            if visitor.todo:
                return visitor, visitor.eye, self.wish, visitor.todo.pop(0)
        return None

    def _serve(self, visitor: Visitor, eye: Eye, wish: Wish, pixels: float) -> None:
        shown = self._guarded(lambda: self.stage.draw(eye, wish, pixels))
        if shown is None:
            return
        fine = pixels * 1.01 >= self.stage.side**2 / max(eye.aspect, 1 / eye.aspect)
        depth = shown.z if self.cameras.value else None
        try:
            visitor.client.scene.set_background_image(
                shown.picture, format="jpeg", jpeg_quality=92 if fine else 75, depth=depth
            )
            visitor.client.flush()
        except KeyError:  # it has left
            return
        self.drawn += 1
        self._tell(shown)

    def _guarded(self, job: Any) -> Any:
        """What a job returns. One that fails must not end the viewer: the page says what happened."""
        try:
            return job()
        except Exception as error:
            self.status.content = f"{type(error).__name__}: {error}"
            return None

    def _newer(self) -> None:
        try:
            if self.stage.refresh():
                self._frustums()
                self._changed()
        except CheckpointError:  # pruned while it was read; the next one comes
            pass

    def stop(self) -> None:
        """End the thread and the server."""
        self.stopped = True
        self.thread.join(timeout=30)
        self.server.stop()


def rotation_of(wxyz: np.ndarray) -> np.ndarray:
    """A rotation [3, 3] from a quaternion w, x, y, z."""
    w, x, y, z = np.asarray(wxyz, float) / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """w, x, y, z of a rotation [3, 3]."""
    w, x, y, z = quaternions(torch.from_numpy(np.ascontiguousarray(rotation))[None])[0].tolist()
    return w, x, y, z


def view_run(
    run: Path,
    port: int,
    side: int | None,
    follow: bool,
    embeddings: Path | None,
    weights: str | None,
    device: str,
) -> None:
    """Serve until Ctrl-C, at a low priority: a training on the same cores goes first."""
    if hasattr(os, "nice"):
        os.nice(10)
    viewer = Viewer(run, port, side, follow, embeddings, weights, device)
    print(f"{viewer.address} (Ctrl-C ends)", flush=True)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        viewer.stop()
