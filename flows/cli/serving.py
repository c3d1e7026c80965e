"""Defines the verbs that serve and wait (up, serve, assist) or set up a team's Prefect server (deploy, init-server)."""

import json
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from selftrain.flows.cli.running import add_recipe
from selftrain.flows.cli.verb import SET, Verbs
from selftrain.flows.environment import set_environment, workspace_folder

if TYPE_CHECKING:
    from selftrain.flows.prefect.serving import Schedule


def add_up(verbs: Verbs) -> None:
    verb = verbs.add(
        "up",
        _up,
        "Start the web pages of Prefect and MLflow, and run recipes on a schedule.",
        ('up quickstart --cron "0 2 * * *" --timezone Europe/Berlin', "run a recipe each night at two"),
        ("up", "only look at the runs of the workspace"),
        exit_codes="2 invalid input · 3 failed · 130 stopped by Ctrl-C or SIGTERM",
    )
    words = "recipes to run on the schedule, or on demand from Prefect's page (default: none)"
    verb.add_argument("config", metavar="CONFIG", nargs="*", help=words)
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C", help=SET)
    add_schedule(verb)
    words = "port of Prefect; a free one is taken where it is in use (default: 4200)"
    verb.add_argument("--port", type=int, default=4200, metavar="N", help=words)
    words = "port of MLflow; a free one is taken where it is in use (default: 5000)"
    verb.add_argument("--mlflow-port", type=int, default=5000, metavar="N", help=words)


def add_serve(verbs: Verbs) -> None:
    verb = verbs.add(
        "serve",
        _serve,
        "Run recipes on a schedule on this machine, for the server at PREFECT_API_URL.",
        ("serve selftrain.yaml --interval 86400", "run a recipe once a day"),
        ("serve selftrain.yaml", "run it when Prefect's page or API asks for it"),
        exit_codes="2 invalid input · 3 failed · 130 stopped by Ctrl-C or SIGTERM",
    )
    verb.add_argument("config", metavar="CONFIG", nargs="+", help="recipes to run")
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C", help=SET)
    add_schedule(verb)


def add_assist(verbs: Verbs) -> None:
    verb = verbs.add(
        "assist",
        _assist,
        "Help this host join the training of runs that use several hosts (runtime.nodes).",
        ("assist --workspace /shared/selftrain", "on each helping host, with the workspace that all hosts share"),
        ("assist --device cuda", "train on this host's GPUs"),
        exit_codes="2 invalid input · 3 failed · 130 stopped by Ctrl-C or SIGTERM",
    )
    words = "where to compute: auto, cpu or cuda (default: auto, a GPU if there is one)"
    verb.add_argument("--device", default="auto", metavar="DEVICE", help=words)


def add_schedule(verb: ArgumentParser) -> None:
    """Adds the options that say when a recipe runs."""
    when = verb.add_mutually_exclusive_group()
    words = 'minute, hour, day, month and weekday: "0 2 * * *" is two o\'clock each night (default: on demand)'
    when.add_argument("--cron", metavar="CRON", help=words)
    words = "run every so many seconds: 86400 is once a day (default: on demand)"
    when.add_argument("--interval", type=float, metavar="SECONDS", help=words)
    words = "an iCalendar rule, such as FREQ=DAILY;BYHOUR=2 (default: on demand)"
    when.add_argument("--rrule", metavar="RULE", help=words)
    words = "time zone of the schedule, such as Europe/Berlin (default: UTC)"
    verb.add_argument("--timezone", metavar="ZONE", help=words)


def schedule_of(options: Namespace) -> "Schedule":
    """Returns the schedule of the options; raises ConfigError if one of them is invalid."""
    from selftrain.flows.prefect.serving import Schedule

    return Schedule(options.cron, options.interval, options.rrule, options.timezone)


def _up(options: Namespace) -> None:
    from selftrain.flows.prefect.serving import up
    from selftrain.ssl_tasks.settings.recipe import load_recipe

    recipes = [load_recipe(config, options.set).config for config in options.config]
    folder = workspace_folder(options.workspace)
    set_environment(folder)
    up(folder, recipes, schedule_of(options), options.port, options.mlflow_port)


def _serve(options: Namespace) -> None:
    from selftrain.flows.prefect.server import prefect_api
    from selftrain.flows.prefect.serving import serve
    from selftrain.ssl_tasks.settings.recipe import load_recipe

    recipes = [load_recipe(config, options.set).config for config in options.config]
    folder = workspace_folder(options.workspace)
    set_environment(folder)
    schedule = schedule_of(options)
    with prefect_api(folder, services=True):
        serve(folder, recipes, schedule)


def _assist(options: Namespace) -> None:
    from selftrain.flows.rounds.interruption import interruptible
    from selftrain.ssl_tasks.training.launch import assist

    folder = workspace_folder(options.workspace)
    print(f"waiting for trainings to join in {folder}; press Ctrl-C to stop", flush=True)
    with interruptible():
        assist(folder, options.device)


def add_deploy(verbs: Verbs) -> None:
    verb = verbs.add(
        "deploy",
        _deploy,
        "Deploy a recipe to a Prefect server, whose workers run it on a schedule or on demand.",
        ('deploy selftrain.yaml --pool gpu --cron "0 2 * * *"', "each night at two (UTC), on the workers of a pool"),
        ("deploy selftrain.yaml --now", "on demand, and once at once"),
    )
    add_recipe(verb)
    verb.add_argument("--name", help="name of the deployment (default: the recipe's name)")
    words = "work pool whose workers run it; created if it does not exist (default: cpu)"
    verb.add_argument("--pool", default="cpu", metavar="NAME", help=words)
    verb.add_argument("--now", action="store_true", help="also start one run immediately")
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_schedule(verb)


def add_init_server(verbs: Verbs) -> None:
    verb = verbs.add(
        "init-server",
        _init_server,
        "Set up a Prefect server: work pools, GPU limit, automations; safe to repeat.",
        ("init-server --pool cpu --pool gpu --gpus 4", "two work pools, and at most four GPU stages at a time"),
        ("init-server --notify https://chat.example/hook", "tell a webhook of failed runs and new champions"),
    )
    words = "work pool to create; can be repeated (default: cpu)"
    verb.add_argument("--pool", action="append", metavar="NAME", help=words)
    words = "number of GPUs of all workers together (default: 1)"
    verb.add_argument("--gpus", type=int, default=1, metavar="N", help=words)
    words = "webhook that is told of failed runs and new champions (default: none)"
    verb.add_argument("--notify", metavar="URL", help=words)


def _deploy(options: Namespace) -> None:
    from selftrain.ssl_tasks.settings.recipe import load_recipe

    config = load_recipe(options.config, options.set).config
    set_environment(workspace_folder(options.workspace))
    from selftrain.flows.prefect.serving import deploy

    schedule = schedule_of(options)
    workspace = workspace_folder(options.workspace) if options.workspace else None
    deployed = deploy(config, options.name or config.name, options.pool, schedule, workspace, options.now)
    if options.json:
        print(json.dumps({"deployment": deployed.name, "id": deployed.id, "flow_run": deployed.flow_run or None}))
        return
    print(f"deployed  {deployed.name}  {schedule}, on pool {options.pool}")
    if deployed.flow_run:
        print(f"flow run  {deployed.flow_run}")
    print(f"start it  prefect deployment run '{deployed.name}'")


def _init_server(options: Namespace) -> None:
    set_environment(workspace_folder(options.workspace))
    from selftrain.flows.prefect.server import init_server
    from selftrain.flows.prefect.serving import require_server

    require_server()
    for line in init_server(options.pool or ["cpu"], options.gpus, options.notify):
        print(line)
