"""Fetches module files from the Hugging Face hub, and publishes a folder of them. Of files with weights only safetensors are fetched."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import NamedTuple

SUFFIX = ".safetensors"
CARD = "README.md"
_PART = r"[A-Za-z0-9][\w.-]*"
_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^@:]+))?(?::(?P<file>[^:/]+))?", re.ASCII)


class HubId(NamedTuple):
    """``OWNER/NAME[@REVISION][:FILE]``: modules in a repository of the hub. Without a file all of them, without a revision the newest."""

    repo: str
    revision: str = ""
    file: str = ""

    @classmethod
    def of(cls, name: str | Path) -> HubId | None:
        """The id that a text is; None for one that can only be a path, such as a file by its ending.

        >>> HubId.of("me/gender@v1:woman"), HubId.of("modules/woman.safetensors"), HubId.of("./me/gender")
        (HubId(repo='me/gender', revision='v1', file='woman'), None, None)
        """
        text = name if isinstance(name, str) else PurePath(name).as_posix()
        found = _ID.fullmatch(text)
        return None if not found or found["repo"].endswith(SUFFIX) else cls(found["repo"], found["revision"] or "", found["file"] or "")


def fetch(name: str | Path) -> list[Path]:
    """The module files of a hub id, in the hub's cache.

    The hub is asked for a newer state, unless it cannot be reached or ``HF_HUB_OFFLINE`` is set.

    Raises:
        ValueError: there is no such repository, revision or file, or it is not in the cache with ``HF_HUB_OFFLINE``. The id is named.
        OSError: the hub cannot be reached or fails, and the cache lacks it.
    """
    wanted = HubId.of(name)
    if wanted is None:
        raise ValueError(f"{str(name)!r} is no hub id; allowed: OWNER/NAME, with @REVISION and :FILE{SUFFIX} behind it where needed")
    from huggingface_hub import snapshot_download

    given = f"the hub does not give module {str(name)!r}" + ", which is no file or folder here" * (not Path(name).exists())
    with _one_line(given, f"and the cache lacks it; fetch it once with network: respodiff pull {name} --out DIR"):
        # Always the whole repository, so that this library never leaves one alternative of several in the cache.
        place = snapshot_download(
            wanted.repo, revision=wanted.revision or None, allow_patterns=[f"*{SUFFIX}", CARD], ignore_patterns=["*/*"]
        )
    folder = Path(place)
    files = {file.name: file for file in sorted(folder.glob(f"*{SUFFIX}"))}
    if not files:
        raise ValueError(f"{given}: repository {wanted.repo!r} has no module file (*{SUFFIX})")
    if not wanted.file:
        return list(files.values())
    if not (found := files.get(wanted.file) or files.get(wanted.file + SUFFIX)):
        raise ValueError(f"{given}: repository {wanted.repo!r} has {', '.join(files)}, but no {wanted.file!r}")
    return [found]


def tell_if_cached(name: str | Path) -> None:
    """Warns that a path wins over a repository of this name which was fetched before."""
    wanted = HubId.of(name)
    if wanted is None:
        return
    from huggingface_hub import constants

    if (Path(constants.HF_HUB_CACHE) / f"models--{wanted.repo.replace('/', '--')}").is_dir():
        warnings.warn(f"{str(name)!r} is read from here, not from the hub; {wanted.repo}@main is the hub's", stacklevel=2)


def publish(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Uploads all files of a folder to a repository, which is made if absent; gives its address.

    Raises:
        ValueError: the id is none, the hub does not allow it, the repository is public and was to be private, or it holds other modules,
            which the card of the folder would not describe.
        OSError: the hub cannot be reached, or fails.
    """
    from huggingface_hub import HfApi

    folder, api = Path(folder), HfApi()
    check_repo(repo)
    with _one_line(f"{repo!r} cannot be written", "and push needs the network; unset it"):
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        info = api.model_info(repo)
    if private and not info.private:
        raise ValueError(f"--private is given, and repository {repo!r} is public already; make it private on the hub, or choose another")
    held = {name for file in info.siblings or () if (name := file.rfilename).endswith(SUFFIX) and "/" not in name}
    if others := sorted(held - {file.name for file in folder.iterdir()}):
        raise ValueError(
            f"repository {repo!r} holds {others[0]!r}, which its new card would not describe; push it with the others "
            f"(respodiff pull {repo} --out DIR), or choose another repository"
        )
    with _one_line(f"{repo!r} cannot be written", "and push needs the network; unset it"):
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Modules and their card, by respodiff")
    return str(url)


def check_repo(repo: str, flag: str = "--to") -> None:
    """ValueError, which begins with the flag, for anything but the id of a repository."""
    if HubId.of(repo) != HubId(repo):
        raise ValueError(f"{flag} is {repo!r}; allowed: the id of a repository, OWNER/NAME")


@contextmanager
def _one_line(what: str, offline: str) -> Iterator[None]:
    """Makes one line of whatever the hub or the way to it raises: a ValueError where the caller can change it, else an OSError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except Exception as error:
        denied = isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code in (401, 403)
        known = {
            f"HF_HUB_OFFLINE is set, {offline}": constants.HF_HUB_OFFLINE,
            "the hub allows no such id; check the name": isinstance(error, HFValidationError),
            "its owner gives access on request; ask on its page, and log in: hf auth login": isinstance(error, GatedRepoError),
            "there is no such repository, or it is private; check the name, or log in: hf auth login": isinstance(
                error, RepositoryNotFoundError
            ),
            "its repository has no such revision; name a branch, tag or commit behind @": isinstance(error, RevisionNotFoundError),
            "the hub does not allow it; log in with a token that may write: hf auth login": denied,
        }
        if reason := next((text for text, holds in known.items() if holds), ""):
            raise ValueError(f"{what}: {reason}") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"{what}: {reason}; try again later") from error
