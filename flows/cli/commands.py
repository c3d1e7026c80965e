"""The verbs of the command line, group by group: options in, a function of `flows.actions` called, a table out."""

from selftrain.flows.cli import comparing, data, deploying, labelling, looking, modelling, running, serving, tracing

GROUPS = (running, looking, data, labelling, tracing, modelling, comparing, serving, deploying)
ALL = [add for group in GROUPS for add in group.VERBS]
