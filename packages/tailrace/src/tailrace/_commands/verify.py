"""`tailrace verify`."""

from __future__ import annotations

from contextlib import aclosing

import click

from tailrace._exit_codes import ExitCode
from tailrace._messages import printable, say
from tailrace._running import run_async
from tailrace._settings import Settings, load_settings
from tailrace._status_report import json_line


@click.command(short_help="Re-read stored resources against their digests.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--data", metavar="DIR", help="Folder of the resources; ./tailrace-data by default.")
@click.option("--config", metavar="FILE", help="Settings file; TAILRACE_CONFIG or ./tailrace.toml by default.")
@click.option("--repair", is_flag=True, help="Make good what the rest proves.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object in a line.")
def verify(ids: tuple[str, ...], data: str | None, config: str | None, repair: bool, as_json: bool) -> int:
    """Re-read resources against their digests, and print what is damaged: all resources, or those with an ID.

    It works on the folder of a server that is stopped. The exit code is 4 if there was damage, repaired or not.

    With --repair, damaged records and states are written anew where the bytes prove them, an unfinished resource with
    damaged bytes ends FAILED, and the catalog follows what is stored. Damaged bytes stay as they are.
    """
    settings = load_settings({"serve": {"data": data}}, config=config)
    return run_async(_verify(settings, ids, repair, as_json))


async def _verify(settings: Settings, ids: tuple[str, ...], repair: bool, as_json: bool) -> ExitCode:
    from tailrace._serving import verify_resources

    resources = 0
    damaged = set()
    async with aclosing(verify_resources(settings, ids, repair=repair)) as found:
        async for resource, damage in found:
            if damage is None:
                resources += 1
                continue
            damaged.add(resource)
            if as_json:
                fields = {"offset": damage.offset, "problem": damage.problem, "repaired": damage.repaired}
                say(json_line({"event": "damage", "id": resource, **fields}))
            else:
                place = "journal" if damage.offset is None else f"block at {damage.offset}"
                say(f"{resource}: {place}: {printable(damage.problem)}{' (repaired)' if damage.repaired else ''}")
    if as_json:
        say(json_line({"event": "verified", "resources": resources, "damaged": len(damaged)}))
    else:
        say(f"{resources} resources verified, {len(damaged)} damaged")
    return ExitCode.INTEGRITY if damaged else ExitCode.SUCCESS
