"""Verbs that serve and wait (up, serve, assist) or set up a team's Prefect server (deploy, init-server)."""

import json
from argparse import ArgumentParser, Namespace

from selftrain.flows.cli.running import add_recipe
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
    from selftrain.flows.prefect.local_api import prefect_api
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
    from selftrain.ssl_tasks.training.launch import assist

    folder = workspace_folder(options.workspace)
    print(f"assisting trainings in {folder}; Ctrl-C ends", flush=True)
    with interruptible():
        assist(folder, options.device)


def add_deploy(verbs: Verbs) -> None:
    verb = verbs.add(
        "deploy", _deploy, "let the workers of a Prefect server run a recipe, by a schedule or from its UI"
    )
    add_recipe(verb)
    verb.add_argument("--name", help="of the deployment; default the recipe's name")
    verb.add_argument("--pool", default="cpu", help="the work pool, created where it is missing; default cpu")
    verb.add_argument("--now", action="store_true", help="also ask for one run at once")
    verb.add_argument("--json", action="store_true")
    add_schedule(verb)


def add_init_server(verbs: Verbs) -> None:
    verb = verbs.add("init-server", _init_server, "set a Prefect server up: pools, GPU limit, automations; idempotent")
    verb.add_argument("--pool", action="append", metavar="NAME", help="a work pool; may be given often; default cpu")
    verb.add_argument("--gpus", type=int, default=1, help="GPUs of all workers together; default 1")
    verb.add_argument("--notify", metavar="URL", help="a webhook that is told of failed runs and new champions")


def _deploy(options: Namespace) -> None:
    from selftrain.ssl_tasks.settings.recipe import load_recipe

    config = load_recipe(options.config, options.set).config
    set_environment(workspace_folder(options.workspace))
    from selftrain.flows.prefect.deployments import deploy
    from selftrain.flows.prefect.serving import Schedule

    schedule = Schedule(options.cron, options.interval, options.rrule)
    workspace = workspace_folder(options.workspace) if options.workspace else None
    deployed = deploy(config, options.name or config.name, options.pool, schedule, workspace, options.now)
    if options.json:
        print(json.dumps({"deployment": deployed.name, "id": deployed.id, "flow_run": deployed.flow_run or None}))
        return
    print(f"deployed  {deployed.name}  {schedule.as_options() or 'on demand'}, on pool {options.pool}")
    if deployed.flow_run:
        print(f"flow run  {deployed.flow_run}")
    print(f"start it  prefect deployment run '{deployed.name}'")


def _init_server(options: Namespace) -> None:
    set_environment(workspace_folder(options.workspace))
    from selftrain.flows.prefect.deployments import require_server
    from selftrain.flows.prefect.server_setup import init_server

    require_server()
    for line in init_server(options.pool or ["cpu"], options.gpus, options.notify):
        print(line)


VERBS = [add_up, add_serve, add_deploy, add_init_server, add_assist]
