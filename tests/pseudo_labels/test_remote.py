"""A Ray worker labels a shard or refuses it; tested without a cluster."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selftrain.flows.actions.compare import refuse_unreachable, run_cell
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.cluster import answer, at_hand, refuse_deaf, spread
from selftrain.ssl_tasks.execution.stage import Request, StageContext, execute
from selftrain.ssl_tasks.pseudo_labels.predict import label_shard, opened
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.mirror import Mirror
from selftrain.ssl_tasks.training.launch import free_port, to_json
from tests.made_run import commit
from tests.pseudo_labels.teachers import synthetic, teacher

RUNTIME = RuntimeSettings(threads=1, device="cpu")


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    """A question about 400 images, asked at home."""
    home = tmp_path / "home"
    model = commit(home, "given", "k", teacher(home / "teacher").path)
    inputs = {"dataset": synthetic(home), "model": model}
    return StageContext(PredictSettings(shard_size=100), inputs, home, home, home / "cache", RUNTIME)


def asked(context: StageContext) -> dict[str, Any]:
    """Returns the settings that a run sends with every shard."""
    predicting, pool = opened(json.dumps(to_json(context)))
    _, means = predicting.predict_held_out()
    shared = {
        "context": to_json(context),
        "question": predicting.question(1.0),
        "temperature": 1.0,
        "temperatures": None,
    }
    return {**shared, "means": means.numpy(), "samples": pool.sample_ids()[:100]}


def test_a_worker_s_shard_is_the_stage_s_shard(context: StageContext) -> None:
    shared = asked(context)
    request = Request(
        "predict",
        "predict",
        1,
        "selftrain.ssl_tasks.pseudo_labels.predict:predict",
        context.section,
        context.inputs,
    )
    stage = execute(request, context.output, RUNTIME).artifact
    first = json.loads((stage.path / "predictions.json").read_text())["shards"][0]
    content = label_shard(shared, (0, shared["samples"][: first["rows"]]))
    assert content == (stage.path / "shards" / first["file"]).read_bytes()


def test_a_worker_that_would_compute_differently_is_refused(context: StageContext) -> None:
    shared = asked(context)
    shared["question"] = {**shared["question"], "precision": ["torch.bfloat16"]}
    told = answer("selftrain.ssl_tasks.pseudo_labels.predict:label_shard", shared, (0, shared["samples"]))
    assert told["error"] == "ConfigError"
    assert "would answer with precision ['torch.float32'], the run asked for ['torch.bfloat16']" in told["message"]


def elsewhere(context: StageContext, monkeypatch: pytest.MonkeyPatch, folder: Path) -> StageContext:
    """The same question on a machine that has nothing of ours at the same path."""
    monkeypatch.setenv("SELFTRAIN_HOME", str(folder))
    gone = {role: Artifact(Path("/nowhere") / role, one.manifest) for role, one in context.inputs.items()}
    return replace(context, inputs=gone)


def test_a_machine_without_the_workspace_takes_the_inputs_from_the_shared_store(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inputs = context.inputs
    url = f"file://{tmp_path / 'mirror'}"
    assert all(Mirror(url).offer(one) for one in inputs.values())
    there = elsewhere(replace(context, inputs=inputs), monkeypatch, tmp_path / "there")
    there = replace(there, runtime=RUNTIME.model_copy(update={"store": url}))
    found = at_hand(there)
    assert {role: one.digest for role, one in found.inputs.items()} == {r: one.digest for r, one in inputs.items()}
    assert all(one.path.is_relative_to(tmp_path / "there") for one in found.inputs.values())
    assert at_hand(found) is found


def test_a_machine_that_sees_neither_says_so(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"is not on .* need the workspace under the same path .* runtime\.store"):
        at_hand(elsewhere(context, monkeypatch, tmp_path / "there"))


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what Python keeps of a module that it cannot find
    with pytest.raises(ConfigError, match=r"needs Ray, which is not installed here.*pip install 'selftrain\[ray\]'"):
        next(spread("m:f", None, [(0, None)], RUNTIME))


def test_a_cluster_that_does_not_answer_is_named_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at {address} .*ray start --head"):
        refuse_deaf(address)


def test_a_cell_whose_worker_cannot_reach_prefect_or_the_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not the workspace of this comparison.*a disk that all of them mount"):
        run_cell({"workspace": str(tmp_path), "mark": "seen-1"}, {})
    with pytest.raises(ConfigError, match=r"cannot reach the Prefect API .* PREFECT_API_URL .* --no-prefect"):
        refuse_unreachable(f"http://127.0.0.1:{free_port()}/api")
