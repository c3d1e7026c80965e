"""The shared store on a real S3 protocol, with a storage that fails half of its requests."""

import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server

from tests.s3_server import Failing
from tests.test_artifacts import executions
from tests.test_mirror import answer


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An S3 server with a bucket; while the file is there, half of its requests fail."""
    application = Failing(DomainDispatcherApplication(create_backend_app), tmp_path / "faults")
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shared")
    client.close()
    S3FileSystem.clear_instance_cache()  # one of an earlier test knows another address
    yield application.faults
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("failing", [False, True])
def test_two_machines_share_a_stage_over_s3(tmp_path: Path, faults: Path, failing: bool) -> None:
    if failing:
        faults.touch()
    url = f"s3://shared/{tmp_path.name}"
    first, second = answer(tmp_path / "a", url), answer(tmp_path / "b", url)
    if not second.reused:  # six tries in a row may fail; the next run offers again what is missing
        assert failing
        assert answer(tmp_path / "a", url).reused
        second = answer(tmp_path / "c", url)
    assert second.artifact.digest == first.artifact.digest
    assert second.artifact.file("result.txt").read_text() == "hello"
    assert executions(tmp_path / "a") == 1
    assert not failing or faults.read_text(), "nothing was refused"


def test_a_bucket_that_is_not_there_stops_nothing(tmp_path: Path, faults: Path) -> None:
    assert not faults.exists()
    assert not answer(tmp_path / "a", "s3://nowhere/store").reused
