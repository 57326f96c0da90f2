"""Words -> embeddings, from files; and what a run does with them."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raymarch.apps.demo import train_demo
from raymarch.export.ply import read_ply
from raymarch.features.encoder import EncoderError
from raymarch.features.query import against, similarity
from raymarch.features.words import STORED, Words, WordsError, read_embeddings, write_embeddings
from raymarch.trained import TrainedScene


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "run"
    found = train_demo(220, "cpu", folder)
    names = dict(zip(found.truth.names, found.truth.feature_vectors, strict=True))
    write_embeddings(folder / STORED, names, {})
    return folder, found.truth


@pytest.fixture(scope="module")
def scene(trained):
    return TrainedScene(trained[0], "cpu")


def command(*words):
    run = [sys.executable, "-m", "raymarch.apps", *map(str, words)]
    return subprocess.run(run, capture_output=True, text=True, timeout=300)


# ---- files ----


def test_both_layouts_of_npz_and_safetensors(tmp_path):
    vectors = {"mug": torch.randn(4), "rote Kugel": torch.randn(4)}
    np.savez(tmp_path / "a.npz", **{k: v.numpy() for k, v in vectors.items()})
    rows = np.stack([v.numpy() for v in vectors.values()])
    np.savez(tmp_path / "b.npz", names=np.array(list(vectors)), vectors=rows.astype(np.float16))
    write_embeddings(tmp_path / "c.safetensors", vectors, {"from": "a test"})
    for name, atol in (("a.npz", 0), ("b.npz", 1e-2), ("c.safetensors", 0)):
        found = read_embeddings(tmp_path / name)
        assert set(found) == set(vectors)
        for k, v in vectors.items():
            torch.testing.assert_close(found[k], v, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.zeros(4)}, "not zero"),
        ({"a": np.full(4, np.nan)}, "finite"),
        ({"a": np.ones((2, 4))}, "one finite vector"),
        ({"a": np.ones(4), "b": np.ones(5)}, "one width"),
        ({}, "one width"),
        ({"names": np.array(["x"]), "vectors": np.ones((2, 3))}, "1 names"),
        ({"a": np.array([{}], dtype=object)}, "cannot be read"),
        ({"a": np.array(["one", "two"])}, "one vector of numbers"),
        ({"a": np.array(b"one")}, "one vector of numbers"),
    ],
)
def test_broken_files_are_told(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(WordsError, match=words):
        read_embeddings(tmp_path / "a.npz")


def test_missing_truncated_and_other_files(tmp_path):
    with pytest.raises(WordsError, match="no file of embeddings"):
        read_embeddings(tmp_path / "no.npz")
    with pytest.raises(WordsError, match=r"\.npz, \.safetensors"):
        read_embeddings(tmp_path / "a.txt")
    write_embeddings(tmp_path / "c.safetensors", {"a": torch.ones(3)}, {})
    data = (tmp_path / "c.safetensors").read_bytes()
    for cut in (0, 5, 20, len(data) - 3):
        (tmp_path / "d.safetensors").write_bytes(data[:cut])
        with pytest.raises(WordsError, match="cannot be read"):
            read_embeddings(tmp_path / "d.safetensors")


def test_an_archive_that_unpacks_to_far_more_than_it_is_gets_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("raymarch.data.archive.FEW_BYTES", 1 << 16)
    np.savez_compressed(tmp_path / "a.npz", mug=np.ones(1 << 20, np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 1 << 15
    with pytest.raises(WordsError, match="would unpack"):
        read_embeddings(tmp_path / "a.npz")


def test_embeddings_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_embeddings(tmp_path / STORED, {"mug": torch.ones(3)}, {})

    def full(draft, data):
        with open(draft, "wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(draft))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_embeddings(tmp_path / STORED, {"cat": torch.ones(3)}, {})
    assert set(read_embeddings(tmp_path / STORED)) == {"mug"}
    assert [x.name for x in tmp_path.iterdir()] == [STORED]


def test_words_are_found_in_any_case_and_neighbours_are_named():
    words = Words({"Red Ball": torch.ones(3), "cone": torch.zeros(3) + 2})
    assert words(["red ball", " cone "]).tolist() == [[1, 1, 1], [2, 2, 2]]
    with pytest.raises(WordsError, match="nearest are 'cone'"):
        words(["traffic cone"])
    with pytest.raises(WordsError, match="nearest are 'Red Ball'"):
        words(["RED BAL"])
    with pytest.raises(WordsError, match=r"the names are 'Red Ball', 'cone'$"):
        words(["xyz"])
    with pytest.raises(WordsError, match=r"'a0', .*'a5' and 3 more$"):
        Words({f"a{i}": torch.ones(3) for i in range(9)})(["xyz"])
    with pytest.raises(WordsError, match="no text"):
        words(["  "])
    with pytest.raises(WordsError, match="give --embeddings FILE"):
        Words()(["mug"])


def test_an_encoder_is_opened_once_and_only_where_it_is_needed(monkeypatch):
    """A stand-in with the interface of `raymarch.features.encoder`."""
    opened = []

    class Encoder:
        encode_tokens = None

    def open_recorded(recipe, weights, device):
        opened.append((recipe, weights))
        return Encoder()

    def text_embeddings(encoder, texts):
        return torch.tensor([[float(len(t)), 0.0] for t in texts])

    monkeypatch.setattr("raymarch.features.words.open_recorded", open_recorded)
    monkeypatch.setattr("raymarch.features.words.text_embeddings", text_embeddings)
    words = Words({"mug": torch.ones(2)}, {"encoder": "clip"}, "weights.pt")
    assert words(["mug"]).tolist() == [[1, 1]] and opened == []
    assert words(["cat", "horse", "cat"]).tolist() == [[3, 0], [5, 0], [3, 0]]
    assert opened == [({"encoder": "clip"}, "weights.pt")]


def test_names_are_told_where_an_encoder_cannot_be_opened(monkeypatch):
    def open_recorded(recipe, weights, device):
        raise EncoderError("there are no weights at clip.pt")

    monkeypatch.setattr("raymarch.features.words.open_recorded", open_recorded)
    with pytest.raises(WordsError, match=r"no weights at clip.pt; .* names, and the nearest are 'mug'"):
        Words({"mug": torch.ones(2)}, {"encoder": "clip"})(["mugs"])
    with pytest.raises(WordsError, match=r"clip.pt$"):
        Words({}, {"encoder": "clip"})(["mugs"])


# ---- scores ----


@pytest.mark.parametrize("mode", ["paired", "f3rm", "cosine"])
def test_scores_from_cosines_are_those_from_features(mode):
    features, texts, others = torch.randn(50, 16), torch.randn(3, 16), torch.randn(4, 16)
    features[7] = 0
    unit = torch.nn.functional.normalize
    cosines = unit(features, dim=-1) @ unit(torch.cat([texts, others]), dim=-1).T
    got = against(cosines[:, :3], cosines[:, 3:], mode)
    want = torch.stack([similarity(features, t, others, mode) for t in texts], -1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(against(cosines[:, :3], cosines[:, 3:][:, :0], mode), cosines[:, :3])


def test_words_and_their_vectors_are_the_same_query(scene, trained):
    camera, truth = scene.camera("test", 0), trained[1]
    by_word = scene.similarity(camera, "mug", ["sky", "ground"])
    vector = truth.feature_vectors[truth.names.index("mug")]
    others = truth.feature_vectors[[truth.names.index(n) for n in ("sky", "ground")]]
    by_vector = scene.similarity(camera, vector[None], others)
    torch.testing.assert_close(by_word, by_vector)
    features = scene.render(camera, ("feature",))["feature"]
    torch.testing.assert_close(by_word, similarity(features, vector, others), rtol=1e-3, atol=1e-4)


def test_several_texts_for_one_thing_are_averaged(scene):
    camera = scene.camera("test", 1)
    both = scene.similarity(camera, ["mug", "barrel"])
    mean = scene.words(["mug", "barrel"]).mean(0)
    torch.testing.assert_close(both, scene.similarity(camera, mean))


def test_points_have_similarities_too(scene):
    points = torch.rand(300, 3) - 0.5
    found = scene.query(points, ["mug", "lemon"], ["sky"])
    want = similarity(found["feature"], scene.embed("lemon"), scene.embed("sky"))
    torch.testing.assert_close(found["similarity"][:, 1], want, rtol=1e-4, atol=1e-5)
    assert found["similarity"].shape == (300, 2)


def test_what_cannot_be_asked_is_told(scene):
    camera = scene.camera("test", 0)
    with pytest.raises(WordsError, match="no embedding for 'unicorn'"):
        scene.similarity(camera, "unicorn")
    with pytest.raises(ValueError, match=r"7 channels, the features of .* have 32"):
        scene.similarity(camera, torch.ones(7))
    with pytest.raises(ValueError, match="list of queries"):
        scene.look(camera, "mug")
    scores = "score is 'cos', expected one of paired, f3rm, cosine"
    with pytest.raises(ValueError, match=scores):
        scene.similarity(camera, "mug", score="cos")
    with pytest.raises(ValueError, match=scores):
        scene.query(torch.zeros(1, 3), ["mug"], score="cos")
    with pytest.raises(ValueError, match="temperature is nan, expected a positive number"):
        scene.look(camera, ["mug"], temperature=float("nan"))


def test_colours_are_kept_and_made_again_when_features_have_changed(trained, scene):
    file = trained[0] / "pca.safetensors"
    first = scene.pca()
    stamp = file.stat().st_mtime_ns
    again = TrainedScene(trained[0], "cpu").pca()
    assert file.stat().st_mtime_ns == stamp and torch.equal(first.projection, again.projection)
    late = TrainedScene(trained[0], "cpu")
    late.step *= 3
    late.pca()
    assert file.stat().st_mtime_ns != stamp
    file.write_bytes(file.read_bytes()[:40])
    assert TrainedScene(trained[0], "cpu").pca().projection.shape == (32, 3)


# ---- the command ----


def test_query_finds_things_where_they_are(trained, tmp_path):
    folder, truth = trained
    others = [n for n in truth.names if n not in ("red ball", "mug")]
    views = [w for i in range(0, 40, 5) for w in ("--view", f"train:{i}")]
    done = command(
        "query", folder, "red ball", "Mug", "--negatives", *others, "--out", tmp_path / "q", "--side", 64,
        "--device", "cpu", *["--view", *[v for v in views if v != "--view"]],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "q" / "query.json").read_text())
    assert found["score"] == "paired" and found["negatives"] == others
    centres = {"red ball": (0.31, 0.09, -0.07), "Mug": (0.02, -0.31, -0.12)}  # of things.py
    for query in found["queries"]:
        assert query["found"] and query["threshold"] == 0.5 and len(query["views"]) == 8
        off = np.array(query["centroid"]) - centres[query["text"]]
        assert np.linalg.norm(off) < 0.15, query["centroid"]  # cameras see the outside, from above
        low, high = np.array(query["box"]["low"]), np.array(query["box"]["high"])
        assert (high - low < 0.5).all() and (low < query["centroid"]).all()
        points, _ = read_ply(tmp_path / "q" / query["cloud"])
        assert len(points["x"]) == query["points"] > 100 and points["similarity"].min() >= 0.5
        for view in query["views"]:
            assert (tmp_path / "q" / view["heat"]).exists() and (tmp_path / "q" / view["mask"]).exists()


def test_query_without_negatives_states_its_threshold(trained, tmp_path):
    done = command(
        "query",
        trained[0],
        "lemon",
        "--out",
        tmp_path,
        "--side",
        40,
        "--view",
        "train:0",
        "test:1",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "query.json").read_text())
    assert found["score"] == "cosine" and found["temperature"] is None
    assert 0 < found["queries"][0]["threshold"] < 1


def test_query_with_a_file_of_embeddings(trained, tmp_path):
    folder, truth = trained
    np.savez(tmp_path / "texts.npz", thing=truth.feature_vectors[truth.names.index("crate")].numpy())
    words = ("--out", tmp_path, "--side", 40, "--view", "train:0", "--device", "cpu")
    done = command("query", folder, "thing", "--embeddings", tmp_path / "texts.npz", *words)
    assert done.returncode == 0, done.stderr
    done = command("query", folder, "thing", *words)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "'thing'" in done.stderr


def test_a_threshold_that_nothing_reaches(trained, tmp_path):
    words = ("--out", tmp_path, "--side", 24, "--view", "train:0", "--device", "cpu", "--threshold", 2)
    (tmp_path / "mug").mkdir()
    (tmp_path / "mug" / "points.ply").touch()  # of an earlier query
    done = command("query", trained[0], "mug", *words)
    assert done.returncode == 0 and "nothing reaches 2" in done.stdout
    (query,) = json.loads((tmp_path / "query.json").read_text())["queries"]
    assert not query["found"] and "centroid" not in query
    assert not (tmp_path / "mug" / "points.ply").exists()
