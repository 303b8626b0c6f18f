"""`pollux chat`: a conversation in the terminal with text, pictures, sound and video on both sides."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import tyro

import pollux
from pollux.commands.pictures import preview, save_pictures
from pollux.commands.settings import SamplingFlags, Settings
from pollux.compilation import use_compilation_cache
from pollux.content import Audio, Content, Image, Part, Text, Video
from pollux.generate.chat import Chat
from pollux.model.cache import CacheDtype

COMMANDS = """/image PATH, /audio PATH, /video PATH   attach a file to your next message
/draw TEXT   ask for a picture
/new         forget the conversation
/help        show this
/quit        leave (or Ctrl-D)"""
KINDS: dict[str, Callable[[Path], Part]] = {"/image": Image, "/audio": Audio, "/video": Video}


def chat(
    folder: tyro.conf.Positional[Path],
    /,
    out: Path = Path("."),
    draft: str | None = None,
    kv_cache_dtype: CacheDtype | None = None,
    sampling: SamplingFlags = Settings(),
) -> None:
    """Talk to a model; /image, /audio and /video attach files, /draw asks for a picture, /help lists all commands.

    Example: pollux chat runs/quickstart/model

    Args:
        folder: Model folder.
        out: Folder for drawn pictures.
        draft: Folder of a smaller model with the same vocabulary, or "lookup": the same answers from fewer passes of a large model.
        kv_cache_dtype: Keep keys and values in 8 bits each, for longer texts in the same memory; on a CPU int8 has kernels.
    """
    use_compilation_cache()
    terminal = Terminal(Chat(pollux.load(folder, draft=draft, kv_cache_dtype=kv_cache_dtype)), out, sampling)
    print(COMMANDS)
    while (line := _read_line()) is not None:
        try:
            if not terminal.obey(line.strip()):
                return
        except ValueError as error:
            print(error, file=sys.stderr)


class Terminal:
    """A conversation, and the files that wait for its next message."""

    def __init__(self, conversation: Chat, out: Path, sampling: Settings = Settings()):
        self.conversation, self.out, self.settings = conversation, out, sampling.given()
        self.attached: list[Part] = []

    def obey(self, line: str) -> bool:
        """Carry out one line; False to leave. Raises ValueError for an unknown command or a file that cannot be read."""
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return False
        if command == "/help":
            print(COMMANDS)
        elif command == "/new":
            self.conversation, self.attached = Chat(self.conversation.model), []
        elif command in KINDS:
            self.attach(command, rest.strip())
        elif command == "/draw":
            self.say(f"draw {rest.strip()}")
        elif command.startswith("/"):
            raise ValueError(f"there is no command {command}; /help lists them")
        elif line or self.attached:
            self.say(line)
        return True

    def attach(self, command: str, name: str) -> None:
        """Keep a file for the next message. Raises ValueError if there is none of this name."""
        path = Path(os.path.expanduser(name))  # which leaves a ~user that does not exist as it is
        if not path.is_file():
            raise ValueError(f"there is no file {str(path)!r}")
        self.attached.append(KINDS[command](path))

    def say(self, text: str) -> None:
        """Send what is attached and a text, and print the answer while it is written.

        What was attached is used up, even if it cannot be read.
        """
        message = Content("user", (*self.attached, *((Text(text),) if text else ())))
        self.attached = []
        for part in self.conversation.stream(message, **self.settings):
            self.show(part)
        print()

    def show(self, part: Part) -> None:
        """Print a piece of an answer; a picture is saved, and previewed if this is a terminal."""
        if isinstance(part, Image):
            picture = PIL.Image.fromarray(part.pixels())
            if sys.stdout.isatty():
                print(preview(picture))
            print(save_pictures([picture], self.out)[0])
        else:
            print(part.text if isinstance(part, Text) else part, end="", flush=True)


def _read_line() -> str | None:
    """One line from the terminal or a pipe; None at its end."""
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def main(arguments: list[str]) -> None:
    """Entry of `pollux chat`."""
    tyro.cli(chat, prog="pollux chat", args=arguments)
