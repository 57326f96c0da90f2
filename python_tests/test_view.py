"""The viewer: pictures without a browser, and the page in a headless Chromium that can reach nobody else."""

import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

chromium = pytest.importorskip("chromium")

from raymarch.apps.offline import Pages, ours, without_tracking  # noqa: E402
from raymarch.apps.stage import Stage, Wish, camera_at, eye_of, words_in, z_depth  # noqa: E402
from raymarch.train.checkpoint import newest, path_at, write  # noqa: E402
from raymarch.trained import TrainedScene  # noqa: E402

ARTEFACTS = Path(
    os.environ.get("RAYMARCH_ARTEFACTS", Path(__file__).resolve().parents[1] / "build" / "shots")
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A demo trained for so few steps that things can just be made out."""
    from raymarch.apps.demo import train_demo
    from raymarch.features.words import STORED, write_embeddings

    folder = tmp_path_factory.mktemp("view") / "run"
    found = train_demo(250, "cpu", folder)
    names = dict(zip(found.truth.names, found.truth.feature_vectors, strict=True))
    write_embeddings(folder / STORED, names, {})
    return folder


@pytest.fixture
def stage(run):
    return Stage(TrainedScene(run, "cpu"), 48)


def eye_in(scene, i=0, aspect=1.25):
    pose = scene.camera("train", i).camera_to_worlds[0].double().numpy()
    return eye_of(pose[:, 3], pose[:, :3] @ np.diag([1.0, -1, -1]), 1.0, aspect)


def test_an_eye_is_the_camera_it_was_made_from(stage):
    camera = stage.scene.camera("train", 3)
    fov = 2 * float(torch.atan(0.5 * camera.size[0, 1] / camera.intrinsics[0, 1]))
    eye = replace(eye_in(stage.scene, 3, 1.0), fov=fov)
    made = camera_at(eye, 96 * 96, stage.scene.device)
    torch.testing.assert_close(made.camera_to_worlds, camera.camera_to_worlds)
    torch.testing.assert_close(made.intrinsics, camera.intrinsics, rtol=1e-5, atol=1e-3)
    assert made.size.tolist() == camera.size.tolist()


def test_pictures_get_finer_and_only_the_first_while_moving(stage):
    stage.rate = 1e4
    eye = eye_in(stage.scene)
    counts = list(stage.finer(eye, moving=False))
    assert counts == sorted(counts) and counts[-1] == pytest.approx(48**2 / 1.25)
    assert list(stage.finer(eye, moving=True)) == counts[:1] and len(counts) > 1


def test_every_head_gives_its_own_picture(stage):
    eye, seen = eye_in(stage.scene), {}
    for head in stage.heads:
        shown = stage.draw(eye, Wish(head, "red ball", "sky, ground"), 900)
        assert shown.note == "" and shown.picture.dtype == np.uint8 and shown.picture.std() > 3
        assert shown.z.shape == shown.picture.shape[:2]
        seen[head] = shown.picture.astype(int)
    assert set(seen) == {"rgb", "depth", "normals", "pca", "similarity"}
    for name, picture in seen.items():
        assert name == "rgb" or np.abs(picture - seen["rgb"]).mean() > 5, name


def test_a_word_that_nobody_knows_leaves_the_picture_and_says_so(stage):
    eye = eye_in(stage.scene)
    plain = stage.draw(eye, Wish("rgb"), 400).picture
    shown = stage.draw(eye, Wish("similarity", "unicorn"), 400)
    assert "unicorn" in shown.note and np.array_equal(shown.picture, plain)
    assert "Write" in stage.draw(eye, Wish("similarity"), 400).note


def test_z_is_distance_along_the_axis(stage):
    camera = camera_at(eye_in(stage.scene, aspect=1.0), 100, stage.scene.device)
    z = z_depth(torch.ones(10, 10), camera)
    focal = float(camera.intrinsics[0, 0])
    corner = 1 / np.sqrt(1 + 2 * (4.5 / focal) ** 2)
    np.testing.assert_allclose([z[0, 0], z[9, 9]], corner, rtol=1e-5)


def test_words_between_commas():
    assert words_in(" red ball, ball ,,") == ["red ball", "ball"]


def test_a_newer_checkpoint_is_taken_over(run, tmp_path):
    folder = tmp_path / "run"
    tensors, meta = newest(run)
    write(path_at(folder, 250), tensors, meta)
    stage = Stage(TrainedScene(folder, "cpu"), 32)
    eye = eye_in(stage.scene)
    before = stage.draw(eye, Wish(), 400).picture
    assert not stage.refresh()
    changed = {k: v * 0.5 if k.startswith("model.fields.radiance") else v for k, v in tensors.items()}
    write(path_at(folder, 260), changed, {**meta, "step": 260})
    assert stage.refresh() and stage.scene.step == 260
    assert not np.array_equal(stage.draw(eye, Wish(), 400).picture, before)
    assert not stage.refresh()


def test_news_waits_until_the_last_was_a_small_part_of_the_time(run, tmp_path, monkeypatch):
    """A training that is followed keeps 96 % of the machine, and a viewer that draws all day sees news."""
    clock = SimpleNamespace(now=100.0, work=0.0)
    times = {"monotonic": lambda: clock.now, "perf_counter": lambda: clock.now}
    monkeypatch.setattr("raymarch.apps.stage.time", SimpleNamespace(**times, process_time=lambda: clock.work))
    folder = tmp_path / "run"
    tensors, meta = newest(run)

    def save(step):
        write(path_at(folder, step), tensors, {**meta, "step": step})

    save(250)
    stage = Stage(TrainedScene(folder, "cpu"), 32)
    draw, refresh = stage._drawn, stage.scene.refresh

    def drawn(camera, wish):
        clock.work += 0.3
        return draw(camera, wish)

    def refreshed():
        clock.work += 0.1
        return refresh()

    stage._drawn, stage.scene.refresh = drawn, refreshed
    eye = eye_in(stage.scene)
    save(260)
    assert stage.refresh()
    stage.draw(eye, Wish(), 400)
    assert stage.worked == pytest.approx(0.4)
    save(270)
    for now, taken in ((101, False), (109.9, False), (110.1, True)):  # 0.4 / 0.04 = 10
        clock.now = now
        assert stage.refresh() == taken
    for _ in range(20):  # someone looks around
        stage.draw(eye, Wish(), 400)
    save(280)
    for now, taken in ((139, False), (141, True)):
        clock.now = now
        assert stage.refresh() == taken


def test_only_files_of_the_page_are_served(tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<p>hello</p>")
    (tmp_path / "secret").write_text("no")
    pages = Pages(tmp_path / "page")
    assert (pages / "index.html").exists() and (pages / "index.html").read_bytes() == b"<p>hello</p>"
    assert not (pages / "../secret").exists() and not (pages / "nothing").exists()


def test_tracking_scripts_are_left_out_and_others_kept():
    html = '<script async src="https://www.googletagmanager.com/x"></script><script>a()</script>'
    assert without_tracking(html + "<script>gtag('js')</script>") == "<script>a()</script>"


@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("localhost:9000", "http://localhost:9000", True),  # through a tunnel
        ("[::1]:8080", "http://[::1]:8080", True),
        ("127.0.0.1:8080", None, True),  # a page being opened, or no browser
        ("127.0.0.1:8080", "http://example.com", False),
        ("127.0.0.1:8080", "http://127.0.0.1:3000", False),  # another server's page on this machine
        ("127.0.0.1:8080", "http://localhost:8080", False),
        ("127.0.0.1:8080", "null", False),  # a file, or a frame in a sandbox
        ("example.com:8080", "http://example.com:8080", False),  # a name that its owner points here
        ("example.com:8080", None, False),
        ("127.0.0.1.example.com", "http://127.0.0.1.example.com", False),
        ("127.0.0.1@example.com", None, False),
        ("[::1", "http://[::1", False),
        ("", None, False),
    ],
)
def test_only_the_page_of_this_machine_is_answered(host, origin, answered):
    assert ours([host], [] if origin is None else [origin]) == answered


def test_several_answers_to_one_question_are_none():
    assert not ours([], []) and not ours(["127.0.0.1"] * 2, [])
    assert not ours(["127.0.0.1"], ["http://127.0.0.1", "http://example.com"])


def test_a_page_from_elsewhere_cannot_connect():
    """What a browser sends when a page opens a websocket to this machine."""
    viser = pytest.importorskip("viser", reason="viser is not installed")
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    from raymarch.apps.view import serve

    server = serve(viser, 8890, "a test")
    try:
        port = server.get_port()
        said = {"subprotocols": [f"viser-v{viser.__version__}"], "compression": None}
        with connect(f"ws://127.0.0.1:{port}", origin=f"http://127.0.0.1:{port}", **said) as page:
            assert page.recv(timeout=20)
        for name, origin in (("127.0.0.1", "http://example.com"), ("x.example", f"http://x.example:{port}")):
            here = socket.create_connection(("127.0.0.1", port))
            with pytest.raises(InvalidStatus, match="403"):
                connect(f"ws://{name}:{port}", sock=here, origin=origin, **said)
        request = urllib.request.Request(f"http://127.0.0.1:{port}", headers={"Host": f"x.example:{port}"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)
    finally:
        server.stop()


# ---- in a browser ----


@pytest.fixture(scope="module")
def viewer(run):
    pytest.importorskip("viser", reason="viser is not installed")
    if chromium.find() is None:
        pytest.skip("no Chromium is installed")
    from raymarch.apps.view import Viewer

    torch.use_deterministic_algorithms(False)
    viewer = Viewer(run, port=8790, side=96, device="cpu")
    yield viewer
    viewer.stop()


@pytest.fixture(scope="module")
def browser(viewer, tmp_path_factory):
    browser = chromium.Browser(tmp_path_factory.mktemp("profile"), 900, 600)
    browser.call("Page.navigate", url=viewer.address)
    chromium.wait_for(lambda: viewer.drawn > 0, 90, "the first picture")
    yield browser
    browser.close()


def canvas_of(browser, name):
    """The page without its panel and notices, once it stops changing; the whole is kept as a file."""
    last = browser.screenshot()
    for _ in range(40):
        time.sleep(0.5)
        shot = browser.screenshot()
        if np.array_equal(shot, last):
            break
        last = shot
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    chromium.Image.fromarray(shot).save(ARTEFACTS / f"view_{name}.png")
    return shot[160:, :560].astype(int)


def type_into(browser, label, text):
    """What a person does: the text of the box with that label becomes another."""
    found = browser.script(
        f"""(() => {{
          const label = [...document.querySelectorAll('label')].find(e => e.innerText == {json.dumps(label)});
          const box = label.closest('[class*=Flex], div').parentElement.querySelector('input')
            || document.getElementById(label.htmlFor);
          const value = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value');
          value.set.call(box, {json.dumps(text)});
          box.dispatchEvent(new Event('input', {{bubbles: true}}));
          return box.value;
        }})()"""
    )
    assert found == text


def test_the_page_shows_the_scene_and_answers_to_words(viewer, browser):
    plain = canvas_of(browser, "rgb")
    assert plain.std() > 20 and len(np.unique(plain.reshape(-1, 3), axis=0)) > 500  # not blank
    type_into(browser, "Looking for", "red ball")
    type_into(browser, "Not", "sky, ground, cone, mug")
    chromium.wait_for(lambda: viewer.wish.positives == "red ball" and viewer.wish.negatives, 30, "the text")
    drawn = viewer.drawn
    chromium.wait_for(lambda: viewer.drawn > drawn, 60, "the picture of the text")
    found = canvas_of(browser, "similarity")
    assert viewer.wish.head == "similarity" and np.abs(found - plain).mean() > 15
    warm = (found[..., 0] - found[..., 2] > 80).mean()  # lit where the ball is, grey elsewhere
    assert 0.03 < warm < 0.6
    type_into(browser, "Not", "red ball")
    type_into(browser, "Looking for", "ground")
    chromium.wait_for(lambda: viewer.wish.positives == "ground", 30, "the other text")
    drawn = viewer.drawn
    chromium.wait_for(lambda: viewer.drawn > drawn, 60, "the picture of the other text")
    assert np.abs(canvas_of(browser, "similarity_ground") - found).mean() > 5


def test_the_page_asks_nobody_else(viewer, browser):
    browser.script("1")
    others = [u for u in browser.asked if not u.startswith((viewer.address, "blob:", "data:"))]
    assert browser.asked and others == []


def test_views_and_frustums(viewer, browser, monkeypatch):
    viewer.head.value = "rgb"
    viewer._changed()
    chromium.wait_for(lambda: viewer.wish.head == "rgb", 10, "the plain picture")
    here = canvas_of(browser, "before_jump")
    drawn = viewer.drawn
    viewer.at.value = 17
    asked, known = [], viewer.stage.scene.train_cameras

    def train_cameras():
        asked.append(threading.current_thread())
        return known()

    monkeypatch.setattr(viewer.stage.scene, "train_cameras", train_cameras)
    for visitor in list(viewer.visitors.values()):
        viewer._jump(visitor.client, 17)
    chromium.wait_for(lambda: viewer.drawn > drawn, 60, "another view")
    assert np.abs(canvas_of(browser, "view_17") - here).mean() > 10
    assert asked and set(asked) == {viewer.thread}
    viewer.cameras.value = True
    viewer._do(viewer._frustums)
    chromium.wait_for(lambda: len(viewer.handles) == 40, 30, "frustums")
    pose = viewer.stage.scene.train_cameras().camera_to_worlds[5, :, 3].tolist()
    np.testing.assert_allclose(viewer.handles[5].position, pose, atol=1e-6)
    chromium.wait_for(lambda: not viewer.handles[17].visible, 30, "the frustum looked through to go")
    assert all(handle.visible for i, handle in viewer.handles.items() if i != 17)
    visitor = next(iter(viewer.visitors.values()))
    visitor.client.camera.position = viewer.handles[5].position
    chromium.wait_for(lambda: viewer.handles[17].visible, 30, "the frustum left behind to come back")
    assert visitor.through is None


def test_it_listens_to_this_machine_alone_and_serves_nothing_else(viewer):
    assert viewer.server.get_host() == "127.0.0.1"
    with urllib.request.urlopen(viewer.address) as page:
        assert b"googletagmanager" not in page.read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(viewer.address + "/../_viser.py")
