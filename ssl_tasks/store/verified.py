"""Artifacts whose files are what their digests say, for the price of reading each file once.

The digests that were found are remembered in the workspace's cache by inode, size and times of each file, also for
other processes. `selftrain lineage --verify` and the reuse of an artifact read every file again.
"""

from selftrain.ssl_tasks.errors import DamagedArtifact
from selftrain.ssl_tasks.store.artifacts import REMEDY, Artifact, check_contents, check_files


def verified(artifact: Artifact) -> Artifact:
    """The artifact; DamagedArtifact names the file that has changed since it was written, and the remedy."""
    from selftrain.ssl_tasks.store.file_digests import FileDigests

    files = artifact.manifest["files"]
    try:
        check_contents(artifact)
        check_files(artifact, digests=False)
        cache = artifact.path.parents[2] / "cache"  # <workspace>/store/<stage>/<key>
        digests = FileDigests(cache).of(artifact.path, list(files))
        for (name, entry), digest in zip(files.items(), digests, strict=True):
            if digest is None or digest.hex() != entry["sha256"]:
                raise DamagedArtifact(f"{artifact.file(name)} has other contents than when it was written")
    except DamagedArtifact as error:
        raise DamagedArtifact(f"{error}; {REMEDY}") from error
    return artifact
