"""The verbs of the command line, group by group: options in, a function of `flows.verbs` called, a table out."""

from flows.commands import looking, running

ALL = [*running.VERBS, *looking.VERBS]
