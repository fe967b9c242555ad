"""The command that says what every setting takes and means: settings."""

import shutil
from typing import Annotated

import typer

from dass.errors import InputError
from flows.cli.app import app
from flows.cli.completion import settings_sections
from flows.cli.options import JsonOption
from flows.cli.output import print_json


@app.command()
def settings(
    section: Annotated[
        str | None,
        typer.Argument(
            metavar="SECTION",
            autocompletion=settings_sections,
            help="A section, a key such as prune.sparsity, or recipes.",
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of params.yaml, by which editors complete it.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/settings.md.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell every setting of params.yaml with its type, range, default and meaning; and the recipes.

        dass settings prune
        dass settings prune.sparsity
        dass settings recipes
        dass settings --schema > params.schema.json

    With "# yaml-language-server: $schema=params.schema.json" as its first line, editors complete params.yaml.
    """
    from tasks.workspace import reference
    from tasks.workspace.recipes import RECIPES

    if (schema or markdown) and (section is not None or as_json or (schema and markdown)):
        raise InputError("--schema and --markdown print the whole: give one of them, and nothing else.")
    if schema:
        print_json(reference.schema())
        return
    if markdown:
        print(reference.in_markdown(), end="")
        return
    found = [] if section == reference.RECIPE_GROUP else reference.groups(section)
    recipes = RECIPES if section in (None, reference.RECIPE_GROUP) else {}
    if as_json:
        print_json({"sections": [group.as_json() for group in found], "recipes": recipes})
        return
    width = min(shutil.get_terminal_size().columns, 100)
    for line in reference.in_text(found, width):
        print(line)
    for line in reference.recipes_in_text(width) if recipes else ():
        print(line)
