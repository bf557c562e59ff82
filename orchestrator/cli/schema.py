"""`orchestrator schema workflow|matrix|family`: JSON Schema for editors."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli.console import Console, json_option, pass_console

__all__ = ["command"]


@click.command("schema")
@click.argument("kind", type=click.Choice(["workflow", "matrix", "family"]))
@json_option  # it is JSON anyway
@pass_console
def command(console: Console, kind: str) -> None:
    """Print the JSON Schema (draft 7) of a workflow file, a matrix file or a family's pyproject.toml.

    \b
      orchestrator schema workflow > workflow.schema.json
    and as the first line of a workflow beside it:
      # yaml-language-server: $schema=./workflow.schema.json
    """
    if kind == "workflow":
        from orchestrator.workflow.schema import workflow_schema

        console.json(workflow_schema())
    elif kind == "matrix":
        from orchestrator.matrix import matrix_schema

        console.json(matrix_schema())
    else:
        console.json(_family_schema())


def _family_schema() -> dict[str, Any]:
    import msgspec

    from orchestrator.environments.family import OrchestratorTable, ProjectTable, UvTable

    references, definitions = msgspec.json.schema_components(
        [ProjectTable, UvTable, OrchestratorTable], ref_template="#/definitions/{name}"
    )
    project, uv, ours = references
    tool = {"type": "object", "properties": {"uv": uv, "orchestrator": ours}, "required": ["orchestrator"]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "compat-orchestrator family: envs/<name>/pyproject.toml",
        "type": "object",
        "properties": {"project": project, "tool": tool},
        "required": ["project", "tool"],
        "definitions": definitions,
    }
