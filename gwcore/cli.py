"""The command line. Each command imports what it needs when it is called."""

from __future__ import annotations

import json
import sys

import click


@click.group(invoke_without_command=True)
@click.version_option(package_name="gwcore")
@click.pass_context
def main(ctx: click.Context) -> None:
    """gwcore: an HTTP gateway. Without a command: a demo on 127.0.0.1:8080."""
    if ctx.invoked_subcommand is None:
        from gwcore import demo

        sys.exit(demo.main())


CONFIG = click.option("-c", "--config", "path", required=True, type=click.Path(dir_okay=False), help="Configuration file (YAML).")


def _load_or_exit(path: str):  # type: ignore[no-untyped-def]
    from gwcore.config.load import ConfigErrors, load_file

    try:
        return load_file(path)
    except ConfigErrors as bad:
        for e in bad.errors:
            click.echo(str(e), err=True)
        sys.exit(2)


@main.command()
@CONFIG
@click.option("--workers", type=click.IntRange(1, 1024), help="Worker processes; overrides the file.")
@click.option("--check-only", is_flag=True, help="Check the file and end.")
def run(path: str, workers: int | None, check_only: bool) -> None:
    """Run the gateway."""
    if check_only:
        _check(path)
        return
    from gwcore.supervisor import run as run_supervisor

    sys.exit(run_supervisor(path, workers))


def _check(path: str) -> None:
    loaded = _load_or_exit(path)
    for w in loaded.warnings:
        click.echo(f"{w} (warning)", err=True)
    from gwcore._speedups import crypto
    from gwcore.config.compile import compile_plan

    own = loaded.config.tls.crypto
    try:
        crypto.use(own.providers, own.path, own.properties, own.engine)
    except ValueError as why:
        click.echo(f"{path}: {why}", err=True)
        sys.exit(2)
    size = len(compile_plan(loaded.config))
    c = loaded.config
    click.echo(
        f"{path}: good: {len(c.listeners)} listeners, {len(c.routes)} routes, {len(c.upstreams)} upstreams, plan of {size} bytes"
    )


@main.command()
@CONFIG
def check(path: str) -> None:
    """Check a configuration: exit 0, or every error as file:line:col and exit 2."""
    _check(path)


@main.command()
@CONFIG
@click.argument("method")
@click.argument("url")
@click.option("-H", "--header", "headers", multiple=True, help="A request field, 'Name: value'; may be given often.")
def explain(path: str, method: str, url: str, headers: tuple[str, ...]) -> None:
    """Which route takes a request, and why the others do not."""
    from gwcore.explain import explain as explain_request

    loaded = _load_or_exit(path)
    try:
        text, found = explain_request(loaded.config, method, url, headers)
    except ValueError as why:
        raise click.UsageError(str(why)) from None
    click.echo(text)
    sys.exit(0 if found else 1)


@main.command()
def schema() -> None:
    """JSON Schema of the configuration."""
    from gwcore.config.schema import Config

    click.echo(json.dumps(Config.model_json_schema(), indent=2))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON.")
def doctor(as_json: bool) -> None:
    """Check this machine: limits, kernel, OpenSSL. Exit 1 on a serious finding."""
    from gwcore.doctor import examine, render

    findings = examine()
    click.echo(json.dumps([f.as_dict() for f in findings], indent=2) if as_json else render(findings))
    sys.exit(1 if any(f.level == "serious" for f in findings) else 0)


@main.command()
@CONFIG
@click.option("--window", type=click.Choice(["5m", "1h", "24h", "30d"]), help="This one only.")
@click.option("--json", "as_json", is_flag=True, help="All figures, as JSON.")
def sla(path: str, window: str | None, as_json: bool) -> None:
    """How a running gateway keeps what its tiers promise."""
    from gwcore.sla import table

    report = json.loads(_ask(path, "/status"))["sla"]
    click.echo(json.dumps(report, indent=2) if as_json else table(report, window or ""))


@main.command()
@CONFIG
@click.option("--route", help="Requests of this route …")
@click.option("--tier", help="… or of this tier …")
@click.option("--upstream", help="… or to this upstream.")
@click.option("--for", "for_", help="For so long: 10m, 2h.")
@click.option("--off", is_flag=True, help="Back to live.")
def degrade(path: str, route: str | None, tier: str | None, upstream: str | None, for_: str | None, off: bool) -> None:
    """Switch requests of a running gateway from live to the rest of their ladder, for a time. Without options: what is switched."""
    from urllib.parse import urlencode

    from gwcore.admin.degrade import describe

    what = {k: v for k, v in (("route", route), ("tier", tier), ("upstream", upstream)) if v}
    if not what and not for_ and not off:
        click.echo(describe(json.loads(_ask(path, "/status"))["degrade"]))
        return
    if len(what) != 1 or bool(for_) == off:
        raise click.UsageError("give one of --route, --tier and --upstream, and --for or --off")
    query = urlencode({**what, **({"state": "off"} if off else {"for": for_})})
    click.echo(describe(json.loads(_ask(path, f"/degrade?{query}", "POST"))["switches"]))


@main.command()
@CONFIG
@click.option("--route", required=True, help="Requests of this route.")
@click.option("--fail", required=True, type=click.Choice(["503", "timeout", "slow"]), help="As if the upstream did this.")
@click.option("--share", default="10%", show_default=True, help="So many of them.")
@click.option("--for", "for_", default="30s", show_default=True, help="For so long; 10m at most.")
@click.option("--delay", help="With --fail slow: so much later they are sent; 1s when not given.")
def drill(path: str, route: str, fail: str, share: str, for_: str, delay: str | None) -> None:
    """Let requests of a route fail in a running gateway, and see what their clients get. Exit 0: what the route's ladder promises, in time."""
    from gwcore.drill import drill as run_drill

    query = {"route": route, "fail": fail, "share": share, "for": for_, **({"delay": delay} if delay else {})}
    sys.exit(run_drill(lambda what, method: _ask(path, what, method), click.echo, query))


@main.group()
def compensation() -> None:
    """Requests that were answered statically and are sent to their upstream later."""


@compensation.command("list")
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")
def list_owed(path: str, as_json: bool) -> None:
    """What waits, and the dead letters."""
    from gwcore.compensation import table

    text = _ask(path, "/compensation")
    click.echo(text if as_json else table(json.loads(text)))


@compensation.command()
@CONFIG
@click.argument("ids", nargs=-1, required=True)
def replay(path: str, ids: tuple[str, ...]) -> None:
    """Send requests now, whatever the level of their upstream; of dead letters a new attempt is made. `all` = all that wait."""
    from urllib.parse import urlencode

    click.echo(_ask(path, "/compensation/replay?" + urlencode([("id", i) for i in ids]), "POST").strip())


@compensation.command()
@CONFIG
@click.argument("ids", nargs=-1, required=True)
def drop(path: str, ids: tuple[str, ...]) -> None:
    """Forget requests that wait, and dead letters. `all` = all of both."""
    from urllib.parse import urlencode

    click.echo(_ask(path, "/compensation/drop?" + urlencode([("id", i) for i in ids]), "POST").strip())


@main.group()
def cache() -> None:
    """Copies of answers in a running gateway."""


def _ask(path: str, what: str, method: str = "GET") -> str:
    """What the admin interface of the gateway of that file says; ends with 1 when it says no, or nothing."""
    from gwcore.admin.client import ask

    admin = _load_or_exit(path).config.admin
    try:
        status, text = ask(admin, what, method)
    except OSError as why:
        click.echo(f"no gateway answers on admin.address {admin.address}: {why}", err=True)
        sys.exit(1)
    if status != 200:
        click.echo(text.strip(), err=True)
        sys.exit(1)
    return text


@cache.command()
@CONFIG
@click.option(
    "--url",
    "urls",
    multiple=True,
    help="Every copy of this address (scheme, host, path and query); may be given often, like the others.",
)
@click.option("--prefix", "prefixes", multiple=True, help="Every copy whose address begins so; an empty one is all of them.")
@click.option("--tag", "tags", multiple=True, help="Every copy with this tag (Surrogate-Key).")
def purge(path: str, urls: tuple[str, ...], prefixes: tuple[str, ...], tags: tuple[str, ...]) -> None:
    """Forget copies, in this machine's store."""
    from urllib.parse import urlencode

    wanted = [("url", u) for u in urls] + [("prefix", p) for p in prefixes] + [("tag", t) for t in tags]
    if not wanted:
        raise click.UsageError("say what to purge: --url, --prefix or --tag")
    n = json.loads(_ask(path, "/cache/purge?" + urlencode(wanted), "POST"))["purged"]
    click.echo(f"{n} {'copy' if n == 1 else 'copies'} purged")


@cache.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="All figures, as JSON.")
def stats(path: str, as_json: bool) -> None:
    """How full the store of copies is, and what became of them."""
    from gwcore.config.units import format_size

    text = _ask(path, "/cache")
    f = json.loads(text)
    if as_json:
        click.echo(text)
    elif not f:
        click.echo("no copies are kept: no route has `cache`")
    else:
        results = f["results"]
        click.echo(f"copies     {f['copies']} in {format_size(f['bytes'])} of {format_size(f['size'])}")
        click.echo(f"stored     {results['stored']}, of them {f['replaced']} in the place of an older one")
        click.echo("not stored " + ", ".join(f"{n} {word}" for word, n in results.items() if word != "stored"))
        click.echo(
            f"gone       {f['evicted'] + f['evicted_small']} evicted, {f['expired']} expired, {f['dropped']} dropped or purged"
        )
