"""The Hugging Face hub, where its library is installed: the extra `hub`."""

__all__ = ["download", "is_name", "upload"]

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pyrovae.data.downloads import OFFLINE
from pyrovae.errors import InputError, first_line
from pyrovae.extras import require


def is_name(word: str) -> bool:
    """Whether a word can name a repository, `user/name`.

    Example:
        >>> is_name("kim/digits"), is_name("../digits"), is_name("a/b/c")
        (True, False, False)
    """
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", word) is not None


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads a folder as a repository, made where it is not there, and returns its address.

    Raises:
        InputError: If the library is missing, or the hub cannot be reached or refuses.
    """
    hub = require("huggingface_hub", "hub")
    try:
        _check_online()
        api = hub.HfApi()
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=str(folder),
            commit_message="A program trained with pyrovae",
        )
    except Exception as error:  # of the network, of rights, of names: each its own kind
        raise InputError(
            f"{repository!r} cannot be written ({_reason(error)}).",
            "Log in with `hf auth login`, or write a folder with save_pretrained.",
        ) from error
    return str(made)


def download(repository: str, files: Sequence[str], *, revision: str | None) -> Path:
    """Downloads the files of a repository that match, and returns the folder that they are in.

    Raises:
        InputError: If the library is missing, or the hub cannot be reached or refuses.
    """
    hub = require("huggingface_hub", "hub")
    try:
        _check_online()
        found = hub.snapshot_download(repository, revision=revision, allow_patterns=[*files])
    except Exception as error:  # of the network, of rights, of names: each its own kind
        raise InputError(
            f"There is no folder {repository!r}, and no repository of that name can be read "
            f"({_reason(error)}).",
            "Check the name, or give the folder that save_pretrained wrote.",
        ) from error
    return Path(found)


def _check_online() -> None:
    if os.environ.get(OFFLINE):
        raise ConnectionError(f"{OFFLINE} is set")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
