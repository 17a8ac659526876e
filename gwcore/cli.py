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
