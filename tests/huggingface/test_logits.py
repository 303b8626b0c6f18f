"""Gemma 4 folders give the logits and the continuations that transformers gives."""

import folders
import jax
import numpy as np
import PIL.Image
import pytest
import soundfile
from folders import torch

import pollux
from pollux.content import Audio, Content, Image, Text
from pollux.model import low_rank
from pollux.model.params import is_spec
from pollux.train import lora
from pollux.train.config import LoraConfig

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def made():
    return folders.tokenizer()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A wide PNG, a tall JPEG and seven seconds of noise whose loudness changes."""
    folder = tmp_path_factory.mktemp("media")
    wide, tall = RNG.integers(0, 256, (70, 150, 3), np.uint8), RNG.integers(0, 256, (9, 5, 3), np.uint8)
    PIL.Image.fromarray(wide).save(folder / "wide.png")
    PIL.Image.fromarray(tall).resize((60, 300)).save(folder / "tall.jpg")
    loud = np.interp(np.arange(7 * 16_000), np.linspace(0, 7 * 16_000, 9), RNG.random(9) * 0.5)
    soundfile.write(folder / "sound.wav", RNG.normal(size=loud.size) * loud, 16_000, "PCM_16")
    soundfile.write(folder / "short.wav", RNG.normal(size=3000) * 0.1, 16_000, "PCM_16")
    return folder


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def reference(model, **inputs):
    """Logits [T, V] of one row, with the masks that transformers makes for generation."""
    with torch.no_grad():
        return model(**inputs).logits[0].numpy()


@pytest.mark.parametrize("kind", folders.TEXTS)
def test_text_logits_are_those_of_transformers(kind, tmp_path):
    model = folders.text_model(tmp_path, **folders.TEXTS[kind])
    ids = RNG.integers(5, 600, 40)
    close(pollux.load(tmp_path).logits(ids), reference(model, input_ids=torch.tensor(ids[None])))


CONTENTS = {
    "an image at the very start": lambda f: [Image(f / "wide.png"), Text("what is it?")],
    "several images": lambda f: [Text("one"), Image(f / "tall.jpg"), Image(f / "wide.png"), Text("and"), Image(f / "wide.png")],
    "a long sound": lambda f: [Text("write down"), Audio(f / "sound.wav")],
    "all together": lambda f: [Audio(f / "short.wav"), Image(f / "tall.jpg"), Text("what"), Audio(f / "sound.wav"), Text("said?")],
}


def inputs_of(processor, contents: list[Content]):
    """What transformers' processor makes of the same contents."""
    roles = {"model": "assistant"}
    kinds = {Image: "image", Audio: "audio"}
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
    return processor(text=text, images=images or None, audio=sounds or None, return_tensors="pt")


@pytest.mark.parametrize("kind", folders.TOWERS)
def test_a_folder_with_towers_reads_files_as_transformers_does(kind, made, files, tmp_path, monkeypatch):
    model = folders.tower_model(tmp_path, kind, made)
    processor = folders.processor(made, monkeypatch)
    ours = pollux.load(tmp_path)
    for name, parts in CONTENTS.items():
        if kind == "no audio" and any(isinstance(part, Audio) for part in parts(files)):
            continue
        contents = [Content("user", tuple(parts(files))), Content("model", (Text("a thing"),)), Content("user", (Text(" more "),))]
        theirs = inputs_of(processor, contents)
        prompt = ours.prompt(contents)
        assert prompt.ids.tolist() == theirs["input_ids"][0].tolist(), name
        close(ours.logits(contents), reference(model, **theirs))


@pytest.mark.parametrize("kind", folders.TOWERS)
def test_greedy_continuations_are_those_of_transformers(kind, made, files, tmp_path, monkeypatch):
    model = folders.tower_model(tmp_path, kind, made)
    processor = folders.processor(made, monkeypatch)
    contents = [Content("user", (Image(files / "wide.png"), Text("what is it?")))]
    theirs = inputs_of(processor, contents)
    with torch.no_grad():
        all_ids = model.generate(**theirs, max_new_tokens=64, do_sample=False, eos_token_id=0)[0]
    expected = all_ids[theirs["input_ids"].shape[1] :].tolist()
    ours = pollux.load(tmp_path)
    ours.vocabulary.stops = (0,)
    assert ours.generate(contents, max_output_tokens=64, temperature=0).ids.tolist() == expected


def merged(processed) -> tuple:
    """Patches of 16 pixels and their places -> blocks of 3 x 3 of them, as the processor of the 12B model makes them."""
    blocks, places = [], []
    for patches, at in zip(processed["pixel_values"], processed["image_position_ids"], strict=True):
        size = folders.PATCH * folders.POOL
        columns, rows = at.max(0) // folders.POOL + 1
        picture = np.zeros((rows * size, columns * size, 3), np.float32)
        for patch, (x, y) in zip(patches, at, strict=True):
            if x >= 0:
                picture[y * 16 : y * 16 + 16, x * 16 : x * 16 + 16] = patch.reshape(16, 16, 3)
        cut = picture.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(rows * columns, -1)
        blocks.append(np.pad(cut, ((0, 70 - len(cut)), (0, 0))))
        where = [(x, y) for y in range(rows) for x in range(columns)]
        places.append(np.array(where + [(-1, -1)] * (70 - len(where))))
    return torch.tensor(np.stack(blocks)), torch.tensor(np.stack(places))


def test_raw_patches_and_sounds_of_the_unified_model(made, files, tmp_path):
    """Its processor needs torchvision; pictures are resized by that of the other models and cut here."""
    model = folders.unified_model(tmp_path, made)
    ours = pollux.load(tmp_path)
    contents = [
        Content("user", (Image(files / "wide.png"), Text("and"), Image(files / "tall.jpg"), Text("hear"), Audio(files / "short.wav")))
    ]
    ids = ours.prompt(contents).ids
    images = [PIL.Image.open(files / name) for name in ("wide.png", "tall.jpg")]
    pixels, places = merged(folders.Gemma4ImageProcessorPil(max_soft_tokens=70)(images, return_tensors="np"))
    samples = soundfile.read(files / "short.wav", dtype="float32")[0]
    frames = np.pad(samples, (0, -len(samples) % 640)).reshape(1, -1, 640)
    kinds = torch.tensor(np.select([ids == model.config.image_token_id, ids == model.config.audio_token_id], [1, 3])[None])
    with torch.no_grad():
        # Its plain forward lets images see both ways in global layers too; what it prepares for generation does not.
        there = torch.zeros(1, len(ids), 32)
        masks = model.create_masks_for_generate(model.config, there, None, None, torch.arange(len(ids))[None], kinds)
    theirs = reference(
        model,
        input_ids=torch.tensor(ids[None].astype(np.int64)),
        attention_mask=masks,
        pixel_values=pixels,
        image_position_ids=places,
        input_features=torch.tensor(frames),
        input_features_mask=torch.ones(1, frames.shape[1], dtype=torch.bool),
    )
    close(ours.logits(contents), theirs)


def test_adapters_on_every_linear_map_are_a_change_of_the_weights_of_transformers(made, files, tmp_path, monkeypatch):
    model = folders.tower_model(tmp_path, "bounded linear maps", made)
    ours = pollux.load(tmp_path)
    chosen = LoraConfig(2, targets=("attention", "feed_forward", "per_layer", "soft"))
    specs = lora.adapters(ours.config, chosen)
    adapters = jax.tree.map(lambda s: RNG.normal(size=s.shape, scale=0.15).astype(np.float32), specs, is_leaf=is_spec)
    contents = [Content("user", tuple(CONTENTS["all together"](files)))]
    inputs = inputs_of(folders.processor(made, monkeypatch), contents)
    before = reference(model, **inputs)
    folders.add_products(model, tmp_path, ours.config, adapters, chosen.scale)
    expected = reference(model, **inputs)
    ours.params = low_rank.attach(ours.params, adapters, chosen.scale)
    close(ours.logits(contents), expected)
    assert np.abs(before - expected).max() > 0.1 * np.abs(expected).max()
