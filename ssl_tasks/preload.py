"""Imports modules once in the fork server, so that every stage starts fast. Nothing here may start threads or CUDA."""

import signal

from selftrain.ssl_tasks.execution.startup import die_with_parent, uncollected

die_with_parent()  # before torch's import, which takes seconds and blocks everything else
for number in (
    signal.SIGINT,
    signal.SIGHUP,
):  # they reach the whole group; the parent decides when this process ends
    signal.signal(number, signal.SIG_IGN)

with uncollected():
    import selftrain.ssl_tasks.data.dataset
    import selftrain.ssl_tasks.data.stream
    import selftrain.ssl_tasks.evaluation.gate
    import selftrain.ssl_tasks.evaluation.stage
    import selftrain.ssl_tasks.features.graph
    import selftrain.ssl_tasks.pseudo_labels.predict
    import selftrain.ssl_tasks.pseudo_labels.select
    import selftrain.ssl_tasks.training.stage  # noqa: F401
