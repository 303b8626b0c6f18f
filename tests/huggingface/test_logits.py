"""Gemma 4 folders give the logits and the continuations that transformers gives, on files that both read with their own processors."""

import dataclasses
import json

import av
import folders
import jax
import numpy as np
import PIL.Image
import pytest
import soundfile
from folders import torch

import pollux
from pollux.content import Audio, Content, Image, Text, Video
from pollux.model import low_rank
from pollux.model.params import is_spec
from pollux.train import lora
from pollux.train.config import LoraConfig

KINDS = [*folders.TOWERS, "unified"]


@pytest.fixture(scope="module")
def made():
    return folders.tokenizer()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A wide PNG, a tall JPEG, sounds of seven seconds and less of a noise whose loudness changes, and a clip of seven seconds."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("media")
    wide, tall = rng.integers(0, 256, (70, 150, 3), np.uint8), rng.integers(0, 256, (9, 5, 3), np.uint8)
    PIL.Image.fromarray(wide).save(folder / "wide.png")
    PIL.Image.fromarray(tall).resize((60, 300)).save(folder / "tall.jpg")
    loud = np.interp(np.arange(7 * 16_000), np.linspace(0, 7 * 16_000, 9), rng.random(9) * 0.5)
    soundfile.write(folder / "sound.wav", rng.normal(size=loud.size) * loud, 16_000, "PCM_16")
    soundfile.write(folder / "short.wav", rng.normal(size=3000) * 0.1, 16_000, "PCM_16")
    with av.open(folder / "clip.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10, width=96, height=64, pix_fmt="yuv444p")
        for _ in range(70):
            frame = PIL.Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).resize((96, 64))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return folder


def folder_of(kind, path, made):
    return folders.unified_model(path, made) if kind == "unified" else folders.tower_model(path, kind, made)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def reference(model, **inputs):
    """Logits [T, V] of one row, with the masks that transformers makes for generation: the plain forward of the unified model lets
    pictures see both ways in global layers too."""
    ids = inputs["input_ids"]
    with torch.no_grad():
        if model.config.model_type == "gemma4_unified":
            there = torch.zeros(*ids.shape, model.config.text_config.hidden_size)
            places, kinds = torch.arange(ids.shape[1])[None], inputs.get("mm_token_type_ids")
            masks = model.create_masks_for_generate(model.config, there, None, None, places, kinds)
            inputs["attention_mask"] = masks
        return model(**inputs).logits[0].numpy()


@pytest.mark.parametrize("kind", folders.TEXTS)
def test_text_logits_are_those_of_transformers(kind, tmp_path):
    model = folders.text_model(tmp_path, **folders.TEXTS[kind])
    ids = np.random.default_rng(0).integers(5, 600, 40)
    close(pollux.load(tmp_path).logits(ids), reference(model, input_ids=torch.tensor(ids[None])))


def test_logits_of_a_text_model_of_gemma_3_are_those_of_transformers(tmp_path):
    model = folders.third_model(tmp_path, num_hidden_layers=8, layer_types=[*[folders.S] * 5, folders.F, *[folders.S] * 2])
    ids = np.random.default_rng(0).integers(5, 600, 60)
    ours = pollux.load(tmp_path)
    close(ours.logits(ids), reference(model, input_ids=torch.tensor(ids[None])))
    data = json.loads((tmp_path / "config.json").read_text())
    del data["rope_parameters"], data["layer_types"]
    older = {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6, "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(data | older))
    assert pollux.load(tmp_path).config == ours.config


def test_what_is_not_opened_is_refused_in_a_sentence(tmp_path):
    folders.third_model(tmp_path, num_hidden_layers=6)
    data = json.loads((tmp_path / "config.json").read_text())
    for changed, message in (
        ({"model_type": "gemma3"}, "pollux opens gemma4, .*, gemma3_text, not models of type 'gemma3'"),
        ({"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, "config.json has rope_scaling = .*; pollux computes None"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(data | changed))
        with pytest.raises(ValueError, match=message):
            pollux.load(tmp_path)


CONTENTS = {
    "a picture at the very start": lambda f: [Image(f / "wide.png"), Text("what is it?")],
    "several pictures": lambda f: [Text("one"), Image(f / "tall.jpg"), Image(f / "wide.png"), Text("and"), Image(f / "wide.png")],
    "a long sound": lambda f: [Text("write down"), Audio(f / "sound.wav")],
    "a clip": lambda f: [Text("see"), Video(f / "clip.mp4"), Text("what happens?")],
    "clips": lambda f: [Video(f / "clip.mp4"), Image(f / "wide.png"), Video(f / "clip.mp4")],
    "sounds": lambda f: [Audio(f / "short.wav"), Text("or"), Audio(f / "sound.wav"), Audio(f / "short.wav"), Text("said?")],
}
ALL = {
    "all together": lambda f: [Image(f / "tall.jpg"), Text("what"), Video(f / "clip.mp4"), Audio(f / "sound.wav"), Audio(f / "short.wav")],
    "all without sound": lambda f: [Image(f / "tall.jpg"), Text("what"), Video(f / "clip.mp4"), Image(f / "wide.png")],
}
HEARS = {"per-layer", "experts", "unified"}


MIXTURES = [(kind, name) for kind in KINDS for name in CONTENTS if kind in HEARS or "sound" not in name]


def inputs_of(processor, contents: list[Content]):
    """What transformers' processor makes of the same contents."""
    roles = {"model": "assistant"}
    kinds = {Image: "image", Audio: "audio", Video: "video"}
    messages = [
        {
            "role": roles.get(content.role, content.role),
            "content": [
                {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": kinds[type(part)]} for part in content.parts
            ],
        }
        for content in contents
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parts = [part for content in contents for part in content.parts]
    images = [PIL.Image.open(part.source) for part in parts if isinstance(part, Image)]
    sounds = [soundfile.read(part.source, dtype="float32")[0] for part in parts if isinstance(part, Audio)]
    clips = [str(part.source) for part in parts if isinstance(part, Video)]
    return processor(text=text, images=images or None, audio=sounds or None, videos=clips or None, return_tensors="pt")


def compare(kind, name, files, made, path, monkeypatch, frames=folders.FRAMES):
    """Ids and logits of a conversation that begins with these contents."""
    model = folder_of(kind, path, made)
    ours = pollux.load(path)
    ours.tokens_config = dataclasses.replace(ours.tokens_config, video=dataclasses.replace(ours.tokens_config.video, max_frames=frames))
    contents = [
        Content("user", tuple((CONTENTS | ALL)[name](files))),
        Content("model", (Text("a thing"),)),
        Content("user", (Text(" so "),)),
    ]
    theirs = inputs_of(folders.processor(kind == "unified", made, monkeypatch, frames), contents)
    assert ours.prompt(contents).ids.tolist() == theirs["input_ids"][0].tolist()
    close(ours.logits(contents), reference(model, **theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_and_understood_as_transformers_does(kind, made, files, tmp_path, monkeypatch):
    compare(kind, "all together" if kind in HEARS else "all without sound", files, made, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), MIXTURES)
def test_every_mixture_of_files_is_understood_as_transformers_does(kind, name, made, files, tmp_path, monkeypatch):
    compare(kind, name, files, made, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "unified"])
def test_a_clip_of_32_frames_is_understood_as_transformers_does(kind, made, files, tmp_path, monkeypatch):
    compare(kind, "a clip", files, made, tmp_path, monkeypatch, frames=32)


@pytest.mark.parametrize("kind", ["per-layer", "unified"])
def test_patches_places_frames_and_sounds_are_those_of_the_processors_of_transformers(kind, made, files, tmp_path, monkeypatch):
    folder_of(kind, tmp_path, made)
    contents = [Content("user", tuple(ALL["all together"](files)))]
    theirs = inputs_of(folders.processor(kind == "unified", made, monkeypatch), contents)
    ours = pollux.load(tmp_path).prompt(contents).soft
    small = 1 if kind == "unified" else folders.POOL  # patches of theirs along the side of one of ours
    for name, values, places in (
        ("image", "pixel_values", "image_position_ids"),
        ("video", "pixel_values_videos", "video_position_ids"),
    ):
        there = (theirs[places] >= 0).all(-1)
        number, _ = np.nonzero(there.numpy())
        patches, (x, y) = theirs[values][there].numpy(), theirs[places][there].numpy().T
        mine, (row, column) = ours[name].features, ours[name].coord.T
        side = folders.PATCH * folders.POOL // small
        mine = mine.reshape(-1, small, side, small, side, 3).swapaxes(2, 3).reshape(-1, side * side * 3)
        inside = np.indices((small, small)).reshape(2, -1)
        rows, columns = ((at[:, None] * small + offset).reshape(-1) for at, offset in zip((row, column), inside, strict=True))
        picture = np.repeat(np.cumsum((row == 0) & (column == 0)) - 1, small * small)
        order, theirs_in_order = np.lexsort((columns, rows, picture)), np.lexsort((x, y, number))
        np.testing.assert_array_equal(np.stack([rows, columns])[:, order], np.stack([y, x])[:, theirs_in_order])
        np.testing.assert_allclose(mine[order], patches[theirs_in_order], atol=1e-6)
    sounds = theirs["input_features"][theirs["input_features_mask"]].numpy()
    frames = ours["audio"].features
    if kind != "unified":  # four frames a token, of which the last of a sound may lack some
        frames = frames.reshape(-1, 4, 128)[np.arange(4) < ours["audio"].coord[:, :1]]
    np.testing.assert_allclose(frames, sounds, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_continuations_of_unequal_prompts_are_those_of_transformers(kind, made, files, tmp_path, monkeypatch):
    model = folder_of(kind, tmp_path, made)
    processor = folders.processor(kind == "unified", made, monkeypatch)
    prompts = [[Content("user", (Text("hi"),))], [Content("user", (Image(files / "wide.png"), Text("what is it?")))]]
    expected = []
    for contents in prompts:
        theirs = inputs_of(processor, contents)
        with torch.no_grad():
            ids = model.generate(**theirs, max_new_tokens=64, do_sample=False, eos_token_id=0)[0]
        expected.append(ids[theirs["input_ids"].shape[1] :].tolist())
    ours = pollux.load(tmp_path)
    ours.vocabulary.stops = (0,)
    assert [result.ids.tolist() for result in ours.generate_many(prompts, max_output_tokens=64, temperature=0)] == expected


def test_adapters_on_every_linear_map_are_a_change_of_the_weights_of_transformers(made, files, tmp_path, monkeypatch):
    model = folders.tower_model(tmp_path, "per-layer", made)
    ours, random = pollux.load(tmp_path), np.random.default_rng(0)
    chosen = LoraConfig(2, targets=("attention", "feed_forward", "per_layer", "soft"))
    specs = lora.adapters(ours.config, chosen)
    adapters = jax.tree.map(lambda s: random.normal(size=s.shape, scale=0.15).astype(np.float32), specs, is_leaf=is_spec)
    contents = [Content("user", tuple(ALL["all together"](files)))]
    ours.tokens_config = dataclasses.replace(
        ours.tokens_config, video=dataclasses.replace(ours.tokens_config.video, max_frames=folders.FRAMES)
    )
    inputs = inputs_of(folders.processor(False, made, monkeypatch), contents)
    before = reference(model, **inputs)
    folders.add_products(model, tmp_path, ours.config, adapters, chosen.scale)
    expected = reference(model, **inputs)
    ours.params = low_rank.attach(ours.params, adapters, chosen.scale)
    close(ours.logits(contents), expected)
    assert np.abs(before - expected).max() > 0.1 * np.abs(expected).max()
