"""The one program: `dreamhub up | serve | work | relay | models | migrate | …`.

Commands import what they need when they run, so that `--help` answers at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pkg.config import Settings

BUNDLE = Path(__file__).resolve().parent / "_bundle"
FAILED, BAD_SETTINGS = 1, 2

app = typer.Typer(
    name="dreamhub",
    help="Reads documents, photos and recordings, and answers over them with citations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tenant = typer.Typer(help="Manage tenants.", no_args_is_help=True)
app.add_typer(tenant, name="tenant")
shadow = typer.Typer(help="Try a new version of the processing beside the current one.", no_args_is_help=True)
app.add_typer(shadow, name="shadow")

SERVICE = "For a deployment"
PEOPLE = "For people"
Url = Annotated[
    str, typer.Option("--url", envvar="DREAMHUB_URL", help="Where the API is; by default the running `up` of --home.")
]
ApiKey = Annotated[str, typer.Option("--api-key", envvar="DREAMHUB_API_KEY", help="The tenant's API key.")]
Tags = Annotated[list[str] | None, typer.Option(help="A tag; may be repeated.")]
HomeFolder = Annotated[
    Path | None, typer.Option("--home", help="Folder for data, secrets and logs. [default: .dreamhub]")
]


def main() -> None:
    """Entry point of the console script and of `python -m dreamhub`."""
    if BUNDLE.is_dir():
        sys.path.insert(0, str(BUNDLE))
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        from pkg.version import version

        print(f"dreamhub {version()}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=PEOPLE)
def up(
    home: HomeFolder = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the API; 0 picks a free one. [default: 8000]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
) -> None:
    """Start everything on this machine, embedded servers included, and keep it running."""
    from dreamhub import up as command

    _guard(lambda: command.run(home=home, port=port, workers=workers))


@app.command(rich_help_panel=SERVICE)
def serve(
    fd: Annotated[
        list[int] | None,
        typer.Option(min=0, help="A listening socket opened by whoever starts this, instead of an address."),
    ] = None,
) -> None:
    """Run the API."""
    from internal import app as composition

    _run("server", lambda settings: composition.serve(settings, descriptors=fd or ()))


@app.command(rich_help_panel=SERVICE)
def work(
    queues: Annotated[
        str, typer.Option(help="Queues separated by commas. [default: all]", show_default=False)
    ] = "high_priority,default,batch,learning",
) -> None:
    """Run a worker."""
    from internal import app as composition

    names = [name.strip() for name in queues.split(",") if name.strip()]
    _run("worker", lambda settings: composition.work(settings, queues=names))


@app.command(rich_help_panel=SERVICE)
def relay() -> None:
    """Run the relay: outbox and dispatcher."""
    from internal import app as composition

    _run("relay", composition.relay)


@app.command(rich_help_panel=SERVICE)
def models() -> None:
    """Run the local models."""
    from internal.models import server

    _run("models", server.run)


@app.command(rich_help_panel=SERVICE)
def migrate() -> None:
    """Bring the database's schema up to date."""
    from internal import app as composition

    _run("migrate", composition.migrate)


@app.command(rich_help_panel=PEOPLE)
def doctor(
    home: HomeFolder = None,
    failpoints: Annotated[
        bool, typer.Option("--failpoints", help="List the places where a test may break a process, and check nothing.")
    ] = False,
) -> None:
    """Check everything that DreamHub depends on, and say what to do."""
    from dreamhub import doctor as command

    _guard(command.list_failpoints if failpoints else lambda: command.run(home=home))


@shadow.command("status")
def shadow_status(home: HomeFolder = None) -> None:
    """Say which version reads, which is tried, and until when one can go back."""
    from dreamhub import shadow as command

    _guard(lambda: command.status(home))


@shadow.command("start")
def shadow_start(
    version: Annotated[str, typer.Argument(help="The version to try.")],
    share: Annotated[float, typer.Option(help="Of the files that are read from now on; above 0, to 1.")] = 0.05,
    home: HomeFolder = None,
) -> None:
    """Have a share of the files read by another version too, where no search sees it."""
    from dreamhub import shadow as command

    _guard(lambda: command.start(version, share, home))


@shadow.command("report")
def shadow_report(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False, home: HomeFolder = None
) -> None:
    """Compare what both versions read: text, passages, vectors and time."""
    from dreamhub import shadow as command

    _guard(lambda: command.report(home, as_json=as_json))


@shadow.command("stop")
def shadow_stop(home: HomeFolder = None) -> None:
    """End a trial and remove what was read for it."""
    from dreamhub import shadow as command

    _guard(lambda: command.stop(home))


@shadow.command("promote")
def shadow_promote(home: HomeFolder = None) -> None:
    """Take over the version that is tried; what the old one read is kept for 24 hours."""
    from dreamhub import shadow as command

    _guard(lambda: command.promote(home))


@shadow.command("rollback")
def shadow_rollback(home: HomeFolder = None) -> None:
    """Go back to the version before, within 24 hours."""
    from dreamhub import shadow as command

    _guard(lambda: command.roll_back(home))


@tenant.command("create")
def tenant_create(
    name: Annotated[str, typer.Argument(help="What the tenant is called.")],
    owner_email: Annotated[str, typer.Option(help="Its owner's e-mail.")],
    url: Url = "",
    home: HomeFolder = None,
) -> None:
    """Make a tenant and print its API key, once."""
    from dreamhub import client_commands

    _guard(lambda: client_commands.tenant_create(name, owner_email, url=url, home=home))


@app.command(rich_help_panel=PEOPLE)
def ingest(
    paths: Annotated[list[Path], typer.Argument(exists=True, help="Files and folders.")],
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and upload what is added or changed.")] = False,
    collection: Annotated[str, typer.Option(help="Put them into this collection.")] = "",
    tag: Tags = None,
    visibility: Annotated[str, typer.Option(help="tenant, or private to you.")] = "tenant",
    url: Url = "",
    api_key: ApiKey = "",
    home: HomeFolder = None,
) -> None:
    """Upload files and folders; what is there already is skipped."""
    from dreamhub import client_commands

    _guard(
        lambda: client_commands.ingest(
            *(paths, watch),
            url=url,
            api_key=api_key,
            home=home,
            collection=collection,
            tags=tag or (),
            visibility=visibility,
        )
    )


@app.command(rich_help_panel=PEOPLE)
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many results.")] = 10,
    mode: Annotated[str, typer.Option(help="hybrid, vector or keyword.")] = "hybrid",
    collection: Annotated[list[str] | None, typer.Option(help="Only in this one; may be repeated.")] = None,
    tag: Tags = None,
    url: Url = "",
    api_key: ApiKey = "",
    home: HomeFolder = None,
) -> None:
    """Search the tenant's documents."""
    from dreamhub import client_commands

    _guard(
        lambda: client_commands.search(
            *(query, k, mode), url=url, api_key=api_key, home=home, collections=collection or (), tags=tag or ()
        )
    )


@app.command(rich_help_panel=PEOPLE)
def chat(
    question: Annotated[str, typer.Argument(help="One question; without it, a conversation.")] = "",
    conversation: Annotated[str, typer.Option(help="Id of a conversation to go on with.")] = "",
    picture: Annotated[list[Path] | None, typer.Option(help="Ask about this one; up to four.")] = None,
    url: Url = "",
    api_key: ApiKey = "",
    home: HomeFolder = None,
) -> None:
    """Talk over the tenant's documents."""
    from dreamhub import client_commands

    _guard(
        lambda: client_commands.chat(
            question, conversation, pictures=picture or (), url=url, api_key=api_key, home=home
        )
    )


def _run(process: str, command: "Callable[[Settings], None]") -> None:
    """Runs one role of a deployment on the settings of the environment."""
    from pkg import config

    _guard(lambda: command(config.load(process=process)))


def _guard(command: Callable[[], int | None]) -> None:
    """Turns errors that a person can mend into one line each on standard error, and an exit code."""
    from dreamhub.errors import StartError
    from pkg.apperr import AppError, SettingsError

    try:
        code = command() or 0
    except (SettingsError, StartError, AppError, BaseExceptionGroup) as raised:
        error = _first(raised)
        if not isinstance(error, SettingsError | StartError | AppError):
            raise
        code = BAD_SETTINGS if isinstance(error, SettingsError) else FAILED
        for line in (error.detail if isinstance(error, AppError) else str(error)).splitlines():
            print(f"dreamhub: {line}", file=sys.stderr)
    raise typer.Exit(code)


def _first(error: BaseException) -> BaseException:
    """Tasks that fail together mostly fail of the first one's reason."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
