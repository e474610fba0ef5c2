"""A salvage's findings as sentences; `Finding.json` has the same for programs."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kyogo_broker.journal.inspect import Finding

RANGES_SHOWN = 10


def shown(finding: Finding) -> Iterator[str]:
    """The lines for a terminal: names from users are quoted where they could break one."""
    fields = finding.fields
    match finding.what:
        case "directory":
            yield f"from     {fields['path']}, written by Kyogo {fields['written_by'] or '(it does not say)'}"
        case "damage":
            yield f"damage   {_place(fields)}: {fields['error']}"
        case "gap":
            yield f"         lost with it: {_count(fields['last'] - fields['first'] + 1, 'record')}, {_range(fields)}"
        case "torn":
            yield f"torn     {_place(fields)}: {fields['error']}: a crash leaves that behind, and it was never answered"
        case "queue":
            yield from _queue(fields)
        case "total":
            yield from _total(fields)


def _queue(fields: Mapping[str, Any]) -> Iterator[str]:
    yield f"queue    {_name(fields['name'])}: {_count(fields['copied'], 'message')} copied"
    if fields["lost"]:
        unless = "" if fields["checkpoint_known"] else ", unless finished before: no checkpoint of this queue is whole"
        yield f"  lost      {_count(fields['lost'], 'message')}{unless}: offsets {_ranges(fields['lost_offsets'])}"
    if fields["in_doubt"]:
        yield f"  in doubt  {_count(fields['in_doubt'], 'message')}: offsets {_ranges(fields['in_doubt_offsets'])}"
    if fields["skipped_offsets"]:
        yield f"  left out  offsets {_ranges([fields['skipped_offsets']])}: lost messages may have had them"


def _total(fields: Mapping[str, Any]) -> Iterator[str]:
    lost = f"{fields['lost']:,} lost" if fields["lost"] else "none known to be lost"
    yield f"copied   {_count(fields['copied'], 'message')} of {_count(fields['queues'], 'queue')}, {lost}"
    if fields["in_doubt"]:
        yield "in doubt means: it is copied, and what may have finished it stood in damage. It may come again."
    yield f"Start it with: broker serve --data {fields['path']}"


def _place(fields: Mapping[str, Any]) -> str:
    if "file" not in fields:
        return f"records {fields['records'][0]:,} to {fields['records'][1]:,}"
    if "byte" not in fields:
        return str(fields["file"])
    until = fields.get("until", fields["byte"])
    return f"{fields['file']}, byte {fields['byte']}" + (f" to {until}" if until > fields["byte"] else "")


def _range(fields: Mapping[str, Any]) -> str:
    first, last = fields["first"], fields["last"]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _ranges(ranges: list[list[int]]) -> str:
    told = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in ranges[:RANGES_SHOWN]]
    more = len(ranges) - RANGES_SHOWN
    return ", ".join(told) + (f", and {more} more ranges (--json has them all)" if more > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _name(name: str) -> str:
    return name if name.isprintable() and name.isascii() else json.dumps(name)
