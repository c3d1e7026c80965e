"""Folders of any names and types of file: `init` and `data` end with a result or one sentence."""

import contextlib
import io
import os
import shutil
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selftrain.flows.cli.main import main
from selftrain.ssl_tasks.data.decode import Decoder
from selftrain.ssl_tasks.errors import UserError
from selftrain.ssl_tasks.trained.classify import listed_images, read_image


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


PNG = png()
SUFFIXES = (b".png", b".JPG", b".txt", b"", b".png.png", b".tif", b".csv", b".parquet")
KINDS = (
    *("image", "image", "image", "empty", "text", "half", "folder", "pipe", "socket", "broken link", "own link"),
    *(
        "link to /etc",
        "link to a device",
        "link to the kernel's log",
        "link up",
        "sparse",
        "unreadable",
        "not a folder",
    ),
)
letters = st.binary(min_size=1, max_size=12).filter(lambda name: not set(b"/\0") & set(name))
names = st.one_of(
    letters,
    st.sampled_from(
        [b"cat", b"a\nb", b"-x", b"=1+1", b".hidden", b"..x", b" ", b"\xff\xfe", "é\u202e".encode(), b"CON", b"x" * 250]
    ),
    st.sampled_from([b"test", b"validation", b"unlabeled", b"train", b"val", b"__MACOSX"]),
)
entries = st.lists(st.tuples(st.integers(0, 4), names, st.sampled_from(SUFFIXES), st.sampled_from(KINDS)), max_size=14)


def make(folder: bytes, name: bytes, kind: str) -> None:
    """One entry of a folder."""
    path = os.path.join(folder, name)
    match kind:
        case "folder":
            os.mkdir(path)
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
                one.bind(path)
        case "broken link":
            os.symlink(b"nowhere", path)
        case "own link":
            os.symlink(name, path)
        case "link to /etc":
            os.symlink(b"/etc", path)
        case "link to a device":
            os.symlink(b"/dev/zero", path)
        case "link to the kernel's log":
            os.symlink(b"/proc/kmsg", path)
        case "link up":
            os.symlink(b"..", path)
        case _:
            contents = {"image": PNG, "text": b"no image", "half": PNG[: len(PNG) // 2]}.get(kind, b"")
            with open(path, "wb") as file:
                file.write(contents)
            if kind == "sparse":
                os.truncate(path, 300_000_000_000)
            if kind == "unreadable":
                os.chmod(path, 0)


def fill(root: bytes, wanted: list[tuple[int, bytes, bytes, str]]) -> None:
    """Class folders with images, and the wanted entries in them, beside them and below them."""
    places = [root, *(os.path.join(root, name) for name in (b"cat", b"dog", b"dog/inner", b"unlabeled"))]
    for place in places:
        os.makedirs(place, exist_ok=True)
    for number, place in enumerate(places[1:4]):
        with open(os.path.join(place, b"%d.png" % number), "wb") as file:
            file.write(PNG)
    for place, name, suffix, kind in wanted:
        with contextlib.suppress(FileExistsError, OSError):  # a name that is taken, or too long
            make(places[place], name + suffix, kind)


@settings.get_profile("fuzz")
@given(wanted=entries)
def test_any_folder_gives_a_result_or_an_error_of_one_sentence(
    tmp_path: Path, wanted: list[tuple[int, bytes, bytes, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, recipe = tmp_path / "images", tmp_path / "recipe.yaml"
    workspace = ["--workspace", str(tmp_path / "workspace")]
    fill(os.fsencode(root), wanted)
    try:
        for words in (["init", str(root), "--output", str(recipe)], ["data", str(recipe)]):
            code = main([*workspace, *words])
            shown = capsys.readouterr()
            assert code in (0, 2, 3), shown.err
            assert "unexpected" not in shown.err
            assert "\x1b" not in shown.out + shown.err
            if not recipe.exists():
                break
        with contextlib.suppress(UserError):
            decoder = Decoder(4, 3, 100)
            assert all(
                one.error or one.content for one in (read_image(path, decoder) for path in listed_images([root]))
            )
    finally:
        shutil.rmtree(root)
        recipe.unlink(missing_ok=True)
