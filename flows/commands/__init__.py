"""The verbs of the command line, group by group: options in, a function of `flows.verbs` called, a table out."""

from flows.commands import data, labelling, looking, running, serving, tracing

ALL = [*running.VERBS, *looking.VERBS, *data.VERBS, *labelling.VERBS, *tracing.VERBS, *serving.VERBS]
