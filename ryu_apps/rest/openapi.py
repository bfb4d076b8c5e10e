"""The OpenAPI 3.1 document of the northbound API, made from the routes and the wire messages, so that it cannot lag."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from policies.wire import Problem
from ryu_apps.rest.problems import PROBLEM_TYPE

if TYPE_CHECKING:
    from ryu_apps.rest.api import Route

_REF = "#/components/schemas/{model}"


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The document as plain data."""
    models: list[type[BaseModel]] = [Problem]
    for route in routes:
        models += [model for model in (route.request, *route.responses.values()) if model is not None]
    wanted = [(model, "validation") for model in dict.fromkeys(models)]
    references, schemas = models_json_schema(wanted, ref_template=_REF)  # type: ignore[arg-type]

    def content(model: type[BaseModel], kind: str = "application/json") -> dict[str, Any]:
        return {kind: {"schema": references[model, "validation"]}}

    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation: dict[str, Any] = {
            "operationId": route.handler,
            "summary": route.summary,
            "description": f"For: {', '.join(sorted(role.value for role in route.roles))}.",
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in re.findall(r"\{(\w+)\}", route.path)
            ]
            + [{"name": name, "in": "query", "schema": {"type": "string"}} for name in route.query],
            "responses": {
                str(status): {"description": "done", "content": content(model)}
                if model is not None
                else {"description": "as the caller has it already (If-None-Match)"}
                if status == 304
                else {"description": "done", "content": {route.kind: {"schema": {"type": "string"}}}}
                for status, model in route.responses.items()
            }
            | {"default": {"description": "not done", "content": content(Problem, PROBLEM_TYPE)}},
        }
        if route.request is not None:
            operation["requestBody"] = {"required": True, "content": content(route.request)}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Lark controller", "version": "1"},
        "paths": paths,
        "security": [{"bearer": []}],
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
