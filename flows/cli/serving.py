"""Verbs that wait: up, serve, assist."""

from argparse import ArgumentParser, Namespace

from selftrain.flows.cli.verb import Verbs
from selftrain.flows.environment import set_environment, workspace_folder


def add_up(verbs: Verbs) -> None:
    verb = verbs.add("up", _up, "the UIs of Prefect and MLflow over the workspace, and schedules that fire")
    verb.add_argument("config", metavar="CONFIG", nargs="*", help="recipes to run by the schedule, or from the UI")
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C")
    add_schedule(verb)
    verb.add_argument("--port", type=int, default=4200, help="of Prefect; another is taken where it is in use")
    verb.add_argument("--mlflow-port", type=int, default=5000)


def add_serve(verbs: Verbs) -> None:
    verb = verbs.add("serve", _serve, "run recipes by a schedule on this machine, for the server of PREFECT_API_URL")
    verb.add_argument("config", metavar="CONFIG", nargs="+")
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C")
    add_schedule(verb)


def add_assist(verbs: Verbs) -> None:
    verb = verbs.add("assist", _assist, "let this host train along where a run in the workspace has runtime.nodes > 1")
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda; default auto")


def add_schedule(verb: ArgumentParser) -> None:
    """When a recipe runs."""
    when = verb.add_mutually_exclusive_group()
    when.add_argument("--cron", metavar='"0 2 * * *"')
    when.add_argument("--interval", type=float, metavar="SECONDS")
    when.add_argument("--rrule", metavar="RULE")


def _up(options: Namespace) -> None:
    from selftrain.flows.prefect.serving import Schedule, up
    from selftrain.ssl_tasks.settings.recipe import load_recipe

    recipes = [load_recipe(config, options.set).config for config in options.config]
    folder = workspace_folder(options.workspace)
    set_environment(folder)
    schedule = Schedule(options.cron, options.interval, options.rrule)
    up(folder, recipes, schedule, options.port, options.mlflow_port)


def _serve(options: Namespace) -> None:
    from selftrain.flows.prefect.server import prefect_api
    from selftrain.flows.prefect.serving import Schedule, serve
    from selftrain.ssl_tasks.settings.recipe import load_recipe

    recipes = [load_recipe(config, options.set).config for config in options.config]
    folder = workspace_folder(options.workspace)
    set_environment(folder)
    schedule = Schedule(options.cron, options.interval, options.rrule)
    with prefect_api(folder, services=True):
        serve(folder, recipes, schedule)


def _assist(options: Namespace) -> None:
    from selftrain.flows.rounds.interruption import interruptible
    from selftrain.ssl_tasks.training.parallel.assist import assist

    folder = workspace_folder(options.workspace)
    print(f"assisting trainings in {folder}; Ctrl-C ends", flush=True)
    with interruptible():
        assist(folder, options.device)


VERBS = [add_up, add_serve, add_assist]
