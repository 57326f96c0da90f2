"""Feature extractors against plain forward passes of the networks themselves, small and randomly initialised.

Needs the extra `features` (open_clip and timm). No weights are downloaded: models are made here and saved.
"""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from test_data import photo, write_scene

from raymarch.config import ConfigError
from raymarch.data.feature_files import open_feature_file, same_recipe
from raymarch.data.scene import load
from raymarch.features.encoder import (
    EncoderError,
    interpolated,
    open_encoder,
    open_recorded,
    required,
    text_embeddings,
)
from raymarch.train.runs import resume

try:
    open_clip, timm = required("open_clip", "this test"), required("timm", "this test")
except EncoderError as missing:
    if os.environ.get("RAYMARCH_FEATURES") == "required":  # where CI made an environment for these tests
        raise
    pytest.skip(str(missing), allow_module_level=True)

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VITS = {  # by width of the embedding; patch 14 and 16, with and without QuickGELU, LayerScale
    "vit24": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 56, "layers": 3, "width": 32, "head_width": 16, "patch_size": 14},
        "text_cfg": TEXT,
    },
    "vit40": {
        "embed_dim": 40,
        "vision_cfg": {
            "image_size": 48, "layers": 2, "width": 48, "head_width": 12, "patch_size": 16,
            "ls_init_value": 0.5,
        },
        "text_cfg": TEXT,
    },
}  # fmt: skip
RESNET = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": TEXT,
}
MODELS = {**VITS, "resnet": RESNET}
DINO = "vit_small_patch8_224.dino"
DINOV2 = "vit_small_patch14_reg4_dinov2.lvd142m"


def command(words):
    pytest.importorskip("tyro", reason="the command line needs tyro")
    from raymarch.apps.cli import main

    main(words)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of small CLIPs: a config and weights each, as open_clip's own."""
    root = tmp_path_factory.mktemp("clips")
    for seed, (name, config) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        network = open_clip.CLIP(**config)
        for module in network.modules():  # running statistics of a network that has seen something
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean, std=0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        (root / name).mkdir()
        state = {k: v.contiguous() for k, v in network.state_dict().items()}
        save_file(state, root / name / "open_clip_model.safetensors")
        text = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
        (root / name / "open_clip_config.json").write_text(text)
    return root


def network_of(saved, name):
    return open_clip.create_model(f"local-dir:{saved / name}").eval()


def pixels_for(photo_, across, down, mean, std):
    """What the network sees: resized by PIL, normalised by hand."""
    image = Image.fromarray(photo_).convert("RGB").resize((across, down), Image.Resampling.BICUBIC)
    x = np.asarray(image, np.float32) / 255
    x = (x - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None]


def alone(count):
    """A mask under which every token may attend to itself only."""
    return torch.full((count, count), -torch.inf).fill_diagonal_(0)


def plain_vit(visual, x, rows, columns):
    """open_clip's own forward pass with the grid's positions, its last attention masked to the diagonal."""
    table = visual.positional_embedding
    seen = []
    last = visual.transformer.resblocks[-1]
    hook = last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    stretched = torch.cat([table[:1], interpolated(table[1:], rows, columns)])
    visual.positional_embedding = torch.nn.Parameter(stretched)
    visual(x)
    visual.positional_embedding = table
    hook.remove()
    normed = last.ln_1(seen[0])
    attended = last.attn(normed, normed, normed, attn_mask=alone(normed.shape[1]), need_weights=False)[0]
    return visual.ln_post(last.ls_1(attended))[0, 1:] @ visual.proj


def plain_resnet(visual, x, rows, columns):
    """The attention pool, its attention masked to the diagonal; all else is open_clip's own forward pass."""
    seen = []
    hook = visual.layer4.register_forward_hook(lambda *args: seen.append(args[2]))
    pool, visual.attnpool = visual.attnpool, torch.nn.Identity()
    visual(x)
    visual.attnpool = pool
    hook.remove()
    tokens = seen[0].flatten(2).permute(2, 0, 1)
    tokens = tokens + interpolated(pool.positional_embedding[1:], rows, columns)[:, None]
    out, _ = F.multi_head_attention_forward(
        tokens, tokens, tokens, tokens.shape[-1], pool.num_heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, training=False, need_weights=False,
        attn_mask=alone(len(tokens)),
        use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    return out[:, 0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(64, 64), (160, 90), (70, 200)])
@torch.no_grad()
def test_dense_clip_is_the_towers_own_attention_without_looking_around(saved, name, size):
    encoder = open_encoder("clip", weights=str(saved / name))
    picture = photo(*size, 3)
    found = encoder.encode(picture)
    rows, columns = encoder.grid(*size)
    assert found.shape == (rows, columns, MODELS[name]["embed_dim"]) and found.dtype == torch.float16
    visual = network_of(saved, name).visual
    patch = 32 if name == "resnet" else MODELS[name]["vision_cfg"]["patch_size"]
    recipe = encoder.recipe
    x = pixels_for(picture, columns * patch, rows * patch, recipe["mean"], recipe["std"])
    plain = (plain_resnet if name == "resnet" else plain_vit)(visual, x, rows, columns)
    torch.testing.assert_close(found.float().view(plain.shape), plain, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_f3rms_fit_drops_what_fills_no_patch(saved):
    encoder = open_encoder("clip", weights=str(saved / "vit24"), fit="drop")
    picture = photo(160, 90, 3)
    found = encoder.encode(picture)
    assert found.shape[:2] == (4, 7)  # 160 x 90 -> 99 x 56 pixels -> 7 x 4 patches of 14
    x = pixels_for(picture, 99, 56, encoder.recipe["mean"], encoder.recipe["std"])[..., :98]
    plain = plain_vit(network_of(saved, "vit24").visual, x, 4, 7)
    torch.testing.assert_close(found.float().view(plain.shape), plain, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_positions_are_those_of_the_network_on_its_own_grid():
    table = torch.randn(16, 5)
    assert torch.equal(interpolated(table, 4, 4), table)
    ramp = torch.arange(8.0).repeat(8, 1).view(64, 1)  # grows to the right
    wide = interpolated(ramp, 8, 16).view(8, 16)
    assert (wide.diff(dim=1) > -0.1).all() and (wide - wide[:1]).abs().max() < 1e-5
    with pytest.raises(EncoderError, match="square"):
        interpolated(torch.zeros(15, 2), 3, 5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_text_goes_through_the_models_own_tower_and_tokeniser(saved, name):
    encoder = open_encoder("clip", weights=str(saved / name))
    network = network_of(saved, name)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{saved / name}")
    words, templates = ["mug", "a red ball"], ["a photo of {}", "{} on a table"]
    found = text_embeddings(encoder, words, templates)
    for row, word in zip(found, words, strict=True):
        each = [network.encode_text(tokenizer([t.format(word)]))[0] for t in templates]
        mean = torch.stack([v / v.norm() for v in each]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-4, atol=1e-5)
    assert torch.equal(text_embeddings(encoder, words, templates, batch=1).argmax(1), found.argmax(1))


def test_texts_that_are_none_or_too_long_are_told(saved):
    encoder = open_encoder("clip", weights=str(saved / "vit24"))
    for texts, words in (
        ([""], "is no text"),
        (["mug", "  \n"], "is no text"),
        (["&nbsp;"], "has no tokens"),  # the tokeniser unescapes it to a space
        (["mug " * 15], "15 tokens, the text tower takes 14"),
        ([], "at least one text"),
        ("mug", "a bare string"),
    ):
        with pytest.raises(EncoderError, match=words):
            text_embeddings(encoder, texts)
    assert text_embeddings(encoder, ["mug " * 14]).shape == (1, 24)
    with pytest.raises(EncoderError, match="templates"):
        text_embeddings(encoder, ["mug"], ["a photo"])


def test_the_recipe_follows_weights_and_options_but_not_their_place(saved, tmp_path):
    def recipe(where, **options):
        return open_encoder("clip", weights=str(where), **options).recipe

    first = recipe(saved / "vit24")
    other = tmp_path / "vit24"
    other.mkdir()
    for file in (saved / "vit24").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert same_recipe(recipe(other), first)
    assert not same_recipe(recipe(other, size=70), first)
    assert not same_recipe(recipe(other, fit="drop"), first)
    torch.manual_seed(9)
    state = {k: v.contiguous() for k, v in open_clip.CLIP(**VITS["vit24"]).state_dict().items()}
    save_file(state, other / "open_clip_model.safetensors")
    assert not same_recipe(recipe(other), first)


def test_weights_of_a_named_model_from_a_local_file(saved, tmp_path):
    open_clip.add_model_config(_registered(tmp_path, "raymarch-test", VITS["vit24"]))
    weights = saved / "vit24" / "open_clip_model.safetensors"
    by_file = open_encoder("clip", "raymarch-test", str(weights))
    by_folder = open_encoder("clip", weights=str(saved / "vit24"))
    assert torch.equal(by_file.encode(photo(40, 30, 1)), by_folder.encode(photo(40, 30, 1)))
    plain = tmp_path / "weights.pt"
    torch.save(network_of(saved, "vit24").state_dict(), plain)
    by_pickle = open_encoder("clip", "raymarch-test", str(plain))  # tensors only, nothing is executed
    assert torch.equal(by_pickle.encode(photo(40, 30, 1)), by_folder.encode(photo(40, 30, 1)))


def _registered(folder, name, config):
    (folder / f"{name}.json").write_text(json.dumps(config))
    return folder / f"{name}.json"


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemError('executed')",))


def test_encoders_that_cannot_be_opened_say_why(saved, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    torch.save({"x": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    (tmp_path / "bare").mkdir()
    right = str(saved / "vit24" / "open_clip_model.safetensors")
    for options, words in (
        ({}, r"'openai' of ViT-L-14-336-quickgelu could not be downloaded.*--weights PATH"),
        ({"model": "ViT-X"}, "no model 'ViT-X'"),
        ({"weights": "mytag"}, "no weights 'mytag'"),
        ({"weights": str(tmp_path / "none.pt")}, "there are no weights at"),
        ({"weights": str(tmp_path / "bare")}, "holds no open_clip_config"),
        ({"model": "ViT-B-32", "weights": str(tmp_path / "evil.pt")}, "does not hold weights of ViT-B-32"),
        ({"model": "ViT-B-32", "weights": str(tmp_path / "cut.safetensors")}, "does not hold weights"),
        ({"model": "ViT-B-32", "weights": right}, "does not hold weights of ViT-B-32"),
        ({"weights": str(saved / "vit24"), "fit": "crop"}, "fit is 'crop'"),
        ({"weights": str(saved / "vit24"), "size": 3}, "size is 3 pixels"),
    ):
        with pytest.raises(EncoderError, match=words) as told:
            open_encoder("clip", **options)
        assert "\n" not in str(told.value) and "executed" not in str(told.value)
    with pytest.raises(EncoderError, match="no encoder 'sam'"):
        open_encoder("sam")


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_half_precision_as_on_a_gpu_gives_the_same_features(saved, name):
    encoder = open_encoder("clip", weights=str(saved / name))
    picture = photo(100, 70, 3)
    full, words = encoder.encode(picture).float(), text_embeddings(encoder, ["mug"])
    encoder._network.half()
    encoder._dtype = torch.float16
    torch.testing.assert_close(encoder.encode(picture).float(), full, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(text_embeddings(encoder, ["mug"]), words, rtol=2e-2, atol=2e-2)


# --- DINO ---


@pytest.fixture(scope="module")
def dino_weights(tmp_path_factory):
    """Randomly initialised weights of a small DINO and a small DINOv2 with register tokens."""
    root = tmp_path_factory.mktemp("dinos")
    for name, model in (("dino", DINO), ("dinov2", DINOV2)):
        torch.manual_seed(5)
        network = timm.create_model(model, pretrained=False, num_classes=0)
        for p in network.parameters():  # biases and scales of a trained network are not all alike
            if p.ndim == 1:
                torch.nn.init.normal_(p, 0.5, 0.2)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, root / f"{name}.safetensors")
    return root


def plain_dino(model, weights, x, facet, native):
    """timm's own forward pass; it resamples positions otherwise than we do, so only its own grid compares."""
    network = timm.create_model(model, pretrained=False, num_classes=0, img_size=native).eval()
    network.load_state_dict(timm.models.load_state_dict(str(weights), weights_only=True))
    seen = {}
    block = network.blocks[-1]
    hooks = [
        block.attn.qkv.register_forward_hook(lambda *args: seen.update(qkv=args[2])),
        block.register_forward_hook(lambda *args: seen.update(token=args[2])),
    ]
    network.forward_features(x)
    for hook in hooks:
        hook.remove()
    skip = network.num_prefix_tokens
    if facet == "token":
        return seen["token"][0, skip:]
    heads = network.blocks[-1].attn.num_heads
    keys = seen["qkv"][0, skip:].unflatten(-1, (3, heads, -1))[:, 1]  # [cells, heads, width]
    return keys.permute(0, 2, 1).flatten(1)  # spec 12.2: width outside, heads inside


@pytest.mark.parametrize("facet", ["key", "token"])
@pytest.mark.parametrize("name", ["dino", "dinov2"])
@torch.no_grad()
def test_dino_facets_are_those_of_a_plain_forward_pass(dino_weights, name, facet):
    model = {"dino": DINO, "dinov2": DINOV2}[name]
    weights = dino_weights / f"{name}.safetensors"
    native, patch = (224, 8) if name == "dino" else (518, 14)
    encoder = open_encoder(name, model, str(weights), size=native, facet=facet, stride=patch)
    picture = photo(60, 60, 2)
    found = encoder.encode(picture)
    side = native // patch
    assert found.shape == (side, side, 384)
    x = pixels_for(picture, native, native, encoder.recipe["mean"], encoder.recipe["std"])
    plain = plain_dino(model, weights, x, facet, native)
    assert plain.std() > 0.05
    torch.testing.assert_close(found.float().view(plain.shape), plain, rtol=5e-3, atol=5e-3)


@torch.no_grad()
def test_dino_strides_overlap_and_grids_need_not_be_square(dino_weights):
    encoder = open_encoder("dino", DINO, str(dino_weights / "dino.safetensors"), size=64)
    picture = photo(120, 80, 2)
    found = encoder.encode(picture)
    assert found.shape[:2] == encoder.grid(120, 80) == (15, 23)  # 1 + (64 - 8) / 4, and of 96 pixels
    network = timm.create_model(DINO, pretrained=False, num_classes=0, img_size=(120, 184)).eval()
    state = timm.models.load_state_dict(str(dino_weights / "dino.safetensors"), weights_only=True)
    table = state["pos_embed"][0]
    state["pos_embed"] = torch.cat([table[:1], interpolated(table[1:], 15, 23)])[None]
    network.load_state_dict(state)
    network.patch_embed.proj.stride = (4, 4)
    network.patch_embed.img_size = (64, 96)
    seen = []
    network.blocks[-1].attn.qkv.register_forward_hook(lambda *args: seen.append(args[2]))
    network.forward_features(pixels_for(picture, 96, 64, encoder.recipe["mean"], encoder.recipe["std"]))
    plain = seen[0][0, 1:].unflatten(-1, (3, 6, 64))[:, 1].permute(0, 2, 1).flatten(1)
    torch.testing.assert_close(found.float().view(plain.shape), plain, rtol=5e-3, atol=5e-3)


def test_dino_models_that_cannot_be_opened_say_why(dino_weights, tmp_path, monkeypatch):
    right = str(dino_weights / "dino.safetensors")
    for options, words in (
        ({"model": "vit_nope"}, "no model 'vit_nope'"),
        ({"model": "resnet18", "weights": right}, "does not hold weights of resnet18"),
        ({"weights": str(tmp_path / "none.pth")}, "there are no weights at"),
        ({"weights": right, "facet": "value"}, "expected key or token"),
        ({"weights": right, "stride": 9}, "stride is 9"),
    ):
        with pytest.raises(EncoderError, match=words):
            open_encoder("dino", **options)

    with pytest.raises(EncoderError, match="--facet is for dino and dinov2"):
        open_encoder("clip", facet="key")

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(EncoderError, match=r"vit_small_patch8_224\.dino could not be downloaded"):
        open_encoder("dino")


# --- from photos to a run ---


def test_photos_to_two_heads_on_the_command_line(saved, dino_weights, tmp_path, capsys):
    folder = write_scene(tmp_path / "scene", count=9, width=32, height=24)
    clip = ["--encoder", "clip", "--weights", str(saved / "vit24")]
    dino = ["--encoder", "dino", "--weights", str(dino_weights / "dino.safetensors"), "--size", "32"]
    for options in (clip, dino):
        command(["extract", str(folder), *options, "--device", "cpu"])
    told = capsys.readouterr().out
    assert "24 wide, 9 maps made" in told and "384 wide, 9 maps made" in told
    files = [folder / "features_dino.safetensors", folder / "features_clip.safetensors"]
    encoder = open_encoder("clip", weights=str(saved / "vit24"))
    maps = open_feature_file(files[1]).maps
    for name, one in maps.items():  # the file holds what a plain call gives for the photo alone
        assert torch.equal(one, encoder.encode(np.array(Image.open(folder / name))))
    run = tmp_path / "run"
    small = ["--preset", "tiny", "--steps", "5", "--set", "train.trainer.rays=64", "--device", "cpu"]
    command(["train", str(folder), *small, "--features", *map(str, files), "--out", str(run)])
    heads = json.loads((run / "config.json").read_text())["model"]["fields"]["feature"]["heads"]
    assert heads == [["dino", 384], ["clip", 24]]
    import raymarch

    scene = raymarch.load(run, "cpu")
    kept = {head["name"]: head["info"] for head in scene.meta["scene"]["features"]}
    assert same_recipe(kept["clip"], encoder.recipe)
    words = text_embeddings(open_recorded(kept["clip"]), ["mug"])
    assert torch.equal(words, text_embeddings(encoder, ["mug"]))
    with pytest.raises(EncoderError, match="holds other weights"):
        open_recorded({**kept["clip"], "weights_sha256": "0"})
    with pytest.raises(EncoderError, match="not made by"):
        open_recorded({})
    assert scene.similarity(scene.camera("test", 0), words).shape == (24, 32)
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert {"feature_dino", "feature_clip"} <= last.keys()


# --- from photos to an answer ---


@pytest.fixture(scope="module")
def asked(saved, tmp_path_factory):
    """Photos of one name in two folders, other than ASCII, through extract and train: run, names, weights."""
    root = tmp_path_factory.mktemp("Fotos ähnlich")
    folder = write_scene(root / "Szene 景色", count=10, width=32, height=24)
    meta = json.loads((folder / "transforms.json").read_text("utf-8"))
    for i, frame in enumerate(meta["frames"]):
        name = f"{('links', 'rechts')[i % 2]}/Straße {i // 2} 写真.png"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / frame["file_path"]).rename(folder / name)
        frame["file_path"] = name
    (folder / "transforms.json").write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
    weights = root / "Gewichte"
    shutil.copytree(saved / "vit24", weights)
    command(["extract", str(folder), "--weights", str(weights), "--device", "cpu"])
    small = ["--preset", "tiny", "--steps", "5", "--set", "train.trainer.rays=64", "--device", "cpu"]
    features = ["--features", str(folder / "features_clip.safetensors")]
    command(["train", str(folder), *small, *features, "--out", str(root / "Lauf")])
    return root / "Lauf", folder, weights


def look_for(run, *words):
    command(["query", str(run), *words, "--side", "16", "--device", "cpu"])
    return json.loads((run / "query" / "query.json").read_text("utf-8"))


def refused(capsys, run, *words):
    """What a query that cannot be answered says: one sentence, and nothing is written."""
    out = run.parent / "nothing"
    with pytest.raises(SystemExit) as ended:
        command(["query", str(run), *words, "--out", str(out), "--side", "16", "--device", "cpu"])
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 1 and len(told.splitlines()) == 1 and not out.exists()
    return told


def test_photos_of_one_name_keep_their_own_features_through_training(saved, asked):
    run, folder, _ = asked
    encoder = open_encoder("clip", weights=str(saved / "vit24"))
    maps = open_feature_file(folder / "features_clip.safetensors").maps
    import raymarch

    names = raymarch.load(run, "cpu").names
    assert sorted(names) == sorted(maps) and len(set(names)) == 10
    pair = [name for name in names if name.endswith("Straße 0 写真.png")]
    assert len(pair) == 2 and not torch.equal(maps[pair[0]], maps[pair[1]])
    scene = load(folder, features=str(folder / "features_clip.safetensors"))
    for name, used in zip(scene.names, scene.features.maps, strict=True):
        assert torch.equal(used, encoder.encode(np.array(Image.open(folder / name))))


def test_a_run_answers_to_words_through_the_encoder_of_its_features(saved, asked, capsys):
    run, *_ = asked
    found = look_for(run, "a mug", "öl 画", "--negatives", "object", "--view", "test:0", "train:3")
    assert [query["text"] for query in found["queries"]] == ["a mug", "öl 画"]
    assert all((run / "query" / view["heat"]).exists() for q in found["queries"] for view in q["views"])
    import raymarch

    scene = raymarch.load(run, "cpu")
    encoder = open_encoder("clip", weights=str(saved / "vit24"))
    wanted, others = (text_embeddings(encoder, [text]) for text in ("a mug", "object"))
    camera = scene.camera("test", 0)
    assert torch.equal(scene.similarity(camera, "a mug", ["object"]),
                       scene.similarity(camera, wanted, others))  # fmt: skip
    view = scene.similarity(camera, "a mug", ["object"]) * scene.render(camera, ("opacity",))["opacity"]
    best = next(v["best"] for v in found["queries"][0]["views"] if v["view"].startswith("test"))
    assert float(view.max()) == pytest.approx(best, abs=0.1)  # of a picture half as wide


def test_weights_that_have_moved_are_given_by_hand(saved, asked, capsys):
    run, _, weights = asked
    moved = weights.with_name("anderswo")
    weights.rename(moved)
    try:
        assert "--weights" in refused(capsys, run, "a mug")
        assert look_for(run, "a mug", "--view", "test:0", "--weights", str(moved))["queries"]
    finally:
        moved.rename(weights)


def test_texts_and_weights_that_cannot_be_used_are_told_in_one_sentence(saved, asked, capsys, tmp_path):
    run, *_ = asked
    assert "is no text" in refused(capsys, run, "  ")
    assert "has no tokens" in refused(capsys, run, "&nbsp;")
    assert "15 tokens, the text tower takes 14" in refused(capsys, run, "mug " * 15)
    assert "15 tokens" in refused(capsys, run, "mug", "--negatives", "thing " * 15)
    assert "nothing to look for" in refused(capsys, run)
    told = refused(capsys, run, "mug", "--weights", str(saved / "vit40"))  # 40 wide, the features are 24
    assert "holds other weights" in told and "--weights" in told
    np.savez(tmp_path / "words.npz", mug=np.ones(40, np.float32))
    told = refused(capsys, run, "mug", "--embeddings", str(tmp_path / "words.npz"))
    assert "40 channels" in told and "24" in told and "another encoder" in told


def test_other_features_than_the_runs_are_refused(saved, asked, capsys, tmp_path):
    run, folder, _ = asked
    other = tmp_path / "features_other.safetensors"
    command(
        ["extract", str(folder), "--weights", str(saved / "vit40"), "--out", str(other), "--device", "cpu"]
    )
    with pytest.raises(ConfigError, match=r"24.* wide, those of the scene are clip 40 wide"):
        resume(run, "cpu", load(folder, features=str(other)), steps=8)
