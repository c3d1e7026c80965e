"""What the fork server imports once, so that every stage starts at once. Nothing here may start threads or CUDA."""

from ssl_tasks.collection import uncollected

with uncollected():
    import ssl_tasks.data.build
    import ssl_tasks.data.stream
    import ssl_tasks.evaluation.gate
    import ssl_tasks.evaluation.stage
    import ssl_tasks.pseudo_labels.predict
    import ssl_tasks.pseudo_labels.select
    import ssl_tasks.training.stage  # noqa: F401
