"""The `heliograph` command."""

import typer

from cli import data, demo, doctor, generated, keys, replay, services, tail, up

app = typer.Typer(
    name="heliograph",
    help="Self-hosted LLM observability gateway: change a base_url, and every call becomes a true row.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EVERYDAY, _SERVICES, _UPKEEP = "Every day", "One service alone", "Upkeep"

app.command(rich_help_panel=_EVERYDAY)(up.up)
app.command(rich_help_panel=_EVERYDAY)(demo.demo)
app.command(rich_help_panel=_EVERYDAY)(tail.tail)
app.command(rich_help_panel=_EVERYDAY)(doctor.doctor)
app.add_typer(keys.keys_app, name="keys", rich_help_panel=_EVERYDAY)
app.add_typer(keys.projects_app, name="projects", rich_help_panel=_EVERYDAY)

app.command(rich_help_panel=_SERVICES)(services.edge)
app.command(rich_help_panel=_SERVICES)(services.ship)
app.add_typer(services.plan_app, name="plan", rich_help_panel=_SERVICES)
app.command(rich_help_panel=_SERVICES)(services.worker)
app.command(rich_help_panel=_SERVICES)(services.control)
app.command(rich_help_panel=_SERVICES)(services.metrics)

app.command(rich_help_panel=_UPKEEP)(data.migrate)
app.add_typer(replay.replay_app, name="replay", rich_help_panel=_UPKEEP)
app.command(rich_help_panel=_UPKEEP)(data.reset)
app.command(hidden=True)(generated.generated)
