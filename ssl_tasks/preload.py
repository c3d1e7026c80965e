"""What the fork server imports once, so that every stage starts at once. Nothing here may start threads or CUDA."""

import signal

from ssl_tasks.collection import uncollected
from ssl_tasks.parent import die_with_parent

die_with_parent()  # torch's import lasts for seconds, and until its end nothing else here looks at anything
for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group; whoever started us decides when we end
    signal.signal(number, signal.SIG_IGN)

with uncollected():
    import ssl_tasks.data.build
    import ssl_tasks.data.stream
    import ssl_tasks.evaluation.gate
    import ssl_tasks.evaluation.stage
    import ssl_tasks.pseudo_labels.predict
    import ssl_tasks.pseudo_labels.select
    import ssl_tasks.training.stage  # noqa: F401
