"""Files of a source: a local folder or an object store, read alike, each file named relative to the source."""

import hashlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.uris import is_uri, shown, without_credentials

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
DIGEST_BYTES = 2**20
GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `name` is its path relative to the source and tells it in tables and messages."""

    name: str
    path: str
    filesystem: pafs.FileSystem = field(repr=False, compare=False)
    size_bytes: int

    def open_input_stream(self) -> pa.NativeFile:
        """Open the bytes from the start, decompressed where the name ends in .gz or .zst."""
        compression = COMPRESSIONS.get(PurePosixPath(self.name).suffix)
        return self.filesystem.open_input_stream(self.path, compression=compression)

    def open_input_file(self) -> pa.NativeFile:
        """Open the bytes for reading at any place, as they are stored."""
        return self.filesystem.open_input_file(self.path)

    def digest(self) -> str:
        """Return the SHA-256 of the stored bytes in hexadecimal digits."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.path, compression=None) as stream:
            while block := stream.read(DIGEST_BYTES):
                digest.update(block)
        return digest.hexdigest()


def missing_column(file: SourceFile, column: str, found: set[str]) -> ValueError:
    """Return the error of a column that a file does not have."""
    names = ", ".join(sorted(found)) or "none"
    return ValueError(f"{file.name}: column {column!r} is missing (found: {names}); correct the column mapping")


def local_folder(source: str | Path, wanted: str) -> Path:
    """Return the local folder of a source, for what is read from a disk only.

    Args:
        source: the source of a run.
        wanted: the key of the configuration that asks for a local file.

    Raises:
        ValueError: the source is a URI.
    """
    if is_uri(source):
        raise ValueError(
            f"{wanted} is read from a local folder only, and the source is {shown(source)}: "
            f"give --source a local folder, or remove {wanted} from the config"
        )
    return Path(source)


def find_files(source: str | Path, pattern: str) -> list[SourceFile]:
    """Return the files of a glob under a source, sorted by name.

    Args:
        source: a local folder, or a URI of one or of an object store's prefix (s3://bucket/prefix, gs://, file:///).
        pattern: a glob as `Path.glob` takes it; `**` stands for any number of folders.

    Raises:
        ValueError: the source cannot be opened, the files do not exist, or a file's kind is not known.
    """
    try:
        if is_uri(source):
            filesystem, root = pafs.FileSystem.from_uri(str(source))
        else:
            filesystem, root = pafs.LocalFileSystem(), str(Path(source).absolute())
        return list_files(filesystem, root, pattern, shown(source))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"source {shown(source)} cannot be opened: {_reason(error, source)}; "
            "correct --source, or give the store's credentials and region in the environment"
        ) from None


def _reason(error: Exception, source: str | Path) -> str:
    """Return the first line of a store's error; some of them quote the URI with its credentials."""
    text = str(error).partition("\n")[0] or type(error).__name__
    return without_credentials(text.replace(str(source), shown(source)))


def list_files(filesystem: pafs.FileSystem, root: str, pattern: str, source: str) -> list[SourceFile]:
    """Return the files of a glob under a folder of a filesystem, sorted by name; see `find_files`.

    Args:
        filesystem: where the folder lies.
        root: the folder.
        pattern: the glob.
        source: what messages call the folder.
    """
    if not pattern or pattern.startswith("/"):
        raise ValueError(f"file pattern {pattern!r}: expected a glob relative to --source, such as events/*.jsonl.gz")
    if filesystem.get_file_info(root).type != pafs.FileType.Directory:
        raise ValueError(f"source {source} is not a folder: give --source the folder that holds {pattern}")
    prefix = root if root in {"", "/"} else root.rstrip("/") + "/"
    local = isinstance(filesystem, pafs.LocalFileSystem)
    found = _local_infos(filesystem, root, pattern) if local else _listed_infos(filesystem, prefix, pattern)
    infos = {info.path.removeprefix(prefix): info for info in found}
    _refuse_folders(sorted(name for name, info in infos.items() if info.type == pafs.FileType.Directory))
    names = sorted((name for name, info in infos.items() if info.is_file), key=lambda name: name.split("/"))
    if not names:
        raise ValueError(f"source {source} has no file {pattern}: correct --source or the file's name in the config")
    for name in names:
        if not name.endswith(SUFFIXES):
            raise ValueError(f"{name}: expected a file that ends in one of {', '.join(SUFFIXES)}")
    return [SourceFile(name, infos[name].path, filesystem, infos[name].size) for name in names]


def _refuse_folders(names: list[str]) -> None:
    for name in names:
        if name.endswith(SUFFIXES):
            raise ValueError(f"{name} is a folder, not a file: name the files in it, as {name}/*")


def _local_infos(filesystem: pafs.FileSystem, root: str, pattern: str) -> list[pafs.FileInfo]:
    infos: list[pafs.FileInfo] = filesystem.get_file_info([str(path) for path in Path(root).glob(pattern)])
    return infos


def _listed_infos(filesystem: pafs.FileSystem, prefix: str, pattern: str) -> list[pafs.FileInfo]:
    """List what may match and match it; a store has no glob of its own."""
    parts = tuple(part for part in pattern.split("/") if part)
    fixed = list(takewhile(lambda part: not GLOB_CHARACTERS & set(part), parts[:-1]))
    base = (prefix + "/".join(fixed)).rstrip("/") or prefix
    infos = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    return [info for info in infos if _matches(tuple(info.path.removeprefix(prefix).split("/")), parts)]


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Match a path with a glob, part by part; the leading `**` stands for no folder or for one more."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
