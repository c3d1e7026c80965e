"""Names that our flows and the server's automations share."""

CHAMPION = "selftrain.champion"  # the event: a run's model became the champion; payload: model, verdict, run
NOTHING_NEW = "NothingNew"  # the name of the completed state of a run that found nothing to compute
RESTARTED = "crashed; it resumes at its checkpoints"  # the message of the state that a restarted run is put in
