"""Jinja2 templates of pages and of job scripts. The only file that knows Jinja2."""

import base64
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def render_html(folder: Path, name: str, values: Mapping[str, Any]) -> str:
    """Renders a template as HTML, in which every value is escaped.

    Args:
        folder: folder of the template and of the files that it includes.
        name: file name of the template.
        values: names and values in the template; `safe_html` marks a value that is HTML already.

    Raises:
        jinja2.UndefinedError: if the template uses a name that has no value.
    """
    return _environment(folder, is_html=True).get_template(name).render(values)


def render_text(folder: Path, name: str, values: Mapping[str, Any]) -> str:
    """Renders a template as plain text: no value is escaped, so the caller quotes them.

    Args:
        folder: folder of the template and of the files that it includes.
        name: file name of the template.
        values: names and values in the template.

    Raises:
        jinja2.UndefinedError: if the template uses a name that has no value.
    """
    return _environment(folder, is_html=False).get_template(name).render(values)


def safe_html(text: str) -> str:
    """Marks HTML that the program itself has made, so that it is not escaped again."""
    return Markup(text)  # noqa: S704  # only what plotly made of escaped names


@cache
def _environment(folder: Path, *, is_html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=is_html,  # noqa: S701  # shell scripts and YAML are no HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment
