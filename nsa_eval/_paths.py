"""Paths as people give them: any text at all, of which the file system may know nothing."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path with its `~` written out; one of a user who isn't there stays, where Path's own way raises."""
    return Path(os.path.expanduser(path))


def is_folder(path: Path) -> bool:
    """Whether it is a folder; a name that no file system takes (too long, say) is none."""
    return os.path.isdir(path)


def is_file(path: Path) -> bool:
    """Whether it is a plain file: no folder, and no pipe that would be waited on for ever."""
    return os.path.isfile(path)


def is_there(path: Path) -> bool:
    """Whether anything is there; a name that no file system takes is not."""
    return os.path.exists(path)
