"""`pollux codec train` on a folder of pictures as people have them: broken ones are listed at the end, hidden ones ignored."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from pollux.cli import main
from pollux.commands import codec
from pollux.content import Image

SMALL = ["--size", "16", "16", "--form-levels", "2", "2", "--colour-levels", "2", "2", "--hidden", "8", "--batch", "4", "--steps", "2"]


def photos(folder, number, broken=()):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(number):
        PIL.Image.fromarray(rng.integers(0, 256, (20, 24 + i, 3), np.uint8)).save(folder / f"{i:02}.png")
    for i in broken:
        (folder / f"{i:02}.png").write_bytes(b"no picture")
    return folder


def train(folder, out, *more):
    return main(["codec", "train", str(folder), "--out", str(out), *SMALL, *more])


def test_broken_pictures_are_passed_over_and_listed_and_hidden_ones_are_not_read(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 8, broken=(0, 5))
    (folder / "._01.png").write_bytes(b"no picture")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.png").write_bytes(b"no picture")
    assert train(folder, tmp_path / "codec") == 0
    out = capsys.readouterr().out
    assert "pictures that could not be used: 2\n" in out
    for name in ("00.png", "05.png"):
        assert sum(name in line for line in out.splitlines()) == 1
    assert "on 1 held-out pictures" in out and ".cache" not in out and "._01" not in out
    assert (tmp_path / "codec" / "codec.json").is_file()


@pytest.mark.parametrize(("number", "broken"), [(2, (1,)), (2, (0, 1)), (1, ())])
def test_too_few_whole_pictures_are_one_sentence(tmp_path, capsys, number, broken):
    assert train(photos(tmp_path / "photos", number, broken), tmp_path / "codec") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and (f"holds {number} pictures, " in err or "none of the pictures" in err)
    assert not broken or f"{broken[0]:02}.png is broken" in err


def test_pictures_are_decoded_once_while_there_is_room(tmp_path, monkeypatch):
    folder = photos(tmp_path / "photos", 12)
    decoded = []
    pixels = Image.pixels
    monkeypatch.setattr(Image, "pixels", lambda self, *rest: decoded.append(self.source) or pixels(self, *rest))
    monkeypatch.setattr(codec, "KEPT_BYTES", 8 * 16 * 16 * 3)
    assert train(folder, tmp_path / "codec", "--steps", "22") == 0  # 88 pictures: 8 epochs of 11
    assert sorted(decoded.count(folder / f"{i:02}.png") for i in range(12)) == [1] * 8 + [8] * 4
    monkeypatch.setattr(codec, "KEPT_BYTES", 1 << 20)
    decoded.clear()
    assert train(folder, tmp_path / "other", "--steps", "22") == 0
    assert len(decoded) == 12
