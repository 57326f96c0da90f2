"""`raymarch export --what points | mesh`: geometry of a run for other programs, in world units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymarch.config import ConfigError
from raymarch.data.atomic import whole
from raymarch.export.mesh import Mesh, MeshError, mesh_of
from raymarch.export.ply import coordinates, write_ply
from raymarch.export.surface import seen_points
from raymarch.trained import TrainedScene

WHATS = ("points", "mesh")
MESH_FORMATS = (".ply", ".obj", ".glb")
SIDES = {"cuda": 512, "cpu": 192}  # pixels of the longer side of the views that are fused


@dataclass(frozen=True)
class Geometry:
    """How much of it, and how fine."""

    points: int = 1_000_000  # at most
    resolution: int = 256  # voxels along the longest side of a mesh's box
    views: int = 64  # training views rendered
    side: int | None = None  # pixels of their longer side (default: SIDES)
    box: tuple[float, ...] | None = None  # of a mesh: six numbers, world units


def only_of_poses(what: str, poses: str | None, held_out: bool) -> None:
    """ConfigError where points or a mesh come with options that say how camera poses are written."""
    for option, given in ((f"--poses {poses}", poses is not None), ("--held-out", held_out)):
        if given:
            raise ConfigError(
                f"{option} is for camera poses and says nothing of --what {what}: leave it out, or export "
                f"twice, once with --what {what} and once with --poses FORMAT"
            )


def export_geometry(
    run: Path, what: str, out: Path | None, options: Geometry, mode: str, device: str
) -> Iterator[str]:
    """Write points or a mesh; yields a line about it and the path."""
    if what not in WHATS:
        raise ConfigError(f"--what: expected one of poses, {', '.join(WHATS)}, got {what!r}")
    path = out or run / "export" / f"{what}.ply"
    if path.suffix not in (MESH_FORMATS if what == "mesh" else (".ply",)):
        known = ", ".join(MESH_FORMATS if what == "mesh" else (".ply",))
        raise ConfigError(f"--out: a {what} file ends in {known}, not {path.name!r}")
    scene = TrainedScene(run, device)
    side = options.side or SIDES[scene.device.type]
    if what == "points":
        found = seen_points(scene, options.views, side, options.points, mode)
        write_ply(path, found.columns(), comment="raymarch points, world units")
        yield f"{len(found)} points"
    else:
        try:
            mesh = mesh_of(scene, options.resolution, options.views, side, options.box, mode)
        except MeshError as error:
            raise ConfigError(str(error)) from None
        write_mesh(path, mesh)
        yield f"{len(mesh.vertices)} vertices, {len(mesh.faces)} triangles"
        if path.suffix == ".glb" and coordinates(mesh.vertices.numpy())["x"].dtype == np.float64:
            yield "glb holds float32, too few digits for a place so far from the origin: .ply keeps them all"
    yield str(path)


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Write .ply here, .obj and .glb through trimesh."""
    colours = (mesh.colours * 255).round().numpy().astype(np.uint8)
    if path.suffix == ".ply":
        columns = coordinates(mesh.vertices.numpy())
        columns |= dict(zip(("nx", "ny", "nz"), mesh.normals.numpy().T, strict=True))
        columns |= dict(zip(("red", "green", "blue"), colours.T, strict=True))
        write_ply(path, columns, mesh.faces.numpy().astype(np.int32), "raymarch mesh, world units")
        return
    try:
        import trimesh
    except ImportError as error:
        raise ConfigError(
            f"{path.suffix} files need trimesh, which cannot be imported ({error}): "
            'pip install "raymarch[export]", or write .ply'
        ) from None
    made = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), vertex_colors=colours, process=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as draft:
        made.export(draft)


def box_of(text: str | None) -> tuple[float, ...] | None:
    """Six numbers between commas."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--box: expected six numbers between commas, got {text!r}") from None
