"""What the fork server imports once, so that every stage starts at once. Nothing here may start threads or CUDA."""

import signal

from ssl_tasks.collection import uncollected

signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it reaches the whole group; whoever started us decides when we end

with uncollected():
    import ssl_tasks.data.build
    import ssl_tasks.data.stream
    import ssl_tasks.evaluation.gate
    import ssl_tasks.evaluation.stage
    import ssl_tasks.pseudo_labels.predict
    import ssl_tasks.pseudo_labels.select
    import ssl_tasks.training.stage  # noqa: F401
