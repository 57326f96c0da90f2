"""README and docs keep their word: every code block runs or is parsed, every name and every link exists.

A page is followed as a newcomer would, block by block, in one folder with one Python session. The scene is
the synthetic one at a few pixels, presets are shrunk, and training ends after a few steps: what is tested is
that a line does what its page says, not how well.
"""

import argparse
import functools
import importlib
import json
import os
import re
import shutil
import sys
import time
import tomllib
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tyro
from pages import ROOT, Block, blocks, commands, pages, without_blocks
from PIL import Image
from safetensors.torch import save_file

from raymarch import config as configs
from raymarch.apps import cli
from raymarch.apps.localizing import NotFound
from raymarch.data.scene import load
from raymarch.data.synthetic import make_scene
from raymarch.features.words import Words
from raymarch.train.localize import Level, LocalizeConfig
from raymarch.train.runs import start
from raymarch.train.trainer import Trainer

LANGUAGES = {"python", "sh", "cpp", "text", "json"}
STEPS, WIDTH, SIZE, VIEWS = 60, 8, 20, 18
PARSED_ONLY = {  # not run here, and why
    "demo": "traces its scene for seconds; python_tests/test_apps.py runs it",
    "extract": "downloads a network; python_tests/test_features.py runs it",
    "profile": "measures for seconds; python_tests/test_profiling.py runs it",
}
EXTRAS = {
    "view": ("viser",),
    "mesh": ("skimage", "trimesh"),
    "--tensorboard": ("tensorboard",),
    "mp4": ("av",),
}
GENERATED = {  # by docs/generated.py
    Path(f"{name}.md") for name in ("index", "changelog", "contributing", "security", "commands", "ops")
}
PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()]
BLOCKS = [block for page in pages() for block in blocks(page)]


# ---- a small world ----


def small(width: int) -> configs.Config:
    """Every preset, shrunk until a step takes milliseconds."""
    config = configs.tiny()
    for knob in (
        "model.sampler.samples=12,8",
        "model.fields.proposals.0.grid.log2_size=10",
        "model.fields.radiance.grid.log2_size=10",
        "model.fields.radiance.hidden=16",
        "model.fields.radiance.colour_hidden=16",
        "model.fields.feature.grid.log2_size=8",
        "model.fields.feature.hidden=16",
        f"model.fields.feature.width={width}",
        "model.losses.distortion=0",
        "model.reduced.resolution=32",
        "train.trainer.rays=128",
        "train.optim.fields.lr=5e-2",
        "train.optim.fields.lr_final=5e-2",
        "train.optim.proposals.lr=5e-2",
        "train.optim.proposals.lr_final=5e-2",
    ):
        config = configs.override(config, knob)
    return config


def write_photos(folder: Path) -> None:
    """A nerfstudio scene with feature maps of two kinds."""
    truth = make_scene(VIEWS, test_views=0, size=SIZE)
    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(VIEWS):
        name = f"images/{i:04d}.png"
        Image.fromarray(truth.images[i].numpy()).save(folder / name)
        pose = torch.cat([truth.camera_to_worlds[i], torch.tensor([[0.0, 0, 0, 1]])])
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    lens = dict(zip(("fl_x", "fl_y", "cx", "cy"), truth.intrinsics.tolist(), strict=True))
    meta = lens | {"w": SIZE, "h": SIZE, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))
    for kind in ("clip", "dino"):
        maps = {frame["file_path"]: torch.rand(5, 5, WIDTH).half() for frame in frames}
        save_file(maps, folder / f"features_{kind}.safetensors")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What pages speak of: photos/, a photo, words, poses, and runs to look at."""
    folder = tmp_path_factory.mktemp("world")
    write_photos(folder / "photos")
    shutil.copy(folder / "photos" / "images" / "0000.png", folder / "photo.jpg")
    shutil.copy(folder / "photo.jpg", folder / "new.jpg")
    Image.new("RGB", (1080, 1920), "white").save(folder / "phone.jpg")
    scene = load(folder / "photos", features=[str(folder / "photos" / "features_clip.safetensors")])
    pose = scene.world_from_scene.apply_poses(scene.cameras.camera_to_worlds[:1].double())[0]
    (folder / "pose.json").write_text(json.dumps(pose.tolist()))
    source = {"path": str(folder / "photos"), "options": {}}
    start(scene, small(WIDTH), folder / "run", "cpu", source).train(STEPS)
    return folder


class Visit:
    """One page, followed in a folder of its own."""

    def __init__(self, page: Path, world: Path, folder: Path):
        self.names: dict[str, object] = {"__name__": "__main__"}
        text = page.read_text("utf-8")
        for entry in ("photos", "photo.jpg", "new.jpg", "phone.jpg", "pose.json"):
            place = shutil.copytree if (world / entry).is_dir() else shutil.copy
            place(world / entry, folder / entry)
        told = {out for block in blocks(page) for out in re.findall(r"train .*--out (\S+)", block.text)}
        for run in ("raymarch_demo/run", "runs/photos", "runs/named"):
            if run in text and run not in told:
                shutil.copytree(world / "run", folder / run)

    def follow(self, block: Block) -> None:
        if block.language == "python" and not block.quoted_from:
            code = compile(block.text, str(block), "exec")
            if not block.not_run:
                exec(code, self.names)
        elif block.language == "sh":
            for words in commands(block.text):
                run_or_parse(words, bool(block.not_run))


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The small world's settings: no GPU, presets shrunk, short training, words without an encoder."""
    iterate = Trainer._iterate
    monkeypatch.setattr(Trainer, "_iterate", lambda self, end: iterate(self, min(end, self.step + STEPS)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Words, "_encoded", lambda self, text: torch.randn(WIDTH))
    level = Level(8, 8, 1.0, 1, 1)
    monkeypatch.setattr(
        "raymarch.trained.LocalizeConfig",
        lambda: LocalizeConfig(particles=4, rounds=1, elites=2, search=level, levels=(level,)),
    )
    monkeypatch.setattr("raymarch.apps.view.time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    for name in configs.PRESETS:
        monkeypatch.setitem(
            configs.PRESETS, name, lambda name=name: small(WIDTH if name.startswith("f3rm") else 0)
        )
    monkeypatch.setenv("RAYMARCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# ---- commands ----


def run_or_parse(words: list[str], parse_only: bool) -> None:
    program, *rest = words
    if program == "raymarch":
        parse(rest)
        if not parse_only and rest[0] not in PARSED_ONLY and not missing(rest):
            try:
                cli.main(shrunk(rest))
            except SystemExit as ended:  # fields that learnt for a few steps explain no photo
                assert rest[0] == "localize" and ended.code == NotFound.status, ended
    elif program in ("python", "python3") and rest[:1] == ["-m"]:
        parse_module(rest[1], rest[2:])
    elif program == "pip":
        check_pip(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert [w for w in rest if "=" not in w and w not in targets] == []
    elif program.startswith("bench/"):
        assert os.access(ROOT / program, os.X_OK), f"{program} is not a program"
    else:
        assert program in ("pytest", ".") or parse_only, f"{program}: say `not run`, and why"
        if "raymarch" in rest:  # run under a profiler
            parse(rest[rest.index("raymarch") + 1 :])


def shrunk(words: list[str]) -> list[str]:
    """The same command, done sooner."""
    if "--frames" in words:
        at = words.index("--frames") + 1
        words = [*words[:at], "4", *words[at + 1 :]]
    more = {"view": ["--port", "0"], "mesh": ["--resolution", "24"]}
    return [*words, *(more.get(words[0]) or more.get(words[-1]) or [])]


def interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


def missing(words: list[str]) -> list[str]:
    """Optional packages that a command needs and that are not here."""
    return [name for word in words for name in EXTRAS.get(word, ()) if find_spec(name) is None]


def parse(words: list[str]) -> None:
    """Hold a command to the real command line, without doing what it says."""
    assert words and words[0] in cli.COMMANDS, f"raymarch has no command {words[:1]}"
    idle = functools.wraps(cli.COMMANDS[words[0]])(lambda *_, **__: None)
    try:
        tyro.cli(idle, args=words[1:], prog=f"raymarch {words[0]}")
    except SystemExit:
        raise AssertionError(f"`raymarch {' '.join(words)}` is refused: see above") from None


class Parsed(Exception):
    """Ends a program once its arguments were accepted."""


def parse_module(name: str, words: list[str]) -> None:
    """The same for `python -m bench.NAME`: its own parser reads the words."""
    if not name.startswith("bench"):
        return
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):  # a package: what `python -m` runs of it
        module = importlib.import_module(f"{name}.__main__")
    if not hasattr(module, "argparse"):
        assert (ROOT / f"{name.replace('.', '/')}.py").read_text().count('if __name__ == "__main__"') == 1
        return
    whole = argparse.ArgumentParser.parse_args

    def only_parse(parser, args=None, namespace=None):
        whole(parser, args, namespace)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        patch.setattr(sys, "argv", [name, *words])
        try:
            module.main()
        except Parsed:
            pass
        except SystemExit:
            raise AssertionError(f"`python -m {name} {' '.join(words)}` is refused: see above") from None


def check_pip(words: list[str]) -> None:
    """Extras and constraint files that a line of pip names exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:raymarch|\.)\[([\w,-]+)\]", " ".join(words)):
        assert not set(extras.split(",")) - project["optional-dependencies"].keys(), extras
    for flag, file in pairwise(words):
        assert flag != "-c" or (ROOT / file).is_file(), file


# ---- the tests ----


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(page, world, quick, capsys):
    visit = Visit(page, world, quick)
    for block in blocks(page):
        try:
            visit.follow(block)
        except (Exception, SystemExit) as error:
            told = capsys.readouterr()
            raise AssertionError(
                f"{block}: {type(error).__name__}: {error}\n{told.out[-900:]}{told.err[-900:]}"
            ) from error


def test_every_block_says_its_language_and_none_is_merely_indented():
    assert len(BLOCKS) > 20
    assert [str(b) for b in BLOCKS if b.language not in LANGUAGES] == []
    for page in pages():
        before, listed = "", False
        for line in without_blocks(page).splitlines():
            listed = bool(re.match(r" *([-*]|\d+\.) ", line)) or (listed and line[:1] in ("", " "))
            assert listed or before or not line.startswith("    "), f"{page}: fence this: {line.strip()}"
            before = line.strip()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.quoted_from], ids=str)
def test_a_quoted_passage_stands_in_its_file(block):
    source = " ".join((ROOT / block.quoted_from).read_text("utf-8").split())
    assert " ".join(block.text.split()) in source


def test_c_plus_plus_is_quoted_never_made_up():
    assert [str(b) for b in BLOCKS if b.language == "cpp" and not b.quoted_from] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if not re.match(r"(https?|mailto):|#", target):
            found = (page.parent / target.partition("#")[0]).resolve()
            assert found.exists() or found.relative_to(ROOT / "docs") in GENERATED, f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_op_and_setting_that_is_named_exists(page):
    from raymarch import ops

    text = page.read_text("utf-8")
    here = r"(?:raymarch|csrc|bench|docs|python_tests|\.ci)"
    for path in re.findall(rf"`({here}/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{page} names {path}"
    for name in set(re.findall(r"`ops\.(\w+)[`(]", text)) - {"name", "def"}:
        assert hasattr(ops, name), f"{page} names ops.{name}"
    for name in re.findall(r"(?<![\w.])((?:model|train)(?:\.[a-z_0-9]+)+)(?![\w(]|\.[a-z])", text):
        if not name.endswith((".py", ".json")):
            node = configs.Config()
            for part in name.split("."):
                known = dir(node) if not isinstance(node, tuple) else map(str, range(len(node)))
                assert part in known, f"{page} names the setting {name}"
                node = node[int(part)] if isinstance(node, tuple) else getattr(node, part)


def test_the_readme_states_what_was_measured():
    """Each figure of ours in README's table is the record's, rounded as it is shown."""
    record = json.loads((ROOT / "bench" / "results" / "h200.json").read_text())
    steps, quality = record["steps"], record["quality"]["fox_full"]
    off = quality["nerfacto_off"]["5000"]
    refined = [record["poses"][f"r8b_f_2e5_fox_full_nerfacto_SO3xR3_0deg_seed{i}"] for i in range(3)]
    measured = {
        "nerfacto step, 4096 rays": [steps["nerfacto_4096"]["wall_ms"]],
        "F3RM step with 768-wide features, 4096 rays": [steps["f3rm_4096"]["wall_ms"]],
        "held-out PSNR after 5000 steps, poses off": [off["psnr"], off["train_seconds"]],
        "held-out PSNR after 5000 steps, poses refined": [sum(row["psnr_none"] for row in refined) / 3],
        "a frame of 1080x1920, rgb and depth": [record["frames"]["rgb_exact"]["ms"]],
    }
    text = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]*\d[^|]*) \| [^|]+ \|$", text, re.M)
    assert [label for label, _ in rows] == list(measured)
    for label, cell in rows:
        for shown, value in zip(re.findall(r"[\d.]+", cell), measured[label], strict=True):
            assert float(shown) == round(value, len(shown.partition(".")[2])), label
    checks = record["checks"]
    for told in (
        "{passed} of {all} tests passed".format(
            **checks["op_tests_cuda"],
            all=checks["op_tests_cuda"]["passed"] + checks["op_tests_cuda"]["failed"],
        ),
        "{passed} of {ops} ops equalled".format(**checks["cuda_equals_cpu"]["all"]),
        "{passed} replayed from a CUDA graph".format(**checks["graphs"]),
    ):
        assert told in " ".join(text.split())


def test_the_packaging_page_lists_what_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "packaging.md").read_text("utf-8")
    listed = re.search(r"^\| dependencies \| (.+) \|$", text, re.M)
    assert listed and listed[1].split(", ") == [re.split(r"[<>=]", d)[0] for d in project["dependencies"]]
    extras = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.M)))
    assert sorted(extras) == sorted(project["optional-dependencies"])


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: extra `docs`")
def test_a_site_that_loads_from_elsewhere_is_refused(tmp_path):
    from mkdocs.exceptions import PluginError

    spec = spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    generated = module_from_spec(spec)
    spec.loader.exec_module(generated)
    page, site = tmp_path / "index.html", SimpleNamespace(site_dir=str(tmp_path))
    page.write_text('<a href="https://example.org">elsewhere</a><script src="assets/x.js"></script>')
    generated.on_post_build(site)
    page.write_text('<script async src="https://example.org/x.js"></script>')
    with pytest.raises(PluginError, match="elsewhere"):
        generated.on_post_build(site)


def test_every_page_is_on_the_site():
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    placed = set(re.findall(r"([\w/-]+\.md)", nav))
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert there <= placed, "add these to `nav` in mkdocs.yml"
    assert {Path(name) for name in placed - there} <= GENERATED
