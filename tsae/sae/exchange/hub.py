"""`push` and `pull`: SAEs to a repository of the Hugging Face hub, or a folder of the same layout, and back."""

import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tsae.sae.exchange.repository import (
    PULLED,
    SUBFOLDER,
    check_records,
    find_trained,
    put_folder,
    write_repository,
)
from tsae.store.arguments import Files
from tsae.store.files import record_of, temporary_of
from tsae.store.reasons import first_line_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOG = logging.getLogger(__name__)
SOURCE = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[^/@]+))?(/(?P<subfolder>.+))?")
RAW_FILES = {".gitattributes"}  # which the hub itself adds to a new repository


class _Source(NamedTuple):
    repo: str
    revision: str | None
    subfolder: str | None


def push(
    saes: Files,
    repo: str | None = None,
    folder: Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """Upload SAEs to the Hugging Face hub, or write a folder.

    One push makes the whole repository: it holds the SAEs that are named, each in a subfolder, and a model card.

    Args:
        saes: folders such as results/PROFILE/saes/layer12/topk-k32-x4-learned-s0, or results/PROFILE for all of a profile.
        repo: the repository, USER/NAME; it is made if it does not exist.
        folder: write the files here; without --repo nothing is uploaded.
        base_model: hub id of the language model, by default the one that the profile names.
        license: licence of the SAEs for the model card, such as mit.
        private: make a new repository private.
        overwrite: replace the SAEs that are in the repository or the folder.

    Returns:
        Where the SAEs are, as `pull` takes it.

    Raises:
        ValueError: an SAE is not finished or not evaluated, there is no token, or the repository has files already.
    """
    if repo is None and folder is None:
        raise ValueError("push: say where to, with --repo USER/NAME or --folder FOLDER")
    find_trained(saes)
    if repo is None:
        assert folder is not None
        write_repository(saes, folder, None, base_model, license, overwrite)
        return str(folder)
    parent = _check_repository(repo, overwrite)
    with tempfile.TemporaryDirectory() as scratch:
        written = folder or Path(scratch) / "repository"
        names = write_repository(saes, written, repo, base_model, license, overwrite)
        with _in_one_line(repo):
            api = _api()
            api.create_repo(repo, private=private or None, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=written,
                commit_message=f"Add {names[0] if len(names) == 1 else f'{len(names)} SAEs'}",
                delete_patterns=["layer*/*"] if overwrite else None,
                parent_commit=parent,
            )
    LOG.info("%s: %d SAEs", repo, len(names))
    return f"{repo}@{commit.oid}"


def pull(source: str, folder: Path | None = None, overwrite: bool = False) -> str:
    """Fetch a shared SAE, and verify its recorded sha256.

    Args:
        source: USER/NAME[@REVISION][/SUBFOLDER] of the hub, or a local folder that `push` wrote; without a subfolder the
            only SAE there.
        folder: where to put the SAE; by default it stays in huggingface_hub's cache, or in the local folder.
        overwrite: replace what an earlier pull put into `folder`.

    Returns:
        The folder of the SAE, for `tsae.sae.load`.

    Raises:
        ValueError: there is no such repository, revision or SAE, a file is damaged, or there is something in `folder`.
    """
    if folder is not None and folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise ValueError(f"{folder}: not empty; give --overwrite to replace it")
        own = {name for path in PULLED for name in (path, record_of(Path(path)).name)}
        if foreign := sorted({path.name for path in folder.iterdir()} - own):
            raise ValueError(f"{folder}: holds {foreign[0]}, which `pull` does not write; name another folder")
    found = _find_local(Path(source)) if Path(source).is_dir() else _download(_parse(source))
    check_records(found)
    if folder is None:
        return str(found)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(folder)
    try:
        temporary.mkdir()
        for path in (found / name for name in PULLED):
            if path.is_file():
                shutil.copyfile(path, temporary / path.name)
                shutil.copyfile(record_of(path), record_of(temporary / path.name))
        check_records(temporary)
        put_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(folder)


def _find_local(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    names = [path.parent.relative_to(folder).as_posix() for path in folder.glob("layer*/*/config.json")]
    return folder / _only(names, str(folder))


def _only(names: list[str], where: str) -> str:
    if not names:
        raise ValueError(f"{where}: no SAE there that `push` wrote")
    if len(names) > 1:
        raise ValueError(f"{where}: {len(names)} SAEs; add one of {', '.join(sorted(names))}")
    return names[0]


def _parse(source: str) -> _Source:
    match = SOURCE.fullmatch(source)
    if match is None:
        raise ValueError(f"{source}: neither a folder nor USER/NAME[@REVISION][/SUBFOLDER]")
    parsed = _Source(**match.groupdict())
    if parsed.subfolder is not None and not SUBFOLDER.fullmatch(parsed.subfolder.rstrip("/")):
        raise ValueError(
            f"{source}: {parsed.subfolder} is no subfolder of an SAE, such as layer12/topk-k32-x4-learned-s0"
        )
    return parsed


def _download(source: _Source) -> Path:
    from huggingface_hub import snapshot_download

    with _in_one_line(source.repo, source.revision):
        # All files are of one commit, even if the branch moves meanwhile.
        info = _api().model_info(source.repo, revision=source.revision)
        there = {sibling.rfilename for sibling in info.siblings or []}
        names = sorted(path.removesuffix("/config.json") for path in there if path.endswith("/config.json"))
        where = f"{source.repo}@{info.sha}"
        if source.subfolder is None:
            name = _only([name for name in names if SUBFOLDER.fullmatch(name)], where)
        elif (name := source.subfolder.rstrip("/")) not in names:
            raise ValueError(f"{where}: no SAE {name}; there are {', '.join(names) or 'none'}")
        patterns = [f"{name}/{part}" for path in PULLED for part in (path, record_of(Path(path)).name)]
        local = snapshot_download(source.repo, revision=info.sha, allow_patterns=patterns)
    LOG.info("%s/%s: fetched", where, name)
    return Path(local) / name


def _check_repository(repo: str, overwrite: bool) -> str | None:
    """See that SAEs may be pushed; the commit that they go on top of, None if there is no repository yet."""
    from huggingface_hub import errors, get_token

    if not SOURCE.fullmatch(repo) or repo.count("/") != 1 or "@" in repo:
        raise ValueError(f"--repo {repo}: not the name of a repository, USER/NAME")
    if get_token() is None:
        raise ValueError(f"{repo}: no token of the Hugging Face hub; log in with `hf auth login`, or set HF_TOKEN")
    with _in_one_line(repo):
        try:
            info = _api().model_info(repo)
        except errors.RepositoryNotFoundError:
            return None
    there = sorted({sibling.rfilename for sibling in info.siblings or []} - RAW_FILES)
    if there and not overwrite:
        raise ValueError(f"{repo}: it holds {len(there)} files already; give --overwrite to replace its SAEs")
    return info.sha


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="tsae")


@contextmanager
def _in_one_line(repo: str, revision: str | None = None) -> Iterator[None]:
    """Say in one line why the hub did not do what it was asked."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{repo}: access is gated; accept the terms on its page and log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo}: no revision {revision}; name a commit, branch or tag of it") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{repo}: no such repository on the hub, or it is private; correct the name or log in"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ValueError(f"{repo}: your token may not do this ({status}); use one that can write to it") from error
        raise ValueError(f"{repo}: the hub refused ({first_line_of(error)})") from error
    except ValueError:
        raise
    except Exception as error:  # network libraries raise their own types
        raise ValueError(f"{repo}: the hub could not be reached ({first_line_of(error)}); try again later") from error
